//! What the kernel shows of a device and of those that belong to it. The folders are arguments, so that tests can show
//! devices that the machine at hand does not have.

use super::Number;
use std::{
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// Where the kernel's files are.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// Tells the number of the device that a path of the host leads to; none if to none.
pub type NumberOf<'a> = &'a dyn Fn(&Path) -> Option<Number>;

/// A device or partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `sdb1`.
    pub name: String,
    /// Its number.
    pub number: Number,
    /// What is built on it.
    pub holders: Vec<Stacked>,
}

/// A device that is built on another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// `dm-0`, `md127`.
    pub name: String,
    /// By the device mapper.
    pub mapped: Option<Mapped>,
    /// By the RAID driver: `raid1`.
    pub raid_level: Option<String>,
}

/// A map of the device mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// `vg-root`.
    pub name: String,
    /// Begins with who made it.
    pub uuid: String,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device as the kernel counts it; of some file systems a number of no device.
    pub number: Option<Number>,
    /// The device that was named when it was mounted.
    pub source: Option<Number>,
    /// Where.
    pub at: PathBuf,
}

/// A device and everything that could have a claim to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The device.
    pub node: Node,
    /// Of a partition: the disk it is on.
    pub whole: Option<Node>,
    /// Its partitions.
    pub partitions: Vec<Node>,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// What is mounted on the host.
    pub mounts: Vec<Mount>,
    /// What the host swaps to.
    pub swaps: Vec<Option<Number>>,
    /// Members of mounted btrfs: name of the device, id of the file system.
    pub members: Vec<(String, String)>,
    /// Loop devices, and the device that each shows.
    pub loops: Vec<(String, Option<Number>)>,
}

impl Surroundings {
    /// The device, its partitions, and the disk it is on.
    pub(super) fn concerned(&self) -> impl Iterator<Item = &Node> {
        self.whole.iter().chain([&self.node]).chain(&self.partitions)
    }
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Reads what there is about a device.
///
/// # Errors
/// If the kernel shows no such device, or the list of mounted file systems cannot be read: then nobody knows.
pub fn read(roots: &Roots, number: Number, number_of: NumberOf<'_>) -> io::Result<Surroundings> {
    let place = fs::canonicalize(roots.sys.join(format!("dev/block/{number}")))?;
    let node = node(roots, &place, number)?;
    let whole = match (place.join("partition").exists(), place.parent()) {
        (true, Some(disk)) => {
            let number = text(&disk.join("dev")).as_deref().and_then(Number::parse);
            number.map(|number| self::node(roots, disk, number)).transpose()?
        }
        _ => None,
    };
    let mut partitions = Vec::new();
    for name in names(&place) {
        let part = place.join(&name);
        if part.join("partition").exists()
            && let Some(number) = text(&part.join("dev")).as_deref().and_then(Number::parse)
        {
            partitions.push(self::node(roots, &part, number)?);
        }
    }
    Ok(Surroundings {
        node,
        whole,
        partitions,
        read_only: text(&place.join("ro")).as_deref() == Some("1"),
        mounts: mounts(roots, number_of)?,
        swaps: swaps(roots, number_of)?,
        members: members(roots),
        loops: loops(roots, number_of),
    })
}

fn node(roots: &Roots, place: &Path, number: Number) -> io::Result<Node> {
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let stacked = |name: String| {
        let place = roots.sys.join("block").join(&name);
        let mapped = text(&place.join("dm/name"))
            .map(|name| Mapped { name, uuid: text(&place.join("dm/uuid")).unwrap_or_default() });
        let raid = place.join("md").is_dir();
        let raid_level = raid.then(|| text(&place.join("md/level")).unwrap_or_default());
        Stacked { name, mapped, raid_level }
    };
    let holders = names(&place.join("holders")).into_iter().map(stacked).collect();
    Ok(Node { name, number, holders })
}

/// A field of `/proc/self/mountinfo` or `/proc/swaps`: spaces and others are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn mounts(roots: &Roots, number_of: NumberOf<'_>) -> io::Result<Vec<Mount>> {
    let bytes = fs::read(roots.proc.join("self/mountinfo"))?;
    let mount = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let number = std::str::from_utf8(fields.get(2)?).ok().and_then(Number::parse);
        let at = unescape(fields.get(4)?);
        let end = fields.iter().position(|field| *field == b"-")?;
        let source = fields.get(end + 2).map(|source| unescape(source));
        Some(Mount { number, source: source.and_then(|source| number_of(&source)), at })
    };
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

fn swaps(roots: &Roots, number_of: NumberOf<'_>) -> io::Result<Vec<Option<Number>>> {
    // A kernel without swap has no such file.
    let bytes = match fs::read(roots.proc.join("swaps")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let lines = bytes.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty());
    let path = |line: &[u8]| unescape(line.split(u8::is_ascii_whitespace).next().unwrap_or_default());
    Ok(lines.map(|line| number_of(&path(line))).collect())
}

fn members(roots: &Roots) -> Vec<(String, String)> {
    let all = roots.sys.join("fs/btrfs");
    let of = |id: String| {
        let devices = names(&all.join(&id).join("devices"));
        devices.into_iter().map(move |device| (device, id.clone()))
    };
    names(&all).into_iter().flat_map(of).collect()
}

fn loops(roots: &Roots, number_of: NumberOf<'_>) -> Vec<(String, Option<Number>)> {
    let block = roots.sys.join("block");
    let shown = |name: String| {
        let file = fs::read(block.join(&name).join("loop/backing_file")).ok()?;
        let path = std::ffi::OsStr::from_bytes(file.trim_ascii_end()).to_owned();
        Some((name, number_of(Path::new(&path))))
    };
    names(&block).into_iter().filter(|name| name.starts_with("loop")).filter_map(shown).collect()
}
