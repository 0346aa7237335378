//! The host.

use super::problem::ApiError;
use crate::app::{self, App};
use axum::Json;
use axum::extract::State;
use backstay_api::{HostInfo, Problem};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(show))
}

/// What this host is and can do
#[utoipa::path(get, path = "/host", tag = "host", operation_id = "show_host",
    responses((status = 200, description = "The host", body = HostInfo),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn show(State(app): State<Arc<App>>) -> Result<Json<HostInfo>, ApiError> {
    let machines = app.inventory.all();
    let active: Vec<_> = machines.iter().filter(|m| m.state.is_active()).collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let memory = active.iter().map(|m| m.spec.memory_mib << 20).sum();
    let on = (count(active.len()), memory);
    let mut info = app.host.info(&app.config.state_dir, &app.config.run_dir, count(machines.len()), on).await;
    info.capacity = app::capacity(&app).await?;
    if !info.capacity.processor_control {
        let reason = &info.capacity.processor_control_reason;
        info.warnings.push(format!("limits, weights and reserves of processors do not act: {reason}"));
    }
    Ok(Json(info))
}
