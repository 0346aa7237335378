use super::*;
use proptest::prelude::*;
use uuid::Uuid;

const SLOT: DriveSlot = DriveSlot::Ide { controller: 0, unit: 0 };

fn checkpoint(n: u128) -> StateOf {
    StateOf::Checkpoint(CheckpointId(Uuid::from_u128(n)), SLOT)
}

/// Chains in words: `"c>b>a"` is c on b on a.
fn layers(chains: &[&str], states: &[(&str, StateOf)], released: &[&str]) -> Layers {
    let mut layers = Layers::default();
    for chain in chains {
        layers.add_chain(&chain.split('>').map(PathBuf::from).collect::<Vec<_>>());
    }
    for (file, state) in states {
        layers.add_state(Path::new(file), state.clone());
    }
    for file in released {
        layers.release(Path::new(file));
    }
    layers
}

fn merge(upper: &str, lower: &str, children: &[&str], states: &[StateOf]) -> FileStep {
    FileStep::Merge {
        upper: upper.into(),
        lower: lower.into(),
        children: children.iter().map(PathBuf::from).collect(),
        states: states.to_vec(),
    }
}

#[test]
fn the_only_child_goes_into_a_released_file() {
    let all = layers(&["c>b>a"], &[("c", StateOf::Now(SLOT)), ("b", checkpoint(1))], &["a"]);
    assert_eq!(all.plan().steps, [merge("b", "a", &["c"], &[checkpoint(1)])]);
    // And then the next checkpoint goes.
    let all = layers(&["c>a"], &[("c", StateOf::Now(SLOT))], &["a"]);
    assert_eq!(all.plan().steps, [merge("c", "a", &[], &[StateOf::Now(SLOT)])]);
}

#[test]
fn a_row_of_released_files_is_merged_from_the_bottom() {
    let all = layers(&["d>c>b>a"], &[("d", StateOf::Now(SLOT))], &["a", "b", "c"]);
    let steps = [
        merge("b", "a", &["c"], &[]),
        merge("c", "a", &["d"], &[]),
        merge("d", "a", &[], &[StateOf::Now(SLOT)]),
    ];
    assert_eq!(all.plan().steps, steps);
}

#[test]
fn what_goes_away_is_not_merged_first() {
    // Of b and a, both released, the upper one has no child: nothing has to be copied.
    let all = layers(&["c>x", "b>a>x"], &[("c", StateOf::Now(SLOT)), ("x", checkpoint(1))], &["a", "b"]);
    assert_eq!(all.plan().steps, [FileStep::Delete("b".into()), FileStep::Delete("a".into())]);
}

#[test]
fn a_branch_point_stays_until_one_branch_is_left() {
    let states = [("c", StateOf::Now(SLOT)), ("b", checkpoint(1))];
    let all = layers(&["c>a", "b>a"], &states, &["a"]);
    let plan = all.plan();
    assert_eq!(plan.steps, []);
    assert!(plan.kept[0].reason.contains("2 files are made on it"), "{plan:?}");
    let all = layers(&["c>a", "b>a"], &states[..1], &["a", "b"]);
    assert_eq!(all.plan().steps, [FileStep::Delete("b".into()), merge("c", "a", &[], &[StateOf::Now(SLOT)])]);
}

#[test]
fn what_is_not_ours_to_change_stays_with_the_reason() {
    let mut all = layers(&["c>b>a"], &[("c", StateOf::Now(SLOT))], &["b", "a"]);
    all.forbid(Path::new("a"), "'other' uses it");
    // The template stays; what is above it may be merged into its neighbour.
    let plan = all.plan();
    assert_eq!(plan.steps, [merge("c", "b", &[], &[StateOf::Now(SLOT)])]);
    assert_eq!(plan.kept, [KeptFile { file: "a".into(), reason: "'other' uses it".into() }]);
    all.forbid(Path::new("c"), "'other' uses it");
    assert!(all.plan().steps.is_empty());
    // A file that nobody recorded is never consumed.
    let stray = layers(&["x>b>a"], &[("a", checkpoint(1))], &["b"]);
    assert!(stray.plan().steps.is_empty() && stray.plan().kept[0].reason.contains("no checkpoint"));
}

#[test]
fn a_merge_that_was_begun_goes_on_whatever_the_children_look_like() {
    // One child of b has its new parent already.
    let mut all = layers(
        &["c>a", "d>b>a"],
        &[("c", StateOf::Now(SLOT)), ("d", checkpoint(2)), ("b", checkpoint(1))],
        &["a"],
    );
    assert!(all.plan().steps.is_empty());
    all.set_merging(Some(Merging { upper: "b".into(), lower: "a".into() }));
    assert_eq!(all.plan().steps, [merge("b", "a", &["d"], &[checkpoint(1)])]);
    // Its upper file is gone: the record has to be concluded before anything else happens.
    all.set_merging(Some(Merging { upper: "gone".into(), lower: "a".into() }));
    assert_eq!(all.next_step(), None);
}

