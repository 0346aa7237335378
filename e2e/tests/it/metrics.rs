//! `/metrics`, read as strictly as Prometheus' own checker reads it, and the log as a collector reads it.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// Sample values by name and labels.
type Samples = BTreeMap<String, BTreeMap<BTreeMap<String, String>, f64>>;

fn get(mut stream: impl Read + Write, path: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

fn scrape(host: &Host) -> Samples {
    let (head, body) = get(UnixStream::connect(host.socket()).unwrap(), "/metrics");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    promtool(&body);
    parse(&body)
}

/// Prometheus' own opinion, where it is installed.
fn promtool(body: &str) {
    let Ok(mut child) = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn()
    else {
        return;
    };
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `name{label="text",…} value`
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, mut rest) = series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest));
    let mut labels = BTreeMap::new();
    while !rest.is_empty() && rest != "}" {
        let (label, tail) = rest.trim_start_matches(',').split_once("=\"").unwrap();
        let mut text = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => text.push('\n'),
                    c @ ('\\' | '"') => text.push(c),
                    other => panic!("{line}: \\{other} is no escape"),
                },
                (_, c) => text.push(c),
            }
        };
        assert!(is_name(label), "{line}");
        assert!(labels.insert(label.to_owned(), text).is_none(), "{line}: a label twice");
        rest = &tail[end + 1..];
    }
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    (name.to_owned(), labels, value)
}

fn parse(body: &str) -> Samples {
    let mut samples = Samples::new();
    let (mut families, mut family, mut kind) = (BTreeSet::new(), String::new(), String::new());
    assert!(body.ends_with('\n'));
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            assert!(is_name(&family) && families.insert(family.clone()), "{line}: a family twice");
            continue;
        }
        if let Some(told) = line.strip_prefix("# TYPE ") {
            let (name, of) = told.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind = of.to_owned();
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "{line}: counters, and only they, end in _total"
            );
            continue;
        }
        let (name, labels, value) = sample(line);
        let tail = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is no part of {family}"));
        match kind.as_str() {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&tail), "{line}"),
            _ => assert_eq!(tail, "", "{line}"),
        }
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let old = samples.entry(name).or_default().insert(labels, value);
        assert!(old.is_none(), "{line}: a series twice");
    }
    let histograms: Vec<_> = samples.keys().filter_map(|name| name.strip_suffix("_bucket")).collect();
    for name in histograms {
        check_histogram(&samples, name);
    }
    samples
}

