//! Cgroup v2 in memory, with the rules that the kernel applies to what the drivers do (`kernel/cgroup/cgroup.c`, Linux 6):
//! `cgroup_vet_subtree_control_enable`, `cgroup_enable_threaded`, `cgroup_can_be_thread_root`, `cgroup_migrate_vet_dst`,
//! `cgroup_attach_permissions`.

use super::Folders;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Controllers that work on threads.
const THREADED: [&str; 3] = ["cpu", "cpuset", "pids"];

#[derive(Debug)]
pub(super) struct Kernel {
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<PathBuf, Group>,
    /// Process of each thread.
    threads: BTreeMap<u32, u32>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    threaded: bool,
    controllers: BTreeSet<String>,
    handed_on: BTreeSet<String>,
    threads: BTreeSet<u32>,
    files: BTreeMap<String, String>,
}

fn refused<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl State {
    fn children<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Group)> {
        self.groups.iter().filter(move |(child, _)| child.parent() == Some(path))
    }

    fn populated(&self, path: &Path) -> bool {
        self.groups.iter().any(|(group, g)| group.starts_with(path) && !g.threads.is_empty())
    }

    /// Root of the threaded domain that `path` is in.
    fn domain<'a>(&self, path: &'a Path) -> &'a Path {
        let mut at = path;
        while self.groups[at].threaded {
            at = at.parent().unwrap();
        }
        at
    }

    fn is_thread_root(&self, path: &Path) -> bool {
        !self.groups[path].threaded && self.children(path).any(|(_, child)| child.threaded)
    }

    /// A domain below a threaded one, or beside threaded siblings, can hold nothing.
    fn is_valid(&self, path: &Path, root: &Path) -> bool {
        if path == root {
            return true;
        }
        let parent = path.parent().unwrap();
        let threaded = |at: &Path| self.groups[at].threaded || (at != root && self.is_thread_root(at));
        self.groups[path].threaded || !threaded(parent)
    }

    fn can_be_thread_root(&self, path: &Path, root: &Path) -> bool {
        let domain_children =
            self.children(path).any(|(child, group)| !group.threaded && self.populated(child));
        let domain_controllers = self.groups[path].handed_on.iter().any(|c| !THREADED.contains(&c.as_str()));
        path == root || (!self.groups[path].threaded && !domain_children && !domain_controllers)
    }

    fn kind(&self, path: &Path, root: &Path) -> &'static str {
        match () {
            () if self.groups[path].threaded => "threaded",
            () if !self.is_valid(path, root) => "domain invalid",
            () if path != root && self.is_thread_root(path) => "domain threaded",
            () => "domain",
        }
    }

    fn hand_on(&mut self, path: &Path, root: &Path, controller: &str) -> io::Result<()> {
        let group = &self.groups[path];
        if !group.controllers.contains(controller) {
            return refused(Errno::NOENT);
        }
        if !self.is_valid(self.domain(path), root) {
            return refused(Errno::OPNOTSUPP);
        }
        let on_threads = THREADED.contains(&controller);
        let allowed = path == root || (on_threads && (self.can_be_thread_root(path, root) || group.threaded));
        if !on_threads && path != root && (self.is_thread_root(path) || group.threaded) {
            return refused(Errno::OPNOTSUPP);
        }
        // A plain domain with processes: only a root of threaded children may compete with them, see the module's words.
        let plain = path != root && !group.threaded && !self.is_thread_root(path);
        if !allowed && !group.threads.is_empty() || (plain && !on_threads && !group.threads.is_empty()) {
            return refused(Errno::BUSY);
        }
        self.groups.get_mut(path).unwrap().handed_on.insert(controller.into());
        let below: Vec<_> = self.children(path).map(|(child, _)| child.clone()).collect();
        for child in below {
            let threaded = self.groups[&child].threaded;
            self.groups.get_mut(&child).unwrap().gain(controller, threaded);
        }
        Ok(())
    }

    fn make_threaded(&mut self, path: &Path, root: &Path) -> io::Result<()> {
        let group = &self.groups[path];
        let parent = path.parent().unwrap();
        let domain = self.domain(parent);
        let own_domain = group.handed_on.iter().any(|c| !THREADED.contains(&c.as_str()));
        if self.populated(path)
            || own_domain
            || !self.is_valid(domain, root)
            || !self.can_be_thread_root(domain, root)
        {
            return refused(Errno::OPNOTSUPP);
        }
        let group = self.groups.get_mut(path).unwrap();
        group.threaded = true;
        group.controllers.retain(|c| THREADED.contains(&c.as_str()));
        Ok(())
    }

    fn attach(&mut self, path: &Path, root: &Path, id: u32, whole: bool) -> io::Result<()> {
        let Some(process) = self.threads.get(&id).copied() else { return refused(Errno::SRCH) };
        let from = self.groups.iter().find(|(_, g)| g.threads.contains(&id)).map(|(p, _)| p.clone()).unwrap();
        let group = &self.groups[path];
        if !self.is_valid(self.domain(path), root) || !self.is_valid(path, root) {
            return refused(Errno::OPNOTSUPP);
        }
        if whole && group.threaded || !whole && self.domain(path) != self.domain(&from) {
            return refused(Errno::OPNOTSUPP);
        }
        let free = path == root || self.can_be_thread_root(path, root) || group.threaded;
        if !free && !group.handed_on.is_empty() {
            return refused(Errno::BUSY);
        }
        let moved: Vec<u32> = self
            .threads
            .iter()
            .filter(|(tid, pid)| if whole { **pid == process } else { **tid == id })
            .map(|(t, _)| *t)
            .collect();
        for group in self.groups.values_mut() {
            group.threads.retain(|tid| !moved.contains(tid));
        }
        self.groups.get_mut(path).unwrap().threads.extend(moved);
        Ok(())
    }
}

