//! A file that loses what a real one can lose. For tests of this crate and of crates above it; not part of the API.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Shadow, ShadowSlot, Storage};

const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;

type Sector = [u8; SECTOR_LEN];

/// Small seeded random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A file in memory with a page cache.
///
/// Reads see every write. Only a flush makes writes durable. [`SimStorage::power_cut`] gives the file as a machine finds
/// it after power loss: of each 512-byte sector any version since the last flush, and any length since then, each chosen
/// independently. [`SimStorage::kill`] gives it as the next process finds it. Sectors never written are holes.
#[derive(Debug, Default)]
pub struct SimStorage {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    now: View,
    durable: View,
    /// Versions of sectors since the last flush, oldest first; `None` is a hole.
    versions: BTreeMap<u64, Vec<Option<Sector>>>,
    /// Lengths since the last flush.
    lengths: Vec<u64>,
    operations: u64,
    flushes: u64,
    dead: bool,
    dies_at: Option<u64>,
    dies_at_flush: Option<u64>,
    /// Flushes that do nothing.
    swallow: Option<std::ops::Range<u64>>,
    fail_flush: Option<u64>,
    capacity: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct View {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

impl SimStorage {
    /// An empty file.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A file with this content, durable.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Arc<Self> {
        let mut view = View { len: bytes.len() as u64, sectors: BTreeMap::new() };
        for (index, chunk) in (0u64..).zip(bytes.chunks(SECTOR_LEN)) {
            if chunk.iter().any(|byte| *byte != 0) {
                let mut sector = [0; SECTOR_LEN];
                sector[..chunk.len()].copy_from_slice(chunk);
                view.sectors.insert(index, sector);
            }
        }
        Self::from_view(view)
    }

    fn from_view(view: View) -> Arc<Self> {
        let state = State { now: view.clone(), durable: view, ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole content, as reads see it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = self.state().now.len;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.state().now.read(&mut bytes, 0);
        bytes
    }

    /// The file after power loss. Each seed loses something else.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let state = self.state();
        let mut view = state.durable.clone();
        // Some cuts lose or keep nearly everything: mixed ones alone rarely hit the long tails of orderings.
        let mood = rng.below(4);
        for (index, versions) in &state.versions {
            let choice = match mood {
                0 if !rng.one_in(16) => 0,
                1 if !rng.one_in(16) => versions.len() as u64,
                _ => rng.below(versions.len() as u64 + 1),
            };
            if let Some(version) = usize::try_from(choice).ok().and_then(|c| c.checked_sub(1)) {
                match versions[version] {
                    Some(sector) => view.sectors.insert(*index, sector),
                    None => view.sectors.remove(index),
                };
            }
        }
        let choice = rng.below(state.lengths.len() as u64 + 1);
        let len = usize::try_from(choice).ok().and_then(|c| c.checked_sub(1)).map(|c| state.lengths[c]);
        view.len = u64::MAX;
        view.cut(len.unwrap_or(state.durable.len));
        Self::from_view(view)
    }

    /// The file after the power loss that is the worst for those who rely on an order: of what was not flushed, the places that
    /// `keep` names have their last content, and all others what was durable. The length is the last one or the durable one: the
    /// larger or the smaller of both.
    #[must_use]
    pub fn power_cut_keeping(&self, longest: bool, keep: impl Fn(u64) -> bool) -> Arc<Self> {
        let state = self.state();
        let mut view = state.durable.clone();
        let (now, durable) = (state.now.len, view.len);
        let len = if longest { now.max(durable) } else { now.min(durable) };
        // A file that is as long as it was has what it had behind its new end.
        let kept = |at: u64| keep(at) && !(at >= now && now < len);
        for (index, versions) in state.versions.iter().filter(|(index, _)| kept(**index * SECTOR)) {
            match versions.last().copied().flatten() {
                Some(sector) => view.sectors.insert(*index, sector),
                None => view.sectors.remove(index),
            };
        }
        view.len = u64::MAX;
        view.cut(len);
        Self::from_view(view)
    }

    /// The file as the next process finds it: everything written is there, what was not flushed still is not durable.
    #[must_use]
    pub fn kill(&self) -> Arc<Self> {
        let mut state = self.state().clone();
        (state.dies_at, state.dies_at_flush, state.swallow, state.fail_flush) = (None, None, None, None);
        state.dead = false;
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Once `operations` more writes, length changes, holes and flushes were done, the next one and every later call fail.
    pub fn die_after(&self, operations: u64) {
        let mut state = self.state();
        state.dies_at = Some(state.operations + operations);
    }

    /// Once `flushes` more flushes were done, the next change and every later call fail.
    pub fn die_after_flushes(&self, flushes: u64) {
        let mut state = self.state();
        state.dies_at_flush = Some(state.flushes + flushes);
    }

    /// The flush after the next `skip` ones reports success and makes nothing durable: the mutant of a program without it.
    pub fn swallow_flush(&self, skip: u64) {
        self.swallow_flushes(skip..skip + 1);
    }

    /// As [`SimStorage::swallow_flush`] for several: 0 is the next one.
    pub fn swallow_flushes(&self, flushes: std::ops::Range<u64>) {
        let mut state = self.state();
        state.swallow = Some(state.flushes + flushes.start..state.flushes + flushes.end);
    }

    /// The flush after the next `skip` ones fails and makes nothing durable.
    pub fn fail_flush(&self, skip: u64) {
        let mut state = self.state();
        state.fail_flush = Some(state.flushes + skip);
    }

    /// From now on the file can have `sectors` more sectors that are not holes.
    pub fn limit_space(&self, sectors: usize) {
        let mut state = self.state();
        state.capacity = Some(state.now.sectors.len() + sectors);
    }

    /// Space is no limit any more.
    pub fn lift_limit(&self) {
        self.state().capacity = None;
    }

    /// Writes, length changes, holes and flushes so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Flushes so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }
}

impl View {
    fn read(&self, buf: &mut [u8], offset: u64) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = usize::try_from(at % SECTOR).unwrap_or(0);
            let len = (buf.len() - done).min(SECTOR_LEN - within);
            match self.sectors.get(&(at / SECTOR)) {
                Some(sector) => buf[done..done + len].copy_from_slice(&sector[within..within + len]),
                None => buf[done..done + len].fill(0),
            }
            done += len;
        }
    }

