//! What codes mean.

use super::extract::Segment;
use super::problem::ApiError;
use crate::app::App;
use axum::Json;
use backstay_api::explain::{self, Explanation};
use backstay_api::{Problem, ProblemCode};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// List everything that can be explained
#[utoipa::path(get, path = "/explain", tag = "explain", operation_id = "list_explanations",
    responses((status = 200, description = "By group", body = Vec<Explanation>)))]
async fn list() -> Json<Vec<Explanation>> {
    Json(explain::all())
}

/// Explain a code
///
/// A problem's code, an event's type, a rule of `disk check`, or an error code of Windows in any of its forms.
#[utoipa::path(get, path = "/explain/{code}", tag = "explain", operation_id = "explain",
    params(("code" = String, Path, description = "`busy`, `vm.state`, `0x80070057`, `-2147024809` …")),
    responses((status = 200, description = "What it means; several when the word has several meanings", body = Vec<Explanation>),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn show(Segment(code): Segment<String>) -> Result<Json<Vec<Explanation>>, ApiError> {
    let found = explain::explain(&code);
    if found.is_empty() {
        return Err(ApiError(Problem::new(ProblemCode::NotFound, explain::unknown(&code))));
    }
    Ok(Json(found))
}
