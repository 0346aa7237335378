//! Settings: `/etc/backstay/backstay.toml`, overridden by the environment. No secrets.

use crate::logging::{LogConfig, LogFormat};
use backstay_disk::CacheMode;
use backstay_model::{ByteSize, Cores, ParseSizeError};
use backstay_worker::guard::GuardOptions;
use backstay_worker::processors::{ControlPolicy, ProcessorSettings};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where settings are read unless another file is named.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/backstay/backstay.toml";

/// Everything the daemon has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Virtual machines, disks, checkpoints and the database. `BACKSTAY_STATE_DIR`.
    pub state_dir: PathBuf,
    /// Sockets and run folders; on a file system in memory. `BACKSTAY_RUN_DIR`.
    pub run_dir: PathBuf,
    /// Where the API listens. `BACKSTAY_SOCKET`; `backstay.sock` in `run_dir` unless set.
    pub socket: PathBuf,
    /// The executable whose `worker` command runs one machine; the running one unless set. `BACKSTAY_WORKER`.
    pub worker: Option<PathBuf>,
    /// QEMU.
    pub qemu: QemuConfig,
    /// What can be promised to machines.
    pub limits: LimitsConfig,
    /// How processors are controlled: the `[processors]` section.
    pub processors: ProcessorSettings,
    /// The log.
    pub log: LogConfig,
    /// Prometheus.
    pub metrics: MetricsConfig,
    /// Checkpoints.
    pub checkpoints: CheckpointConfig,
    /// What is kept free on volumes with growing disks.
    pub guard: GuardOptions,
    /// How disks are read and written.
    pub disks: DisksConfig,
}

/// How the disks of machines are read and written, from their next start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DisksConfig {
    /// What the host's page cache is used for.
    pub cache: CacheMode,
}

/// The `[metrics]` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// A loopback address where `/metrics` is served too, and nothing else; none: on the API's socket only.
    pub listen: Option<SocketAddr>,
}

/// The `[checkpoints]` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// A virtual machine has at most so many.
    pub limit: u32,
    /// From so many in a row below Now on there is a warning: every read looks through their files.
    pub warn_depth: u32,
    /// From this age on there is a warning, in days.
    pub warn_days: u32,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { limit: 50, warn_depth: 20, warn_days: 30 }
    }
}

/// The `[limits]` section: what of this host can be promised to machines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Logical processors that count; all of the host's unless given. `cores`.
    pub cores: Option<u32>,
    /// Kept for the host itself. `host_cores`.
    pub host_cores: Cores,
    /// Bytes of memory that count at most; all of the host's unless given. `memory`.
    pub memory: Option<u64>,
    /// Bytes kept for the host itself; 5 % within 256 MiB and 4 GiB unless given. `host_memory`.
    pub host_memory: Option<u64>,
}

/// The `[qemu]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuConfig {
    /// The executable; searched in PATH when it has no slash. `BACKSTAY_QEMU`.
    pub executable: PathBuf,
    /// The one user that QEMU runs as; none: each machine's QEMU as a user of its own from `uids`, if the daemon is root,
    /// else as the daemon.
    pub user: Option<String>,
    /// Numbers of users (and groups) that belong to nobody else on this host: first and last. A single 0 to 0: QEMU runs
    /// as the daemon.
    pub uids: (u32, u32),
    /// Whether QEMU gets a view of the host of its own.
    pub sandbox: SandboxMode,
    /// Files and folders that QEMU may read in addition, for one that is not installed below `/usr`.
    pub read_only: Vec<PathBuf>,
}

/// Users that no distribution and no other program gives away: above those of containers, below those that are
/// reserved by systemd.
const UIDS: (u32, u32) = (0x7000_0000, 0x7000_ffff);

