//! Requests and answers.

use super::{CallOptions, Client, ClientError, Outcome};
use crate::{API_PREFIX, Plan, Problem, ProblemCode, Task};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::error::Error as _;

/// One call under construction.
pub(super) struct Call<'a> {
    client: &'a Client,
    method: Method,
    url: Url,
}

impl Client {
    /// A call of `method` on the path made of `segments`; each is escaped.
    pub(super) fn call(&self, method: Method, segments: &[&str]) -> Call<'_> {
        // The host is never looked up: the connection goes to the socket.
        let mut url = Url::parse("http://backstay").unwrap_or_else(|_| unreachable!("a constant address"));
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(API_PREFIX.split('/').filter(|s| !s.is_empty())).extend(segments);
        }
        Call { client: self, method, url }
    }
}

impl Call<'_> {
    /// Adds `value` as query parameters; absent values are left out.
    pub(super) fn query(mut self, value: &impl Serialize) -> Self {
        if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(value) {
            let mut pairs = self.url.query_pairs_mut();
            for (key, value) in fields {
                match value {
                    serde_json::Value::Null => {}
                    serde_json::Value::String(text) => {
                        pairs.append_pair(&key, &text);
                    }
                    other => {
                        pairs.append_pair(&key, &other.to_string());
                    }
                }
            }
        }
        self
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }

    fn builder(&self) -> RequestBuilder {
        self.client.http.request(self.method.clone(), self.url.clone())
    }

    /// Sends; a problem answer is an error.
    pub(super) async fn send(&self, builder: RequestBuilder) -> Result<Response, ClientError> {
        let response = builder.send().await.map_err(|source| self.failed(source))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|source| self.failed(source))?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(_) => Err(ClientError::Unexpected {
                call: self.name(),
                what: format!("status {status} and {} bytes that are no problem document", bytes.len()),
            }),
        }
    }

    /// Sends without a body and hands out the response itself.
    pub(super) async fn raw(
        &self,
        prepare: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, ClientError> {
        self.send(prepare(self.builder())).await
    }

    /// Sends without a body and reads the JSON answer.
    pub(super) async fn get<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let response = self.send(self.builder()).await?;
        response.json().await.map_err(|source| self.failed(source))
    }

    /// Sends a body and reads the JSON answer.
    pub(super) async fn send_json<T: DeserializeOwned>(
        self,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response = self.send(self.builder().json(body)).await?;
        response.json().await.map_err(|source| self.failed(source))
    }

    /// Sends a call that changes something.
    pub(super) async fn change(
        mut self,
        body: Option<&impl Serialize>,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        if options.dry_run {
            self.url.query_pairs_mut().append_pair("dry_run", "true");
        }
        let mut builder = self.builder();
        if let Some(body) = body {
            builder = builder.json(body);
        }
        if let Some(key) = &options.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        let response = self.send(builder).await?;
        if response.status() == StatusCode::ACCEPTED {
            let task: Task = response.json().await.map_err(|source| self.failed(source))?;
            Ok(Outcome::Task(Box::new(task)))
        } else {
            let plan: Plan = response.json().await.map_err(|source| self.failed(source))?;
            Ok(Outcome::Plan(plan))
        }
    }

    /// Tells "nobody there" and "not allowed" from everything else.
    pub(super) fn failed(&self, source: reqwest::Error) -> ClientError {
        let socket = self.client.socket.clone();
        let mut cause = source.source();
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::PermissionDenied
            {
                return ClientError::Denied { socket };
            }
            cause = error.source();
        }
        if source.is_connect() {
            return ClientError::NotRunning { socket, source };
        }
        if source.is_timeout() {
            return ClientError::Problem(Problem::new(
                ProblemCode::Timeout,
                format!("{} did not answer in time: it may still be at work", self.name()),
            ));
        }
        ClientError::Transport { call: self.name(), source }
    }
}
