//! Every form into every other, judged by programs of others.

use crate::support::{
    assert_same, child_of, dynamic, folder, have, open, report, seven_zip, stamp, with_shadow,
};
use backstay_disk::{Backend, ConvertRequest, ConvertTo, DiskOptions, check_file, convert, fs::HostFs};
use std::{path::Path, process::Command, sync::atomic::AtomicBool};

/// Neither whole blocks nor whole pages.
const SIZE: u64 = (9 << 20) + 1536;

/// Pieces in many blocks, zeros that were written, and a last sector.
fn fill(path: &Path, options: DiskOptions, model: &mut [u8], writer: u64) {
    let disk = open(path, options);
    for (offset, len) in [(0, 512), (700 << 10, 900 << 10), (5 << 20, 70_144), (SIZE - 512, 512)] {
        let offset = if writer > 1 { offset / 1024 * 512 } else { offset };
        let data = stamp(offset, len, writer);
        disk.write(offset, &data).unwrap();
        let at = usize::try_from(offset).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
    }
    disk.write_zeroes(800 << 10, 300 << 10, backstay_disk::ZeroMode::default()).unwrap();
    model[800 << 10..1100 << 10].fill(0);
    disk.close().unwrap();
}

fn to(source: &Path, target: &Path, form: ConvertTo) {
    let request = ConvertRequest::new(source.to_owned(), target.to_owned(), form);
    let done = convert(&HostFs::shared(), &request, &|_| {}, &AtomicBool::new(false));
    let done = done.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert_eq!(done.size, SIZE);
}

fn qemu_format(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("vhdx") => "vhdx",
        Some("vhd") => "vpc",
        _ => "raw",
    }
}

/// Whether 7-Zip can judge: it takes a VHDX with an odd number of sectors for damaged.
fn seven_zip_judges(path: &Path) -> bool {
    let vhdx = path.extension().is_some_and(|extension| extension == "vhdx" || extension == "avhdx");
    have("7zz") && (!vhdx || SIZE.is_multiple_of(1024))
}

/// Compares a file that is not part of a chain with the expected bytes, by QEMU and 7-Zip, and checks its structures.
fn judged_by_others(target: &Path, model: &[u8], what: &str) {
    let raw = target.extension().is_some_and(|extension| extension == "raw");
    if have("qemu-img") {
        let expected = target.with_file_name("expected");
        std::fs::write(&expected, model).unwrap();
        let mut command = Command::new("qemu-img");
        command.args(["compare", "-f", "raw", "-F", qemu_format(target)]).args([&expected, target]);
        let run = command.output().unwrap();
        assert!(run.status.success(), "{what}: {}", String::from_utf8_lossy(&run.stdout));
    }
    if raw {
        assert_same(&std::fs::read(target).unwrap(), model, what);
        return;
    }
    if seven_zip_judges(target) {
        assert_same(&seven_zip(target), model, &format!("{what}: 7-Zip"));
    }
    let found = check_file(&HostFs::shared(), target, &DiskOptions::default()).unwrap();
    assert_eq!(found.worst(), None, "{what}: {found}");
}

#[test]
fn every_form_becomes_every_other_and_back() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let dynamic_of = |block_size| ConvertTo::Dynamic { block_size };
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let base = dynamic(folder.path(), "dynamic.vhd", SIZE);
    fill(&base, DiskOptions::default(), &mut model, 1);
    for (name, form) in [("fixed.vhd", ConvertTo::Fixed), ("flat.raw", ConvertTo::Raw)] {
        to(&base, &path(name), form);
    }
    let mut chain_model = model.clone();
    child_of(&base, &path("child.avhd"));
    fill(&path("child.avhd"), with_shadow(folder.path()), &mut chain_model, 2);
    assert_ne!(model, chain_model);
    to(&base, &path("dynamic.vhdx"), dynamic_of(1 << 20));
    child_of(&path("dynamic.vhdx"), &path("child.avhdx"));
    let mut model_again = model.clone();
    fill(&path("child.avhdx"), with_shadow(folder.path()), &mut model_again, 2);
    assert_same(&model_again, &chain_model, "both chains hold the same");

    let sources = ["dynamic.vhd", "fixed.vhd", "flat.raw", "child.avhd", "dynamic.vhdx", "child.avhdx"];
    for source in sources.map(path) {
        let is_child = source.file_stem().is_some_and(|stem| stem == "child");
        let model = if is_child { &chain_model } else { &model };
        if seven_zip_judges(&source) && source.extension().is_some_and(|extension| extension != "raw") {
            assert_same(&seven_zip(&source), model, "7-Zip, the source");
        }
        for (name, form) in [
            ("to-fixed.vhd", ConvertTo::Fixed),
            ("to-raw.raw", ConvertTo::Raw),
            ("to-small.vhd", dynamic_of(512 << 10)),
            ("to-large.vhd", dynamic_of(64 << 20)),
            ("to-fixed.vhdx", ConvertTo::Fixed),
            ("to-small.vhdx", dynamic_of(1 << 20)),
            ("to-usual.vhdx", dynamic_of(backstay_disk::DEFAULT_BLOCK_SIZE)),
        ] {
            let (target, what) = (path(name), format!("{} {name}", source.display()));
            to(&source, &target, form);
            judged_by_others(&target, model, &what);
            std::fs::remove_file(&target).unwrap();
        }
    }
}
