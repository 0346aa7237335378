//! Disk files.

use super::extract::{Params, Segment};
use super::problem::ApiError;
use crate::app::{self, App};
use axum::Json;
use axum::extract::State;
use backstay_api::{DiskFile, DiskList, DiskQuery, Problem};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(of_vm)).routes(routes!(file))
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