#[test]
fn a_merge_that_cannot_go_on_holds_up_no_deletion_and_is_the_reason_of_what_waits() {
    // b goes into a; e is on nothing; c and d are others' rows.
    let mut all =
        layers(&["b>a", "e", "d>c"], &[("b", StateOf::Now(SLOT)), ("d", checkpoint(1))], &["a", "e", "c"]);
    all.set_merging(Some(Merging { upper: "b".into(), lower: "a".into() }));
    all.forbid(Path::new("a"), "'x' uses it");
    let plan = all.plan();
    assert_eq!(plan.steps, [FileStep::Delete("e".into())]);
    let kept: Vec<_> =
        plan.kept.iter().map(|kept| (kept.file.to_str().unwrap(), kept.reason.as_str())).collect();
    assert!(kept.contains(&("a", "'x' uses it")), "{kept:?}");
    let waits = kept.iter().find(|(file, _)| *file == "c").map(|(_, reason)| *reason);
    assert!(
        waits.is_some_and(|why| why.contains("b is half merged into a") && why.contains("'x'")),
        "{kept:?}"
    );
}

#[test]
fn a_disk_that_was_detached_while_it_was_merged_stays_with_what_it_is_read_from() {
    let mut all = layers(&["b>a"], &[], &["a"]);
    all.set_merging(Some(Merging { upper: "b".into(), lower: "a".into() }));
    let plan = all.plan();
    assert_eq!(plan.steps, []);
    assert!(plan.kept.iter().any(|kept| kept.file == Path::new("a")), "{plan:?}");
    // At the end of a merge the checkpoint names the lower file already, and nothing the upper one.
    let mut all = layers(&["b>a"], &[("a", checkpoint(1))], &["a"]);
    all.set_merging(Some(Merging { upper: "b".into(), lower: "a".into() }));
    assert_eq!(all.next_step(), Some(merge("b", "a", &[], &[])));
}

/// A machine with one disk: files hold bytes, checkpoints name files.
#[derive(Clone, Debug)]
struct World {
    data: BTreeMap<PathBuf, BTreeMap<u8, u32>>,
    below: BTreeMap<PathBuf, Option<PathBuf>>,
    tops: BTreeMap<StateOf, PathBuf>,
    released: BTreeSet<PathBuf>,
    merging: Option<Merging>,
    made: u32,
}

#[derive(Clone, Debug)]
enum Action {
    Write(u8),
    Checkpoint,
    Apply(u8),
    Delete(u8),
    /// Carries out the next step of the plan, or dies in the middle of it.
    Step {
        copied: u8,
        reparented: u8,
        named: u8,
    },
}

impl World {
    fn new() -> Self {
        let base = PathBuf::from("base");
        Self {
            data: BTreeMap::from([(base.clone(), BTreeMap::new())]),
            below: BTreeMap::from([(base.clone(), None)]),
            tops: BTreeMap::from([(StateOf::Now(SLOT), base)]),
            released: BTreeSet::new(),
            merging: None,
            made: 0,
        }
    }

    fn read(&self, state: &StateOf) -> BTreeMap<u8, u32> {
        let mut seen = BTreeMap::new();
        let mut at = self.tops.get(state);
        while let Some(file) = at {
            for (sector, value) in &self.data[file] {
                seen.entry(*sector).or_insert(*value);
            }
            at = self.below[file].as_ref();
        }
        seen
    }

    fn all(&self) -> BTreeMap<StateOf, BTreeMap<u8, u32>> {
        self.tops.keys().map(|state| (state.clone(), self.read(state))).collect()
    }

    fn layers(&self) -> Layers {
        let mut layers = Layers::default();
        for file in self.below.keys() {
            let next = |at: &PathBuf| self.below[at].clone();
            layers.add_chain(&std::iter::successors(Some(file.clone()), next).collect::<Vec<_>>());
        }
        for (state, file) in &self.tops {
            layers.add_state(file, state.clone());
        }
        self.released.iter().for_each(|file| layers.release(file));
        layers.set_merging(self.merging.clone());
        layers
    }

    fn child_of(&mut self, parent: &Path) -> PathBuf {
        self.made += 1;
        let child = PathBuf::from(format!("f{}", self.made));
        self.data.insert(child.clone(), BTreeMap::new());
        self.below.insert(child.clone(), Some(parent.into()));
        child
    }

    fn checkpoints(&self) -> Vec<StateOf> {
        self.tops.keys().filter(|state| matches!(state, StateOf::Checkpoint(..))).cloned().collect()
    }

