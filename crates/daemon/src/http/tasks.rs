//! Tasks.

use super::extract::{Params, Segment};
use super::problem::ApiError;
use crate::app::App;
use axum::Json;
use axum::extract::State;
use backstay_api::{Problem, Task, TaskList, TaskQuery, TaskWaitQuery};
use backstay_model::TaskId;
use std::sync::Arc;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(wait))
        .routes(routes!(cancel))
}

fn id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(format!("{error}")))
}

/// List tasks
#[utoipa::path(get, path = "/tasks", tag = "tasks", operation_id = "list_tasks", params(TaskQuery),
    responses((status = 200, description = "Newest first", body = TaskList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn list(State(app): Shared, Params(query): Params<TaskQuery>) -> Result<Json<TaskList>, ApiError> {
    let vm = query.vm.as_deref().map(|vm| app.vm_in_history(vm)).transpose()?;
    let limit = query.limit.unwrap_or(100).clamp(1, 1000);
    Ok(Json(TaskList { items: app.tasks.list(vm, query.active, limit).await? }))
}

/// Show a task
#[utoipa::path(get, path = "/tasks/{task}", tag = "tasks", operation_id = "show_task",
    params(("task" = String, Path, description = "GUID")),
    responses((status = 200, description = "The task", body = Task),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn show(State(app): Shared, Segment(task): Segment<String>) -> Result<Json<Task>, ApiError> {
    Ok(Json(app.tasks.get(id(&task)?).await?))
}

/// Wait for a task's next change
///
/// Answers as soon as the task's revision is above `after`, or it has ended, or after `timeout_s` seconds.
#[utoipa::path(get, path = "/tasks/{task}/wait", tag = "tasks", operation_id = "wait_task",
    params(("task" = String, Path, description = "GUID"), TaskWaitQuery),
    responses((status = 200, description = "The task", body = Task),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn wait(
    State(app): Shared,
    Segment(task): Segment<String>,
    Params(query): Params<TaskWaitQuery>,
) -> Result<Json<Task>, ApiError> {
    let patience = Duration::from_secs(query.timeout_s.unwrap_or(20).clamp(1, 60).into());
    Ok(Json(app.tasks.wait(id(&task)?, query.after, patience).await?))
}

/// Ask a task to stop
#[utoipa::path(post, path = "/tasks/{task}/cancel", tag = "tasks", operation_id = "cancel_task",
    params(("task" = String, Path, description = "GUID")),
    responses((status = 200, description = "The task", body = Task),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn cancel(State(app): Shared, Segment(task): Segment<String>) -> Result<Json<Task>, ApiError> {
    Ok(Json(app.tasks.cancel(id(&task)?).await?))
}