/// Whether QEMU gets a view of the host of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// Where the daemon may make one.
    #[default]
    Auto,
    /// Always: a machine is not started without.
    On,
    /// Never.
    Off,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the settings file {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file breaks a rule: an unknown key, a wrong type.
    #[error("the settings file {path} is wrong: correct or remove the line")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which key and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The log.
    #[error("{key} is wrong: {reason}")]
    Log {
        /// The setting.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// Metrics for everybody.
    #[error(
        "metrics.listen is {address}: give a loopback address (127.0.0.1:9715), because nobody is asked who they are there"
    )]
    NotLoopback {
        /// Its value.
        address: SocketAddr,
    },
    /// A number or size out of its range.
    #[error("[limits] {key} is {value}: {rule}")]
    Limit {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// The rule.
        rule: &'static str,
    },
    /// A text that is no size.
    #[error("[limits] {key} is wrong")]
    Size {
        /// The setting.
        key: &'static str,
        /// Why.
        #[source]
        source: ParseSizeError,
    },
    /// A name that is no name of one folder.
    #[error("[processors] group is '{0}': give one name without slashes, for example backstay-vms")]
    Group(String),
    /// Not an amount of space.
    #[error(
        "[guard] {key} is '{value}': give a size such as '200M' for min_free, 0 to 100 for min_free_percent"
    )]
    Guard {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Not a range of users.
    #[error(
        "[qemu] uids is '{0}': give the first and the last of a range of user numbers that nobody else has, such as \
         '1879048192-1879113727', or 'daemon' for QEMU to run as the daemon's user"
    )]
    Uids(String),
    /// A path that is not absolute.
    #[error("{key} is '{path}': give an absolute path")]
    Relative {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    worker: Option<PathBuf>,
    #[serde(default)]
    qemu: FileQemu,
    #[serde(default)]
    log: FileLog,
    #[serde(default)]
    metrics: FileMetrics,
    #[serde(default)]
    checkpoints: CheckpointConfig,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    processors: FileProcessors,
    #[serde(default)]
    guard: FileGuard,
    #[serde(default)]
    disks: DisksConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLog {
    format: Option<LogFormat>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    cores: Option<u32>,
    host_cores: Option<f64>,
    memory: Option<String>,
    host_memory: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMetrics {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProcessors {
    control: Option<ControlPolicy>,
    group: Option<String>,
}

impl FileLimits {
    fn check(self) -> Result<LimitsConfig, ConfigError> {
        let size = |key, text: Option<String>| {
            text.map(|text| text.parse::<ByteSize>())
                .transpose()
                .map(|size| size.map(|ByteSize(bytes)| bytes))
                .map_err(|source| ConfigError::Size { key, source })
        };
        if self.cores.is_some_and(|cores| !(1..=4096).contains(&cores)) {
            let value = self.cores.unwrap_or_default().to_string();
            return Err(ConfigError::Limit { key: "cores", value, rule: "a host has 1 to 4096 processors" });
        }
        let host_cores = self.host_cores.unwrap_or(0.0);
        if !(0.0..=4096.0).contains(&host_cores) {
            let (key, value) = ("host_cores", host_cores.to_string());
            return Err(ConfigError::Limit { key, value, rule: "the host keeps 0 or more processors" });
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 409,600")]
        let host_cores = Cores((host_cores * 100.0).round() as u64);
        Ok(LimitsConfig {
            cores: self.cores,
            host_cores,
            memory: size("memory", self.memory)?,
            host_memory: size("host_memory", self.host_memory)?,
        })
    }
}

impl FileProcessors {
    fn check(self) -> Result<ProcessorSettings, ConfigError> {
        let normal = ProcessorSettings::default();
        let group = self.group.unwrap_or(normal.group);
        if group.is_empty() || group.starts_with('.') || group.contains('/') {
            return Err(ConfigError::Group(group));
        }
        Ok(ProcessorSettings { policy: self.control.unwrap_or_default(), group })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGuard {
    min_free: Option<String>,
    min_free_percent: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQemu {
    executable: Option<PathBuf>,
    user: Option<String>,
    uids: Option<String>,
    #[serde(default)]
    sandbox: SandboxMode,
    #[serde(default)]
    read_only: Vec<PathBuf>,
}

impl Config {
    /// Settings of a daemon whose folders are `state_dir` and `run_dir`; everything else at its default.
    #[must_use]
    pub fn in_folders(state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        let run_dir = run_dir.into();
        Self {
            state_dir: state_dir.into(),
            socket: run_dir.join("backstay.sock"),
            run_dir,
            worker: None,
            qemu: QemuConfig {
                executable: "qemu-system-x86_64".into(),
                user: None,
                uids: UIDS,
                sandbox: SandboxMode::default(),
                read_only: Vec::new(),
            },
            guard: GuardOptions::default(),
            disks: DisksConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            checkpoints: CheckpointConfig::default(),
            limits: LimitsConfig::default(),
            processors: ProcessorSettings::default(),
        }
    }

    /// Reads `file`, or the default file if it exists, and then the environment.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_CONFIG_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        Self::from_text(&text, path, |key| std::env::var_os(key).map(PathBuf::from))
    }

    fn from_text(
        text: &str,
        path: &Path,
        environment: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let file: FileConfig = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        let pick = |key: &str, from_file: Option<PathBuf>| {
            environment(key).filter(|value| !value.as_os_str().is_empty()).or(from_file)
        };
        let run_dir = pick("BACKSTAY_RUN_DIR", file.run_dir).unwrap_or_else(|| "/run/backstay".into());
        let config = Self {
            state_dir: pick("BACKSTAY_STATE_DIR", file.state_dir)
                .unwrap_or_else(|| "/var/lib/backstay".into()),
            socket: pick("BACKSTAY_SOCKET", file.socket).unwrap_or_else(|| run_dir.join("backstay.sock")),
            run_dir,
            worker: pick("BACKSTAY_WORKER", file.worker),
            qemu: QemuConfig {
                executable: pick("BACKSTAY_QEMU", file.qemu.executable)
                    .unwrap_or_else(|| "qemu-system-x86_64".into()),
                user: file.qemu.user,
                uids: file.qemu.uids.as_deref().map_or(Ok(UIDS), uids)?,
                sandbox: file.qemu.sandbox,
                read_only: file.qemu.read_only,
            },
            log: log(file.log, &environment)?,
            metrics: MetricsConfig { listen: file.metrics.listen },
            checkpoints: file.checkpoints,
            limits: file.limits.check()?,
            processors: file.processors.check()?,
            guard: guard(&file.guard)?,
            disks: file.disks,
        };
        if let Some(address) = config.metrics.listen.filter(|address| !address.ip().is_loopback()) {
            return Err(ConfigError::NotLoopback { address });
        }
        for (key, path) in
            [("state_dir", &config.state_dir), ("run_dir", &config.run_dir), ("socket", &config.socket)]
        {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { key, path: path.clone() });
            }
        }
        Ok(config)
    }
}

fn log(file: FileLog, environment: impl Fn(&str) -> Option<PathBuf>) -> Result<LogConfig, ConfigError> {
    let word = |key: &'static str| {
        environment(key).map(|value| value.to_string_lossy().into_owned()).filter(|v| !v.is_empty())
    };
    let normal = LogConfig::default();
    let format = match word("BACKSTAY_LOG_FORMAT") {
        Some(text) => {
            text.parse().map_err(|reason| ConfigError::Log { key: "BACKSTAY_LOG_FORMAT", reason })?
        }
        None => file.format.unwrap_or(normal.format),
    };
    Ok(LogConfig { format, level: word("BACKSTAY_LOG").or(file.level).unwrap_or(normal.level) })
}

/// What is kept free; what is not said is as by default.
fn guard(file: &FileGuard) -> Result<GuardOptions, ConfigError> {
    let default = GuardOptions::default();
    let min_free = match &file.min_free {
        None => default.min_free,
        Some(text) => match text.parse::<ByteSize>() {
            Ok(size) => size.0,
            Err(_) => return Err(ConfigError::Guard { key: "min_free", value: text.clone() }),
        },
    };
    let min_free_of_10000 = match file.min_free_percent {
        None => default.min_free_of_10000,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was checked: at most 10000"
        )]
        Some(percent) if (0.0..=100.0).contains(&percent) => (percent * 100.0).round() as u32,
        Some(percent) => {
            return Err(ConfigError::Guard { key: "min_free_percent", value: percent.to_string() });
        }
    };
    Ok(GuardOptions { min_free, min_free_of_10000 })
}

/// Reads `1879048192-1879113727`, or `daemon`.
fn uids(text: &str) -> Result<(u32, u32), ConfigError> {
    let wrong = || ConfigError::Uids(text.to_owned());
    if text == "daemon" {
        return Ok((0, 0));
    }
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
    match (number(first)?, number(last)?) {
        (first, last) if first >= 1000 && last > first && last < u32::MAX => Ok((first, last)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let path = Path::new("/etc/backstay/backstay.toml");
        Config::from_text(text, path, |key| {
            environment.iter().find(|(name, _)| *name == key).map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_defaults() {
        let config = read(
            "state_dir = '/srv/vms'\n[qemu]\nuser = 'qemu'\n",
            &[("BACKSTAY_RUN_DIR", "/tmp/r"), ("BACKSTAY_STATE_DIR", "")],
        )
        .unwrap();
        assert_eq!(config.state_dir, Path::new("/srv/vms"));
        assert_eq!(config.socket, Path::new("/tmp/r/backstay.sock"));
        assert_eq!(config.qemu.user.as_deref(), Some("qemu"));
        assert_eq!(config.qemu.executable, Path::new("qemu-system-x86_64"));
        assert_eq!(config.checkpoints.limit, 50);
        let config = read("[checkpoints]\nlimit = 3\n", &[]).unwrap();
        assert_eq!((config.checkpoints.limit, config.checkpoints.warn_days), (3, 30));
    }

    #[test]
    fn limits_are_numbers_sizes_and_names() {
        let text = "[limits]\ncores = 4\nhost_cores = 0.5\nmemory = '8G'\nhost_memory = '512M'\n\
                    [processors]\ncontrol = 'cgroup1'\ngroup = 'test'\n";
        let config = read(text, &[]).unwrap();
        let limits = LimitsConfig {
            cores: Some(4),
            host_cores: Cores(50),
            memory: Some(8 << 30),
            host_memory: Some(512 << 20),
        };
        assert_eq!(config.limits, limits);
        assert_eq!(
            config.processors,
            ProcessorSettings { policy: ControlPolicy::Cgroup1, group: "test".into() }
        );
        for (text, word) in [
            ("[limits]\ncores = 0", "cores"),
            ("[limits]\nhost_cores = -1.0", "host_cores"),
            ("[limits]\nmemory = 'much'", "memory"),
            ("[processors]\ngroup = '../x'", "group"),
            ("[processors]\ncontrol = 'magic'", "wrong"),
        ] {
            let error = read(text, &[]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn users_of_machines_are_a_range_or_the_daemons() {
        let uids = |text: &str| read(&format!("[qemu]\nuids = '{text}'\nsandbox = 'on'\n"), &[]);
        assert_eq!(uids("5000-6000").unwrap().qemu.uids, (5000, 6000));
        assert_eq!(uids("daemon").unwrap().qemu.uids, (0, 0));
        assert_eq!(read("", &[]).unwrap().qemu.uids, UIDS);
        for bad in ["5000", "6000-5000", "0-70000", "a-b", ""] {
            assert!(uids(bad).unwrap_err().to_string().contains("1879048192-1879113727"), "{bad}");
        }
    }

    #[test]
    fn what_is_kept_free_is_a_size_and_a_part() {
        let config = read("[guard]\nmin_free = '1G'\nmin_free_percent = 0.25\n", &[]).unwrap();
        assert_eq!(config.guard, GuardOptions { min_free: 1 << 30, min_free_of_10000: 25 });
        assert_eq!(read("", &[]).unwrap().guard, GuardOptions::default());
        assert_eq!(read("[guard]\nmin_free = '0'\n", &[]).unwrap().guard.min_free, 0);
        for bad in ["min_free = 'much'", "min_free_percent = 101.0", "min_free_percent = -1.0"] {
            assert!(
                read(&format!("[guard]\n{bad}\n"), &[]).unwrap_err().to_string().contains("200M"),
                "{bad}"
            );
        }
    }

    #[test]
    fn unknown_keys_and_relative_paths_are_refused_by_name() {
        let error = read("stat_dir = '/x'", &[]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("stat_dir") && cause.contains("state_dir"), "{cause}");
        let error = read("run_dir = 'run'", &[]).unwrap_err();
        assert_eq!(error.to_string(), "run_dir is 'run': give an absolute path");
    }
}