fn check_histogram(samples: &Samples, name: &str) {
    for (labels, count) in &samples[&format!("{name}_count")] {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (bucket, value) in &samples[&format!("{name}_bucket")] {
            let mut others = bucket.clone();
            let end = others.remove("le").unwrap();
            if others == *labels {
                buckets.push((if end == "+Inf" { f64::INFINITY } else { end.parse().unwrap() }, *value));
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name}");
    }
}

/// The value of the only series of `name` whose labels contain `wanted`.
fn value(samples: &Samples, name: &str, wanted: &[(&str, &str)]) -> f64 {
    let series = samples.get(name).unwrap_or_else(|| panic!("no {name}"));
    let fits = |labels: &BTreeMap<String, String>| {
        wanted.iter().all(|(l, v)| labels.get(*l).is_some_and(|t| t == v))
    };
    let found: Vec<_> = series.iter().filter(|(labels, _)| fits(labels)).collect();
    assert_eq!(found.len(), 1, "{name}{wanted:?}: {found:?}");
    *found[0].1
}

#[test]
fn machines_disks_tasks_and_the_host_are_measured() {
    let host = Host::start();
    let name = "we\"b\\1";
    host.create_micro("web", "ide:0:0", &[]);
    host.ok(&["vm", "rename", "web", name]);
    host.ok(&["vm", "start", name]);
    let (mut guest, _) = Micro::booting(&host.console(name));
    let first = scrape(&host);
    let vm = [("vm", name)];
    assert_eq!(value(&first, "backstay_vm_state", &vm), 1.0);
    assert_eq!(value(&first, "backstay_vm_state", &[("vm", name), ("state", "running")]), 1.0);
    assert_eq!(value(&first, "backstay_vms", &[("state", "running")]), 1.0);
    assert_eq!(value(&first, "backstay_vm_memory_bytes", &vm), f64::from(16 << 20));
    assert_eq!(value(&first, "backstay_task_duration_seconds_count", &[("operation", "vm.start")]), 1.0);
    assert!(
        value(&first, "backstay_host_memory_bytes", &[])
            > value(&first, "backstay_host_memory_available_bytes", &[])
    );
    assert!(value(&first, "backstay_vm_resident_memory_bytes", &[("vm", name), ("process", "qemu")]) > 1e6);

    for sector in 0x100..0x140 {
        guest.write(FIRST, sector, 0x11).unwrap();
    }
    host.ok(&["checkpoint", "create", name, "c"]);
    let second = scrape(&host);
    let written = |samples| {
        value(samples, "backstay_vm_disk_written_bytes_total", &[("vm", name), ("disk", "ide:0:0")])
    };
    assert!(written(&second) - written(&first) >= f64::from(0x40 * 512), "as many as the guest wrote");
    assert_eq!(value(&second, "backstay_vm_disk_chain_length", &vm), 2.0);
    assert_eq!(value(&second, "backstay_vm_checkpoints", &vm), 1.0);
    assert_eq!(value(&second, "backstay_checkpoint_pause_seconds_count", &[]), 1.0);
    // What the kernel says, read by somebody else.
    let ticks = |pid: u64| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|f| f.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let before = ticks(host.pid(name, "qemu_pid")) / 100.0;
    let third = scrape(&host);
    let cpu = value(&third, "backstay_vm_cpu_seconds_total", &[("vm", name), ("process", "qemu")]);
    let after = ticks(host.pid(name, "qemu_pid")) / 100.0;
    assert!(before <= cpu && cpu <= after, "{before} {cpu} {after}");
    let vcpu = value(&third, "backstay_vm_vcpu_seconds_total", &vm);
    assert!(vcpu > 0.0 && vcpu <= cpu, "{vcpu} {cpu}");

    let worker = host.pid(name, "worker_pid");
    backstay_e2e::kill(worker);
    wait_for("another worker", || (host.pid(name, "worker_pid") != worker).then_some(()));
    assert_eq!(value(&scrape(&host), "backstay_vm_worker_restarts_total", &vm), 1.0);

    host.ok(&["vm", "turn-off", name]);
    host.ok(&["vm", "delete", name, "--yes"]);
    let gone = scrape(&host);
    let left =
        gone.values().flat_map(BTreeMap::keys).any(|labels| labels.get("vm").is_some_and(|v| v == name));
    assert!(!left, "a machine that is gone has no series");
    assert!(value(&gone, "backstay_events_total", &[("kind", "vm.deleted")]) >= 1.0);
}

#[test]
fn scraping_by_tcp_is_off_unless_configured_and_only_on_loopback() {
    let settings = "[metrics]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n".to_owned();
    let host = Host::with(&HostOptions { settings, ..HostOptions::default() });
    let address = wait_for("the address in the log", || {
        let log = fs::read_to_string(host.folder().join("daemon.log")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line["metrics"].as_str().map(str::to_owned)).next()
    });
    let (head, body) = get(TcpStream::connect(&address).unwrap(), "/metrics");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    parse(&body);
    let (head, _) = get(TcpStream::connect(&address).unwrap(), "/api/v1/vms");
    assert!(head.starts_with("http/1.1 404"), "nothing but metrics: {head}");

    let refused = host.folder().join("refused.toml");
    let state = host.folder().join("other");
    let settings =
        format!("state_dir = {state:?}\nrun_dir = {state:?}\n[metrics]\nlisten = \"0.0.0.0:9715\"\n");
    fs::write(&refused, settings).unwrap();
    let message = host.refused(1, &["daemon", "--config", refused.to_str().unwrap()]);
    assert!(message.contains("0.0.0.0:9715") && message.contains("loopback"), "{message}");
}

#[test]
fn log_lines_carry_machine_and_task_and_the_level_changes_while_it_runs() {
    let settings = "[log]\nformat = \"json\"\nlevel = \"warn\"\n".to_owned();
    let host = Host::with(&HostOptions { settings, ..HostOptions::default() });
    host.create_micro("quiet", "ide:0:0", &[]);
    let lines = || {
        let log = fs::read_to_string(host.folder().join("daemon.log")).unwrap();
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    assert!(!lines().iter().any(|line| line["level"] == "INFO"), "{:?}", lines());
    assert_eq!(host.ok(&["host", "log-level"]).trim(), "warn");
    host.ok(&["host", "log-level", "info"]);
    assert_eq!(host.ok(&["host", "log-level"]).trim(), "info");
    let message = host.refused(2, &["host", "log-level", "backstay=loud"]);
    assert!(message.contains("'backstay=loud'"), "{message}");
    host.create_micro("loud", "ide:0:0", &[]);
    let tasks = host.json(&["task", "list"]);
    let tasks = tasks.as_array().cloned().or_else(|| tasks["items"].as_array().cloned()).unwrap();
    let task = tasks.iter().find(|task| task["object"]["name"] == "loud").unwrap()["id"].clone();
    let seen = lines();
    let task = task.as_str().unwrap();
    let is_of = |line: &Value| line["span"]["task"].as_str().is_some_and(|id| id.eq_ignore_ascii_case(task));
    let of_task = seen.iter().find(|line| is_of(line)).unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(
        (&of_task["span"]["vm"], &of_task["span"]["operation"]),
        (&"loud".into(), &"vm.create".into())
    );
    assert!(!seen.iter().any(|line| line["span"]["vm"] == "quiet" && line["level"] == "INFO"));
}
