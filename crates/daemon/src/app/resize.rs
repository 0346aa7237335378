//! Making the disk of a running machine larger.

use super::look::{checked, writer_of};
use super::settle::settle_before;
use super::usage::worker_disks;
use super::{Accepted, App, Call, Done, vm_task};
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::Machine;
use crate::tasks::TaskContext;
use backstay_api::{DiskResize, DiskResized, Plan, ProblemCode};
use backstay_model::{ByteSize, DriveSlot, VmId};
use backstay_worker::control::{Reply, Request};
use std::sync::Arc;
use std::time::Duration;

/// How long it may take: a fixed disk gets all its space.
const GROW: Duration = Duration::from_mins(30);

/// Makes the disk of a machine that is on larger; the guest sees it without a restart where its controller can tell it.
///
/// # Errors
/// `invalid`, `precondition` for a smaller size and for a file that no running machine writes to, `busy`; the task:
/// `no-space`, `unavailable`.
pub async fn resize_disk(app: &Arc<App>, body: DiskResize, call: &Call) -> Result<Accepted, Failure> {
    let (machine, slot, size) = decide(app, &body).await?;
    let mut plan = Plan::new("disk.resize");
    let path = body.path.display();
    if size != body.size {
        plan.step("grow", path, format!("from {} to {}", ByteSize(size), ByteSize(body.size)));
        plan.step("tell", machine.name(), format!("the new size of {slot}"));
    }
    let (id, spec) = (machine.id, vm_task("disk.resize", &machine));
    app.accept(call, plan, spec, move |app, context| run(app, context, id, body)).await
}

/// The machine that writes to the disk, where it has it, and the size now.
async fn decide(app: &App, body: &DiskResize) -> Result<(Machine, DriveSlot, u64), Failure> {
    checked(&body.path)?;
    let path = body.path.display();
    let Some((vm, slot)) = writer_of(app, &body.path).await else {
        return Err(Failure::precondition(format!(
            "no running machine writes to {path}: `backstay disk resize` does this with a disk that nobody uses; of a disk \
             with checkpoints it is the top file that grows, which `backstay vm disks` names"
        )));
    };
    let machine = app.inventory.get(vm)?;
    let disks = worker_disks(app, vm).await;
    let size = disks.into_iter().find(|disk| disk.slot == slot).map_or(0, |disk| disk.size);
    if body.size < size {
        return Err(Failure::precondition(format!(
            "'{}' is {} and {path} has {}: a disk becomes smaller only while nobody uses it, so turn the machine off first",
            machine.name(),
            machine.state,
            ByteSize(size)
        )));
    }
    Ok((machine, slot, size))
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, body: DiskResize) -> Done {
    settle_before(&app, &context, id).await?;
    let (machine, slot, _) = decide(&app, &body).await?;
    if machine.id != id {
        return Err(Failure::precondition(format!("{} is not this machine's any more", body.path.display())));
    }
    context.progress(10, "making the disk larger");
    let resized = match app.workers.call(id, Request::GrowDisk { slot, size: body.size }, GROW).await {
        Ok(Reply::Grown { old, new, unseen }) => {
            DiskResized { path: body.path.clone(), old_size: old, size: new, unseen }
        }
        Ok(other) => {
            let words = format!("the worker answered the wish for a larger disk with {other:?}");
            return Err(Failure::new(ProblemCode::Internal, words));
        }
        Err(failure) => {
            let full = failure.full_message().contains("No space left");
            let code = if full { ProblemCode::NoSpace } else { failure.code() };
            let words = format!("{} was not made larger", body.path.display());
            return Err(Failure::because(code, words, failure));
        }
    };
    if let Some(why) = &resized.unseen {
        context.warn(format!("the guest sees the new size after its next start: {why}"));
    }
    if resized.old_size != resized.size {
        let what = Happening {
            kind: "disk.resized",
            who: &context.who(),
            reason: format!("{slot}: {}", body.path.display()),
            before: Some(ByteSize(resized.old_size).to_string()),
            after: Some(ByteSize(resized.size).to_string()),
        };
        app.events.vm(id, machine.name().as_str(), what).await;
    }
    serde_json::to_value(resized)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}
