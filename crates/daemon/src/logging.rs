//! The log of this process: text, JSON lines, or journald's fields, at a level that can be changed while it runs. Lines of a
//! task carry its id, operation and machine.

use serde::Deserialize;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// What is logged unless told otherwise.
pub const DEFAULT_LEVEL: &str = "info";

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, on standard error.
    #[default]
    Text,
    /// One JSON object a line, on standard error.
    Json,
    /// Fields of systemd's journal (`journalctl BACKSTAY_VM=web`).
    Journald,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err(format!("'{text}' is no log format: use text, json or journald")),
        }
    }
}

/// The `[log]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines are written. `BACKSTAY_LOG_FORMAT`.
    pub format: LogFormat,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or one for each part of the program
    /// (`info,backstay_daemon::workers=debug`). `BACKSTAY_LOG`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: DEFAULT_LEVEL.into() }
    }
}

/// A log that cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error("'{level}' is no log level: use error, warn, info, debug, trace, or info,PART=debug")]
    Level {
        /// What was given.
        level: String,
        /// Where it is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// No journal.
    #[error("systemd's journal does not answer: use the log format text or json")]
    Journal(#[source] std::io::Error),
    /// Another part of this process logs elsewhere.
    #[error("the log of this process was set up by somebody else")]
    Foreign,
}

type Handle = reload::Handle<EnvFilter, Registry>;

/// The one log of this process.
static LOG: OnceLock<Handle> = OnceLock::new();

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|source| LogError::Level { level: level.into(), source })
}

/// Sets up the log of this process; once.
///
/// # Errors
/// [`LogError`].
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let stderr = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        LogFormat::Text => stderr.with_ansi(false).boxed(),
        LogFormat::Json => stderr.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Journald => tracing_journald::layer()
            .map_err(LogError::Journal)?
            .with_field_prefix(Some("BACKSTAY".into()))
            .with_syslog_identifier("backstay".into())
            .boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LogError::Foreign)?;
    let _ = LOG.set(handle);
    Ok(())
}

/// What is logged now.
#[must_use]
pub fn level() -> Option<String> {
    LOG.get()?.with_current(ToString::to_string).ok()
}

/// Changes what is logged from here on, until the daemon is started again.
///
/// # Errors
/// [`LogError`].
pub fn set_level(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    LOG.get().ok_or(LogError::Foreign)?.reload(filter).map_err(|_| LogError::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_level_or_format_are_refused() {
        assert!(filter("info,backstay_daemon::workers=debug").is_ok());
        let refused = filter("backstay=loud").unwrap_err();
        assert!(refused.to_string().contains("'backstay=loud'"), "{refused}");
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
