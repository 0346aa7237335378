//! Clones and templates.

use super::extract::{ChangeWith, Segment};
use super::problem::ApiError;
use crate::app::{self, Accepted, App};
use axum::extract::State;
use backstay_api::{MutateQuery, Plan, Problem, Task, VmClone, VmTemplate};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;
type Answer = Result<Accepted, ApiError>;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(clone)).routes(routes!(template))
}

/// Make a virtual machine from another one
///
/// From one that is off, a template, or a checkpoint: a copy of its disks, or differencing disks on them.
#[utoipa::path(post, path = "/vms/{vm}/clone", tag = "vms", operation_id = "clone_vm",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = VmClone,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn clone(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<VmClone>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::clone_vm(&app, &vm, body, &call).await }).await?)
}

/// Make a virtual machine a template, or one like any other again
#[utoipa::path(post, path = "/vms/{vm}/template", tag = "vms", operation_id = "set_template",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = VmTemplate,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn template(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<VmTemplate>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::set_template(&app, &vm, body, &call).await }).await?)
}
