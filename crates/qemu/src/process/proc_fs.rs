//! What `/proc` and the record file tell about a process.

use super::ProcessRecord;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Field 22 of `/proc/PID/stat`.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// The name in field 2 can hold blanks and parentheses, so counting starts behind the last one.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The arguments of a process, including the executable.
pub(super) fn command_line(pid: u32) -> io::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(bytes.split(|&byte| byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
}

/// Replaces the record as a whole: a worker that dies here leaves the old one or the new one.
pub(super) fn write_record(path: &Path, record: ProcessRecord) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    // QEMU may make files there: one that it left under this name is not written to.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    file.write_all(serde_json::to_string(&record)?.as_bytes())?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let tail: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("77 (odd) name ) S) {}", tail.join(" "));
        assert_eq!(parse_start_time(&stat), Some(22));
        assert_eq!(parse_start_time("77 (x"), None);
    }

    #[test]
    fn a_link_under_the_temporary_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (precious, record) = (folder.path().join("precious"), folder.path().join("qemu.json"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, record.with_extension("json.new")).unwrap();
        write_record(&record, ProcessRecord { pid: 1, start_time: 2 }).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert!(fs::symlink_metadata(&record).unwrap().is_file());
    }

    #[test]
    fn our_own_start_time_is_stable() {
        let pid = std::process::id();
        assert_eq!(start_time(pid).unwrap(), start_time(pid).unwrap());
    }
}
