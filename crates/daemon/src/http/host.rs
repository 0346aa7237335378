//! The host.

use crate::app::App;
use axum::Json;
use axum::extract::State;
use backstay_api::HostInfo;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(show))
}

/// What this host is and can do
#[utoipa::path(get, path = "/host", tag = "host", operation_id = "show_host",
    responses((status = 200, description = "The host", body = HostInfo)))]
async fn show(State(app): State<Arc<App>>) -> Json<HostInfo> {
    let machines = app.inventory.all();
    let active: Vec<_> = machines.iter().filter(|m| m.state.is_active()).collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let memory = active.iter().map(|m| m.spec.memory_mib << 20).sum();
    let on = (count(active.len()), memory);
    Json(app.host.info(&app.config.state_dir, &app.config.run_dir, count(machines.len()), on).await)
}
