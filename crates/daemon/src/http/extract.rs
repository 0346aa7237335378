//! What handlers take from a request; whatever cannot be read is a problem that says why.

use super::problem::ApiError;
use crate::app::{Accepted, Call};
use crate::tasks::Caller;
use axum::Json;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequest, FromRequestParts, OriginalUri, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use backstay_api::API_PREFIX;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;

/// Longest accepted `Idempotency-Key`.
const MAX_KEY_LEN: usize = 200;

/// The user at the other end of the socket.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    name: String,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let name = match stream.io().peer_cred() {
            Ok(credentials) => crate::host::user_name(credentials.uid()),
            Err(_) => "unknown".into(),
        };
        Self { name }
    }
}

/// A path segment.
pub(super) struct Segment<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segment<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// Query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// How a call that changes something was made, without its body.
pub(super) struct Change(pub(super) Call);

impl<S: Send + Sync> FromRequestParts<S> for Change {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        call_of(parts, state, "").await.map(Self)
    }
}

/// How a call that changes something was made, with its JSON body. An empty body is an empty object.
pub(super) struct ChangeWith<T>(pub(super) Call, pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ChangeWith<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20)
            .await
            .map_err(|_| ApiError::invalid("the body cannot be read: it may have 1 MiB at most"))?;
        let text = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        let call = call_of(&mut parts, state, &String::from_utf8_lossy(text)).await?;
        let value = serde_json::from_slice(text)
            .map_err(|error| ApiError::invalid(format!("the body is not what is expected here: {error}")))?;
        Ok(Self(call, value))
    }
}

async fn call_of<S: Send + Sync>(parts: &mut Parts, state: &S, body: &str) -> Result<Call, ApiError> {
    let Params(query) = Params::<backstay_api::MutateQuery>::from_request_parts(parts, state).await?;
    let who = ConnectInfo::<Peer>::from_request_parts(parts, state)
        .await
        .map_or_else(|_| "unknown".into(), |ConnectInfo(peer)| peer.name);
    let uri =
        OriginalUri::from_request_parts(parts, state).await.map(|u| u.0.to_string()).unwrap_or_default();
    let key = idempotency_key(&parts.headers)?;
    let idempotency = key.map(|key| (key, format!("{} {uri} {body}", parts.method)));
    Ok(Call { caller: Caller { who, idempotency }, dry_run: query.dry_run })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY_LEN).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::invalid(format!(
            "Idempotency-Key has 1 to {MAX_KEY_LEN} printable ASCII characters"
        ))),
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        match self {
            Self::Plan(plan) => Json(plan).into_response(),
            Self::Task(task) => {
                let location = format!("{API_PREFIX}/tasks/{}", task.id);
                (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(task)).into_response()
            }
        }
    }
}
