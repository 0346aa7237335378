//! Disk files.

use super::extract::{ChangeWith, Params, Segment};
use super::problem::ApiError;
use crate::app::{self, Accepted, App};
use axum::Json;
use axum::extract::State;
use backstay_api::{
    DiskCheck, DiskCompact, DiskFile, DiskList, DiskMap, DiskMapQuery, DiskQuery, DiskResize, MutateQuery,
    Plan, Problem, Task,
};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(of_vm))
        .routes(routes!(file))
        .routes(routes!(map))
        .routes(routes!(check))
        .routes(routes!(resize))
        .routes(routes!(compact))
}

/// A machine's disks with their chains
#[utoipa::path(get, path = "/vms/{vm}/disks", tag = "disks", operation_id = "list_vm_disks",
    params(("vm" = String, Path, description = "GUID or name")),
    responses((status = 200, description = "The disks", body = DiskList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn of_vm(
    State(app): State<Arc<App>>,
    Segment(vm): Segment<String>,
) -> Result<Json<DiskList>, ApiError> {
    Ok(Json(DiskList { items: app::vm_disks(&app, &vm).await? }))
}

/// A disk file: who uses it, and its chain
#[utoipa::path(get, path = "/disks", tag = "disks", operation_id = "show_disk_file", params(DiskQuery),
    responses((status = 200, description = "The file", body = DiskFile),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn file(
    State(app): State<Arc<App>>,
    Params(query): Params<DiskQuery>,
) -> Result<Json<DiskFile>, ApiError> {
    Ok(Json(app::disk_file(&app, &query.path).await?))
}

/// Where the ranges of a disk are
///
/// Also of a disk that a running machine writes to.
#[utoipa::path(get, path = "/disks/map", tag = "disks", operation_id = "map_disk_file", params(DiskMapQuery),
    responses((status = 200, description = "The ranges", body = DiskMap),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn map(
    State(app): State<Arc<App>>,
    Params(query): Params<DiskMapQuery>,
) -> Result<Json<DiskMap>, ApiError> {
    Ok(Json(app::disk_map(&app, query).await?))
}

/// Look for damage in a disk
///
/// Looks at the structures of the named file and whether its chain is whole; also of a disk that a running machine writes
/// to, whose requests may be held back for a moment. Repairs nothing.
#[utoipa::path(get, path = "/disks/check", tag = "disks", operation_id = "check_disk_file", params(DiskQuery),
    responses((status = 200, description = "What was found", body = DiskCheck),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn check(
    State(app): State<Arc<App>>,
    Params(query): Params<DiskQuery>,
) -> Result<Json<DiskCheck>, ApiError> {
    Ok(Json(app::disk_check(&app, &query.path).await?))
}

/// Make a disk of a running machine larger
///
/// The guest sees it at once on SCSI and virtio, after its next start on IDE. With checkpoints only the top file grows. The task's
/// result is a `DiskResized`.
#[utoipa::path(post, path = "/disks/resize", tag = "disks", operation_id = "resize_disk_file", params(MutateQuery),
    request_body = DiskResize,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn resize(
    State(app): State<Arc<App>>,
    ChangeWith(call, body): ChangeWith<DiskResize>,
) -> Result<Accepted, ApiError> {
    Ok(app.once(call, |app, call| async move { app::resize_disk(&app, body, &call).await }).await?)
}

/// Make the file of a disk smaller while its machine runs
///
/// Blocks that hold only zeros lose their places, the last blocks move to the front, and the file is cut. It gives way to other
/// operations on the machine and goes on after them; cancelled or interrupted, the next one goes on with what is left. The
/// task's result is a `DiskCompacted`.
#[utoipa::path(post, path = "/disks/compact", tag = "disks", operation_id = "compact_disk_file", params(MutateQuery),
    request_body = DiskCompact,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn compact(
    State(app): State<Arc<App>>,
    ChangeWith(call, body): ChangeWith<DiskCompact>,
) -> Result<Accepted, ApiError> {
    Ok(app.once(call, |app, call| async move { app::compact_disk(&app, body, &call).await }).await?)
}
