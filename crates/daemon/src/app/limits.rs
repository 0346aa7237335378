//! What machines may ask of their disks: the settings, and telling the workers.

use super::App;
use crate::failure::Failure;
use backstay_api::{DiskLimitChange, ProblemCode};
use backstay_model::{DriveMedia, VmId, VmSpec};
use backstay_worker::control::{DiskLimit, Reply, Request};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to tell of its disks, or to limit them.
const ANSWER: Duration = Duration::from_secs(20);

/// Changes the limits of disks.
pub(super) fn change_limits(spec: &mut VmSpec, changes: &[DiskLimitChange]) -> Result<(), Failure> {
    for change in changes {
        let (slot, name) = (change.slot, spec.name.clone());
        let drive = spec.drives.iter_mut().find(|drive| drive.slot == slot);
        match drive {
            Some(drive) if matches!(drive.media, DriveMedia::Disk(_)) => {
                drive.limit = change.apply(drive.limit)
            }
            Some(_) => {
                let words =
                    format!("the drive at {slot} of '{name}' is no hard disk: only hard disks have limits");
                return Err(Failure::invalid(words));
            }
            None => return Err(Failure::not_found(format!("'{name}' has no drive at {slot}"))),
        }
    }
    Ok(())
}

/// Whether two configurations limit a disk that both have differently.
pub(super) fn limits_differ(old: &VmSpec, new: &VmSpec) -> bool {
    old.drives
        .iter()
        .any(|drive| new.drives.iter().any(|other| other.slot == drive.slot && other.limit != drive.limit))
}

/// Tells a machine's worker the limits that are not what the configuration says.
///
/// # Errors
/// What keeps them from acting; the next worker takes them from the daemon again.
pub(crate) async fn share_limits(app: &Arc<App>, vm: VmId) -> Result<(), Failure> {
    // Whoever comes last reads the configuration last.
    let _turn = app.workers.limits_turn().await;
    let machine = app.inventory.get(vm)?;
    let disks = match app.workers.call(vm, Request::Disks, ANSWER).await? {
        Reply::Disks { disks, .. } => disks,
        other => {
            let words = format!("the worker answered a question about its disks with {other:?}");
            return Err(Failure::new(ProblemCode::Internal, words));
        }
    };
    let differs =
        |limit: &DiskLimit| disks.iter().any(|disk| disk.slot == limit.slot && disk.limit != limit.limit);
    let limits = machine.spec.drives.iter().map(|drive| DiskLimit { slot: drive.slot, limit: drive.limit });
    let limits: Vec<DiskLimit> = limits.filter(differs).collect();
    if !limits.is_empty() {
        app.workers.call(vm, Request::SetDiskLimits { limits }, ANSWER).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, call};
    use super::super::update_vm;
    use super::*;
    use backstay_api::VmUpdate;

    fn change(slot: &str, iops: Option<u64>, bytes_per_second: Option<u64>) -> VmUpdate {
        let change = DiskLimitChange { slot: slot.parse().unwrap(), iops, bytes_per_second };
        VmUpdate { disk_limits: vec![change], ..VmUpdate::default() }
    }

    #[tokio::test]
    async fn limits_are_kept_in_the_configuration_and_what_is_not_named_stays() {
        let mut fixture = Fixture::new();
        fixture.machine("web").await;
        let set = async |fixture: &Fixture, body| {
            let task = fixture.end(update_vm(&fixture.app, "web", body, &call()).await.unwrap()).await;
            assert!(task.error.is_none(), "{task:?}");
        };
        set(&fixture, change("ide:0:0", Some(500), None)).await;
        set(&fixture, change("ide:0:0", None, Some(20 << 20))).await;
        fixture.restart().await;
        let limit = |fixture: &Fixture| fixture.app.inventory.find("web").unwrap().spec.drives[0].limit;
        assert_eq!(limit(&fixture).to_string(), "500 IOPS, 20 MiB/s");
        set(&fixture, change("ide:0:0", Some(0), None)).await;
        assert_eq!(limit(&fixture).to_string(), "20 MiB/s");
        set(&fixture, change("ide:0:0", None, Some(0))).await;
        assert_eq!(limit(&fixture).to_string(), "none");
        let file = fixture.app.inventory.find("web").unwrap().config_file.clone();
        let text = std::fs::read(file).unwrap();
        let text: Vec<u8> = text.into_iter().filter(|byte| *byte != 0).collect();
        assert!(!String::from_utf8_lossy(&text).contains("<limits"), "nothing is left of it");

        for (body, words) in [
            (change("ide:0:0", Some(5), None), "at least 10"),
            (change("ide:0:1", Some(50), None), "no drive at ide:0:1"),
        ] {
            let error = update_vm(&fixture.app, "web", body, &call()).await.unwrap_err();
            assert!(error.full_message().contains(words), "{}", error.full_message());
        }
    }
}
