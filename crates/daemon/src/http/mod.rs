//! REST v1 on a unix socket. Handlers only validate and enqueue: nothing that must not be cut off runs in one.

mod checkpoints;
mod clones;
mod console;
mod disks;
mod events;
mod explain;
mod extract;
mod host;
mod log;
mod metrics;
mod problem;
mod tasks;
mod vms;

pub use metrics::serve_metrics;

use crate::app::App;
use axum::Router;
use axum::response::IntoResponse;
use backstay_api::{API_PREFIX, Problem, ProblemCode};
use std::sync::Arc;
use tokio::net::UnixListener;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

#[derive(OpenApi)]
#[openapi(info(
    title = "Backstay",
    description = "Virtual machines on one host. Calls that change something answer 202 with a task, or 200 with a plan \
                   when asked with dry_run=true. Failures are problem documents (RFC 9457).",
    license(name = "Apache-2.0 OR MIT")
))]
struct Document;

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi()).nest(
        API_PREFIX,
        OpenApiRouter::new()
            .merge(vms::routes())
            .merge(clones::routes())
            .merge(checkpoints::routes())
            .merge(disks::routes())
            .merge(console::routes())
            .merge(tasks::routes())
            .merge(events::routes())
            .merge(explain::routes())
            .merge(host::routes())
            .merge(log::routes()),
    )
}

/// The OpenAPI 3.1 document of this version, as JSON.
#[must_use]
pub fn openapi_json() -> String {
    let (_, document) = routes().split_for_parts();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

fn router(app: Arc<App>) -> Router {
    let (router, _) = routes().split_for_parts();
    let missing = |uri: axum::http::Uri| async move {
        let detail = format!("there is no {}: the calls are listed in docs/openapi.json", uri.path());
        problem::ApiError(Problem::new(ProblemCode::NotFound, detail)).into_response()
    };
    router.merge(metrics::router()).fallback(missing).with_state(app)
}

/// Serves until `stop` resolves.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    app: Arc<App>,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router(app).into_make_service_with_connect_info::<extract::Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop).await
}
