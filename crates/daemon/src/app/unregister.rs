//! Forgetting a registered folder with its machines. No file of it is touched, and it may be gone already.

use super::merge::kick_all;
use super::usage::{same_file, usage};
use super::{Accepted, App, Call, Done};
use crate::events::Happening;
use crate::failure::{Failure, chain};
use crate::inventory::Machine;
use crate::tasks::{Hold, TaskContext, TaskSpec, store_failure};
use backstay_api::{ObjectKind, ObjectRef, Plan, ProblemCode, VmUnregister};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Forgets the folder that `body.target` names: by path, or by the name or GUID of the one machine in it.
///
/// # Errors
/// `not-found`; `precondition` for the daemon's own folder, and while a machine of the folder is on; `in-use` when a disk of
/// the folder is made on one of a machine that stays.
pub async fn unregister(app: &Arc<App>, body: VmUnregister, call: &Call) -> Result<Accepted, Failure> {
    let root = root_of(app, &body.target).await?;
    let machines = machines_in(app, &root)?;
    check_parents(app, &root, &machines).await?;
    let mut plan = Plan::new("vm.unregister");
    for machine in &machines {
        plan.step("forget", machine.name(), machine.config_file.display().to_string());
    }
    plan.step("forget", root.display(), "the registered folder; its files stay");
    let mut holds: Vec<Hold> = machines.iter().map(|machine| Hold::Vm(machine.id)).collect();
    holds.push(Hold::Folders);
    let object = match machines.as_slice() {
        [one] => ObjectRef { kind: ObjectKind::Vm, id: Some(one.id.0), name: one.name().to_string() },
        _ => ObjectRef { kind: ObjectKind::Host, id: None, name: root.display().to_string() },
    };
    let spec = TaskSpec { operation: "vm.unregister", object, holds, cancellable: false, yields: false };
    app.accept(call, plan, spec, move |app, context| run(app, context, root)).await
}

/// The registered folder that a text stands for.
async fn root_of(app: &App, target: &str) -> Result<PathBuf, Failure> {
    let folders = app.store.folders().await.map_err(store_failure)?;
    let own = &app.config.state_dir;
    let refused = || {
        Failure::precondition(format!(
            "{} is the daemon's own folder, and what lies in it is always known: delete the machine with `backstay vm \
             delete`, which keeps its disks, or move its files away",
            own.display()
        ))
    };
    let path = Path::new(target);
    if path.is_absolute() {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        if path == own || real == *own {
            return Err(refused());
        }
        // A configuration that was registered stands for its folder, as with `register`.
        let above = [real.as_path(), path].into_iter().flat_map(Path::ancestors).map(Path::to_path_buf);
        let mut above = above;
        let known = above.find(|above| folders.contains(above));
        return known.ok_or_else(|| {
            let list: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let words = if list.is_empty() { "none is".to_owned() } else { list.join(", ") };
            Failure::not_found(format!("{target} is not registered; registered: {words}"))
        });
    }
    let machine = app.inventory.find(target)?;
    let root = machine.layout.root().to_path_buf();
    if root == *own {
        return Err(refused());
    }
    let others: Vec<_> = app
        .inventory
        .all()
        .into_iter()
        .filter(|other| other.id != machine.id && other.layout.root() == root)
        .map(|other| format!("'{}'", other.name()))
        .collect();
    if others.is_empty() {
        return Ok(root);
    }
    Err(Failure::precondition(format!(
        "the folder of '{}' holds {} too, and only whole folders are registered: to forget all of them, name the folder {}",
        machine.name(),
        others.join(", "),
        root.display()
    )))
}

/// Its machines, none of which may be on.
fn machines_in(app: &App, root: &Path) -> Result<Vec<Machine>, Failure> {
    let machines: Vec<_> = app.inventory.all().into_iter().filter(|m| m.layout.root() == root).collect();
    match machines.iter().find(|machine| machine.state.is_active()) {
        Some(on) => Err(Failure::precondition(format!(
            "'{}' is {}: a folder can be forgotten while its machines are off or saved",
            on.name(),
            on.state
        ))),
        None => Ok(machines),
    }
}

