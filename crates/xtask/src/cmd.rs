//! Running other programs with an error that says which one failed and what it said.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A command from words; `cwd` is where it runs. Debian keeps `mke2fs` and its like where only root's PATH looks.
pub fn command(cwd: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.current_dir(cwd).args(args).stdin(Stdio::null()).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Runs to the end and returns standard output.
///
/// # Errors
/// The program is missing or ended unsuccessfully; the message has the end of what it printed.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown} (`make deps` installs what is needed)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<_> = said.lines().rev().take(5).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("{shown} failed ({}): {}", output.status, tail.join(" | "));
    }
    Ok(output.stdout)
}

/// Like [`output`], as text.
///
/// # Errors
/// As [`output`].
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}