    /// Drops what lies behind `len` and sets the length.
    fn cut(&mut self, len: u64) {
        self.sectors.split_off(&len.div_ceil(SECTOR));
        if !len.is_multiple_of(SECTOR)
            && let Some(sector) = self.sectors.get_mut(&(len / SECTOR))
        {
            sector[usize::try_from(len % SECTOR).unwrap_or(0)..].fill(0);
        }
        self.len = len;
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.dead |= self.dies_at == Some(self.operations) || self.dies_at_flush == Some(self.flushes);
        self.alive()?;
        self.operations += 1;
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the simulated machine is off")) } else { Ok(()) }
    }

    fn put(&mut self, index: u64, sector: Option<Sector>) {
        match sector {
            Some(sector) => self.now.sectors.insert(index, sector),
            None => self.now.sectors.remove(&index),
        };
        self.versions.entry(index).or_default().push(sector);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.now.len {
            let gone: Vec<u64> = self.now.sectors.range(len / SECTOR..).map(|(index, _)| *index).collect();
            self.now.cut(len);
            for index in gone {
                let now = self.now.sectors.get(&index).copied();
                self.versions.entry(index).or_default().push(now);
            }
        }
        self.now.len = len;
        self.lengths.push(len);
    }
}

impl Storage for SimStorage {
    fn len(&self) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        Ok(state.now.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state();
        state.alive()?;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > state.now.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.now.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / SECTOR, end.div_ceil(SECTOR));
        let new = (first..last).filter(|index| !state.now.sectors.contains_key(index)).count();
        if state.capacity.is_some_and(|capacity| state.now.sectors.len() + new > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if end > state.now.len {
            state.set_len(end);
        }
        for index in first..last {
            let mut sector = state.now.sectors.get(&index).copied().unwrap_or([0; SECTOR_LEN]);
            let start = index * SECTOR;
            let (from, to) = (offset.max(start), end.min(start + SECTOR));
            let as_usize = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
            sector[as_usize(from - start)..as_usize(to - start)]
                .copy_from_slice(&buf[as_usize(from - offset)..as_usize(to - offset)]);
            state.put(index, Some(sector));
        }
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let end = (offset + len).min(state.now.len);
        if !offset.is_multiple_of(SECTOR) || !end.is_multiple_of(SECTOR) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "holes are whole sectors here"));
        }
        let there: Vec<u64> =
            state.now.sectors.range(offset / SECTOR..end / SECTOR).map(|(index, _)| *index).collect();
        for index in there {
            state.put(index, None);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.set_len(len);
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.state().operation()
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let number = state.flushes;
        state.flushes += 1;
        if state.swallow.as_ref().is_some_and(|range| range.contains(&number)) {
            return Ok(());
        }
        if state.fail_flush == Some(number) {
            return Err(io::Error::other("the simulated device failed"));
        }
        for (index, versions) in std::mem::take(&mut state.versions) {
            match versions.last().copied().flatten() {
                Some(sector) => state.durable.sectors.insert(index, sector),
                None => state.durable.sectors.remove(&index),
            };
        }
        state.lengths.clear();
        state.durable.len = state.now.len;
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let state = self.state();
        state.alive()?;
        let next = state.now.sectors.range(offset / SECTOR..).next();
        Ok(next.map(|(index, _)| (index * SECTOR).max(offset)))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        let mut index = offset / SECTOR;
        while index * SECTOR < state.now.len && state.now.sectors.contains_key(&index) {
            index += 1;
        }
        Ok((index * SECTOR).max(offset).min(state.now.len))
    }
}

/// A shadow that outlives a simulated process.
#[derive(Debug, Default)]
pub struct MemShadow {
    slots: Mutex<BTreeMap<u32, (u32, Vec<u8>)>>,
}

impl MemShadow {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u32, (u32, Vec<u8>)>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shadow for MemShadow {
    fn put(&self, block: u32, bat_sector: u32, first_byte: usize, bytes: &[u8]) -> io::Result<()> {
        let mut slots = self.slots();
        let (sector, bits) = slots.entry(block).or_default();
        if *sector != bat_sector {
            bits.clear();
            *sector = bat_sector;
        }
        let end = (first_byte + bytes.len()).next_multiple_of(512);
        if bits.len() < end {
            bits.resize(end, 0);
        }
        bits[first_byte..first_byte + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn load(&self) -> io::Result<Vec<ShadowSlot>> {
        let slots = self.slots();
        Ok(slots
            .iter()
            .map(|(block, (bat_sector, bits))| ShadowSlot {
                block: *block,
                bat_sector: *bat_sector,
                bits: bits.clone(),
            })
            .collect())
    }

    fn forget(&self, block: u32) -> io::Result<()> {
        self.slots().remove(&block);
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.slots().clear();
        Ok(())
    }
}
