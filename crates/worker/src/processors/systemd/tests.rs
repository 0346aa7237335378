//! Against a stand-in for systemd on a private bus (`dbus-daemon`), whose scopes are groups of the kernel in memory.

use super::super::kernel::Kernel;
use super::*;
use backstay_model::{CpuControl, Quota};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use zbus::object_server::SignalEmitter;

const VM: &str = "5a0c9f3e-6c1e-4d6e-9b1b-0d5a6f1c2b3d";
const QEMU: u32 = 4_000_001;
const GROUP: &str = "/backstay.slice/backstay-vm-5A0C9F3E-6C1E-4D6E-9B1B-0D5A6F1C2B3D.scope";

/// A bus, ended with the test.
struct PrivateBus {
    daemon: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl PrivateBus {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}", folder.path().join("bus").display());
        let config = folder.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>"
        );
        std::fs::write(&config, text).unwrap();
        let daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"])
            .stdin(Stdio::null())
            .spawn();
        let Ok(daemon) = daemon else {
            println!("skipped: there is no dbus-daemon here");
            return None;
        };
        let bus = Self { daemon, address, _folder: folder };
        for _ in 0..500 {
            if bus._folder.path().join("bus").exists() {
                return Some(bus);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("dbus-daemon does not listen");
    }
}

/// What the stand-in was told.
#[derive(Debug, Default)]
struct Told {
    unit: String,
    mode: String,
    properties: Vec<(String, String)>,
    changed: Vec<(String, String)>,
    attached: Vec<u32>,
}

struct Manager {
    kernel: Arc<Kernel>,
    told: Arc<Mutex<Told>>,
    result: &'static str,
}

type Properties<'a> = Vec<(String, Variant<'a>)>;

fn shown(properties: &Properties<'_>) -> Vec<(String, String)> {
    properties.iter().map(|(name, value)| (name.clone(), value.to_string())).collect()
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    NoSuchUnit(String),
}

