//! Conversions and compactions on a file system whose files can share their space.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    Bench, compact, convert,
    load::as_f64,
    report::{Goal, Report, Row},
};

const MIB: u64 = 1 << 20;

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("Btrfs") {
        return Ok(());
    }
    let mounted = match Mounted::btrfs(bench) {
        Ok(mounted) => mounted,
        Err(why) => {
            eprintln!("skipped: no Btrfs of our own: {why:#}");
            return Ok(());
        }
    };
    report.section(
        "Without copying",
        "On a Btrfs of its own, in a file. Conversions as above; the peer is `qemu-img convert`, which copies. The second row of each is \
         what the new file takes on the volume beside the source, the file system's own tables included. Compaction as above.",
    );
    let folder = mounted.folder.clone();
    let source = folder.join("half.raw");
    convert::half_full(&source, bench.sizes.convert)?;
    convert::convert(&source, &folder.join("half.vhd"))?;
    for way in &convert::WAYS {
        one_way(bench, &mounted, way, report)?;
    }
    fs::remove_file(source)?;
    fs::remove_file(folder.join("half.vhd"))?;
    compact::on_shared(bench, &folder, report)
}

fn one_way(bench: &Bench, mounted: &Mounted, way: &convert::Way, report: &mut Report) -> Result<()> {
    let name = format!("Btrfs: convert {}, {} MiB half full", way.name, bench.sizes.convert / MIB);
    let mut space = Row::new(format!("{name}: takes"), "MiB", Some(Goal::Limit(32.0)));
    let mut time = Row::new(name, "s", Some(Goal::AtMost(0.5)));
    let source = mounted.folder.join(way.source);
    for _ in 0..bench.rounds {
        let ours = mounted.folder.join(format!("ours.{}", way.target));
        let theirs = mounted.folder.join(format!("theirs.{}", way.target));
        let before = mounted.free()?;
        let us =
            convert::timed(Command::new(std::env::current_exe()?).arg("convert").args([&source, &ours]))?;
        space.ours.push(as_f64(before.saturating_sub(mounted.free()?)) / as_f64(MIB));
        let them = convert::timed(&mut way.peer(&source, &theirs))?;
        time.add(us.0, them.0);
        fs::remove_file(ours)?;
        fs::remove_file(theirs)?;
    }
    report.row(&time);
    report.row(&space);
    Ok(())
}

struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    fn btrfs(bench: &Bench) -> Result<Self> {
        let (image, folder) = (bench.path("btrfs.image"), bench.path("btrfs"));
        File::create(&image)?.set_len((bench.sizes.convert * 4).max(bench.sizes.merge * 4).max(1 << 30))?;
        fs::create_dir(&folder)?;
        run_tool(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        run_tool(Command::new("mount").args(["-o", "loop"]).args([&image, &folder]))?;
        Ok(Self { folder })
    }

    /// Bytes, once everything is written out.
    fn free(&self) -> Result<u64> {
        run_tool(Command::new("sync").arg("-f").arg(&self.folder))?;
        let stat = rustix::fs::statvfs(&self.folder)?;
        Ok(stat.f_bfree * stat.f_frsize)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run_tool(Command::new("umount").arg(&self.folder)) {
            eprintln!("{} stays mounted: {error:#}", Path::display(&self.folder));
        }
    }
}

fn run_tool(command: &mut Command) -> Result<()> {
    let output = command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output()?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}
