//! The guests' disk images, built by `xtask guest`.

use std::path::PathBuf;

/// The first of the folders around this executable (target/debug/deps, target/debug, target …) that has such a file.
fn around(file: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().expect("the path of this executable");
    exe.ancestors().skip(1).take(3).map(|folder| folder.join(file)).find(|path| path.is_file())
}

/// The executable under test.
///
/// # Panics
/// When it was not built.
pub(crate) fn backstay() -> PathBuf {
    let path = std::env::var_os("BACKSTAY_BIN").map(PathBuf::from).or_else(|| around("backstay"));
    path.filter(|path| path.is_file())
        .expect("no `backstay` beside this executable: run `cargo build -p backstay-cli` (make test does)")
}

/// A program of this workspace that lies beside the executable under test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    around(name).unwrap_or_else(|| {
        panic!("no `{name}` beside this executable: `cargo build -p {name}` (make test does)")
    })
}

/// The microguest's raw disk, 1 MiB.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn microguest_image() -> PathBuf {
    around("guest/microguest.img").expect("no microguest: run `target/debug/xtask guest` (make test does)")
}

/// The Linux guest's raw disk; `None` (and a printed line) where its packages could not be had.
#[must_use]
pub fn linux_image() -> Option<PathBuf> {
    let path = around("guest/linux.img");
    if path.is_none() {
        println!("skipped: there is no Linux guest here (`xtask guest` builds it, or says why not)");
    }
    path
}

/// The executable of the previous release; `None` (and a printed line) where it could not be built.
#[must_use]
pub fn previous_release() -> Option<PathBuf> {
    let named = std::env::var_os("BACKSTAY_PREVIOUS").map(PathBuf::from);
    let path = named.or_else(|| around("previous/backstay")).filter(|path| path.is_file());
    if path.is_none() {
        println!(
            "skipped: the previous release was not built here (`xtask previous` builds it, or says why not)"
        );
    }
    path
}