impl Group {
    fn gain(&mut self, controller: &str, threaded: bool) {
        if threaded && !THREADED.contains(&controller) {
            return;
        }
        self.controllers.insert(controller.into());
        if controller == "cpu" {
            self.files.insert("cpu.weight".into(), "100".into());
            self.files.insert("cpu.max".into(), "max 100000".into());
        }
    }
}

impl Kernel {
    pub(super) fn new(root: &str, controllers: &[&str]) -> Self {
        let mut group = Group::default();
        group.controllers.extend(controllers.iter().map(|c| (*c).to_owned()));
        let state = State { groups: [(PathBuf::from(root), group)].into(), ..State::default() };
        Self { root: root.into(), state: Mutex::new(state) }
    }

    /// A process starts in the root, as one whose parent is there.
    pub(super) fn start(&self, process: u32, threads: &[u32]) {
        let mut state = self.state.lock().unwrap();
        state.threads.extend(threads.iter().map(|tid| (*tid, process)));
        let root = self.root.clone();
        state.groups.get_mut(&root).unwrap().threads.extend(threads);
    }

    pub(super) fn end(&self, process: u32) {
        let mut state = self.state.lock().unwrap();
        let over: Vec<u32> = state.threads.iter().filter(|(_, p)| **p == process).map(|(t, _)| *t).collect();
        state.threads.retain(|_, p| *p != process);
        for group in state.groups.values_mut() {
            group.threads.retain(|tid| !over.contains(tid));
        }
    }
}

fn lines(ids: impl IntoIterator<Item = u32>) -> String {
    ids.into_iter().map(|id| format!("{id}\n")).collect()
}

impl Folders for Kernel {
    fn read(&self, path: &Path) -> io::Result<String> {
        let state = self.state.lock().unwrap();
        let (folder, file) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        let Some(group) = state.groups.get(folder) else { return refused(Errno::NOENT) };
        let words = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ") + "\n";
        Ok(match file {
            "cgroup.controllers" => words(&group.controllers),
            "cgroup.subtree_control" => words(&group.handed_on),
            "cgroup.type" => state.kind(folder, &self.root).into(),
            "cgroup.threads" => lines(group.threads.iter().copied()),
            "cgroup.procs" if group.threaded => return refused(Errno::OPNOTSUPP),
            "cgroup.procs" => {
                let inside: BTreeSet<u32> = state
                    .groups
                    .iter()
                    .filter(|(p, _)| p.starts_with(folder) && state.domain(p) == folder)
                    .flat_map(|(_, g)| g.threads.iter().map(|tid| state.threads[tid]))
                    .collect();
                lines(inside)
            }
            other => match group.files.get(other) {
                Some(text) => text.clone(),
                None => return refused(Errno::NOENT),
            },
        })
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let (folder, file) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        if !state.groups.contains_key(folder) {
            return refused(Errno::NOENT);
        }
        let id = || text.parse::<u32>().map_err(|_| io::Error::from(Errno::INVAL));
        match file {
            "cgroup.subtree_control" => match text.strip_prefix('+') {
                Some(controller) => state.hand_on(folder, &self.root, controller),
                None => refused(Errno::INVAL),
            },
            "cgroup.type" if text == "threaded" => state.make_threaded(folder, &self.root),
            "cgroup.procs" => state.attach(folder, &self.root, id()?, true),
            "cgroup.threads" => state.attach(folder, &self.root, id()?, false),
            "cpu.weight" if !(1..=10_000).contains(&id()?) => refused(Errno::RANGE),
            "cpu.max" if !max_is_valid(text) => refused(Errno::INVAL),
            other => match state.groups.get_mut(folder).unwrap().files.get_mut(other) {
                Some(value) => {
                    text.clone_into(value);
                    Ok(())
                }
                None => refused(Errno::NOENT),
            },
        }
    }

    fn make(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        if state.groups.contains_key(path) {
            return Ok(false);
        }
        let Some(parent) = path.parent().and_then(|parent| state.groups.get(parent)) else {
            return refused(Errno::NOENT);
        };
        let mut group = Group::default();
        for controller in parent.handed_on.clone() {
            group.gain(&controller, false);
        }
        state.groups.insert(path.into(), group);
        Ok(true)
    }

    fn remove(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        if !state.groups.contains_key(path) {
            return Ok(false);
        }
        if state.populated(path) || state.children(path).next().is_some() {
            return refused(Errno::BUSY);
        }
        state.groups.remove(path);
        Ok(true)
    }
}

fn max_is_valid(text: &str) -> bool {
    let Some((quota, period)) = text.split_once(' ') else { return false };
    let long_enough = quota == "max" || quota.parse().is_ok_and(|us: u64| us >= 1000);
    long_enough && period.parse().is_ok_and(|us: u64| (1000..=1_000_000).contains(&us))
}
