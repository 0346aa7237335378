//! Long work on files that Ctrl-C ends cleanly: what is half made goes.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// Does `work`; its flag is set on Ctrl-C or a request to end.
pub fn cancellable<T>(work: impl FnOnce(&AtomicBool) -> T) -> T {
    let cancel = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        let (ready, watching) = std::sync::mpsc::channel::<()>();
        scope.spawn(|| watch(finished, ready, &cancel));
        // A signal that came before it is watched for would leave the half-made file.
        let _ = watching.recv();
        let result = work(&cancel);
        drop(done);
        result
    })
}

/// Sets `cancel` on a signal, until the other end of `finished` is dropped. Drops `ready` when signals are watched for.
fn watch(
    finished: tokio::sync::oneshot::Receiver<()>,
    ready: std::sync::mpsc::Sender<()>,
    cancel: &AtomicBool,
) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        drop(ready);
        tokio::select! {
            _ = finished => {}
            _ = interrupt.recv() => cancel.store(true, Ordering::Relaxed),
            _ = terminate.recv() => cancel.store(true, Ordering::Relaxed),
        }
    });
}