/// A parent is kept as it is for the children that are known: nobody would keep it for a forgotten one.
async fn check_parents(app: &App, root: &Path, machines: &[Machine]) -> Result<(), Failure> {
    let usage = usage(app, None).await?;
    let root = same_file(root);
    let ids = machines.iter().map(|machine| machine.id).collect();
    match usage.shared(&ids, |file| !file.starts_with(&root)) {
        None => Ok(()),
        Some((file, child, owner)) => Err(Failure::new(
            ProblemCode::InUse,
            format!(
                "a disk of '{}' is made on {}, which '{}' has too and would be free to change once '{0}' is forgotten: make a \
                 full clone of '{0}' and forget that, or delete '{0}'",
                child.name,
                file.display(),
                owner.name
            ),
        )),
    }
}

async fn run(app: Arc<App>, context: TaskContext, root: PathBuf) -> Done {
    let _attaching = app.attaching.lock().await;
    let machines = machines_in(&app, &root)?;
    check_parents(&app, &root, &machines).await?;
    app.store.remove_folder(&root).await.map_err(store_failure)?;
    for (path, _) in app.inventory.unreadable_files() {
        if path.starts_with(&root) {
            app.inventory.set_unreadable(path, None);
        }
    }
    for machine in &machines {
        app.inventory.remove(machine.id);
        if let Err(error) = app.store.forget_runtime(machine.id).await {
            tracing::warn!(error = chain(&error), "a forgotten machine is still in the history of what ran");
        }
        let what = Happening {
            kind: "vm.unregistered",
            who: &context.who(),
            reason: "requested; its files stay".into(),
            before: Some(machine.config_file.display().to_string()),
            after: None,
        };
        app.events.vm(machine.id, machine.name().as_str(), what).await;
    }
    if machines.is_empty() {
        let what = Happening {
            kind: "folder.unregistered",
            who: &context.who(),
            reason: "requested; no machine of it was known".into(),
            before: Some(root.display().to_string()),
            after: None,
        };
        app.events.host(what).await;
    }
    kick_all(&app);
    Ok(Some(
        serde_json::json!({ "folder": root, "machines": machines.iter().map(|m| m.id).collect::<Vec<_>>() }),
    ))
}

#[cfg(test)]
mod tests {
    use crate::app::testing::{Fixture, call};
    use crate::app::{register, unregister};
    use backstay_api::{VmRegister, VmUnregister};

    /// A file system that will not come back: its folder is forgotten, and with it what kept files from being deleted.
    #[tokio::test]
    async fn a_registered_folder_that_is_gone_can_be_forgotten() {
        let mut fixture = Fixture::new();
        let machine = fixture.machine("web").await;
        let (away, state) = (fixture.path("away"), machine.layout.root().to_path_buf());
        std::fs::create_dir(&away).unwrap();
        for folder in ["Virtual Machines", "Virtual Hard Disks"] {
            std::fs::rename(state.join(folder), away.join(folder)).unwrap();
        }
        fixture.restart().await;
        let body = VmRegister { path: away.clone() };
        let task = fixture.end(register(&fixture.app, body, &call()).await.unwrap()).await;
        assert!(task.error.is_none(), "{task:?}");
        std::fs::rename(&away, fixture.path("elsewhere")).unwrap();
        fixture.restart().await;
        assert_eq!(fixture.app.inventory.unreadable().len(), 1);

        let target = |target: &std::path::Path| VmUnregister { target: target.display().to_string() };
        let refused = unregister(&fixture.app, target(&fixture.path("other")), &call()).await.unwrap_err();
        assert!(refused.full_message().contains(away.to_str().unwrap()), "{}", refused.full_message());
        assert!(unregister(&fixture.app, target(&state), &call()).await.is_err(), "the daemon's own folder");
        let task = fixture.end(unregister(&fixture.app, target(&away), &call()).await.unwrap()).await;
        assert!(task.error.is_none(), "{task:?}");
        assert!(fixture.app.inventory.unreadable().is_empty());
        fixture.restart().await;
        assert!(fixture.app.inventory.unreadable().is_empty(), "for good");

        let back = fixture.path("elsewhere");
        fixture.end(register(&fixture.app, VmRegister { path: back.clone() }, &call()).await.unwrap()).await;
        let task = fixture
            .end(unregister(&fixture.app, VmUnregister { target: "web".into() }, &call()).await.unwrap())
            .await;
        assert!(task.error.is_none(), "{task:?}");
        assert!(fixture.app.inventory.all().is_empty());
        assert!(back.join("Virtual Machines").join(format!("{}.xml", machine.id)).is_file(), "files stay");
    }
}
