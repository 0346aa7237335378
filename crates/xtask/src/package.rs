//! The Debian package: man pages and completions are what the executable says of itself, the rest is in `packaging/`.

use crate::cmd::{command, output};
use crate::root;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Where cargo-deb looks for what was generated: beside the executable.
const STAGE: &str = "package";

/// Builds the package from the executable in `target/PROFILE`, which must be there. `dev` is for tests:
/// compression is quick.
pub fn run(profile: &str) -> Result<()> {
    let folder = match profile {
        "dev" => "debug",
        "release" => "release",
        other => bail!("no profile {other}: use dev or release"),
    };
    let beside = crate::target()?.join(folder);
    let executable = beside.join("backstay");
    ensure!(
        executable.is_file(),
        "{} is missing: `cargo build -p backstay-cli` makes it (with --release for a package to install)",
        executable.display()
    );
    generate(&executable, &beside.join(STAGE))?;
    let into = crate::target()?.join("debian");
    fs::create_dir_all(&into).with_context(|| format!("cannot make {}", into.display()))?;
    let into_text = into.to_str().context("the target folder's path is not Unicode")?;
    let mut args = vec![
        "deb",
        "-q",
        "-p",
        "backstay-cli",
        "--no-build",
        "--no-dbgsym",
        "--profile",
        profile,
        "-o",
        into_text,
    ];
    if profile == "dev" {
        args.extend(["--strip", "--fast", "--deb-revision", "0dev"]);
    }
    output(&mut command(&root(), "cargo", &args)).context(
        "cargo-deb makes the package: `cargo install --locked cargo-deb` installs it (`make deb` does)",
    )?;
    println!("{}", newest(&into)?.display());
    Ok(())
}

/// Man pages and completions.
fn generate(executable: &Path, stage: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(stage);
    let man = stage.join("man");
    fs::create_dir_all(&man).with_context(|| format!("cannot make {}", man.display()))?;
    let program = executable.to_str().context("the target folder's path is not Unicode")?;
    output(command(stage, program, &["man"]).arg(&man))?;
    // As Debian wants them; cargo-deb compresses only what it is given by name.
    output(&mut command(&man, "gzip", &["-9nr", "."]))?;
    for (shell, name) in [("bash", "backstay"), ("zsh", "_backstay"), ("fish", "backstay.fish")] {
        let script = output(&mut command(stage, program, &["completions", shell]))?;
        let folder = stage.join(shell);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), script)?;
    }
    Ok(())
}

fn newest(folder: &Path) -> Result<PathBuf> {
    let packages = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let packages = packages.filter(|path| path.extension().is_some_and(|e| e == "deb"));
    let newest = packages.max_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
    newest.context("cargo-deb made no package")
}
