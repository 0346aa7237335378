//! Disks of other programs, made by QEMU, become ours; what they name elsewhere is not read.

use crate::support::{assert_same, folder, have, report, seven_zip, stamp};
use backstay_disk::{
    ConvertError, ConvertReport, ConvertRequest, ConvertTo, ForeignError, ForeignFormat, ForeignSource,
    convert, fs::HostFs, plan_convert, source_files,
};
use std::{path::Path, process::Command, sync::atomic::AtomicBool};

const SIZE: u64 = 40 << 20;

fn qemu_img(folder: &Path, args: &[&str]) {
    let run = Command::new("qemu-img").args(args).current_dir(folder).output().unwrap();
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
}

fn request(source: &Path, target: &Path, outside: bool) -> ConvertRequest {
    let format = ForeignFormat::of_name(source).unwrap();
    ConvertRequest {
        foreign: Some(ForeignSource { format, outside }),
        ..ConvertRequest::new(source.into(), target.into(), ConvertTo::Dynamic { block_size: 1 << 20 })
    }
}

fn run(source: &Path, target: &Path, outside: bool) -> Result<ConvertReport, ConvertError> {
    convert(&HostFs::shared(), &request(source, target, outside), &|_| {}, &AtomicBool::new(false))
}

fn content() -> Vec<u8> {
    let mut content = vec![0; usize::try_from(SIZE).unwrap()];
    for (at, len) in [(0, 70_144), (9 << 20, 3 << 20), (SIZE - 512, 512)] {
        let start = usize::try_from(at).unwrap();
        let data = stamp(at, len, 7);
        content[start..start + data.len()].copy_from_slice(&data);
    }
    content
}

fn refused(source: &Path, target: &Path) -> ForeignError {
    match run(source, target, false) {
        Err(ConvertError::Foreign(error)) => error,
        other => panic!("{}: {other:?}", source.display()),
    }
}

#[test]
fn each_format_becomes_a_vhdx_with_its_holes() {
    if !have("qemu-img") || !have("qemu-nbd") {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.raw"), content()).unwrap();
    for (name, options) in [
        ("a.qcow2", "compat=1.1"),
        ("old.qcow2", "compat=0.10"),
        ("a.vmdk", "subformat=monolithicSparse"),
        ("stream.vmdk", "subformat=streamOptimized"),
        ("split.vmdk", "subformat=twoGbMaxExtentSparse"),
        ("flat.vmdk", "subformat=monolithicFlat"),
        ("a.vdi", "static=off"),
    ] {
        let format = ForeignFormat::of_name(Path::new(name)).unwrap().name();
        qemu_img(folder.path(), &["convert", "-f", "raw", "-O", format, "-o", options, "a.raw", name]);
        let target = path(&format!("{name}.vhdx"));
        let done = run(&path(name), &target, false).unwrap_or_else(|e| panic!("{name}: {}", report(&e)));
        assert_eq!(done.size, SIZE, "{name}");
        assert!(done.copied < 4 << 20, "{name}: zeros are left out, {} were copied", done.copied);
        if have("7zz") {
            assert_same(&seven_zip(&target), &content(), name);
        }
        qemu_img(folder.path(), &["compare", "-f", "raw", "-F", "vhdx", "a.raw", target.to_str().unwrap()]);
        let plan = plan_convert(&HostFs::shared(), &request(&path(name), &path("x.vhdx"), false)).unwrap();
        assert!(plan.to_string().contains("copy "), "{plan}");
    }
}

#[test]
fn a_parent_in_the_same_folder_belongs_to_the_disk() {
    if !have("qemu-img") || !have("qemu-nbd") {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.raw"), content()).unwrap();
    qemu_img(folder.path(), &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "base.qcow2"]);
    qemu_img(folder.path(), &["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    let files = source_files(&HostFs::shared(), &request(&path("top.qcow2"), &path("x"), false)).unwrap();
    assert_eq!(files, [path("top.qcow2"), path("base.qcow2")]);
    run(&path("top.qcow2"), &path("b.vhdx"), false).unwrap_or_else(|e| panic!("{}", report(&e)));
    qemu_img(folder.path(), &["compare", "-f", "raw", "-F", "vhdx", "a.raw", "b.vhdx"]);
}

/// The names are ones that QEMU would follow.
#[test]
fn what_lies_elsewhere_is_not_read_unless_that_is_asked_for() {
    if !have("qemu-img") || !have("qemu-nbd") {
        return;
    }
    let (folder, elsewhere) = (folder(), folder());
    let path = |name: &str| folder.path().join(name);
    let secret = elsewhere.path().join("secret.raw");
    std::fs::write(&secret, stamp(0, 1 << 20, 3)).unwrap();
    let flat = |name: &Path| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n",
            name.display()
        )
    };
    std::fs::write(path("flat.vmdk"), flat(&secret)).unwrap();
    std::os::unix::fs::symlink(&secret, path("link.raw")).unwrap();
    std::fs::write(path("link.vmdk"), flat(Path::new("link.raw"))).unwrap();
    let secret_name = secret.to_str().unwrap();
    qemu_img(folder.path(), &["create", "-f", "qcow2", "-b", secret_name, "-F", "raw", "child.qcow2"]);
    qemu_img(
        folder.path(),
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            &format!("data_file={secret_name},data_file_raw=off"),
            "data.qcow2",
            "1M",
        ],
    );
    std::fs::write(&secret, stamp(0, 1 << 20, 3)).unwrap();
    for name in ["flat.vmdk", "link.vmdk", "child.qcow2", "data.qcow2"] {
        let error = refused(&path(name), &path("x.vhdx"));
        assert!(matches!(&error, ForeignError::Outside { other, .. } if *other == secret), "{name}: {error}");
    }
    run(&path("flat.vmdk"), &path("asked.vhdx"), true).unwrap_or_else(|e| panic!("{}", report(&e)));
    if have("7zz") {
        assert_same(&seven_zip(&path("asked.vhdx")), &stamp(0, 1 << 20, 3), "as asked for");
    }
    std::fs::write(path("net.vmdk"), flat(Path::new("nbd:localhost:10809"))).unwrap();
    assert!(matches!(refused(&path("net.vmdk"), &path("x.vhdx")), ForeignError::Name { .. }));
    std::fs::write(path("loop.vmdk"), flat(Path::new("gone.raw"))).unwrap();
    assert!(matches!(refused(&path("loop.vmdk"), &path("x.vhdx")), ForeignError::Io { .. }));
    std::fs::write(path("no.qcow2"), [0; 4096]).unwrap();
    assert!(matches!(refused(&path("no.qcow2"), &path("x.vhdx")), ForeignError::Header { .. }));
    assert!(!path("x.vhdx").exists());
}

#[test]
fn nothing_of_a_cancelled_one_goes_on() {
    if !have("qemu-img") || !have("qemu-nbd") {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.raw"), content()).unwrap();
    qemu_img(folder.path(), &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"]);
    let cancel = AtomicBool::new(false);
    let stop = |_| cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let ended =
        convert(&HostFs::shared(), &request(&path("a.qcow2"), &path("b.vhdx"), false), &stop, &cancel);
    assert!(matches!(ended, Err(ConvertError::Cancelled { .. })), "{ended:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "the two sources");
    let source = path("a.qcow2").display().to_string();
    let still_read = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&source))
    });
    assert!(!still_read, "its qemu-nbd has ended");
}
