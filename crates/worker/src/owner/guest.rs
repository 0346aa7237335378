//! What QEMU says about the guest.

use super::{Owner, Stall};
use crate::control::WorkerEvent;
use backstay_model::VmState;
use backstay_qemu::argv::slot_of_name;
use backstay_qemu::qmp::{Qmp, QmpEvent, RunState};
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// First and longest time between attempts to continue a guest whose disk failed.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(4);

/// What a run state means to a user; `None` keeps what is known.
fn observed(status: &RunState) -> Option<VmState> {
    match status {
        RunState::Running => Some(VmState::Running),
        RunState::Paused
        | RunState::Postmigrate
        | RunState::Prelaunch
        | RunState::InternalError
        | RunState::GuestPanicked => Some(VmState::Paused),
        RunState::IoError => Some(VmState::PausedCritical),
        RunState::Inmigrate => Some(VmState::Starting),
        RunState::Shutdown => Some(VmState::Stopping),
        RunState::FinishMigrate | RunState::Other(_) => None,
    }
}

impl Owner {
    pub(super) async fn guest_event(&mut self, event: QmpEvent) {
        match event.name.as_str() {
            "STOP" | "RESUME" => self.refresh("").await,
            "SHUTDOWN" => {
                let cause = event.data.get("reason").and_then(Value::as_str).unwrap_or("unknown");
                self.shutdown_cause = Some(cause.to_owned());
                if self.turning_off.is_none() && !self.saved {
                    self.set_state(VmState::Stopping, cause);
                }
            }
            "BLOCK_IO_ERROR" => self.disk_error(&event.data),
            "GUEST_PANICKED" => {
                self.tell(WorkerEvent::Warning { message: "the guest reported a panic".into() });
            }
            _ => {}
        }
    }

    /// Asks QEMU what the guest does and takes it over. Without a `why` the reason is QEMU's word.
    pub(super) async fn refresh(&mut self, why: &str) {
        if self.job.as_ref().is_some_and(super::ActiveJob::holds_guest) {
            return;
        }
        let Some(qmp) = self.qmp() else { return };
        // A connection that broke, or QEMU's end, comes as an event of its own.
        let Ok(info) = qmp.query_status().await else { return };
        self.postmigrate = info.status == RunState::Postmigrate;
        let Some(state) = observed(&info.status) else { return };
        if state == VmState::PausedCritical {
            return self.begin_stall(None, "a disk request failed");
        }
        if self.stall.is_some() && state == VmState::Running {
            return; // an attempt to continue; whether it lasts shows at the next one
        }
        let stopping = self.asked_to_stop.is_some() || self.turning_off.is_some();
        if state == VmState::Running && stopping {
            return;
        }
        if state != self.state {
            let word = if why.is_empty() { info.status.as_str() } else { why };
            self.set_state(state, word);
        }
    }

    pub(super) async fn guest_unclear(&mut self) {
        let Some(machine) = self.machine.clone() else {
            self.guest_events = None;
            return;
        };
        if machine.qmp.is_closed() {
            self.guest_events = None;
            // Usually QEMU is ending, which its process tells at once.
            if tokio::time::timeout(Duration::from_secs(1), machine.process.wait()).await.is_ok() {
                return;
            }
            match Qmp::connect(&self.run.qmp(), Duration::from_secs(10)).await {
                Ok(qmp) => {
                    self.guest_events = Some(qmp.events());
                    self.machine = Some(crate::start::Machine { qmp, ..machine });
                }
                Err(error) => {
                    let message = format!("QEMU cannot be controlled: {}", crate::report::chain_of(&error));
                    self.tell(WorkerEvent::Warning { message });
                    return;
                }
            }
        }
        self.refresh("").await;
    }

    /// QEMU stopped the guest before it could see that a disk request failed.
    fn disk_error(&mut self, data: &Value) {
        if data.get("action").and_then(Value::as_str) != Some("stop") {
            return;
        }
        let names = ["node-name", "device", "qom-path"];
        let slot = names.iter().find_map(|key| {
            let name = data.get(key).and_then(Value::as_str)?;
            slot_of_name(name.rsplit('/').next().unwrap_or(name))
        });
        let full = data.get("nospace").and_then(Value::as_bool) == Some(true);
        let words = data.get("reason").and_then(Value::as_str).unwrap_or("input/output error");
        let reason = if full { "no space is left on its storage".to_owned() } else { words.to_owned() };
        self.begin_stall(slot, &reason);
    }

    fn begin_stall(&mut self, slot: Option<backstay_model::DriveSlot>, reason: &str) {
        if let Some(stall) = &mut self.stall {
            stall.errors += 1;
            return;
        }
        self.stall = Some(Stall { slot, next_try: Instant::now() + RETRY, interval: RETRY, errors: 1 });
        if let Some(slot) = slot {
            self.tell(WorkerEvent::StorageStalled { slot, reason: reason.to_owned() });
        }
        let text = match slot {
            Some(slot) => format!("the disk at {slot} does not answer: {reason}"),
            None => format!("a disk does not answer: {reason}"),
        };
        self.set_state(VmState::PausedCritical, &text);
    }

    /// Continues a stalled guest; it counts as recovered when it ran from one attempt to the next without an error.
    pub(super) async fn retry_stalled(&mut self) {
        let Some(qmp) = self.qmp() else {
            self.stall = None;
            return;
        };
        let running = matches!(qmp.query_status().await, Ok(info) if info.running);
        let Some(stall) = &mut self.stall else { return };
        if running && stall.errors == 0 {
            let known = stall.slot.is_some();
            self.stall = None;
            if known {
                self.tell(WorkerEvent::StorageRecovered);
            }
            return self.refresh("storage is back").await;
        }
        if stall.errors > 0 && !running {
            stall.interval = (stall.interval * 3 / 2).min(RETRY_MAX);
        }
        stall.errors = 0;
        // Shorter than the attempts apart: a guest that runs is noticed soon.
        stall.next_try = Instant::now() + if running { RETRY } else { stall.interval };
        if !running && let Err(error) = qmp.cont().await {
            tracing::info!(%error, "a stalled guest could not be continued yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_error_is_told_apart_from_a_pause() {
        assert_eq!(observed(&RunState::IoError), Some(VmState::PausedCritical));
        assert_eq!(observed(&RunState::Paused), Some(VmState::Paused));
        assert_eq!(observed(&RunState::Postmigrate), Some(VmState::Paused));
        assert_eq!(observed(&RunState::FinishMigrate), None, "the last round of a live save is no pause");
    }
}
