//! What the daemon logs.

use super::extract::ChangeWith;
use super::problem::ApiError;
use crate::app::App;
use crate::failure::Failure;
use crate::logging;
use axum::Json;
use backstay_api::{LogLevel, Problem, ProblemCode};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(show, set))
}

fn now() -> Result<Json<LogLevel>, ApiError> {
    let level = logging::level().ok_or_else(|| {
        Failure::new(ProblemCode::Unavailable, "the log of this process was set up by somebody else")
    })?;
    Ok(Json(LogLevel { level }))
}

/// What the daemon logs
#[utoipa::path(get, path = "/host/log-level", tag = "host", operation_id = "show_log_level",
    responses((status = 200, description = "The level", body = LogLevel),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn show() -> Result<Json<LogLevel>, ApiError> {
    now()
}

/// Change what the daemon logs
///
/// Until it is started again; the settings file says what it logs then.
#[utoipa::path(put, path = "/host/log-level", tag = "host", operation_id = "set_log_level", request_body = LogLevel,
    responses((status = 200, description = "The level now", body = LogLevel),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn set(ChangeWith(call, wanted): ChangeWith<LogLevel>) -> Result<Json<LogLevel>, ApiError> {
    logging::set_level(&wanted.level).map_err(|error| Failure::invalid(crate::failure::chain(&error)))?;
    tracing::info!(filter = wanted.level, who = call.caller.who, "the log level was changed");
    now()
}
