//! Consoles: the HTTP connection becomes a byte stream to the guest's serial line or screen.

use super::extract::Segment;
use super::problem::ApiError;
use crate::app::{self, App};
use crate::failure::Failure;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use backstay_api::{CONSOLE_PROTOCOL, Problem, ProblemCode};
use backstay_model::VmVerb;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(connect))
}

/// Connect to a console
///
/// Needs `Connection: Upgrade` and `Upgrade: backstay-console`. After 101 the connection carries raw bytes: of the serial
/// port (`serial`), or RFB (`vnc`).
#[utoipa::path(get, path = "/vms/{vm}/console/{kind}", tag = "vms", operation_id = "connect_console",
    params(("vm" = String, Path, description = "GUID or name"),
        ("kind" = String, Path, description = "`serial` or `vnc`")),
    responses((status = 101, description = "The connection is the console now"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn connect(
    State(app): State<Arc<App>>,
    Segment((vm, kind)): Segment<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let machine = app.inventory.find(&vm)?;
    app::check_verb(&machine, VmVerb::Console)?;
    let asked = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok());
    if !asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case(CONSOLE_PROTOCOL)) {
        return Err(ApiError::invalid(format!(
            "a console needs the headers Connection: Upgrade and Upgrade: {CONSOLE_PROTOCOL}"
        )));
    }
    let not_ready = || {
        let detail = format!(
            "'{}' is {} and has no console yet: try again in a moment",
            machine.name(),
            machine.state
        );
        Failure::new(ProblemCode::Unavailable, detail)
    };
    let run = machine.run.clone().ok_or_else(not_ready)?;
    let socket: PathBuf = match kind.as_str() {
        "serial" => run.console_socket,
        "vnc" => run.vnc_socket,
        other => return Err(ApiError::invalid(format!("there is no console '{other}': use serial or vnc"))),
    };
    let mut guest = UnixStream::connect(&socket).await.map_err(|error| {
        Failure::because(
            ProblemCode::Unavailable,
            format!("the console {} does not answer", socket.display()),
            error,
        )
    })?;
    // The request ends when the answer is sent; the connection goes on in a task of its own.
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let mut client = TokioIo::new(upgraded);
                let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
            }
            Err(error) => tracing::debug!(%error, "a console client went away"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, CONSOLE_PROTOCOL)
        .body(Body::empty())
        .map_err(|error| ApiError(Problem::new(ProblemCode::Internal, error.to_string())))
}
