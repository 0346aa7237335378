//! What happens to machines when the host starts and when it goes down.

mod plan;

use super::power::{ask_to_shut_down, end_machine};
use super::save::save_machine;
use super::settle::settle_before;
use super::start::lacks_room;
use super::{Accepted, App, Call, Done, vm_task};
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::Machine;
use crate::tasks::{Caller, Hold, TaskContext, TaskSpec};
use backstay_api::{HostStopGuests, ObjectKind, ObjectRef, Plan, ProblemCode, TaskState, VmStart};
use backstay_model::{HostStartAction, VmId, VmState};
use futures_util::StreamExt;
use plan::{Begin, StopStep, Wanted, stop_groups, stop_steps, wanted_at_boot};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one machine's start may hold up the next one's.
const ONE_START: Duration = Duration::from_mins(10);

/// How long an operation that is under way may hold up an action.
const BUSY: Duration = Duration::from_secs(60);

/// How often a machine is tried again for which there was no room; at once when another one ends.
const ROOM: Duration = Duration::from_secs(15);

/// How long to wait before a file that is in use is tried again.
const IN_USE: Duration = Duration::from_millis(300);

/// How long a guest may take to shut down unless the caller says otherwise.
const SHUTDOWN_S: u32 = 120;

/// Machines that are stopped at the same time unless the caller says otherwise.
const PARALLEL: u32 = 4;

/// After a boot of the host: machines that ran before it, or that always start, are started in a task of its own. A daemon
/// that is started again meanwhile goes on with what is left.
pub(super) async fn start_with_host(app: &Arc<App>) {
    if !app.host.is_first_since_boot() {
        return;
    }
    let decided = app.host.to_start();
    let mut wanted = Vec::new();
    for machine in app.inventory.all() {
        let wants = match &decided {
            Some(left) => left.contains(&machine.id),
            None => wants_to_start(app, &machine).await,
        };
        if machine.state.is_active() || machine.is_template() || !wants {
            continue;
        }
        wanted.push(Wanted {
            vm: machine.id,
            name: machine.name().to_string(),
            order: machine.spec.start_order,
            delay: Duration::from_secs(machine.spec.start_delay_s.into()),
        });
    }
    app.host.set_to_start(wanted.iter().map(|wanted| wanted.vm).collect());
    let begins = plan::start_plan(wanted);
    tokio::spawn(start_all(Arc::clone(app), begins));
}

/// Whether a machine ran when the host went down, and starts then, or starts always.
async fn wants_to_start(app: &App, machine: &Machine) -> bool {
    let before = app.store.runtime(machine.id).await.ok().flatten().map(|(_, boot)| boot).unwrap_or_default();
    let was_on = !before.is_empty() && before != app.host.boot_id();
    wanted_at_boot(machine.spec.host_start, was_on || machine.config.stopped_with_host())
}

/// In order; those for which there is no room are tried again until there is.
async fn start_all(app: Arc<App>, begins: Vec<Begin>) {
    let t0 = Instant::now();
    let mut waiting = Vec::new();
    for begin in begins {
        tokio::time::sleep((t0 + begin.not_before).saturating_duration_since(Instant::now())).await;
        match start_one(&app, begin.vm).await {
            Begun::HostGoesDown => return,
            Begun::Done => app.host.started(begin.vm),
            Begun::NoRoom(reason) => {
                tell_failure(&app, begin.vm, &format!("{reason}; it is tried again when there is room"))
                    .await;
                waiting.push(begin.vm);
            }
        }
    }
    while !waiting.is_empty() {
        let _ = tokio::time::timeout(ROOM, app.host.room()).await;
        for vm in std::mem::take(&mut waiting) {
            match start_one(&app, vm).await {
                Begun::HostGoesDown => return,
                Begun::Done => app.host.started(vm),
                Begun::NoRoom(_) => waiting.push(vm),
            }
        }
    }
    app.host.note_started();
}

