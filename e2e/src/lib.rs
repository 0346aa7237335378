//! Tests that start the real daemon, workers and guests, and kill them.
//!
//! A [`Host`] is one daemon with folders of its own; many can exist at once. Everything is done the way a user does it: through
//! the `backstay` command line and the guest's serial console. Guests compute checksums inside, so a test asserts what the
//! guest saw.
//!
//! The `backstay` executable is the one that lies beside the test executable in cargo's target folder (`make test` builds it
//! first; by hand: `cargo build -p backstay-cli -p xtask && target/debug/xtask guest`), or `BACKSTAY_BIN`.

mod console;
mod host;
mod images;
mod linux;
mod load;
mod micro;
mod process;

pub use console::Console;
pub use host::{Host, HostOptions, Said};
pub use images::{linux_image, microguest_image, previous_release, program};
pub use linux::Linux;
pub use load::{Found, Load, Ticks, Told, ask_load, hash, stop_load};
pub use micro::Micro;
pub use process::{cpu_ticks, is_alive, kill, parent_of, pin_to_first_cpu, vcpu_threads};

use std::time::{Duration, Instant};

/// How long anything in these tests may take; software emulation on two busy cores is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for an event that only asking can tell; `what` is for the message.
///
/// # Panics
/// When it does not come within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut event: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = event() {
            return value;
        }
        assert!(Instant::now() < limit, "waited {} s in vain for: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}
