//! A disk against a vector of bytes, through random histories.

use crate::support::{
    BLOCK_SIZE, Form, assert_same, child_of, dynamic, folder, make, open, read_all, with_shadow,
};
use backstay_disk::{
    Backend, Disk, DiskOptions, Identity, MergeControl, NewDisk, ZeroMode, switch_all, switch_back_all,
};
use proptest::prelude::*;
use std::{path::PathBuf, sync::Arc};

const SECTORS: u64 = 5000; // nearly five blocks; the last one is cut

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        count: u64,
        byte: u8,
    },
    /// Zero and non-zero pages mixed.
    WritePatchy {
        sector: u64,
        count: u64,
        seed: u64,
    },
    Zero {
        sector: u64,
        count: u64,
        unmap: bool,
    },
    Trim {
        sector: u64,
        count: u64,
    },
    Flush,
    /// Close and open; with or without a shadow folder.
    Reopen {
        shadow: bool,
    },
    /// Let go without closing, as a process that dies.
    Die {
        shadow: bool,
    },
    Switch,
    SwitchBack,
    /// So many sectors more.
    Grow {
        sectors: u64,
    },
    Compact,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Dynamic,
    Fixed,
    Raw,
    Differencing(usize),
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let count = prop_oneof![4 => 1..20_u64, 2 => 1..600_u64, 1 => 1..SECTORS];
    (0..SECTORS, count).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((sector, count), byte)| Step::Write { sector, count, byte }),
        3 => (range(), any::<u64>()).prop_map(|((sector, count), seed)| Step::WritePatchy { sector, count, seed }),
        3 => (range(), any::<bool>()).prop_map(|((sector, count), unmap)| Step::Zero { sector, count, unmap }),
        2 => range().prop_map(|(sector, count)| Step::Trim { sector, count }),
        1 => Just(Step::Flush),
        1 => any::<bool>().prop_map(|shadow| Step::Reopen { shadow }),
        1 => any::<bool>().prop_map(|shadow| Step::Die { shadow }),
        1 => Just(Step::Switch),
        1 => Just(Step::SwitchBack),
        1 => (1..3000_u64).prop_map(|sectors| Step::Grow { sectors }),
        1 => Just(Step::Compact),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        2 => Just(Start::Dynamic),
        1 => Just(Start::Fixed),
        1 => Just(Start::Raw),
        4 => (1..3_usize).prop_map(Start::Differencing),
    ]
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Vhd), Just(Form::Vhdx)]
}

struct World {
    folder: tempfile::TempDir,
    form: Form,
    top: PathBuf,
    disk: Arc<Disk>,
    model: Vec<u8>,
    /// Layers put on since the disk was opened.
    switched: usize,
    files: usize,
}

