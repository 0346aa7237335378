//! The disk-space guard: a guest is paused before the volume its disks grow on is full, and goes on when there is room
//! again. Pure: what the volumes are like and the time are arguments.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long there has to be room before the guest goes on.
const STEADY: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks while a volume is nearly full.
const LOOK_OFTEN: Duration = Duration::from_millis(200);
/// At least this part of a volume is never reserved: 5 % of a small one is enough.
const SMALL_VOLUME_DIVISOR: u64 = 20;

/// What is kept free on a volume; part of the launch record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardOptions {
    /// Bytes.
    pub min_free: u64,
    /// Hundredths of a percent of the volume, 0–10000. The larger of the two counts, on small volumes never more than 5 %.
    pub min_free_of_10000: u32,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self { min_free: 200 << 20, min_free_of_10000: 50 }
    }
}

impl GuardOptions {
    /// What is kept free on a volume of `total` bytes.
    #[must_use]
    pub fn reserve(&self, total: u64) -> u64 {
        let part = u128::from(total) * u128::from(self.min_free_of_10000.min(10_000)) / 10_000;
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        self.min_free.max(part).min(total / SMALL_VOLUME_DIVISOR)
    }

    /// What is kept free on the volume that `file` lies on; nothing if that cannot be told. Blocks for as long as its file system takes
    /// to answer.
    #[must_use]
    pub fn reserve_beside(&self, file: &Path) -> u64 {
        let volume = file.parent().and_then(|folder| Volume::of(folder).ok());
        volume.map_or(0, |volume| self.reserve(volume.total))
    }

    /// What has to be free before a guest goes on that was paused: more, so that it does not stop at once again.
    #[must_use]
    pub fn enough(&self, total: u64) -> u64 {
        let reserve = self.reserve(total);
        reserve.saturating_add(reserve / 2)
    }
}

/// A volume as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its device number.
    pub id: u64,
    /// A folder on it, for people.
    pub folder: PathBuf,
    /// Bytes that can be used at all.
    pub total: u64,
    /// Bytes that can still be used.
    pub free: u64,
}

impl Volume {
    /// The volume that `folder` lies on. Blocks for as long as its file system takes to answer.
    ///
    /// # Errors
    /// As the file system.
    pub fn of(folder: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let numbers = rustix::fs::statvfs(folder)?;
        Ok(Self {
            id: std::fs::metadata(folder)?.dev(),
            folder: folder.into(),
            total: numbers.f_blocks.saturating_mul(numbers.f_frsize),
            free: numbers.f_bavail.saturating_mul(numbers.f_frsize),
        })
    }

    /// Why nothing may grow on it; none: there is room.
    #[must_use]
    pub fn shortage(&self, options: &GuardOptions) -> Option<String> {
        let reserve = options.reserve(self.total);
        (self.free < reserve).then(|| {
            let (free, folder) = (bytes(self.free), self.folder.display());
            format!(
                "the volume of {folder} has only {free} free, {} are kept: make room there",
                bytes(reserve)
            )
        })
    }
}

/// What has to be told and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest has to stand still, and why.
    Low(String),
    /// It may run again.
    Back(String),
}

/// The decision so far.
#[derive(Clone, Debug)]
pub struct Guard {
    options: GuardOptions,
    /// Since when there has been room on all of them, while the guest stands still.
    standing: Option<Standing>,
    close: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    room_since: Option<Duration>,
}

impl Guard {
    /// A guard; `standing`: a former worker had paused the guest.
    #[must_use]
    pub fn new(options: GuardOptions, standing: bool) -> Self {
        Self { options, standing: standing.then(Standing::default), close: standing }
    }

    /// What it keeps free.
    #[must_use]
    pub fn options(&self) -> GuardOptions {
        self.options
    }

