//! Failures as RFC 9457 answers.

use crate::failure::Failure;
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstay_api::{PROBLEM_MEDIA_TYPE, Problem, ProblemCode};

/// A failed call.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) Problem);

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self(failure.to_problem())
    }
}

impl ApiError {
    /// The request cannot be understood.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self(Problem::new(ProblemCode::Invalid, detail))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], Json(self.0)).into_response()
    }
}
