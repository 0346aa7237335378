//! The probe's code, run where it can be: in QEMU's translator.

use backstay_model::AccelPolicy;
use backstay_qemu::accel::{SpeedProbe, choose, host_facts, run_probe};
use backstay_qemu::argv::Accel;
use std::path::Path;
use std::time::Duration;

const QEMU: &str = "qemu-system-x86_64";

#[tokio::test]
async fn the_probes_code_runs_to_its_end_and_a_slow_one_is_given_up() {
    let fast = run_probe(Path::new(QEMU), Accel::Tcg, 1000, Duration::from_secs(60)).await;
    assert!(matches!(fast, SpeedProbe::Fast { .. }), "{fast}");
    // Four thousand million rounds take the translator many seconds.
    let slow = run_probe(Path::new(QEMU), Accel::Tcg, u32::MAX, Duration::from_millis(300)).await;
    assert_eq!(slow, SpeedProbe::TooSlow { millis: 300 });
    let missing = run_probe(Path::new("/no/such/qemu"), Accel::Tcg, 1, Duration::from_secs(1)).await;
    assert!(matches!(missing, SpeedProbe::Failed { .. }), "{missing}");
}

#[tokio::test]
async fn a_host_whose_kvm_is_not_the_processors_gets_emulation_and_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let facts = host_facts(Path::new(QEMU), &dir.path().join("probe.json")).await;
    let choice = choose(AccelPolicy::Auto, &facts).unwrap();
    println!("{facts:?}\n{choice:?}");
    if facts.pvm || !facts.cpu_virtualization {
        assert_eq!(choice.accel, Accel::Tcg);
        assert!(choice.warning && choice.reason.contains("because"), "{}", choice.reason);
        assert_eq!(facts.probe, None, "the probe is not worth its time here");
    } else {
        // Where the processor helps, the choice follows what the probe measured.
        let fast = matches!(facts.probe, Some(SpeedProbe::Fast { .. }));
        assert_eq!(choice.accel == Accel::Kvm, fast, "{}", choice.reason);
    }
}
