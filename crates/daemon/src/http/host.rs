//! The host.

use super::extract::ChangeWith;
use super::problem::ApiError;
use crate::app::{self, Accepted, App};
use axum::Json;
use axum::extract::State;
use backstay_api::{HostInfo, HostStopGuests, MutateQuery, Plan, Problem, Task};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(show)).routes(routes!(stop_guests))
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

/// Stop all machines as a host does that goes down
///
/// Each is saved, shut down or turned off as its `host_stop` says, the last started first; what fails is followed by the
/// next way. The next boot starts those again whose `host_start` says so.
#[utoipa::path(post, path = "/host/stop-guests", tag = "host", operation_id = "stop_guests", params(MutateQuery),
    request_body = HostStopGuests,
    responses((status = 202, description = "Accepted", body = Task), (status = 200, description = "Dry run", body = Plan),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn stop_guests(
    State(app): State<Arc<App>>,
    ChangeWith(call, body): ChangeWith<HostStopGuests>,
) -> Result<Accepted, ApiError> {
    Ok(app.once(call, |app, call| async move { app::stop_guests(&app, body, &call).await }).await?)
}
