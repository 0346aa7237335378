//! The user's terminal in raw mode, put back whatever happens.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, Stdin};

/// Raw mode for as long as this value lives.
pub struct RawTerminal {
    stdin: Stdin,
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal on standard input to raw mode: every key goes through, nothing is echoed.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Self { stdin, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing could be told to anybody if this failed: the terminal is gone then.
        let _ = tcsetattr(&self.stdin, OptionalActions::Now, &self.before);
    }
}
