//! `backstay worker`

use clap::{Args, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The machine's run folder with its launch record
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    run_dir: PathBuf,
}

impl WorkerArgs {
    /// The command line as the daemon writes it: `backstay worker --run-dir DIR`; none for any other.
    pub fn from_words(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut words = words.into_iter().skip(1);
        let told = words.next()? == "worker" && words.next()? == "--run-dir";
        let run_dir = words.next().filter(|dir| told && !dir.is_empty())?.into();
        words.next().is_none().then_some(Self { run_dir })
    }
}

/// Runs it; the code tells how the machine ended.
pub fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    backstay_worker::run(&args.run_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemons_own_words_are_taken() {
        let taken = |words: &[&str]| {
            WorkerArgs::from_words(words.iter().map(OsString::from)).map(|args| args.run_dir)
        };
        assert_eq!(taken(&["backstay", "worker", "--run-dir", "/r"]), Some("/r".into()));
        for other in [
            &["backstay"][..],
            &["backstay", "worker"],
            &["backstay", "worker", "--run-dir"],
            &["backstay", "worker", "--run-dir", "/r", "--help"],
            &["backstay", "daemon", "--run-dir", "/r"],
        ] {
            assert_eq!(taken(other), None, "{other:?}");
        }
    }
}