const UNIT: &str = "/org/freedesktop/systemd1/unit/scope";
const JOB: &str = "/org/freedesktop/systemd1/job/7";

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    fn get_unit(&self, unit: &str) -> Result<OwnedObjectPath, Refusal> {
        if self.told.lock().unwrap().unit != unit {
            return Err(Refusal::NoSuchUnit(format!("Unit {unit} not loaded.")));
        }
        Ok(OwnedObjectPath::try_from(UNIT).unwrap())
    }

    async fn start_transient_unit(
        &self,
        unit: &str,
        mode: &str,
        properties: Properties<'_>,
        _aux: Vec<(String, Properties<'_>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        let slice = Path::new("/cg/backstay.slice");
        self.kernel.make(slice).unwrap();
        self.kernel.write(&slice.join("cgroup.subtree_control"), "+cpu").unwrap();
        let scope = slice.join(unit);
        self.kernel.make(&scope).unwrap();
        for pid in [std::process::id(), QEMU] {
            self.kernel.write(&scope.join("cgroup.procs"), &pid.to_string()).unwrap();
        }
        {
            let mut told = self.told.lock().unwrap();
            (told.unit, told.mode, told.properties) = (unit.into(), mode.into(), shown(&properties));
        }
        let job = OwnedObjectPath::try_from(JOB).unwrap();
        // Somebody else's job first.
        let other = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
        Self::job_removed(&emitter, 6, other, "x.service".into(), "failed".into()).await.unwrap();
        Self::job_removed(&emitter, 7, job.clone(), unit.into(), self.result.into()).await.unwrap();
        job
    }

    fn set_unit_properties(&self, unit: &str, runtime: bool, properties: Properties<'_>) {
        let mut told = self.told.lock().unwrap();
        assert!(runtime && told.unit == unit);
        told.changed = shown(&properties);
    }

    fn attach_processes_to_unit(&self, unit: &str, below: &str, pids: Vec<u32>) {
        let scope = Path::new("/cg/backstay.slice").join(unit);
        assert_eq!(below, "");
        for pid in &pids {
            self.kernel.write(&scope.join("cgroup.procs"), &pid.to_string()).unwrap();
        }
        self.told.lock().unwrap().attached = pids;
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

struct ScopeUnit;

#[zbus::interface(name = "org.freedesktop.systemd1.Scope")]
impl ScopeUnit {
    #[zbus(property)]
    fn control_group(&self) -> String {
        GROUP.into()
    }
}

struct Stage {
    kernel: Arc<Kernel>,
    told: Arc<Mutex<Told>>,
    scope: Arc<Scope>,
    _systemd: Connection,
    _bus: PrivateBus,
}

async fn stage(result: &'static str) -> Option<Stage> {
    let bus = PrivateBus::start()?;
    let kernel = Arc::new(Kernel::new("/cg", &["cpu", "memory"]));
    kernel.write(Path::new("/cg/cgroup.subtree_control"), "+cpu").unwrap();
    kernel.write(Path::new("/cg/cgroup.subtree_control"), "+memory").unwrap();
    kernel.start(QEMU, &[QEMU, QEMU + 1, QEMU + 2]);
    kernel.start(std::process::id(), &[std::process::id()]);
    let told = Arc::<Mutex<Told>>::default();
    let manager = Manager { kernel: Arc::clone(&kernel), told: Arc::clone(&told), result };
    let systemd = zbus::connection::Builder::address(bus.address.as_str())
        .name(SERVICE)
        .serve_at("/org/freedesktop/systemd1", manager)
        .serve_at(UNIT, ScopeUnit)
        .build()
        .await
        .unwrap();
    let folders: Arc<dyn Folders> = Arc::clone(&kernel) as _;
    let bus_of_scope = Bus::At(bus.address.clone());
    let scope = Scope { folders, tree: Tree::V2("/cg".into()), vm: VM.parse().unwrap(), bus: bus_of_scope };
    Some(Stage { kernel, told, scope: Arc::new(scope), _systemd: systemd, _bus: bus })
}

impl Stage {
    async fn apply(&self, weight: u32, quota: Option<Quota>) -> Result<(), ControlError> {
        let scope = Arc::clone(&self.scope);
        let threads = Threads { qemu: QEMU, vcpus: [QEMU + 2].into() };
        tokio::task::spawn_blocking(move || scope.apply(&threads, &CpuShare { weight, quota })).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_a_delegated_scope_and_its_limit_below_it() {
    let Some(stage) = stage("done").await else { return };
    let quota = CpuControl { limit_percent: 50, ..CpuControl::default() }.quota();
    stage.apply(250, quota).await.unwrap();
    {
        let told = stage.told.lock().unwrap();
        assert_eq!((told.unit.as_str(), told.mode.as_str()), (GROUP.rsplit_once('/').unwrap().1, "fail"));
        let property = |name: &str| {
            let found = told.properties.iter().find(|(n, _)| n == name);
            found.unwrap_or_else(|| panic!("no {name} in {:?}", told.properties)).1.clone()
        };
        assert_eq!(property("Delegate"), "true");
        assert_eq!(property("Slice"), "\"backstay.slice\"");
        assert_eq!(property("CPUWeight"), "uint64 250");
        let pids = property("PIDs");
        assert!(pids.contains(&QEMU.to_string()) && pids.contains(&std::process::id().to_string()), "{pids}");
        assert_eq!(property("Before"), "[\"backstay.service\", \"backstay-guests.service\"]");
        let quota = told.properties.iter().any(|(name, _)| name.starts_with("CPUQuota"));
        assert!(!quota, "a quota of the unit would hold for QEMU's own threads");
    }
    let read = |file: &str| stage.kernel.read(&Path::new("/cg").join(&GROUP[1..]).join(file)).unwrap();
    assert_eq!(read("vcpu/cpu.max"), "10000 20000");
    assert_eq!(read("vcpu/cgroup.threads"), format!("{}\n", QEMU + 2));
    assert!(read("cgroup.threads").starts_with(&format!("{}\n", std::process::id())), "the worker is in it");

    // Changed while it runs.
    stage.apply(9, None).await.unwrap();
    assert_eq!(stage.told.lock().unwrap().changed, [("CPUWeight".to_owned(), "uint64 9".to_owned())]);
    assert_eq!(
        stage.told.lock().unwrap().attached,
        [std::process::id(), QEMU],
        "the kernel does not know the stand-in's scope"
    );
    assert_eq!(read("vcpu/cpu.max"), "max 100000");
    assert_eq!(read("vcpu/cgroup.threads"), format!("{}\n", QEMU + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_is_told_with_the_unit() {
    let Some(stage) = stage("timeout").await else { return };
    let error = stage.apply(100, None).await.unwrap_err();
    let words = crate::report::chain_of(&error);
    assert!(words.contains("backstay-vm-") && words.contains("'timeout'"), "{words}");
}

#[test]
fn a_process_of_another_group_is_a_stranger() {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = own.lines().next().unwrap().splitn(3, ':').nth(2).unwrap().to_owned();
    assert!(is_in(std::process::id(), &group));
    assert!(!is_in(std::process::id(), "/backstay.slice/none"));
}
