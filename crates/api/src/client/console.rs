//! The console: the connection becomes the guest's serial line or screen.

use super::{Client, ClientError};
use crate::CONSOLE_PROTOCOL;
use backstay_model::VmId;
use reqwest::{Method, StatusCode};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Which console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// The first serial port.
    Serial,
    /// The screen, as RFB (VNC).
    Vnc,
}

impl ConsoleKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Vnc => "vnc",
        }
    }
}

/// Bytes to and from the guest.
#[derive(Debug)]
pub struct ConsoleStream(reqwest::Upgraded);

impl Client {
    /// Connects to a console.
    ///
    /// # Errors
    /// `precondition` while the machine is off.
    pub async fn console(&self, vm: VmId, kind: ConsoleKind) -> Result<ConsoleStream, ClientError> {
        let path = ["vms", &vm.to_string(), "console", kind.as_str()];
        let call = self.call(Method::GET, &path);
        let response = call
            .raw(|builder| builder.header("Connection", "Upgrade").header("Upgrade", CONSOLE_PROTOCOL))
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Unexpected {
                call: "GET console".into(),
                what: format!("status {}", response.status()),
            });
        }
        response.upgrade().await.map(ConsoleStream).map_err(|source| call.failed(source))
    }
}

impl AsyncRead for ConsoleStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ConsoleStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
