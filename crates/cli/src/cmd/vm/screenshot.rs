//! `vm screenshot`

use crate::context::Context;
use crate::output;
use anyhow::Context as _;
use clap::{Args, ValueHint};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  backstay vm screenshot web web.png\n  backstay vm screenshot web - | display"
)]
pub struct ScreenshotArgs {
    /// Name or GUID
    vm: String,
    /// The PNG file to write; `-` is standard output
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
}

/// Runs it.
pub async fn run(context: &Context, args: &ScreenshotArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let to_stdout = args.file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(crate::exit::Fail::usage(
            "a picture on the terminal helps nobody: name a file, or redirect the output",
        ));
    }
    let png = client.screenshot(vm).await?;
    if to_stdout {
        return output::print_bytes(&png);
    }
    std::fs::write(&args.file, &png).with_context(|| format!("cannot write {}", args.file.display()))?;
    context.note(format!("{} written, {}", args.file.display(), output::size(png.len() as u64)));
    Ok(())
}
