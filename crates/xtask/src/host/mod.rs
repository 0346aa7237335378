//! `make run`: this machine becomes a host with one guest.

use anyhow::{Result, bail};

pub fn run() -> Result<()> {
    bail!("the daemon is not there yet")
}

pub fn stop() -> Result<()> {
    bail!("the daemon is not there yet")
}

pub fn openapi(_args: &[String]) -> Result<()> {
    bail!("the daemon is not there yet")
}
