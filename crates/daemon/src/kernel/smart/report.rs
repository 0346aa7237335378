//! Reading what `smartctl --json` prints. Pure.

use serde::Deserialize;

/// What a disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Report {
    /// Its model.
    pub(in crate::kernel) model: String,
    /// What is wrong, in words that stay the same as long as it does.
    pub(in crate::kernel) problems: Vec<String>,
}

#[derive(Deserialize)]
struct Scan {
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
}

/// Names of the disks in the answer to `--scan`.
pub(super) fn devices(text: &[u8]) -> Vec<String> {
    let scan: Option<Scan> = serde_json::from_slice(text).ok();
    scan.map(|scan| scan.devices.into_iter().map(|device| device.name).collect()).unwrap_or_default()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    model_name: Option<String>,
    scsi_model_name: Option<String>,
    smart_status: Option<Status>,
    ata_smart_attributes: Option<Attributes>,
    nvme_smart_health_information_log: Option<Nvme>,
    scsi_grown_defect_list: Option<u64>,
}

#[derive(Deserialize)]
struct Status {
    passed: Option<bool>,
}

#[derive(Deserialize)]
struct Attributes {
    #[serde(default)]
    table: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Attribute {
    id: u32,
    name: String,
    #[serde(default)]
    when_failed: String,
    raw: Option<Raw>,
}

#[derive(Deserialize)]
struct Raw {
    value: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Nvme {
    critical_warning: u32,
    available_spare: Option<u32>,
    available_spare_threshold: Option<u32>,
    percentage_used: u32,
    media_errors: u64,
}

/// Attributes that count sectors which are lost or about to be.
const SECTORS: [(u32, &str); 3] = [
    (5, "sectors were replaced"),
    (197, "sectors cannot be read at present"),
    (198, "sectors could not be read in tests"),
];

/// Bits of the critical warning of the NVMe specification.
const NVME: [(u32, &str); 5] = [
    (0x01, "its spare capacity is used up"),
    (0x02, "it is too hot or too cold"),
    (0x04, "it has become unreliable"),
    (0x08, "it takes no more writes"),
    (0x10, "its backup of volatile memory has failed"),
];

impl Report {
    /// Reads the answer for one disk; none if it tells nothing of itself.
    pub(in crate::kernel) fn parse(text: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(text).ok()?;
        let told = answer.smart_status.is_some()
            || answer.ata_smart_attributes.is_some()
            || answer.nvme_smart_health_information_log.is_some();
        let mut problems = Vec::new();
        if answer.smart_status.is_some_and(|status| status.passed == Some(false)) {
            problems.push("its own verdict is that it is failing".to_owned());
        }
        for attribute in answer.ata_smart_attributes.iter().flat_map(|attributes| &attributes.table) {
            problems.extend(of_attribute(attribute));
        }
        if let Some(nvme) = &answer.nvme_smart_health_information_log {
            problems.extend(of_nvme(nvme));
        }
        if let Some(defects) = answer.scsi_grown_defect_list.filter(|defects| *defects > 0) {
            problems.push(format!("{} defects have grown", step(defects)));
        }
        let model = answer.model_name.or(answer.scsi_model_name).unwrap_or_else(|| "a disk".into());
        told.then_some(Self { model, problems })
    }
}

fn of_attribute(attribute: &Attribute) -> Option<String> {
    let raw = attribute.raw.as_ref().map_or(0, |raw| raw.value);
    if attribute.when_failed == "now" {
        return Some(format!("{} is beyond its limit", attribute.name));
    }
    let (_, words) = SECTORS.into_iter().find(|(id, _)| *id == attribute.id)?;
    (raw > 0).then(|| format!("{} {words}", step(raw)))
}

fn of_nvme(nvme: &Nvme) -> Vec<String> {
    let mut problems: Vec<String> = NVME
        .into_iter()
        .filter(|(bit, _)| nvme.critical_warning & bit != 0)
        .map(|(_, words)| words.to_owned())
        .collect();
    if let (Some(spare), Some(threshold)) = (nvme.available_spare, nvme.available_spare_threshold)
        && spare < threshold
        && nvme.critical_warning & 1 == 0
    {
        problems.push(NVME[0].1.to_owned());
    }
    if nvme.percentage_used >= 100 {
        problems.push("its expected life is over".to_owned());
    }
    if nvme.media_errors > 0 {
        problems.push(format!("{} errors of its medium", step(nvme.media_errors)));
    }
    problems
}

/// A number that grows is told again when it has doubled, not each hour.
fn step(count: u64) -> String {
    match count {
        0..=1 => count.to_string(),
        _ => format!("{} or more", 1u64 << count.ilog2()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As smartctl 7.3 prints it, shortened.
    #[test]
    fn a_dying_ata_disk_says_so() {
        let text = br#"{ "json_format_version": [1, 0],
            "device": {"name": "/dev/sda", "info_name": "/dev/sda [SAT]", "type": "sat", "protocol": "ATA"},
            "model_family": "Seagate Barracuda 7200.14 (AF)", "model_name": "ST2000DM001-1CH164",
            "smart_status": {"passed": false},
            "ata_smart_attributes": {"revision": 10, "table": [
              {"id": 5, "name": "Reallocated_Sector_Ct", "value": 90, "worst": 90, "thresh": 10, "when_failed": "",
               "raw": {"value": 13000, "string": "13000"}},
              {"id": 184, "name": "End-to-End_Error", "value": 1, "worst": 1, "thresh": 99, "when_failed": "now",
               "raw": {"value": 2, "string": "2"}},
              {"id": 197, "name": "Current_Pending_Sector", "value": 100, "worst": 100, "thresh": 0, "when_failed": "",
               "raw": {"value": 0, "string": "0"}}]},
            "temperature": {"current": 39} }"#;
        let report = Report::parse(text).unwrap();
        assert_eq!(report.model, "ST2000DM001-1CH164");
        assert_eq!(
            report.problems,
            [
                "its own verdict is that it is failing",
                "8192 or more sectors were replaced",
                "End-to-End_Error is beyond its limit"
            ]
        );
    }

    #[test]
    fn an_nvme_disk_is_well_until_its_warnings_are_set() {
        let answer = |warning: u32, used: u32| {
            format!(
                r#"{{"model_name": "Samsung SSD 980 PRO 1TB", "smart_status": {{"passed": true, "nvme": {{"value": 0}}}},
                "nvme_smart_health_information_log": {{"critical_warning": {warning}, "temperature": 41, "available_spare": 100,
                "available_spare_threshold": 10, "percentage_used": {used}, "media_errors": 0}}}}"#
            )
        };
        assert!(Report::parse(answer(0, 3).as_bytes()).unwrap().problems.is_empty());
        let sick = Report::parse(answer(0x0c, 104).as_bytes()).unwrap().problems;
        assert_eq!(
            sick,
            ["it has become unreliable", "it takes no more writes", "its expected life is over"]
        );
    }

    #[test]
    fn the_scan_names_disks_and_what_tells_nothing_is_no_report() {
        let scan =
            br#"{"devices": [{"name": "/dev/sda", "type": "scsi"}, {"name": "/dev/nvme0", "type": "nvme"}]}"#;
        assert_eq!(devices(scan), ["/dev/sda", "/dev/nvme0"]);
        assert!(devices(b"{}").is_empty() && devices(b"nonsense").is_empty());
        assert_eq!(Report::parse(br#"{"device": {"name": "/dev/vda"}, "model_name": "QEMU"}"#), None);
        assert_eq!(Report::parse(b"not json"), None);
    }

    #[test]
    fn a_growing_count_is_told_when_it_has_doubled() {
        let words: Vec<String> = [1, 2, 3, 4, 7, 8].into_iter().map(step).collect();
        assert_eq!(words, ["1", "2 or more", "2 or more", "4 or more", "4 or more", "8 or more"]);
    }
}
