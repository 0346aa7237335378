//! Whether a host has room for one more machine: what is promised is never promised twice.

use crate::{ByteSize, Cores, CpuControl, VmName};
use std::fmt;

/// Machines named in a message before it says how many more there are.
const NAMED: usize = 8;

const MIB: u64 = 1 << 20;

/// The processors that can be promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuHost {
    /// Logical processors.
    pub processors: u32,
    /// Kept for the host itself; promised to no machine.
    pub kept: Cores,
}

impl CpuHost {
    /// What can be promised in all.
    #[must_use]
    pub fn cores(&self) -> Cores {
        Cores::whole(self.processors).saturating_sub(self.kept)
    }
}

/// Processor time that is promised to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPromise {
    /// The machine.
    pub name: VmName,
    /// Its reserve.
    pub cores: Cores,
}

/// A machine that has no room on the processors of this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuRefusal {
    /// More virtual processors than the host has.
    #[error(
        "'{name}' has {count} virtual processors and this host {processors}: a machine has at most as many as its host; \
         lower --cpus"
    )]
    Count {
        /// The machine.
        name: VmName,
        /// Its processors.
        count: u32,
        /// The host's.
        processors: u32,
    },
    /// Its reserve is more than is left.
    #[error(
        "'{name}' needs {needs:.2} cores reserved; {promised:.2} of {of:.2} are promised{to}{kept}: lower reserves or turn \
         off a machine"
    )]
    Reserve {
        /// The machine.
        name: VmName,
        /// Its reserve.
        needs: Cores,
        /// What others have.
        promised: Cores,
        /// What can be promised in all.
        of: Cores,
        /// Who has it: ` to a, b`.
        to: String,
        /// What is kept for the host.
        kept: String,
    },
}

/// Whether the processors of `host` have room for a machine beside those with `promises`.
///
/// A reserve counts whether it is used or not. Only the sum counts: which core a processor runs on is the kernel's choice.
///
/// # Errors
/// [`CpuRefusal`], with the arithmetic.
pub fn admit_cpu(
    host: &CpuHost,
    promises: &[CpuPromise],
    name: &VmName,
    cpu: &CpuControl,
) -> Result<(), CpuRefusal> {
    if cpu.count > host.processors {
        let (name, processors) = (name.clone(), host.processors);
        return Err(CpuRefusal::Count { name, count: cpu.count, processors });
    }
    let (needs, of) = (cpu.reserved(), host.cores());
    let promised: Cores = promises.iter().map(|promise| promise.cores).sum();
    // Whoever reserves nothing is let in, also where more is promised than there is: settings of the host may change.
    if needs == Cores::ZERO || promised + needs <= of {
        return Ok(());
    }
    let kept = match host.kept {
        Cores::ZERO => String::new(),
        kept => format!(" ({kept:.2} of {} are kept for the host)", host.processors),
    };
    let to = Names(promises.iter().filter(|p| p.cores > Cores::ZERO).map(|p| p.name.as_str()).collect());
    Err(CpuRefusal::Reserve { name: name.clone(), needs, promised, of, to: to.to_string(), kept })
}

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryHost {
    /// What could be used now without swapping, by anybody.
    pub available: u64,
    /// Kept for the host itself.
    pub kept: u64,
}

/// Memory that is promised to a machine that is on, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPromise {
    /// The machine.
    pub name: VmName,
    /// All that it may use.
    pub promised: u64,
    /// What it has used, which is no longer available.
    pub touched: u64,
}

impl MemoryPromise {
    /// What it may still take from what is available.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.promised.saturating_sub(self.touched)
    }
}

/// What a machine needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The guest's memory.
    pub guest: u64,
    /// QEMU, the worker and page tables.
    pub around: u64,
}

impl MemoryNeed {
    /// What a machine with so much memory and so many processors needs.
    ///
    /// Around the guest: 80 MiB for QEMU with its screen and the worker, 4 MiB for each processor, 1/512 of the memory for
    /// page tables, and under software emulation 1/16 of the memory, within 32 to 512 MiB, for translated code.
    #[must_use]
    pub fn of(memory_mib: u64, processors: u32, emulated: bool) -> Self {
        let guest = memory_mib.saturating_mul(MIB);
        let code = if emulated { (guest / 16).clamp(32 * MIB, 512 * MIB) } else { 0 };
        Self { guest, around: 80 * MIB + 4 * MIB * u64::from(processors) + guest / 512 + code }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.guest.saturating_add(self.around)
    }
}

/// The memory kept for the host unless it is set: 5 %, within 256 MiB and 4 GiB.
#[must_use]
pub fn memory_kept_by_default(total: u64) -> u64 {
    (total / 20).clamp(256 * MIB, 4096 * MIB)
}

/// What is left for more machines: available, less what is promised and not yet used, less what the host keeps.
#[must_use]
pub fn memory_left(host: &MemoryHost, promises: &[MemoryPromise]) -> u64 {
    let outstanding: u64 = promises.iter().map(MemoryPromise::outstanding).sum();
    host.available.saturating_sub(outstanding).saturating_sub(host.kept)
}

/// A machine that has no room in the memory of this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{name}' needs {} of memory ({} for the guest, {} around it) and {} are left: {} are available{}, less {} kept for \
     the host; lower its memory, or turn off or save a machine",
    Size(.need.total()), Size(.need.guest), Size(.need.around), Size(*.left), Size(.host.available), .outstanding,
    Size(.host.kept)
)]
pub struct MemoryRefusal {
    /// The machine.
    pub name: VmName,
    /// What it needs.
    pub need: MemoryNeed,
    /// The host.
    pub host: MemoryHost,
    /// What is left, in bytes.
    pub left: u64,
    /// What is promised and not yet used, in words.
    pub outstanding: String,
}

/// Whether the memory of `host` has room for a machine beside those with `promises`.
///
/// # Errors
/// [`MemoryRefusal`], with the arithmetic.
pub fn admit_memory(
    host: &MemoryHost,
    promises: &[MemoryPromise],
    name: &VmName,
    need: MemoryNeed,
) -> Result<(), MemoryRefusal> {
    let left = memory_left(host, promises);
    if need.total() <= left {
        return Ok(());
    }
    let outstanding: u64 = promises.iter().map(MemoryPromise::outstanding).sum();
    let outstanding = match outstanding {
        0 => String::new(),
        bytes => {
            let mut waiting: Vec<_> = promises.iter().filter(|p| p.outstanding() > 0).collect();
            waiting.sort_by_key(|p| std::cmp::Reverse(p.outstanding()));
            let names = Names(waiting.iter().map(|p| p.name.as_str()).collect());
            format!(", less {} promised{names} and not used yet", Size(bytes))
        }
    };
    Err(MemoryRefusal { name: name.clone(), need, host: *host, left, outstanding })
}

/// ` to a, b, c and 4 more`
struct Names<'a>(Vec<&'a str>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names) = self;
        if names.is_empty() {
            return Ok(());
        }
        write!(f, " to {}", names[..names.len().min(NAMED)].join(", "))?;
        match names.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Bytes in words.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A tenth of a MiB says nothing here.
        ByteSize(self.0 / MIB * MIB).fmt(f)
    }
}
