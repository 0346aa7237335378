//! The Linux guest: a shell on the serial console.

use crate::{Console, PATIENCE};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PROMPT: &str = "demo# ";
static COMMANDS: AtomicU32 = AtomicU32::new(1);

/// A conversation with the shell of a running Linux guest.
#[derive(Debug)]
pub struct Linux {
    console: Console,
    patience: Duration,
}

impl Linux {
    /// Connects to a guest that is starting and waits for its shell.
    ///
    /// # Panics
    /// When it does not boot.
    #[must_use]
    pub fn booting(socket: &Path) -> Self {
        Self::booting_within(socket, PATIENCE)
    }

    /// As [`Linux::booting`], of a guest that takes longer, for this and for whatever it is asked.
    ///
    /// # Panics
    /// When it does not boot.
    #[must_use]
    pub fn booting_within(socket: &Path, patience: Duration) -> Self {
        let mut console = Console::connect(socket).expect("the serial console");
        console.until_within(PROMPT, patience).expect("a booting Linux guest");
        Self { console, patience }
    }

    /// Connects to a guest whose shell is waiting already.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn attach(socket: &Path) -> Self {
        Self { console: Console::connect(socket).expect("the serial console"), patience: PATIENCE }
    }

    /// Runs a command line and returns what it prints, without the terminal's echo.
    ///
    /// # Panics
    /// When the guest does not answer, or the command fails.
    pub fn run(&mut self, command: &str) -> String {
        // Consoles repeat the past: no tag comes twice.
        let tag = format!("{}-{}", std::process::id(), COMMANDS.fetch_add(1, Ordering::Relaxed));
        // The echo of this line holds the marks with their quotes, the output without.
        let line = format!("echo 'BEGIN'-{tag}; {command}; echo 'END'-{tag}-$?\n");
        self.console.send(&line).expect("the console");
        let (begin, end) = (format!("BEGIN-{tag}\r\n"), format!("END-{tag}-"));
        self.console.until_within(&begin, self.patience).expect("the command's begin");
        let output = self.console.until_within(&end, self.patience).expect("the command's end");
        let code = self.console.until("\r\n").expect("the exit code");
        assert_eq!(code.trim(), "0", "in the guest, `{command}` failed: {output}");
        let output = output.strip_suffix(&format!("END-{tag}-")).unwrap_or(&output);
        output.replace("\r\n", "\n").trim_end().to_owned()
    }
}
