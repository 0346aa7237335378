//! `vm console`

use super::terminal::RawTerminal;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use crate::tasks::parse_duration;
use anyhow::Context as _;
use backstay_api::{ConsoleKind, ConsoleStream};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// Ctrl-], as in telnet, virsh and xl.
const ESCAPE: u8 = 0x1D;
/// After the end of standard input the console ends when the guest has been silent for so long …
const QUIET: Duration = Duration::from_millis(500);
/// … or after this time at the latest.
const LONGEST_DRAIN: Duration = Duration::from_secs(5);
/// How long what is on its way before a `--send` is waited for: the past of the console arrives at once.
const SETTLE: Duration = Duration::from_millis(100);

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Connect this terminal to the machine's serial port. Ctrl-] ends it. What the guest wrote recently is \
                  shown first.\n\nWithout a terminal, standard input goes to the guest and the guest's output to \
                  standard output, until standard input ends and the guest has been silent for half a second. --send \
                  and --expect do a dialogue instead, in their order on the command line; the exit code is 0 when \
                  every expected text came, 6 when the time was up.",
    after_long_help = "Examples:\n  backstay vm console web\n  echo uptime | backstay vm console web\n  \
                       backstay vm console web --expect 'login: ' --send 'root\\r' --expect '# ' --timeout 60s"
)]
pub struct ConsoleArgs {
    /// Name or GUID
    vm: String,
    #[command(flatten)]
    dialogue: Dialogue,
    /// How long each expected text may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

/// One step of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Type this.
    Send(Vec<u8>),
    /// Wait until the guest writes this.
    Expect(Vec<u8>),
}

/// `--send` and `--expect` in their order on the command line, which derived arguments would lose.
#[derive(Clone, Debug, Default)]
struct Dialogue {
    steps: Vec<Step>,
}

impl FromArgMatches for Dialogue {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut dialogue = Self::default();
        dialogue.update_from_arg_matches(matches)?;
        Ok(dialogue)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let mut steps = Vec::new();
        for name in ["send", "expect"] {
            let texts = matches.get_many::<String>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            steps.extend(places.zip(texts).map(|(place, text)| {
                let text = unescape(text);
                (place, if name == "send" { Step::Send(text) } else { Step::Expect(text) })
            }));
        }
        steps.sort_by_key(|(place, _)| *place);
        self.steps = steps.into_iter().map(|(_, step)| step).collect();
        Ok(())
    }
}

impl Args for Dialogue {
    fn augment_args(command: Command) -> Command {
        let text = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name("TEXT").action(ArgAction::Append).help(help)
        };
        command
            .arg(text("send", "Type this text; \\r is Enter, also \\n, \\t, \\\\ and \\xHH"))
            .arg(text("expect", "Wait until the guest writes this text"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Resolves `\r`, `\n`, `\t`, `\\` and `\xHH`; anything else stays as it is.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 2..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let (value, len) = match (byte, bytes.get(at + 1)) {
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'\\')) => (b'\\', 2),
            (b'\\', Some(b'x')) => match hex.and_then(|d| u8::from_str_radix(d, 16).ok()) {
                Some(value) => (value, 4),
                None => (b'\\', 1),
            },
            _ => (byte, 1),
        };
        out.push(value);
        at += len;
    }
    out
}

/// Runs it.
pub async fn run(context: &Context, args: &ConsoleArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let stream = client.console(vm, ConsoleKind::Serial).await?;
    if !args.dialogue.steps.is_empty() {
        return dialogue(stream, &args.dialogue.steps, args.timeout).await;
    }
    if !io::stdin().is_terminal() {
        return pipe(stream).await;
    }
    context.note(format!("Connected to '{}'. Ctrl-] ends the connection.", args.vm));
    let end = {
        let _raw = RawTerminal::enter().context("the terminal cannot be switched to raw mode")?;
        interact(stream).await
    };
    let end = end?;
    context.note(format!("\n{end}"));
    Ok(())
}

