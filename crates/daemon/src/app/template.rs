//! Templates: machines that are cloned, and never started or changed. The configuration says so, and their disk files are
//! read-only, which the disk engine respects whoever asks it.

use super::merge::{is_pending, kick_all};
use super::settle::settle_before;
use super::usage::{Part, usage};
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::disks;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::TaskContext;
use backstay_api::{Plan, ProblemCode, VmTemplate};
use backstay_model::{VmId, VmVerb};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a template refuses `verb`; none where it does not, or the machine is no template.
pub(super) fn refusal(machine: &Machine, verb: VmVerb) -> Option<String> {
    let harmless = matches!(verb, VmVerb::Delete | VmVerb::Rename | VmVerb::Shutdown | VmVerb::TurnOff);
    (machine.is_template() && !harmless).then(|| {
        format!(
            "'{name}' is a template, which is never started or changed ({verb}): clone it with `backstay vm clone {name} NEW`, \
             or make it a virtual machine again with `backstay vm template {name} --off`",
            name = machine.name(),
            verb = verb.as_str()
        )
    })
}

/// Makes a machine a template, or one like any other again.
///
/// # Errors
/// `not-found`, `precondition`, `in-use`, `damaged`, `busy`.
pub async fn set_template(
    app: &Arc<App>,
    vm: &str,
    body: VmTemplate,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check(app, &machine, body.template).await?;
    let plan = describe(&machine, body.template);
    let (id, template) = (machine.id, body.template);
    let spec = vm_task("vm.template", &machine);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, template)).await
}

fn describe(machine: &Machine, template: bool) -> Plan {
    let mut plan = Plan::new("vm.template");
    if machine.is_template() == template {
        return plan;
    }
    let mode = if template { "read-only from now on" } else { "writable again" };
    for (_, disk) in machine.disks() {
        plan.step("protect", disk.display(), mode);
    }
    let what = if template { "a template" } else { "a virtual machine like any other" };
    plan.step("write", machine.config_file.display(), format!("'{}' is {what}", machine.name()));
    plan
}

async fn check(app: &App, machine: &Machine, template: bool) -> Result<(), Failure> {
    if machine.is_template() == template {
        return Ok(());
    }
    let name = machine.name();
    let files: Vec<PathBuf> = machine.disks().into_iter().map(|(_, path)| path).collect();
    if !template {
        let usage = usage(app, Some((machine.id, Part::Nothing))).await?;
        if !usage.unknown.is_empty() {
            return Err(Failure::precondition(format!(
                "'{name}' stays a template because it is not known which files are needed by {}: repair those, or bring their \
                 file system back",
                usage.unknown.join("; ")
            )));
        }
        return match usage.dependents(machine.id, &files) {
            None => Ok(()),
            Some(clones) => Err(Failure::new(
                ProblemCode::InUse,
                format!(
                    "'{name}' stays a template while linked clones need its disks: {clones}. Delete those, or make full \
                     clones of them and delete the linked ones"
                ),
            )),
        };
    }
    check_verb(machine, VmVerb::Configure)?;
    if is_pending(machine) {
        return Err(Failure::precondition(format!(
            "files of deleted checkpoints of '{name}' are still to be merged, and a template is not written to: wait for \
             `backstay checkpoint merge {name}`"
        )));
    }
    if !machine.checkpoints.all().is_empty() {
        return Err(Failure::precondition(format!(
            "'{name}' has checkpoints, and a template has none: delete them, or make a full clone of '{name}' and that one \
             a template"
        )));
    }
    let (_, mut blockers) = super::start::check_drives(app, machine).await?;
    blockers.extend(super::devices::refusals(&machine.spec, "detach it first"));
    match blockers.first() {
        None => Ok(()),
        Some(first) => {
            let code = first.code;
            Err(Failure::new(code, format!("'{name}' cannot become a template")).with_blockers(blockers))
        }
    }
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, template: bool) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let attaching = app.attaching.lock().await;
    check(&app, &machine, template).await?;
    if machine.is_template() == template {
        context.warn(format!("'{}' is so already", machine.name()));
        return Ok(None);
    }
    let files: Vec<PathBuf> = machine.disks().into_iter().map(|(_, path)| path).collect();
    if template {
        let files = files.clone();
        blocking(move || protect(&files)).await?;
    }
    let mut config = (*machine.config).clone();
    config.set_template(template);
    let saved = app.inventory.save(&machine, config).await;
    if saved.is_err() || !template {
        let told = context.clone();
        blocking(move || {
            for file in &files {
                if let Err(error) = set_writable(file, true) {
                    told.warn(format!(
                        "{} stays read-only: {error}; `chmod u+w` makes it writable",
                        file.display()
                    ));
                }
            }
            Ok(())
        })
        .await?;
    }
    let saved = saved?;
    drop(attaching);
    let what = Happening {
        kind: if template { "vm.template" } else { "vm.no-template" },
        who: &context.who(),
        reason: "requested".into(),
        before: Some(format!("generation {}", machine.generation.0)),
        after: Some(format!("generation {}", saved.generation.0)),
    };
    app.events.vm(id, saved.name().as_str(), what).await;
    kick_all(&app);
    Ok(None)
}

/// Makes disks read-only, whole: what a process that died left beside them is put into them first.
fn protect(files: &[PathBuf]) -> Result<(), Failure> {
    for (done, file) in files.iter().enumerate() {
        let protected = disks::settle(file)
            .and_then(|()| set_writable(file, false).map_err(|e| Failure::file("protecting", file, e)));
        if let Err(failure) = protected {
            for file in files.iter().take(done) {
                let _ = set_writable(file, true);
            }
            return Err(failure);
        }
    }
    Ok(())
}

fn set_writable(file: &Path, writable: bool) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = std::fs::metadata(file)?.permissions();
    let mode = permissions.mode();
    permissions.set_mode(if writable { mode | 0o200 } else { mode & !0o222 });
    std::fs::set_permissions(file, permissions)
}
