//! `/metrics` for Prometheus: on the API's socket, and on a loopback address where one is configured.

use crate::app::App;
use crate::metrics::{MEDIA_TYPE, render};
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;

async fn page(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], render(&app).await)
}

/// The page alone.
pub(super) fn router() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(page))
}

/// Serves the page, and nothing else, until the process ends.
pub async fn serve_metrics(app: Arc<App>, listener: TcpListener) {
    if let Err(error) = axum::serve(listener, router().with_state(app)).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}