/// What came of the start of one machine.
enum Begun {
    /// It is on, it could not be started, or nobody wants that any more.
    Done,
    /// There is not enough memory, processor time or space on a volume at present.
    NoRoom(String),
    /// Nothing is started any more.
    HostGoesDown,
}

async fn start_one(app: &Arc<App>, vm: VmId) -> Begun {
    let limit = Instant::now() + BUSY;
    let call = Call { caller: Caller::backstay(), dry_run: false };
    let (code, reason) = loop {
        if app.tasks.stops_guests() {
            return Begun::HostGoesDown;
        }
        let Ok(machine) = app.inventory.get(vm) else { return Begun::Done };
        // Somebody has had it on since.
        let is_wanted = app.host.to_start().is_some_and(|left| left.contains(&vm));
        if machine.state.is_active() || machine.spec.host_start == HostStartAction::Nothing || !is_wanted {
            return Begun::Done;
        }
        let (code, reason) = match super::start_vm(app, &vm.to_string(), VmStart::default(), &call).await {
            Ok(Accepted::Task(task)) => {
                match app.tasks.wait(task.id, u64::MAX, ONE_START).await.map(|t| t.error) {
                    Ok(None) => return Begun::Done,
                    Ok(Some(problem)) => (problem.code, problem.detail),
                    Err(failure) => (failure.code(), failure.full_message()),
                }
            }
            Ok(Accepted::Plan(_)) => return Begun::Done,
            Err(failure) => (failure.code(), failure.to_problem().detail),
        };
        if Instant::now() > limit {
            break (code, reason);
        }
        match code {
            ProblemCode::Busy => wait_for_holder(app, vm).await,
            // Somebody looks at the files.
            ProblemCode::InUse => tokio::time::sleep(IN_USE).await,
            _ => break (code, reason),
        }
    };
    if matches!(code, ProblemCode::Precondition | ProblemCode::NoSpace) && lacks_room(app, vm).await {
        return Begun::NoRoom(reason);
    }
    tell_failure(app, vm, &reason).await;
    Begun::Done
}

async fn tell_failure(app: &App, vm: VmId, reason: &str) {
    let reason = format!("it was to start with the host: {reason}");
    let what = Happening { kind: "vm.start-failed", who: "backstay", reason, before: None, after: None };
    app.events.vm(vm, &app.name_of(vm), what).await;
}

async fn wait_for_holder(app: &App, vm: VmId) {
    match app.tasks.working_on(vm) {
        Some(task) => drop(app.tasks.wait(task, u64::MAX, Duration::from_secs(10)).await),
        None => tokio::time::sleep(Duration::from_millis(100)).await,
    }
}

