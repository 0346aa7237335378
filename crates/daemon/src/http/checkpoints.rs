//! Checkpoints of a machine.

use super::extract::{Change, ChangeWith, Params, Segment};
use super::problem::ApiError;
use crate::app::{self, Accepted, App, views};
use crate::inventory::blocking;
use axum::Json;
use axum::extract::State;
use backstay_api::{
    CheckpointApply, CheckpointCreate, CheckpointDelete, CheckpointExport, CheckpointList, CheckpointMerge,
    CheckpointUpdate, MutateQuery, Plan, Problem, Task,
};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;
type Answer = Result<Accepted, ApiError>;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(update, delete))
        .routes(routes!(apply))
        .routes(routes!(export))
        .routes(routes!(revert))
        .routes(routes!(merge))
}

/// List a machine's checkpoints
#[utoipa::path(get, path = "/vms/{vm}/checkpoints", tag = "checkpoints", operation_id = "list_checkpoints",
    params(("vm" = String, Path, description = "GUID or name")),
    responses((status = 200, description = "The checkpoints and their tree", body = CheckpointList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn list(State(app): Shared, Segment(vm): Segment<String>) -> Result<Json<CheckpointList>, ApiError> {
    let machine = app.inventory.find(&vm)?;
    Ok(Json(blocking(move || Ok(views::checkpoints(&app, &machine))).await?))
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

/// Change a checkpoint's name or notes
#[utoipa::path(patch, path = "/vms/{vm}/checkpoints/{checkpoint}", tag = "checkpoints",
    operation_id = "update_checkpoint",
    params(("vm" = String, Path, description = "GUID or name"),
        ("checkpoint" = String, Path, description = "GUID or name"), MutateQuery),
    request_body = CheckpointUpdate,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn update(
    State(app): Shared,
    Segment((vm, checkpoint)): Segment<(String, String)>,
    ChangeWith(call, body): ChangeWith<CheckpointUpdate>,
) -> Answer {
    Ok(app
        .once(
            call,
            |app, call| async move { app::update_checkpoint(&app, &vm, &checkpoint, body, &call).await },
        )
        .await?)
}

/// Delete a checkpoint
///
/// What hangs below it hangs below its parent afterwards. The task's result is a `CheckpointDeleted`; a second task, named
/// there, merges its disks' files and gives back their space.
#[utoipa::path(delete, path = "/vms/{vm}/checkpoints/{checkpoint}", tag = "checkpoints",
    operation_id = "delete_checkpoint",
    params(("vm" = String, Path, description = "GUID or name"),
        ("checkpoint" = String, Path, description = "GUID or name"), CheckpointDelete),
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    State(app): Shared,
    Segment((vm, checkpoint)): Segment<(String, String)>,
    Params(query): Params<CheckpointDelete>,
    Change(call): Change,
) -> Answer {
    let call = app::Call { dry_run: query.dry_run || call.dry_run, ..call };
    Ok(app
        .once(call, move |app, call| async move {
            app::delete_checkpoint(&app, &vm, &checkpoint, query, &call).await
        })
        .await?)
}

/// Export a checkpoint as a machine of its own
///
/// The folder can be registered on this or another host.
#[utoipa::path(post, path = "/vms/{vm}/checkpoints/{checkpoint}/export", tag = "checkpoints",
    operation_id = "export_checkpoint",
    params(("vm" = String, Path, description = "GUID or name"),
        ("checkpoint" = String, Path, description = "GUID or name"), MutateQuery),
    request_body = CheckpointExport,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn export(
    State(app): Shared,
    Segment((vm, checkpoint)): Segment<(String, String)>,
    ChangeWith(call, body): ChangeWith<CheckpointExport>,
) -> Answer {
    Ok(app
        .once(
            call,
            |app, call| async move { app::export_checkpoint(&app, &vm, &checkpoint, body, &call).await },
        )
        .await?)
}

/// Merge the files of deleted checkpoints
///
/// Goes on by itself after a deletion; this continues one that was cancelled or failed, and changes its speed. The task's
/// result is a `MergeResult`.
#[utoipa::path(post, path = "/vms/{vm}/merge", tag = "checkpoints", operation_id = "merge_checkpoints",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = CheckpointMerge,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn merge(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<CheckpointMerge>,
) -> Answer {
    Ok(app
        .once(call, move |app, call| async move { app::merge_checkpoints(&app, &vm, body, &call).await })
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
