//! `backstay completions`

use crate::output;
use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  backstay completions bash > /etc/bash_completion.d/backstay\n  \
                       backstay completions zsh > \"${fpath[1]}/_backstay\"\n  \
                       backstay completions fish > ~/.config/fish/completions/backstay.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: ShellName,
}

/// Shells that are common on servers.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShellName {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// Runs it.
pub fn run(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let shell = match args.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "backstay", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