/// Stops every machine that is on as its configuration says for a host that goes down, and remembers which were on.
///
/// # Errors
/// `invalid`; the task never fails for a machine: what became of each is its result and in its events.
pub async fn stop_guests(app: &Arc<App>, body: HostStopGuests, call: &Call) -> Result<Accepted, Failure> {
    let active = active(app);
    let mut plan = Plan::new("host.stop-guests");
    for group in stop_groups(active.iter().map(|m| (m.spec.start_order, m.name().to_string()))) {
        for name in group {
            let machine = active.iter().find(|m| m.name().as_str() == name);
            let steps = machine.map(|m| stop_steps(m.spec.host_stop, m.state)).unwrap_or_default();
            let words: Vec<_> = steps.iter().map(|step| step.words()).collect();
            plan.step("stop", &name, words.join("; if that fails: "));
        }
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let spec = TaskSpec {
        operation: "host.stop-guests",
        object: ObjectRef { kind: ObjectKind::Host, id: None, name },
        holds: vec![Hold::Guests],
        cancellable: false,
        yields: false,
    };
    app.accept(call, plan, spec, move |app, context| run(app, context, body)).await
}

fn active(app: &App) -> Vec<Machine> {
    app.inventory.all().into_iter().filter(|machine| machine.state.is_active()).collect()
}

async fn run(app: Arc<App>, context: TaskContext, body: HostStopGuests) -> Done {
    let patience = Duration::from_secs(body.shutdown_timeout_s.unwrap_or(SHUTDOWN_S).into());
    let parallel = usize::try_from(body.parallel.unwrap_or(PARALLEL).max(1)).unwrap_or(1);
    let machines = active(&app);
    let (total, mut done, mut outcome) = (machines.len().max(1), 0_usize, Vec::new());
    for group in stop_groups(machines.iter().map(|m| (m.spec.start_order, m.id))) {
        let stops: Vec<_> = group.into_iter().map(|id| stop_one(&app, &context, id, patience)).collect();
        let mut stops = futures_util::stream::iter(stops).buffer_unordered(parallel);
        while let Some((name, words)) = stops.next().await {
            done += 1;
            let percent = u8::try_from(done * 99 / total).unwrap_or(99);
            context.progress(percent, &format!("'{name}': {words}"));
            outcome.push(serde_json::json!({ "name": name, "outcome": words }));
        }
    }
    Ok(Some(serde_json::json!({ "machines": outcome })))
}

/// Whether a task is at work whose outcome is the one that is wanted anyway.
async fn is_being_saved(app: &App, id: VmId) -> bool {
    let Some(task) = app.tasks.working_on(id) else { return false };
    app.tasks.get(task).await.is_ok_and(|task| task.operation == "vm.save")
}

/// Stops one machine in a task of its own; returns its name and what became of it.
async fn stop_one(app: &Arc<App>, context: &TaskContext, id: VmId, patience: Duration) -> (String, String) {
    let name = app.name_of(id);
    // What gives way to the power button gives way to the host's.
    if !is_being_saved(app, id).await {
        app.tasks.preempt(id).await;
    }
    let call = Call { caller: Caller { who: context.who(), idempotency: None }, dry_run: false };
    let limit = Instant::now() + BUSY;
    let task = loop {
        let Ok(machine) = app.inventory.get(id) else { return (name, "is gone".into()) };
        let spec = vm_task("vm.stop-with-host", &machine);
        let work = move |app: Arc<App>, context: TaskContext| async move {
            climb_down(app, context, id, patience).await
        };
        match app.accept(&call, Plan::new("vm.stop-with-host"), spec, work).await {
            Ok(Accepted::Task(task)) => break task.id,
            Ok(Accepted::Plan(_)) => return (name, String::new()),
            Err(failure) if failure.code() == ProblemCode::Busy && Instant::now() < limit => {
                wait_for_holder(app, id).await;
            }
            Err(failure) => {
                context.warn(format!("'{name}' was not stopped: {}", failure.full_message()));
                return (name, "was not stopped".into());
            }
        }
    };
    let ended = loop {
        match app.tasks.wait(task, u64::MAX, Duration::from_mins(60)).await {
            Ok(task) if !task.state.is_final() => {}
            ended => break ended,
        }
    };
    let words = match ended {
        Ok(task) if task.state == TaskState::Succeeded => {
            task.result.and_then(|r| r["outcome"].as_str().map(str::to_owned)).unwrap_or_default()
        }
        Ok(task) => {
            let detail = task.error.map(|problem| problem.detail).unwrap_or_default();
            context.warn(format!("'{name}' was not stopped: {detail}"));
            "was not stopped".into()
        }
        Err(failure) => failure.full_message(),
    };
    (name, words)
}

/// Tries one way after the other until the machine is off.
async fn climb_down(app: Arc<App>, context: TaskContext, id: VmId, patience: Duration) -> Done {
    let mut machine = match settle_before(&app, &context, id).await {
        Ok(machine) => machine,
        Err(failure) => {
            context.warn(failure.full_message());
            app.inventory.get(id)?
        }
    };
    machine = remember(&app, &context, machine).await;
    let mut failed: Vec<String> = Vec::new();
    for step in stop_steps(machine.spec.host_stop, machine.state) {
        if !app.inventory.get(id)?.state.is_active() {
            break;
        }
        let result = match step {
            StopStep::Shutdown => ask_to_shut_down(&app, &context, id, patience).await,
            StopStep::Save => save_machine(&app, &context, &machine).await,
            StopStep::TurnOff => end_machine(&app, id).await,
        };
        match result {
            Ok(()) => break,
            Err(failure) => {
                let words = format!("{}: {}", step.words(), failure.full_message());
                tracing::warn!(vm = %id, words, "a way to stop a machine with its host failed");
                failed.push(words);
            }
        }
    }
    let state = app.inventory.get(id)?.state;
    let what = Happening {
        kind: "vm.stopped-with-host",
        who: &context.who(),
        reason: match failed.as_slice() {
            [] => "the host goes down".into(),
            failed => format!("the host goes down; what failed first: {}", failed.join("; ")),
        },
        before: Some(machine.state.to_string()),
        after: Some(state.to_string()),
    };
    app.events.vm(id, machine.name().as_str(), what).await;
    if state.is_active() {
        return Err(Failure::new(ProblemCode::Unavailable, failed.join("; ")));
    }
    for words in failed {
        context.warn(words);
    }
    let outcome = if state == VmState::Saved { "saved".to_owned() } else { state.to_string() };
    Ok(Some(serde_json::json!({ "outcome": outcome })))
}

/// The next boot brings back what was on: written into the configuration, where Hyper-V has it too.
async fn remember(app: &App, context: &TaskContext, machine: Machine) -> Machine {
    let mut config = (*machine.config).clone();
    config.set_stopped_with_host(true);
    match app.inventory.save(&machine, config).await {
        Ok(saved) => saved,
        Err(failure) => {
            context.warn(format!("it will not start with the host by itself: {}", failure.full_message()));
            machine
        }
    }
}

/// A machine that is started was not stopped with the host any more.
pub(super) async fn forget_stop(app: &App, machine: &Machine) {
    if !machine.config.stopped_with_host() {
        return;
    }
    let mut config = (*machine.config).clone();
    config.set_stopped_with_host(false);
    if let Err(failure) = app.inventory.save(machine, config).await {
        tracing::warn!(vm = %machine.id, error = failure.full_message(), "a mark of the host's last end stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::testing::Fixture;

    async fn told(fixture: &Fixture, vm: VmId, words: &str) {
        let heard = async {
            loop {
                let history = fixture.app.events.list(Some(vm), None, None, 50).await.unwrap();
                if history.iter().any(|event| event.kind == "vm.start-failed" && event.reason.contains(words))
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.unwrap();
    }

    /// One that could not be started for another reason is done with; a daemon that comes later goes on with the rest.
    #[tokio::test]
    async fn only_what_lacks_room_is_left_to_be_started() {
        let mut fixture = Fixture::with(|config| config.limits.memory = Some(1 << 20));
        let always = |name: &str| {
            let mut body = Fixture::request(name, None);
            body.host_start = HostStartAction::Start;
            body
        };
        for name in ["fits-not", "gone"] {
            let accepted =
                super::super::create_vm(&fixture.app, always(name), &crate::app::testing::call()).await;
            assert!(fixture.end(accepted.unwrap()).await.error.is_none());
        }
        let [fits_not, gone] = ["fits-not", "gone"].map(|name| fixture.app.inventory.find(name).unwrap());
        for _ in 0..2 {
            fixture.restart().await;
            told(&fixture, fits_not.id, "it is tried again when there is room").await;
            // Whoever was on and off since is not started again.
            fixture.app.host.started(gone.id);
            assert_eq!(fixture.app.host.to_start().map(|left| left.len()), Some(1));
        }
        // Decided once: what is made meanwhile does not belong to it.
        let accepted =
            super::super::create_vm(&fixture.app, always("new"), &crate::app::testing::call()).await;
        assert!(fixture.end(accepted.unwrap()).await.error.is_none());
        fixture.restart().await;
        assert_eq!(
            fixture.app.host.to_start().map(|left| left.into_iter().collect()),
            Some(vec![fits_not.id])
        );
    }
}
