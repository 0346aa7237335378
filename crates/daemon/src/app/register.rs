//! Bringing back the machines of a folder.

use super::merge::kick_all;
use super::usage::{FileKey, usage};
use super::{Accepted, App, Call, Done};
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Found, Machine, Search, blocking, find_moved, read_machine, scan};
use crate::layout::Layout;
use crate::tasks::{Hold, TaskContext, TaskSpec, store_failure};
use backstay_api::{Blocker, ObjectKind, ObjectRef, Plan, ProblemCode, VmRegister};
use backstay_model::{VmId, VmState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Brings back the machines of a folder, or the one of a configuration file.
///
/// # Errors
/// `invalid`, `not-found`; `exists` when a machine's GUID or name is taken.
pub async fn register(app: &Arc<App>, body: VmRegister, call: &Call) -> Result<Accepted, Failure> {
    let found = look(app, &body.path).await?;
    check(app, &found).await?;
    let plan = describe(app, &found);
    let (id, name) = match found.machines.as_slice() {
        [one] => (Some(one.id.0), one.name().to_string()),
        many => (None, format!("{} machines of {}", many.len(), body.path.display())),
    };
    let mut holds = vec![Hold::Folders];
    holds.extend(found.machines.iter().flat_map(|m| [Hold::Vm(m.id), Hold::Name(m.name().to_string())]));
    let task = TaskSpec {
        operation: "vm.register",
        object: ObjectRef { kind: ObjectKind::Vm, id, name },
        holds,
        cancellable: false,
        yields: false,
    };
    let path = body.path;
    app.accept(call, plan, task, move |app, context| run(app, context, path)).await
}

/// Reads what is at `path`: a folder that holds `Virtual Machines`, that folder itself, or a configuration in it.
/// Files that moved with the folder are found where they are now.
async fn look(app: &App, path: &Path) -> Result<Found, Failure> {
    let mut found = read(path).await?;
    for index in 0..found.machines.len() {
        let Some(machine) = found.machines.get(index).cloned() else { continue };
        let mut others = app.inventory.places_of_others(machine.id);
        let beside = found.machines.iter().filter(|other| other.id != machine.id);
        others.extend(beside.flat_map(Machine::disk_places).map(|(file, _)| file));
        let there = blocking(move || Ok(find_moved(machine, Search::Registered(&others)))).await?;
        if let Some(place) = found.machines.get_mut(index) {
            *place = there;
        }
    }
    Ok(found)
}

async fn read(path: &Path) -> Result<Found, Failure> {
    if !path.is_absolute() {
        return Err(Failure::invalid(format!(
            "{} is not an absolute path: give it from / on",
            path.display()
        )));
    }
    let path = path.to_path_buf();
    blocking(move || {
        let path = std::fs::canonicalize(&path).map_err(|e| Failure::file("reading", &path, e))?;
        if path.is_file() {
            let layout = Layout::of_config(&path).ok_or_else(|| {
                Failure::invalid(format!(
                    "{} does not lie in a folder 'Virtual Machines': move it into one, and its disks and checkpoints \
                     into 'Virtual Hard Disks' and 'Snapshots' next to that",
                    path.display()
                ))
            })?;
            let machine = read_machine(&layout, &path)
                .map_err(|reason| Failure::invalid(format!("{}: {reason}", path.display())))?;
            return Ok(Found { machines: vec![machine], unreadable: Vec::new() });
        }
        let layout = Layout::of_config(&path.join("x.xml")).unwrap_or_else(|| Layout::new(&path));
        let found = scan(&layout).map_err(|e| Failure::file("listing", layout.root(), e))?;
        if found.machines.is_empty() && found.unreadable.is_empty() {
            return Err(Failure::not_found(format!(
                "there is no virtual machine in {}: a configuration is a file <GUID>.xml in a folder 'Virtual Machines'",
                path.display()
            )));
        }
        Ok(found)
    })
    .await
}

async fn check(app: &App, found: &Found) -> Result<(), Failure> {
    let mut blockers = Vec::new();
    let mut say = |code, detail: String, cure: &str| {
        blockers.push(Blocker { code, detail, cure: Some(cure.into()) });
    };
    for (path, reason) in &found.unreadable {
        say(ProblemCode::Damaged, format!("{}: {reason}", path.display()), "repair or move the file");
    }
    for machine in &found.machines {
        match app.inventory.get(machine.id) {
            Ok(other) if other.config_file != machine.config_file => say(
                ProblemCode::Exists,
                format!(
                    "the GUID {} of {} belongs to '{}' ({})",
                    machine.id,
                    machine.config_file.display(),
                    other.name(),
                    other.config_file.display()
                ),
                "delete or unregister that machine first, or keep the copy apart: two machines cannot share a GUID",
            ),
            _ => {}
        }
        if let Err(failure) = app.inventory.name_is_free(machine.name().as_str(), Some(machine.id)) {
            say(ProblemCode::Exists, failure.to_string(), "rename the other machine first");
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for machine in &found.machines {
        if !seen.insert(machine.id) {
            say(
                ProblemCode::Exists,
                format!("the folder holds two machines with the GUID {}", machine.id),
                "move one of the two files away",
            );
        }
    }
    blockers.extend(disk_conflicts(app, found).await?);
    match blockers.first() {
        None => Ok(()),
        Some(first) => {
            let code = first.code;
            Err(Failure::new(code, "the folder cannot be registered").with_blockers(blockers))
        }
    }
}

/// Disks that another machine, known already or of the same folder, uses too.
async fn disk_conflicts(app: &App, found: &Found) -> Result<Vec<Blocker>, Failure> {
    let usage = usage(app, None).await?;
    let chains = Arc::clone(&app.chains);
    let tops: Vec<_> = found
        .machines
        .iter()
        .flat_map(|m| m.disks().into_iter().map(|(slot, path)| (m.id, m.name().to_string(), slot, path)))
        .collect();
    blocking(move || {
        let mut blockers = Vec::new();
        let mut seen: BTreeMap<FileKey, (VmId, String)> = BTreeMap::new();
        for (id, name, slot, path) in tops {
            // One that is missing or damaged is told when the machine is started.
            let files = chains.files(&path).unwrap_or_else(|_| vec![path.clone()]);
            let refusal = usage.conflict(id, &files, Some(id));
            let mut detail = refusal.map(|failure| failure.full_message());
            if let Some((other, other_name)) = seen.get(&FileKey::of(&path))
                && *other != id
            {
                detail = Some(format!("{} is also the disk of '{other_name}'", path.display()));
            }
            seen.entry(FileKey::of(&path)).or_insert_with(|| (id, name.clone()));
            blockers.extend(detail.map(|detail| Blocker {
                code: ProblemCode::InUse,
                detail: format!("'{name}', {slot}: {detail}"),
                cure: Some("give each machine a disk of its own: two that write to one destroy it".into()),
            }));
        }
        Ok(blockers)
    })
    .await
}

fn describe(app: &App, found: &Found) -> Plan {
    let mut plan = Plan::new("vm.register");
    for machine in &found.machines {
        let known = app.inventory.get(machine.id).is_ok();
        let action = if known { "read again" } else { "register" };
        plan.step(action, machine.config_file.display(), format!("'{}' ({})", machine.name(), machine.id));
        plan.warnings.extend(machine.warnings.iter().map(|w| format!("'{}': {w}", machine.name())));
    }
    plan
}

async fn run(app: Arc<App>, context: TaskContext, path: PathBuf) -> Done {
    let _attaching = app.attaching.lock().await;
    let found = look(&app, &path).await?;
    check(&app, &found).await?;
    let mut ids = Vec::new();
    for machine in found.machines {
        ids.push(machine.id);
        take_over(&app, &context, machine).await?;
    }
    kick_all(&app);
    Ok(Some(serde_json::json!({ "ids": ids })))
}

/// Whether somebody has a disk of a machine open for writing that is not on here: another host, where its folder is on shared
/// storage.
async fn is_open_elsewhere(machine: &Machine) -> bool {
    let tops = machine.disks();
    let looked = blocking(move || {
        Ok(tops
            .iter()
            .any(|(_, top)| disks::probe(top).is_err_and(|failure| failure.code() == ProblemCode::InUse)))
    });
    looked.await.unwrap_or(true)
}

async fn take_over(app: &Arc<App>, context: &TaskContext, machine: Machine) -> Result<(), Failure> {
    if app.inventory.get(machine.id).is_ok_and(|known| known.state.is_active()) {
        context.warn(format!("'{}' is on: its configuration was not read again", machine.name()));
        return Ok(());
    }
    for warning in machine.warnings.iter() {
        context.warn(format!("'{}': {warning}", machine.name()));
    }
    if machine.layout.root() != app.config.state_dir {
        app.store.add_folder(machine.layout.root()).await.map_err(store_failure)?;
    }
    // What was found elsewhere is written down, so that the folder is right by itself again.
    let (file, bytes) = (machine.config_file.clone(), machine.config.to_bytes());
    blocking(move || {
        if std::fs::read(&file).is_ok_and(|now| now == bytes) {
            return Ok(());
        }
        durable::replace(&file, &bytes).map_err(|e| Failure::file("writing", &file, e))
    })
    .await?;
    let (id, name) = (machine.id, machine.name().to_string());
    let config_file = machine.config_file.display().to_string();
    app.inventory.set_unreadable(machine.config_file.clone(), None);
    app.inventory.set_unreadable(machine.layout.root().into(), None);
    app.inventory.put(machine);
    let known = app.inventory.get(id)?;
    let (state, reason) = if is_open_elsewhere(&known).await {
        context.warn(format!(
            "'{name}' is on elsewhere: its disks are in use, and what belongs to a save that may be under way there is left alone"
        ));
        let saved = known.layout.vm_descriptor(id).exists();
        (if saved { VmState::Saved } else { known.state }, known.reason)
    } else {
        super::at_rest(app, id, (known.state, known.reason)).await
    };
    app.inventory.set_state(id, state, reason);
    // It stays registered: its next operation tries again, or says what hinders it.
    if let Err(failure) = super::settle::settle_machine(app, id).await {
        context.warn(format!("'{name}': {}", failure.full_message()));
    }
    let what = Happening {
        kind: "vm.registered",
        who: &context.who(),
        reason: "requested".into(),
        before: None,
        after: Some(config_file),
    };
    app.events.vm(id, &name, what).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::app::register;
    use crate::app::testing::{Fixture, call};
    use backstay_api::{TaskState, VmRegister};
    use backstay_disk::{Disk, DiskOptions};
    use backstay_model::VmState;

    /// On shared storage another host may just be writing the memory of the machine.
    #[tokio::test]
    async fn what_another_host_is_saving_is_left_alone() {
        let mut fixture = Fixture::new();
        let machine = fixture.machine("web").await;
        let (away, state) = (fixture.path("away"), machine.layout.root().to_path_buf());
        std::fs::create_dir(&away).unwrap();
        for folder in ["Virtual Machines", "Virtual Hard Disks"] {
            std::fs::rename(state.join(folder), away.join(folder)).unwrap();
        }
        fixture.restart().await;
        let layout = crate::layout::Layout::new(&away);
        let memory = layout.vm_memory(machine.id);
        std::fs::create_dir_all(layout.vm_folder(machine.id)).unwrap();
        std::fs::write(&memory, b"a part").unwrap();
        let disk = layout.disks().join(machine.disks()[0].1.file_name().unwrap());
        let elsewhere = Disk::open(&disk, DiskOptions::default()).unwrap();
        for (open, stays) in [(true, true), (false, false)] {
            if !open {
                elsewhere.close().unwrap();
            }
            let body = VmRegister { path: away.clone() };
            let task = fixture.end(register(&fixture.app, body, &call()).await.unwrap()).await;
            assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
            assert_eq!(memory.exists(), stays, "{task:?}");
            assert_eq!(
                task.warnings.iter().any(|words| words.contains("is on elsewhere")),
                stays,
                "{task:?}"
            );
            assert_eq!(fixture.app.inventory.get(machine.id).unwrap().state, VmState::Off);
        }
    }
}