/// Standard input in pieces, read by a thread of its own: a read from a terminal cannot be cancelled.
fn stdin_chunks() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; 4096];
        loop {
            match io::Read::read(&mut stdin, &mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    if sender.blocking_send(buffer[..len].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// A person at a terminal. Returns why it ended.
async fn interact(stream: ConsoleStream) -> anyhow::Result<&'static str> {
    let (mut guest, mut to_guest) = tokio::io::split(stream);
    let mut typed = stdin_chunks();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = guest.read(&mut buffer) => match read? {
                0 => return Ok("The machine closed the connection."),
                len => output::print_bytes(&buffer[..len])?,
            },
            chunk = typed.recv() => {
                let Some(chunk) = chunk else { return Ok("Standard input has ended.") };
                let end = chunk.iter().position(|byte| *byte == ESCAPE);
                to_guest.write_all(&chunk[..end.unwrap_or(chunk.len())]).await?;
                to_guest.flush().await?;
                if end.is_some() {
                    return Ok("Disconnected.");
                }
            }
            _ = terminate.recv() => return Err(Fail::interrupted("the console was ended by a signal")),
            _ = hang_up.recv() => return Err(Fail::interrupted("the console was ended by a signal")),
        }
    }
}

/// A script: standard input to the guest, its output to standard output.
async fn pipe(stream: ConsoleStream) -> anyhow::Result<()> {
    let (mut guest, mut to_guest) = tokio::io::split(stream);
    let mut typed = stdin_chunks();
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = guest.read(&mut buffer) => match read? {
                0 => return Ok(()),
                len => output::print_bytes(&buffer[..len])?,
            },
            chunk = typed.recv() => match chunk {
                Some(chunk) => {
                    to_guest.write_all(&chunk).await?;
                    to_guest.flush().await?;
                }
                None => break,
            },
        }
    }
    let end = Instant::now() + LONGEST_DRAIN;
    while Instant::now() < end {
        match timeout(QUIET, guest.read(&mut buffer)).await {
            Err(_) => break,
            Ok(read) => match read? {
                0 => break,
                len => output::print_bytes(&buffer[..len])?,
            },
        }
    }
    Ok(())
}

/// A dialogue; everything the guest writes is printed as well.
async fn dialogue(stream: ConsoleStream, steps: &[Step], limit: Duration) -> anyhow::Result<()> {
    let (guest, mut to_guest) = tokio::io::split(stream);
    let mut listener = Listener { guest, heard: Vec::new() };
    for step in steps {
        match step {
            Step::Send(text) => listener.send(&mut to_guest, text).await?,
            Step::Expect(text) => listener.expect(text, limit).await?,
        }
    }
    Ok(())
}

struct Listener {
    guest: ReadHalf<ConsoleStream>,
    /// What came and was not matched yet.
    heard: Vec<u8>,
}

impl Listener {
    /// Reads once; false when the machine closed the connection.
    async fn hear(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [0; 4096];
        let len = self.guest.read(&mut buffer).await?;
        output::print_bytes(&buffer[..len])?;
        self.heard.extend_from_slice(&buffer[..len]);
        Ok(len > 0)
    }

    /// Types `text`. What the guest wrote before does not count for the next `--expect`.
    async fn send(&mut self, to_guest: &mut WriteHalf<ConsoleStream>, text: &[u8]) -> anyhow::Result<()> {
        let settled = Instant::now() + SETTLE;
        while let Ok(heard) = timeout_at(settled, self.hear()).await {
            if !heard? {
                break;
            }
        }
        self.heard.clear();
        to_guest.write_all(text).await?;
        to_guest.flush().await?;
        Ok(())
    }

    /// Waits until the guest has written `text`.
    async fn expect(&mut self, text: &[u8], limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        let shown = String::from_utf8_lossy(text).escape_debug().to_string();
        loop {
            if text.is_empty() {
                return Ok(());
            }
            if let Some(at) = self.heard.windows(text.len()).position(|window| window == text) {
                self.heard.drain(..at + text.len());
                return Ok(());
            }
            match timeout_at(end, self.hear()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    return Err(Fail::error(format!(
                        "the machine closed the console before it wrote '{shown}'"
                    )));
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let message = format!("the guest did not write '{shown}' within {} s", limit.as_secs());
                    return Err(Fail::timed_out(message));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_keys_and_other_text_stays() {
        assert_eq!(unescape(r"root\r\x1b[A\\ \q ж"), "root\r\x1b[A\\ \\q ж".as_bytes());
        assert_eq!(unescape(r"\x\xZZ\"), br"\x\xZZ\");
    }

    #[test]
    fn steps_keep_their_order_on_the_command_line() {
        let command = Dialogue::augment_args(Command::new("t"));
        let matches = command.get_matches_from(["t", "--expect", "a", "--send", "b", "--expect", "c"]);
        let steps = Dialogue::from_arg_matches(&matches).unwrap().steps;
        let want = [Step::Expect(b"a".into()), Step::Send(b"b".into()), Step::Expect(b"c".into())];
        assert_eq!(steps, want);
    }
}