    /// Whether the guest has to stand still.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.standing.is_some()
    }

    /// When to look again after a look.
    #[must_use]
    pub fn next_look(&self) -> Duration {
        if self.close { LOOK_OFTEN } else { LOOK_EVERY }
    }

    /// Moves the decision by one look at the volumes. A volume that did not answer is missing in `view`: it neither stops
    /// the guest (the first failed request does) nor lets it go on.
    pub fn step(&mut self, view: &[Result<Volume, PathBuf>], now: Duration) -> Option<Change> {
        let volumes: BTreeMap<u64, &Volume> = view.iter().flatten().map(|v| (v.id, v)).collect();
        let options = self.options;
        self.close = self.standing.is_some()
            || volumes.values().any(|v| v.free < options.reserve(v.total).saturating_mul(4));
        let Some(standing) = &mut self.standing else {
            let short = volumes.values().find_map(|volume| volume.shortage(&options))?;
            self.standing = Some(Standing::default());
            return Some(Change::Low(short));
        };
        let room =
            view.iter().all(Result::is_ok) && volumes.values().all(|v| v.free >= options.enough(v.total));
        if !room {
            standing.room_since = None;
            return None;
        }
        let since = *standing.room_since.get_or_insert(now);
        if now.saturating_sub(since) < STEADY {
            return None;
        }
        self.standing = None;
        let least = volumes.values().min_by_key(|volume| volume.free);
        Some(Change::Back(match least {
            Some(volume) => {
                format!("the volume of {} has {} free again", volume.folder.display(), bytes(volume.free))
            }
            None => "there is room again".into(),
        }))
    }
}

/// `153.2 MiB`.
fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn volume(id: u64, total: u64, free: u64) -> Result<Volume, PathBuf> {
        Ok(Volume { id, folder: format!("/v{id}").into(), total, free })
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_reserve_is_sensible_on_small_and_large_volumes() {
        let options = GuardOptions::default();
        assert_eq!(options.reserve(100 * GIB), 100 * GIB / 200, "0.5 %");
        assert_eq!(options.reserve(20 * GIB), 200 * MIB);
        assert_eq!(options.reserve(24 * MIB), 24 * MIB / 20, "5 % of what is tiny");
        let off = GuardOptions { min_free: 0, min_free_of_10000: 0 };
        assert_eq!((off.reserve(GIB), off.enough(GIB)), (0, 0));
        assert_eq!(options.reserve(u64::MAX), u64::MAX / 200);
    }

    #[test]
    fn a_guest_stands_below_the_reserve_and_goes_on_with_clearly_more() {
        let mut guard = Guard::new(GuardOptions::default(), false);
        let view = |free: u64| [volume(1, 20 * GIB, free), volume(2, 20 * GIB, 10 * GIB)];
        assert_eq!(guard.step(&view(201 * MIB), at(0)), None);
        assert_eq!(guard.next_look(), LOOK_OFTEN, "it is close");
        let Some(Change::Low(why)) = guard.step(&view(199 * MIB), at(200)) else { panic!("not stopped") };
        assert!(why.contains("/v1") && why.contains("199.0 MiB") && why.contains("200.0 MiB"), "{why}");
        for (free, now) in [(199, 400), (250, 600), (299, 5000), (301, 6000), (301, 6900)] {
            assert_eq!(guard.step(&view(free * MIB), at(now)), None, "{free}");
        }
        // Room has to last.
        assert_eq!(guard.step(&view(250 * MIB), at(6950)), None);
        assert_eq!(guard.step(&view(400 * MIB), at(7000)), None);
        let Some(Change::Back(why)) = guard.step(&view(400 * MIB), at(8000)) else { panic!("not back") };
        assert!(why.contains("/v1"), "{why}");
        assert!(!guard.stands());
    }

    #[test]
    fn the_next_worker_goes_on_where_the_former_one_was() {
        let mut guard = Guard::new(GuardOptions::default(), true);
        let between = [volume(1, 20 * GIB, 250 * MIB)];
        assert_eq!(guard.step(&between, at(0)), None);
        assert!(guard.stands(), "more than the reserve is not enough for one that stands");
        let gone = [volume(1, 20 * GIB, 10 * GIB), Err("/v2".into())];
        assert_eq!(guard.step(&gone, at(5000)), None, "one that does not answer may be full");
        let room = [volume(1, 20 * GIB, 10 * GIB)];
        assert_eq!(guard.step(&room, at(6000)), None);
        assert!(matches!(guard.step(&room, at(7000)), Some(Change::Back(_))));
    }

    #[test]
    fn a_lost_volume_alone_stops_nobody_and_a_guard_that_is_off_never_does() {
        let mut guard = Guard::new(GuardOptions::default(), false);
        assert_eq!(guard.step(&[Err("/v".into())], at(0)), None);
        assert_eq!(guard.next_look(), LOOK_EVERY);
        let mut off = Guard::new(GuardOptions { min_free: 0, min_free_of_10000: 0 }, false);
        assert_eq!(off.step(&[volume(1, GIB, 0)], at(0)), None);
    }
}
