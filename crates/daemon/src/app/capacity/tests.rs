use super::super::testing::Fixture;
use super::*;

fn spec_of(machine: &Machine, reserve_percent: u32, memory_mib: u64) -> VmSpec {
    let mut spec = (*machine.spec).clone();
    spec.cpu.reserve_percent = reserve_percent;
    spec.memory_mib = memory_mib;
    spec
}

/// A host with two cores and as much memory as it really has.
async fn two_cores() -> Fixture {
    Fixture::with(|config| {
        config.limits.cores = Some(2);
        config.limits.host_memory = Some(0);
    })
}

#[tokio::test]
async fn two_that_start_at_once_do_not_get_the_same_core() {
    let fixture = two_cores().await;
    let app = &fixture.app;
    let mut specs = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        specs.push(spec_of(&fixture.machine(name).await, 100, 16));
    }
    let all = specs.iter().map(|spec| reserve(app, spec));
    let results = futures_util::future::join_all(all).await;
    let (held, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((held.len(), refused.len()), (2, 3));
    for refusal in refused {
        let words = refusal.unwrap_err().to_problem().to_string();
        assert!(words.contains("needs 1.00 cores reserved; 2.00 of 2.00 are promised to "), "{words}");
    }
    // Given back when a start fails.
    drop(held);
    reserve(app, &specs[4]).await.unwrap();
}

#[tokio::test]
async fn a_paused_machine_keeps_its_promise_and_a_saved_one_does_not() {
    let fixture = two_cores().await;
    let app = &fixture.app;
    let running = fixture.machine("running").await;
    let mut changed = (*running.config).clone();
    changed.apply_spec(&spec_of(&running, 100, 16)).unwrap();
    let running = app.inventory.save(&running, changed).await.unwrap();
    let next = spec_of(&fixture.machine("next").await, 100, 16);
    let wide = {
        let mut wide = next.clone();
        wide.cpu.count = 2;
        wide
    };
    for (state, admitted) in [
        (VmState::Running, false),
        (VmState::Paused, false),
        (VmState::PausedCritical, false),
        (VmState::Starting, false),
        (VmState::Saving, false),
        (VmState::Saved, true),
        (VmState::Off, true),
        (VmState::Failed, true),
    ] {
        app.inventory.set_state(running.id, state, None);
        assert_eq!(reserve(app, &wide).await.is_ok(), admitted, "{state}");
        reserve(app, &next).await.unwrap();
    }
}

#[tokio::test]
async fn memory_is_not_promised_twice() {
    let fixture = Fixture::with(|config| {
        config.limits.memory = Some(1 << 30);
        config.limits.host_memory = Some(128 << 20);
    });
    let app = &fixture.app;
    let first = spec_of(&fixture.machine("first").await, 0, 256);
    let second = spec_of(&fixture.machine("second").await, 0, 512);
    let huge = spec_of(&fixture.machine("huge").await, 0, 1024);
    let words = reserve(app, &huge).await.unwrap_err().to_problem().to_string();
    assert!(words.contains("less 128 MiB kept for the host"), "{words}");
    let held = reserve(app, &first).await.unwrap();
    let words = reserve(app, &second).await.unwrap_err().to_problem().to_string();
    assert!(words.contains("promised to first and not used yet"), "{words}");
    let shown = capacity(app).await.unwrap();
    assert_eq!((shown.promises.len(), shown.memory_bytes), (1, 1 << 30));
    assert_eq!(shown.memory_outstanding_bytes, shown.memory_promised_bytes, "nothing is used yet");
    drop(held);
    reserve(app, &second).await.unwrap();
}

/// The number of processors that count was lowered under machines that run: what they have they keep, and may give up.
#[tokio::test]
async fn a_host_that_has_promised_too_much_takes_back_what_is_given() {
    let fixture = Fixture::with(|config| config.limits.cores = Some(1));
    let app = &fixture.app;
    for name in ["a", "b"] {
        let machine = fixture.machine(name).await;
        let mut config = (*machine.config).clone();
        config.apply_spec(&spec_of(&machine, 80, 16)).unwrap();
        let saved = app.inventory.save(&machine, config).await.unwrap();
        app.inventory.set_state(saved.id, VmState::Running, None);
    }
    let a = app.inventory.find("a").unwrap();
    reserve_cores(app, &spec_of(&a, 50, 16)).await.unwrap();
    let mut same = spec_of(&a, 80, 16);
    same.cpu.weight = 500;
    reserve_cores(app, &same).await.unwrap();
    let words = reserve_cores(app, &spec_of(&a, 81, 16)).await.unwrap_err().full_message();
    assert!(words.contains("needs 0.81 cores reserved; 0.80 of 1.00 are promised to b"), "{words}");
}

/// A checkpoint that is applied to a machine that runs: what the machine uses now is there again when it starts.
#[test]
fn memory_that_a_machine_gives_back_first_is_not_needed_twice() {
    const GIB: u64 = 1 << 30;
    let memory = memory::Memory { total: 7 * GIB, available: 2 * GIB, limited_by: None };
    let limits = LimitsConfig { host_memory: Some(GIB / 2), ..LimitsConfig::default() };
    let none = BTreeMap::new();
    let name = VmName::new("m").unwrap();
    let need = MemoryNeed { guest: 4 * GIB, around: 0 };
    let room = |returned| {
        let (_, host) = counted(&limits, memory.clone(), &none, returned);
        admit_memory(&host, &[], &name, need)
    };
    room(0).unwrap_err();
    room(4 * GIB).unwrap();
    let (most, _) = counted(&limits, memory.clone(), &none, 100 * GIB);
    assert_eq!(most.available, 7 * GIB, "never more than there is");
}