impl World {
    fn new(start: Start, form: Form) -> Self {
        let folder = folder();
        let size = SECTORS * 512;
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let mut top = folder.path().join(form.disk("base"));
        match start {
            Start::Dynamic | Start::Differencing(_) => _ = dynamic(folder.path(), &form.disk("base"), size),
            Start::Fixed => make(&top, &NewDisk::Fixed { size }),
            Start::Raw => {
                top = folder.path().join("base.raw");
                make(&top, &NewDisk::Raw { size });
            }
        }
        if let Start::Differencing(depth) = start {
            for level in 0..depth as u64 {
                // Something in each parent to be seen through the child, or hidden by it.
                let disk = open(&top, with_shadow(folder.path()));
                for (block, low) in [(0, 1), (2, 2), (4, 3)] {
                    let offset: u64 = block * u64::from(BLOCK_SIZE) + level * 5 * 512;
                    let bytes = vec![if level == 0 { 0x10 + low } else { 0x20 + low }; 30 * 512];
                    disk.write(offset, &bytes).unwrap();
                    let at = usize::try_from(offset).unwrap();
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                disk.close().unwrap();
                let child = folder.path().join(form.layer(&format!("level{level}")));
                child_of(&top, &child);
                top = child;
            }
        }
        let disk = open(&top, with_shadow(folder.path()));
        Self { folder, form, top, disk, model, switched: 0, files: 0 }
    }

    fn reopen(&mut self, shadow: bool) {
        let options = if shadow { with_shadow(self.folder.path()) } else { DiskOptions::default() };
        self.disk = open(&self.top, options);
        self.switched = 0;
    }

    fn bytes(&mut self, sector: u64, count: u64) -> &mut [u8] {
        let (from, len) = (usize::try_from(sector * 512).unwrap(), usize::try_from(count * 512).unwrap());
        &mut self.model[from..from + len]
    }

    fn apply(&mut self, step: &Step) {
        // Every other range lies at the end of the disk, wherever that is by now.
        let grown = self.model.len() as u64 / 512 - SECTORS;
        let placed = |sector: u64| if sector.is_multiple_of(2) { sector } else { sector + grown };
        match *step {
            Step::Write { sector, count, byte } => self.write(placed(sector), count, byte),
            Step::WritePatchy { sector, count, seed } => self.write_patchy(placed(sector), count, seed),
            Step::Zero { sector, count, unmap } => self.zero(placed(sector), count, unmap),
            Step::Trim { sector, count } => self.trim(placed(sector), count),
            Step::Flush => self.disk.flush().unwrap(),
            Step::Reopen { shadow } => {
                self.disk.close().unwrap();
                self.reopen(shadow);
            }
            Step::Die { shadow } => {
                self.disk.abandon();
                // The next process must look where the dead one left its bits.
                self.reopen(true);
                if !shadow {
                    self.disk.close().unwrap();
                    self.reopen(false);
                }
            }
            Step::Switch => self.switch(),
            Step::SwitchBack => self.switch_back(),
            Step::Grow { sectors } => {
                let size = self.model.len() as u64 + sectors * 512;
                self.disk.grow(size).unwrap();
                self.model.resize(usize::try_from(size).unwrap(), 0);
            }
            Step::Compact => self.compact(),
        }
    }

    fn write(&mut self, sector: u64, count: u64, byte: u8) {
        self.bytes(sector, count).fill(byte);
        let data = self.bytes(sector, count).to_vec();
        self.disk.write(sector * 512, &data).unwrap();
    }

    fn write_patchy(&mut self, sector: u64, count: u64, seed: u64) {
        let mut rng = backstay_vhd::testing::Rng::new(seed);
        for page in self.bytes(sector, count).chunks_mut(1024) {
            page.fill(if rng.one_in(3) { 0xc3 } else { 0 });
        }
        let data = self.bytes(sector, count).to_vec();
        self.disk.write(sector * 512, &data).unwrap();
    }

    fn zero(&mut self, sector: u64, count: u64, unmap: bool) {
        self.bytes(sector, count).fill(0);
        let mode = ZeroMode { may_unmap: unmap, fast_only: false };
        self.disk.write_zeroes(sector * 512, count * 512, mode).unwrap();
    }

    fn compact(&self) {
        let top = &self.disk.chain()[0];
        match self.disk.compact(&MergeControl::new()) {
            Ok(done) => assert!(done.new_len <= done.old_len && top.grows(), "{done:?}"),
            Err(error) => assert!(!top.grows(), "{error}"),
        }
    }

    /// Each sector is old or zero afterwards, and stays what it is.
    fn trim(&mut self, sector: u64, count: u64) {
        self.disk.trim(sector * 512, count * 512).unwrap();
        let mut now = vec![0; usize::try_from(count * 512).unwrap()];
        self.disk.read(sector * 512, &mut now).unwrap();
        for (found, old) in now.chunks(512).zip(self.bytes(sector, count).chunks_mut(512)) {
            assert!(found == old || found.iter().all(|byte| *byte == 0), "a trimmed sector has new content");
            old.copy_from_slice(found);
        }
    }

    fn switch(&mut self) {
        let path = self.folder.path().join(self.form.layer(&format!("switch{}", self.files)));
        self.files += 1;
        let prepared = self.disk.prepare_child(&path, Identity::fresh());
        if self.top.extension().is_some_and(|extension| extension == "raw") {
            prepared.expect_err("a raw disk has no children");
            return;
        }
        prepared.unwrap();
        switch_all([(Arc::clone(&self.disk), path.clone())]).unwrap();
        self.top = path;
        self.switched += 1;
    }

    fn switch_back(&mut self) {
        let child = self.top.clone();
        let parent = self.disk.chain().get(1).map(|layer| layer.path.clone());
        match switch_back_all(std::slice::from_ref(&self.disk)) {
            Ok(taken) => {
                assert_eq!(
                    taken.iter().map(|path| path.file_name()).collect::<Vec<_>>(),
                    [child.file_name()]
                );
                assert!(self.switched > 0);
                self.switched -= 1;
                std::fs::remove_file(&child).unwrap();
                self.top = parent.unwrap();
            }
            Err(error) => {
                let refused = error.to_string();
                assert!(refused.contains("holds data by now") || self.switched == 0, "{refused}");
            }
        }
    }

    fn check(&self, when: &str) {
        assert_same(&read_all(&self.disk), &self.model, when);
        // What is reported as zero must be zero, and the runs must cover the disk.
        let runs = self.disk.block_status(0, self.model.len() as u64, usize::MAX).unwrap();
        let mut at = 0;
        for run in &runs {
            let len = usize::try_from(run.len).unwrap();
            assert!(
                !run.zero || self.model[at..at + len].iter().all(|byte| *byte == 0),
                "{when}: {run:?} at {at}"
            );
            at += len;
        }
        assert_eq!(at, self.model.len(), "{when}: block status covers the disk");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_history_reads_like_a_vector(
        start in start(),
        form in form(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(start, form);
        world.check("at start");
        for step in &steps {
            world.apply(step);
        }
        world.check("at the end");
        world.disk.close().unwrap();
        world.reopen(false);
        world.check("after closing and opening");
    }
}
