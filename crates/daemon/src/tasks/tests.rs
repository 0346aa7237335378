use super::*;
use crate::store::TaskNote;
use backstay_api::ObjectKind;
use tokio::sync::oneshot;

fn engine() -> (tempfile::TempDir, Arc<TaskEngine>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("backstay.db")).unwrap();
    (folder, TaskEngine::new(store))
}

fn spec(vm: u128) -> TaskSpec {
    TaskSpec {
        operation: "vm.start",
        object: ObjectRef { kind: ObjectKind::Vm, id: Some(Uuid::from_u128(vm)), name: "web".into() },
        holds: vec![Hold::Vm(VmId(Uuid::from_u128(vm)))],
        cancellable: false,
        yields: false,
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn end(engine: &TaskEngine, id: TaskId) -> Task {
    let task = engine.wait(id, u64::MAX, PATIENCE).await.unwrap();
    assert!(task.state.is_final(), "{task:?}");
    task
}

#[tokio::test]
async fn a_second_operation_on_a_machine_is_refused_by_the_name_of_the_first() {
    let (_folder, engine) = engine();
    let (go, wait) = oneshot::channel::<()>();
    let first = engine
        .start(spec(1), &Caller::backstay(), |context| async move {
            context.progress(40, "halfway");
            let _ = wait.await;
            Ok(Some(serde_json::json!({"pause_us": 7})))
        })
        .await
        .unwrap();
    let refused = engine.start(spec(1), &Caller::backstay(), |_| async { Ok(None) }).await.unwrap_err();
    assert_eq!(refused.code(), ProblemCode::Busy);
    assert!(refused.to_string().contains(&first.id.to_string()), "{refused}");
    let other = engine.start(spec(2), &Caller::backstay(), |_| async { Ok(None) }).await.unwrap();
    end(&engine, other.id).await;

    let seen = engine.wait(first.id, first.revision, PATIENCE).await.unwrap();
    assert_eq!((seen.progress, seen.message.as_str()), (40, "halfway"));
    go.send(()).unwrap();
    let done = end(&engine, first.id).await;
    assert_eq!((done.state, done.progress), (TaskState::Succeeded, 100));
    assert_eq!(done.result.unwrap()["pause_us"], 7);
    let again = engine.start(spec(1), &Caller::backstay(), |_| async { Ok(None) }).await.unwrap();
    end(&engine, again.id).await;
}

#[tokio::test]
async fn failures_panics_and_cancelling_end_a_task_and_let_go() {
    let (_folder, engine) = engine();
    let failing = engine
        .start(spec(1), &Caller::backstay(), |_| async {
            Err(Failure::because(
                ProblemCode::Damaged,
                "the disk a.vhd is damaged",
                std::io::Error::other("bad footer"),
            ))
        })
        .await
        .unwrap();
    let task = end(&engine, failing.id).await;
    let error = task.error.unwrap();
    assert_eq!((task.state, error.code), (TaskState::Failed, ProblemCode::Damaged));
    assert_eq!(error.detail, "the disk a.vhd is damaged: bad footer");

    let panicking =
        engine.start(spec(1), &Caller::backstay(), |_| async { panic!("a fault on purpose") }).await.unwrap();
    assert_eq!(end(&engine, panicking.id).await.error.unwrap().code, ProblemCode::Internal);

    let waiting = engine
        .start(
            TaskSpec { cancellable: true, yields: true, ..spec(1) },
            &Caller::backstay(),
            |context| async move {
                context.cancelled().await;
                Err(cancelled())
            },
        )
        .await
        .unwrap();
    engine.preempt(VmId(Uuid::from_u128(1))).await;
    assert_eq!(end(&engine, waiting.id).await.state, TaskState::Cancelled);
    assert_eq!(engine.cancel(waiting.id).await.unwrap_err().code(), ProblemCode::Precondition);
}

#[tokio::test]
async fn a_repeated_call_gets_the_first_calls_task_also_after_a_restart() {
    let (folder, engine) = engine();
    let caller = Caller { who: "root".into(), idempotency: Some(("k1".into(), "POST /vms {}".into())) };
    assert!(engine.repeated(&caller).await.unwrap().is_none());
    let first = engine.start(spec(1), &caller, |_| async { Ok(None) }).await.unwrap();
    end(&engine, first.id).await;
    drop(engine);

    let engine = TaskEngine::new(Store::open(&folder.path().join("backstay.db")).unwrap());
    assert_eq!(engine.repeated(&caller).await.unwrap().unwrap().id, first.id);
    let other = Caller { who: "root".into(), idempotency: Some(("k1".into(), "POST /other".into())) };
    assert_eq!(engine.repeated(&other).await.unwrap_err().code(), ProblemCode::Invalid);
}

#[tokio::test]
async fn calls_with_one_key_at_the_same_moment_give_one_task() {
    let (_folder, engine) = engine();
    let caller = Caller { who: "root".into(), idempotency: Some(("k1".into(), "POST /vms {}".into())) };
    let runs = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let call = || {
        let (engine, caller, runs) = (Arc::clone(&engine), caller.clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let counted = engine.start(spec(1), &caller, move |_| async move {
                runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Ok(None)
            });
            counted.await.unwrap().id
        })
    };
    let calls: Vec<_> = (0..16).map(|_| call()).collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        ids.insert(call.await.unwrap());
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let id = *ids.first().unwrap();
    assert_eq!(end(&engine, id).await.state, TaskState::Succeeded);
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(engine.repeated(&caller).await.unwrap().unwrap().id, id);
    let other = Caller { who: "root".into(), idempotency: Some(("k1".into(), "POST /other".into())) };
    let refused = engine.start(spec(2), &other, |_| async { Ok(None) }).await.unwrap_err();
    assert_eq!(refused.code(), ProblemCode::Invalid);
}

#[tokio::test]
async fn a_caller_who_hangs_up_at_once_leaves_no_task_behind_that_never_ends() {
    let (_folder, engine) = engine();
    let (ran, wait) = oneshot::channel::<TaskId>();
    let caller = Caller::backstay();
    let start = engine.start(spec(1), &caller, |context| async move {
        let _ = ran.send(context.id());
        Ok(None)
    });
    // Polled once and dropped while the task is being written down.
    assert!(tokio::time::timeout(Duration::ZERO, start).await.is_err());
    let id = wait.await.expect("a task that was written down runs");
    assert_eq!(end(&engine, id).await.state, TaskState::Succeeded);
    assert!(engine.unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn unfinished_tasks_are_found_by_the_next_daemon() {
    let (folder, engine) = engine();
    let note = TaskNote::Checkpoint {
        vm: VmId(Uuid::from_u128(1)),
        checkpoint: backstay_model::CheckpointId(Uuid::from_u128(9)),
        name: "c".into(),
        notes: String::new(),
        created_unix_ms: 5,
    };
    let (noted, wait) = oneshot::channel::<()>();
    let written = note.clone();
    let task = engine
        .start(spec(1), &Caller::backstay(), |context| async move {
            context.note(&written).await;
            let _ = noted.send(());
            std::future::pending().await
        })
        .await
        .unwrap();
    wait.await.unwrap();
    // The former daemon is gone as far as the new one can tell.
    let engine = TaskEngine::new(Store::open(&folder.path().join("backstay.db")).unwrap());
    let found = engine.unfinished().await.unwrap();
    assert_eq!((found.len(), found[0].task.id, found[0].note.clone()), (1, task.id, Some(note)));
    engine.interrupt(found[0].task.clone(), "the daemon was stopped").await;
    assert_eq!(engine.get(task.id).await.unwrap().error.unwrap().code, ProblemCode::Interrupted);
    assert!(engine.unfinished().await.unwrap().is_empty());
}
