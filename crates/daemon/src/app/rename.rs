//! Changing a machine's display name. Files are named by GUID, so nothing moves, and it works in every state.

use super::{Accepted, App, Call, Done, vm_task};
use crate::events::Happening;
use crate::failure::Failure;
use crate::tasks::{Hold, TaskContext};
use backstay_api::{Plan, VmRename};
use backstay_model::{VmId, VmName};
use std::sync::Arc;

/// Renames a machine.
///
/// # Errors
/// `not-found`, `invalid`, `exists`, `busy`.
pub async fn rename_vm(app: &Arc<App>, vm: &str, body: VmRename, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let name = VmName::new(body.name).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.name_is_free(name.as_str(), Some(machine.id))?;
    let mut plan = Plan::new("vm.rename");
    plan.step("write", machine.config_file.display(), format!("name '{}' becomes '{name}'", machine.name()));
    let mut spec = vm_task("vm.rename", &machine);
    spec.holds.push(Hold::Name(name.to_string()));
    let id = machine.id;
    app.accept(call, plan, spec, move |app, context| run(app, context, id, name)).await
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, name: VmName) -> Done {
    let machine = app.inventory.get(id)?;
    app.inventory.name_is_free(name.as_str(), Some(id))?;
    let mut spec = (*machine.spec).clone();
    let former = std::mem::replace(&mut spec.name, name.clone());
    let mut config = (*machine.config).clone();
    config.apply_spec(&spec).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(&machine, config).await?;
    let what = Happening {
        kind: "vm.renamed",
        who: &context.who(),
        reason: "requested".into(),
        before: Some(former.to_string()),
        after: Some(name.to_string()),
    };
    app.events.vm(id, name.as_str(), what).await;
    Ok(None)
}
