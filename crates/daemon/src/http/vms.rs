//! Virtual machines.

use super::extract::{Change, ChangeWith, Params, Segment};
use super::problem::ApiError;
use crate::app::{self, Accepted, App, views};
use crate::failure::Failure;
use crate::inventory::Machine;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use backstay_api::{
    DiskMove, MutateQuery, Plan, Problem, ProblemCode, Task, Vm, VmCreate, VmDelete, VmList, VmQuery,
    VmRegister, VmRename, VmStart, VmUnregister, VmUpdate,
};
use backstay_model::VmVerb;
use backstay_worker::control::Request;
use std::sync::Arc;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;
type Answer = Result<Accepted, ApiError>;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(register))
        .routes(routes!(show, update, delete))
        .routes(routes!(rename))
        .routes(routes!(move_disk))
        .routes(routes!(start))
        .routes(routes!(shutdown))
        .routes(routes!(turn_off))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(reset))
        .routes(routes!(save))
        .routes(routes!(discard_saved_state))
        .routes(routes!(unregister))
        .routes(routes!(screenshot))
}

/// List virtual machines
///
/// Machines by name; `name` and `state` narrow the list.
#[utoipa::path(get, path = "/vms", tag = "vms", operation_id = "list_vms", params(VmQuery),
    responses((status = 200, description = "The machines", body = VmList)))]
async fn list(State(app): Shared, Params(query): Params<VmQuery>) -> Json<VmList> {
    let wanted = |machine: &&Machine| {
        query.name.as_ref().is_none_or(|name| machine.name().as_str() == name)
            && query.state.is_none_or(|state| machine.state == state)
    };
    let items = app.inventory.all().iter().filter(wanted).map(|m| views::vm(&app, m)).collect();
    Json(VmList { items, unreadable: app.inventory.unreadable() })
}

/// Create a virtual machine
#[utoipa::path(post, path = "/vms", tag = "vms", operation_id = "create_vm", params(MutateQuery), request_body = VmCreate,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn create(State(app): Shared, ChangeWith(call, body): ChangeWith<VmCreate>) -> Answer {
    Ok(app.once(call, |app, call| async move { app::create_vm(&app, body, &call).await }).await?)
}

/// Bring back the machines of a folder
#[utoipa::path(post, path = "/vms/register", tag = "vms", operation_id = "register_vm", params(MutateQuery),
    request_body = VmRegister,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn register(State(app): Shared, ChangeWith(call, body): ChangeWith<VmRegister>) -> Answer {
    Ok(app.once(call, |app, call| async move { app::register(&app, body, &call).await }).await?)
}

/// Show a virtual machine
#[utoipa::path(get, path = "/vms/{vm}", tag = "vms", operation_id = "show_vm",
    params(("vm" = String, Path, description = "GUID or name")),
    responses((status = 200, description = "The machine", body = Vm),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn show(State(app): Shared, Segment(vm): Segment<String>) -> Result<Json<Vm>, ApiError> {
    let machine = app.inventory.find(&vm)?;
    Ok(Json(views::vm(&app, &machine)))
}

/// Change settings
#[utoipa::path(patch, path = "/vms/{vm}", tag = "vms", operation_id = "update_vm",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = VmUpdate,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn update(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<VmUpdate>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::update_vm(&app, &vm, body, &call).await }).await?)
}

/// Delete a virtual machine
///
/// Removes configuration, checkpoints and their memory; disk files stay unless `delete_disks` is set.
#[utoipa::path(delete, path = "/vms/{vm}", tag = "vms", operation_id = "delete_vm",
    params(("vm" = String, Path, description = "GUID or name"), VmDelete),
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    State(app): Shared,
    Segment(vm): Segment<String>,
    Params(query): Params<VmDelete>,
    Change(call): Change,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::delete_vm(&app, &vm, query, &call).await }).await?)
}

/// Rename a virtual machine
#[utoipa::path(post, path = "/vms/{vm}/rename", tag = "vms", operation_id = "rename_vm",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = VmRename,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn rename(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<VmRename>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::rename_vm(&app, &vm, body, &call).await }).await?)
}