    fn pick(&self, n: u8) -> Option<StateOf> {
        let all = self.checkpoints();
        all.get(usize::from(n) % all.len().max(1)).cloned()
    }

    fn now(&self) -> PathBuf {
        self.tops[&StateOf::Now(SLOT)].clone()
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Write(sector) => {
                self.made += 1;
                let (top, value) = (self.now(), self.made);
                self.data.get_mut(&top).unwrap().insert(*sector % 16, value);
            }
            Action::Checkpoint => {
                let top = self.now();
                let child = self.child_of(&top);
                self.tops.insert(checkpoint(u128::from(self.made)), top);
                self.tops.insert(StateOf::Now(SLOT), child);
            }
            Action::Apply(n) => {
                let Some(state) = self.pick(*n) else { return };
                let file = self.tops[&state].clone();
                let (former, child) = (self.now(), self.child_of(&file));
                self.released.insert(former);
                self.tops.insert(StateOf::Now(SLOT), child);
            }
            Action::Delete(n) => {
                let Some(state) = self.pick(*n) else { return };
                let file = self.tops.remove(&state).unwrap();
                self.released.insert(file);
            }
            Action::Step { copied, reparented, named } => self.step(*copied, *reparented, *named),
        }
    }

    /// In the order of the real thing: copy, new parents, new names, deletion.
    fn step(&mut self, copied: u8, reparented: u8, named: u8) {
        let Some(step) = self.layers().next_step() else { return };
        let (upper, lower, children, states) = match step {
            FileStep::Delete(file) => {
                assert!(self.released.contains(&file));
                self.data.remove(&file);
                self.below.remove(&file);
                self.released.remove(&file);
                return;
            }
            FileStep::Merge { upper, lower, children, states } => (upper, lower, children, states),
        };
        self.merging = Some(Merging { upper: upper.clone(), lower: lower.clone() });
        let content = self.data[&upper].clone();
        for (sector, value) in content.iter().take(copied.into()) {
            self.data.get_mut(&lower).unwrap().insert(*sector, *value);
        }
        if usize::from(copied) < content.len() {
            return;
        }
        for child in children.iter().take(reparented.into()) {
            self.below.insert(child.clone(), Some(lower.clone()));
        }
        if usize::from(reparented) < children.len() {
            return;
        }
        // A top is named anew and deleted at one instant, because it is written to.
        for state in states.iter().take(named.into()) {
            self.tops.insert(state.clone(), lower.clone());
        }
        if usize::from(named) < states.len() {
            return;
        }
        if !self.released.remove(&upper) {
            self.released.remove(&lower);
        }
        self.data.remove(&upper);
        self.below.remove(&upper);
        self.merging = None;
    }
}

fn action() -> impl Strategy<Value = Action> {
    let byte = 0u8..=255;
    prop_oneof![
        4 => byte.clone().prop_map(Action::Write),
        3 => Just(Action::Checkpoint),
        2 => byte.clone().prop_map(Action::Apply),
        3 => byte.prop_map(Action::Delete),
        3 => (0u8..20, 0u8..4, 0u8..3)
            .prop_map(|(copied, reparented, named)| Action::Step { copied, reparented, named }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_needed_ever_changes_and_all_space_returns(
        actions in proptest::collection::vec(action(), 1..60)
    ) {
        let mut world = World::new();
        for action in &actions {
            let mut expected = world.all();
            // A merge of the top ends before the guest writes again, as far as a machine that is off goes.
            let planned = world.layers().plan();
            for step in &planned.steps {
                if let FileStep::Delete(file) = step {
                    prop_assert!(world.released.contains(file), "{file:?} was never released");
                    prop_assert!(world.tops.values().all(|top| top != file));
                }
            }
            world.act(action);
            if let Action::Step { .. } = action {
                prop_assert_eq!(&expected, &world.all(), "{:?}", planned);
            } else {
                expected.remove(&StateOf::Now(SLOT));
                for (state, content) in world.all() {
                    if let Some(before) = expected.get(&state) {
                        prop_assert_eq!(before, &content);
                    }
                }
            }
        }
        // Without its checkpoints the machine has one file again, with the bytes it had.
        let now = world.read(&StateOf::Now(SLOT));
        while !world.checkpoints().is_empty() {
            world.act(&Action::Delete(0));
        }
        for _ in 0..200 {
            world.step(255, 255, 255);
        }
        prop_assert_eq!(world.data.len(), 1, "{:?}", world);
        prop_assert!(world.released.is_empty() && world.layers().plan().kept.is_empty());
        prop_assert_eq!(now, world.read(&StateOf::Now(SLOT)));
    }
}
