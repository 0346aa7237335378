//! What the service manager is told: that the daemon is ready, that it stops, and that it lives. It lives as long as the API
//! answers on its own socket; a daemon that hangs is killed and started again, which no machine notices.

use crate::failure::chain;
use backstay_api::Client;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the API may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// The API is served, and what the former daemon left is settled or being settled.
pub(crate) fn ready(machines: usize) {
    let status = format!("{machines} virtual machines");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// It was told to stop.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells regularly that the daemon lives, if the service manager asks for that.
pub(crate) fn watch(socket: &Path) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let socket: PathBuf = socket.into();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(limit / 3);
        loop {
            ticks.tick().await;
            match lives(&socket).await {
                Ok(()) => tell(&[NotifyState::Watchdog]),
                Err(reason) => tracing::error!(
                    reason,
                    "the API does not answer: the service manager is not told that all is well"
                ),
            }
        }
    });
}

async fn lives(socket: &Path) -> Result<(), String> {
    let client = Client::new(socket).map_err(|error| chain(&error))?;
    match tokio::time::timeout(ANSWER, client.live()).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer in {} s", ANSWER.as_secs())),
    }
}
