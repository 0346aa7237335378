//! The daemon: HTTP, operations, tasks, inventory and history of one host.
//!
//! `http` validates and enqueues, `app` has one file per operation, `tasks` runs them to their end, `inventory` knows the
//! machines by their folders, `workers` follows the processes of those that are on, `store` keeps tasks and events.

mod app;
mod chains;
mod config;
mod disks;
mod durable;
mod events;
mod failure;
mod flatten;
mod host;
mod http;
mod inventory;
mod kernel;
mod layout;
pub mod logging;
mod memory;
mod metrics;
mod notify;
mod qemu_user;
mod run;
mod stamp;
mod store;
mod tasks;
mod workers;

pub use config::{Config, ConfigError, DEFAULT_CONFIG_FILE, LimitsConfig, MetricsConfig, QemuConfig};
pub use failure::Failure;
pub use http::openapi_json;
pub use run::{RunError, run, run_until};
