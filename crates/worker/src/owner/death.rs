//! The end of QEMU: wanted, by the guest, or a failure with its recovery.

use super::{End, Owner, now_unix_ms};
use crate::control::WorkerEvent;
use crate::recovery::{Recovery, decide};
use crate::start::last_words;
use backstay_model::VmState;
use backstay_qemu::process::{ExitReason, LastExit};
use std::time::Duration;
use tokio::time::Instant;

impl Owner {
    pub(super) async fn ended(&mut self, reason: ExitReason) {
        self.read_last_events().await;
        self.machine = None;
        self.guest_events = None;
        self.stall = None;
        self.asked_to_stop = None;
        self.serial.send_replace(None);
        let cause = self.shutdown_cause.take();
        if self.saved {
            return self.finish(VmState::Saved, "saved", End::Done).await;
        }
        if self.turning_off.is_some() {
            return self.finish(VmState::Off, "turned off", End::Done).await;
        }
        let by_guest = matches!(cause.as_deref(), Some("guest-shutdown" | "guest-panic"));
        if by_guest {
            let cause = cause.unwrap_or_default();
            return self.finish(VmState::Off, &cause, End::Done).await;
        }
        let words = match cause {
            Some(cause) => format!("{reason} ({cause})"),
            None => reason.to_string(),
        };
        self.died(words).await;
    }

    /// The reason of the end may still be on its way when the process is gone already.
    async fn read_last_events(&mut self) {
        let Some(machine) = self.machine.clone() else { return };
        let _ = tokio::time::timeout(Duration::from_secs(1), machine.qmp.closed()).await;
        let Some(mut events) = self.guest_events.take() else { return };
        while let Ok(event) = events.try_recv() {
            if event.name == "SHUTDOWN" {
                let cause = event.data.get("reason").and_then(serde_json::Value::as_str);
                self.shutdown_cause = Some(cause.unwrap_or("unknown").to_owned());
            }
        }
    }

    /// QEMU ended while no worker lived.
    pub(super) async fn ended_unwatched(&mut self, last: LastExit) {
        self.state = VmState::Running;
        if last == LastExit::InOrder {
            let reason = "the guest shut down while no worker watched";
            return self.finish(VmState::Off, reason, End::Done).await;
        }
        self.died("QEMU ended while no worker watched".into()).await;
    }

    async fn died(&mut self, reason: String) {
        let recovery = decide(self.record.spec.recovery, &self.instance.recoveries, now_unix_ms());
        let log = last_words(&self.run);
        self.tell(WorkerEvent::QemuDied { reason: reason.clone(), log, action: recovery.describe() });
        match recovery {
            Recovery::GiveUp { .. } => self.finish(VmState::Failed, &reason, End::Failed).await,
            Recovery::Restart { after } => {
                self.instance.recoveries.push(now_unix_ms());
                self.remember();
                self.set_state(VmState::Starting, &reason);
                self.restart_at = Some(Instant::now() + after);
            }
        }
    }
}