/// Move a disk's file to another folder or file system
///
/// While the machine is running, paused or off. Not of a disk with checkpoints. The task can be cancelled.
#[utoipa::path(post, path = "/vms/{vm}/move-disk", tag = "vms", operation_id = "move_vm_disk",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = DiskMove,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn move_disk(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<DiskMove>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::move_disk(&app, &vm, body, &call).await }).await?)
}

/// Power on
#[utoipa::path(post, path = "/vms/{vm}/start", tag = "vms", operation_id = "start_vm",
    params(("vm" = String, Path, description = "GUID or name"), MutateQuery), request_body = VmStart,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn start(
    State(app): Shared,
    Segment(vm): Segment<String>,
    ChangeWith(call, body): ChangeWith<VmStart>,
) -> Answer {
    Ok(app.once(call, |app, call| async move { app::start_vm(&app, &vm, body, &call).await }).await?)
}

macro_rules! verb {
    ($(#[$doc:meta])* $name:ident, $path:literal, $id:literal) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "vms", operation_id = $id,
            params(("vm" = String, Path, description = "GUID or name"), MutateQuery),
            responses((status = 202, description = "Accepted", body = Task),
                (status = 200, description = "Dry run", body = Plan),
                (status = "default", description = "A problem", body = Problem,
                    content_type = "application/problem+json")))]
        async fn $name(State(app): Shared, Segment(vm): Segment<String>, Change(call): Change) -> Answer {
            Ok(app.once(call, |app, call| async move { app::$name(&app, &vm, &call).await }).await?)
        }
    };
}

verb!(
    /// Ask the guest to shut down
    shutdown, "/vms/{vm}/shutdown", "shutdown_vm"
);
verb!(
    /// Pull the plug
    turn_off, "/vms/{vm}/turn-off", "turn_off_vm"
);
verb!(
    /// Stop the processors, keep memory
    pause, "/vms/{vm}/pause", "pause_vm"
);
verb!(
    /// Continue after a pause
    resume, "/vms/{vm}/resume", "resume_vm"
);
verb!(
    /// Press the reset button
    reset, "/vms/{vm}/reset", "reset_vm"
);

verb!(
    /// Write memory to disk and power off; the next start continues
    save, "/vms/{vm}/save", "save_vm"
);
verb!(
    /// Throw a saved machine's memory away: it is off then
    discard_saved_state, "/vms/{vm}/discard-saved-state", "discard_saved_state"
);

/// Forget a registered folder
///
/// No file is touched; the folder may be gone. Its machines must be off or saved.
#[utoipa::path(post, path = "/vms/unregister", tag = "vms", operation_id = "unregister_vm", params(MutateQuery),
    request_body = VmUnregister,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn unregister(State(app): Shared, ChangeWith(call, body): ChangeWith<VmUnregister>) -> Answer {
    Ok(app.once(call, |app, call| async move { app::unregister(&app, body, &call).await }).await?)
}

/// A picture of the screen
#[utoipa::path(get, path = "/vms/{vm}/screenshot", tag = "vms", operation_id = "screenshot_vm",
    params(("vm" = String, Path, description = "GUID or name")),
    responses((status = 200, description = "The screen", body = Vec<u8>, content_type = "image/png"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn screenshot(State(app): Shared, Segment(vm): Segment<String>) -> Result<impl IntoResponse, ApiError> {
    let machine = app.inventory.find(&vm)?;
    app::check_verb(&machine, VmVerb::Console)?;
    // Alone, so that no picture is left when the caller hangs up.
    let taken = tokio::spawn(async move {
        let file = app.workers.run_folder(machine.id).join(format!("screen-{}.png", uuid::Uuid::new_v4()));
        let request = Request::Screenshot { path: file.clone() };
        let asked = app.workers.call(machine.id, request, Duration::from_secs(30)).await;
        let read = tokio::fs::read(&file).await;
        let _ = tokio::fs::remove_file(&file).await;
        asked?;
        read.map_err(|error| Failure::file("reading the picture", &file, error))
    });
    let fault =
        |error| Failure::because(ProblemCode::Internal, "no picture was taken: see the daemon's log", error);
    let bytes = taken.await.map_err(fault)??;
    Ok(([(header::CONTENT_TYPE, "image/png")], bytes))
}
