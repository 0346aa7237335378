//! The guests' disk images, built by `xtask guest`.

use std::path::PathBuf;

fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this executable");
    // target/debug/deps/it-… → target
    exe.ancestors().nth(3).expect("cargo's target folder").to_path_buf()
}

/// The executable under test.
///
/// # Panics
/// When it was not built.
pub(crate) fn backstay() -> PathBuf {
    let path =
        std::env::var_os("BACKSTAY_BIN").map_or_else(|| target().join("debug/backstay"), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p backstay-cli` (make test does)",
        path.display()
    );
    path
}

/// The microguest's raw disk, 1 MiB.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn microguest_image() -> PathBuf {
    let path = target().join("guest/microguest.img");
    assert!(path.is_file(), "{} is missing: run `target/debug/xtask guest` (make test does)", path.display());
    path
}

/// The Linux guest's raw disk; `None` (and a printed line) where its packages could not be had.
#[must_use]
pub fn linux_image() -> Option<PathBuf> {
    let path = target().join("guest/linux.img");
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: there is no Linux guest here ({} is missing; `xtask guest` says why)", path.display());
    None
}
