//! Checkpoints of a machine.

use super::extract::{ChangeWith, Segment};
use super::problem::ApiError;
use crate::app::{self, Accepted, App, views};
use crate::inventory::blocking;
use axum::Json;
use axum::extract::State;
use backstay_api::{CheckpointApply, CheckpointCreate, CheckpointList, MutateQuery, Plan, Problem, Task};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;
type Answer = Result<Accepted, ApiError>;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(apply)).routes(routes!(revert))
}

/// List a machine's checkpoints
#[utoipa::path(get, path = "/vms/{vm}/checkpoints", tag = "checkpoints", operation_id = "list_checkpoints",
    params(("vm" = String, Path, description = "GUID or name")),
    responses((status = 200, description = "The checkpoints and their tree", body = CheckpointList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn list(State(app): Shared, Segment(vm): Segment<String>) -> Result<Json<CheckpointList>, ApiError> {
    let machine = app.inventory.find(&vm)?;
    Ok(Json(blocking(move || Ok(views::checkpoints(&machine))).await?))
}

/// Take a checkpoint
///
/// The task's result is a `CheckpointResult`: the pause, the total, the method and why it was used.
#[utoipa::path(post, path = "/vms/{vm}/checkpoints", tag = "checkpoints", operation_id = "create_checkpoint",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = CheckpointCreate,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn create(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<CheckpointCreate>,
) -> Answer {
    Ok(app
        .once(call, |app, call| async move { app::create_checkpoint(&app, &vm, body, &call).await })
        .await?)
}

/// Go to a checkpoint
#[utoipa::path(post, path = "/vms/{vm}/checkpoints/{checkpoint}/apply", tag = "checkpoints",
    operation_id = "apply_checkpoint",
    params(("vm" = String, Path, description = "GUID or name"),
        ("checkpoint" = String, Path, description = "GUID or name"), MutateQuery),
    request_body = CheckpointApply,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn apply(
    State(app): Shared,
    Segment((vm, checkpoint)): Segment<(String, String)>,
    ChangeWith(call, body): ChangeWith<CheckpointApply>,
) -> Answer {
    Ok(app
        .once(
            call,
            |app, call| async move { app::apply_checkpoint(&app, &vm, &checkpoint, body, &call).await },
        )
        .await?)
}

/// Go back to the latest checkpoint
#[utoipa::path(post, path = "/vms/{vm}/revert", tag = "checkpoints", operation_id = "revert_vm",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = CheckpointApply,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn revert(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<CheckpointApply>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::revert(&app, &vm, body, &call).await }).await?)
}
