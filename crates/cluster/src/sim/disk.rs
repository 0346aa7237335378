//! The shared storage of one group: one disk, and what has landed on it.

/// A write on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub group: usize,
    pub node: usize,
    /// Which life of the node submitted it.
    pub life: u32,
    pub epoch: u64,
    pub counter: u64,
    /// Global instant at which it was submitted.
    pub submitted: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    /// Refuses epochs below the fence (class S).
    pub enforces: bool,
    pub fence: u64,
    /// The newest epoch that opened it.
    pub opened: u64,
    /// The last counter that landed.
    pub value: u64,
    /// The highest counter whose write was acknowledged to a guest.
    pub acknowledged: u64,
    pub landed: u64,
    pub refused: u64,
}

pub(super) enum Landing {
    Ok,
    Refused,
    /// It landed although a newer epoch has the disk.
    Stale,
}

impl Disk {
    /// Opens it for `epoch`, raising the fence in the same breath. `None`: refused. Else the counter that is read back.
    pub fn open(&mut self, epoch: u64) -> Option<u64> {
        if self.enforces && epoch < self.fence {
            return None;
        }
        self.fence = self.fence.max(epoch);
        self.opened = self.opened.max(epoch);
        Some(self.value)
    }

    pub fn land(&mut self, write: &Write) -> Landing {
        if self.enforces && write.epoch < self.fence {
            self.refused += 1;
            return Landing::Refused;
        }
        self.landed += 1;
        if write.epoch < self.opened {
            self.value = write.counter;
            return Landing::Stale;
        }
        // Writes go to places of their own; what a new owner finds is the highest.
        self.value = self.value.max(write.counter);
        Landing::Ok
    }
}
