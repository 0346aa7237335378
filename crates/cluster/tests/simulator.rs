//! The simulator's sweeps. A failure prints the seed and the end of its log; `SIM_SEED=n` with the same test runs that seed only.

use backstay_cluster::FencingClass;
use backstay_cluster::sim::{Config, Faults, Outcome, Protocol, run, run_logged};

fn seeds(from: u64, count: u64) -> Vec<u64> {
    match std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (from..from + count).collect(),
    }
}

/// Runs all seeds; panics with the log of the first that breaks something.
fn sweep(what: &str, config: &Config, seeds: &[u64]) -> Outcome {
    let mut sum = Outcome::default();
    for seed in seeds {
        let outcome = run(*seed, config);
        if let Some(broken) = &outcome.broken {
            let log = run_logged(*seed, config).log;
            let tail = &log[log.len().saturating_sub(120)..];
            panic!(
                "{what}, seed {seed}: {} at {} ms: {}\n{}",
                broken.invariant,
                broken.at_ms,
                broken.what,
                tail.join("\n")
            );
        }
        sum.add(outcome);
    }
    println!(
        "{what}: {} seeds, {} faults, {} fenced, {} takeovers, {} placed anew, {} moves, {} failovers, {} drains, {} dead-man kills, {} resets, \
         {} writes, {} refused, {} late commits, {} events",
        seeds.len(),
        sum.faults,
        sum.fenced,
        sum.takeovers,
        sum.restarts,
        sum.moves,
        sum.failovers,
        sum.drains,
        sum.dead_men,
        sum.resets,
        sum.writes,
        sum.refused,
        sum.late_commits,
        sum.events
    );
    sum
}

fn reached(sum: &Outcome) {
    assert!(sum.faults > 0 && sum.takeovers > 0 && sum.fenced > 0, "nothing was taken over: {sum:?}");
}

/// Parts, so that they run beside each other and none takes long.
macro_rules! parts {
    ($check:ident: $($name:ident $from:literal $count:literal),+) => { $(
        #[test]
        fn $name() {
            $check(&seeds($from, $count));
        }
    )+ };
}

fn class_s(seeds: &[u64]) {
    let sum = sweep("class S", &Config::of(FencingClass::S), seeds);
    reached(&sum);
    assert!(
        sum.moves > 0 && sum.failovers > 0 && sum.drains > 0 && sum.dead_men > 0 && sum.refused > 0,
        "{sum:?}"
    );
}

parts!(class_s:
    class_s_holds_under_every_fault_1 0 1_500, class_s_holds_under_every_fault_2 10_000 1_500,
    class_s_holds_under_every_fault_3 20_000 1_500, class_s_holds_under_every_fault_4 30_000 1_500);

fn class_w(seeds: &[u64]) {
    let sum = sweep("class W", &Config::of(FencingClass::W), seeds);
    reached(&sum);
    assert!(sum.resets > 0, "{sum:?}");
}

parts!(class_w: class_w_holds_with_a_watchdog_1 100_000 1_000, class_w_holds_with_a_watchdog_2 110_000 1_000);

#[test]
fn class_c_holds_with_stonith() {
    reached(&sweep("class C", &Config::of(FencingClass::C), &seeds(200_000, 1_500)));
}

#[test]
fn class_n_never_takes_over_by_itself() {
    let sum = sweep("class N", &Config::of(FencingClass::N), &seeds(300_000, 500));
    assert!(sum.takeovers == 0 && sum.fenced > 0 && sum.restarts > 0, "{sum:?}");
}

/// The first invariant that one of so many seeds breaks.
fn found(config: &Config, count: u64) -> Option<(u64, &'static str)> {
    (0..count).find_map(|seed| run(seed, config).broken.map(|b| (seed, b.invariant)))
}

#[test]
fn it_sees_that_answers_to_keep_alives_are_no_right_to_write() {
    let faults = Faults { pauses: false, freezes: false, stalls: false, stale_leader: true };
    let protocol = Protocol::LeaseKeepalive;
    let config = Config { protocol, enforces: false, faults, ..Config::of(FencingClass::S) };
    let found = found(&config, 300);
    assert!(matches!(found, Some((_, "I1" | "I2"))), "{found:?}");
}

#[test]
fn it_sees_that_an_unfenced_storage_lets_stalled_writes_through() {
    let faults = Faults { pauses: false, freezes: false, stalls: true, stale_leader: false };
    let config = Config { enforces: false, io_timeout_ms: None, faults, ..Config::of(FencingClass::S) };
    assert!(matches!(found(&config, 300), Some((_, "I1"))));
}

#[test]
fn it_sees_writes_of_stopped_workers_that_nothing_kills() {
    let faults = Faults { pauses: true, freezes: false, stalls: false, stale_leader: false };
    let config = Config { enforces: false, dead_man: false, faults, ..Config::of(FencingClass::S) };
    assert!(matches!(found(&config, 600), Some((_, "I1" | "I2"))));
}

#[test]
fn it_sees_what_a_clock_that_stood_still_does_without_fencing_by_the_storage() {
    let config = Config { enforces: false, ..Config::of(FencingClass::S) };
    let config = Config { faults: Faults { freezes: true, stalls: false, ..config.faults }, ..config };
    assert!(matches!(found(&config, 600), Some((_, "I1" | "I2" | "I4"))));
}

#[test]
fn it_sees_guests_that_nobody_could_stop() {
    let config = Config { guest_guard: false, ..Config::of(FencingClass::S) };
    assert!(matches!(found(&config, 600), Some((_, "I2"))));
}

#[test]
fn it_sees_clocks_that_are_worse_than_believed() {
    let faults = Faults { pauses: false, freezes: false, stalls: false, stale_leader: false };
    let config = Config { drift_ppm: 250_000, enforces: false, faults, ..Config::of(FencingClass::S) };
    assert!(matches!(found(&config, 600), Some((_, "I1" | "I2"))));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let config = Config::of(FencingClass::S);
    assert_eq!(run_logged(7, &config), run_logged(7, &config));
}

/// `make soak`: seeds that nobody has tried yet, for `SOAK_SECONDS`.
#[test]
#[ignore = "long: make soak"]
fn soak_simulator() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(600);
    #[expect(clippy::disallowed_methods, reason = "the crate has no clock, its soak has")]
    let start = std::time::Instant::now();
    let mut next = u64::from(std::process::id()) << 32;
    while start.elapsed().as_secs() < seconds {
        for class in FencingClass::ALL {
            sweep(&format!("class {class}"), &Config::of(class), &seeds(next, 250));
        }
        next += 250;
    }
}
