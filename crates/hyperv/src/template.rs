//! A new machine's tree.

use crate::config::VmConfig;
use crate::devices::{BIOS, IDE};
use crate::error::ApplyError;
use crate::tree::Value;
use backstay_model::{VirtualHardware, VmId, VmSpec};
use uuid::{Builder, Uuid};

/// What every machine has, as Windows Server 2012 R2 writes it; values that differ per machine are empty.
const TEMPLATE: &str = include_str!("template.xml");

/// Sections of emulated devices, which generation 2 does not have: IDE, serial ports, floppy, VGA address, and the
/// two of the PC chipset.
const GENERATION_1_ONLY: [&str; 6] = [
    IDE,
    "_8e3a359f-559a-4b6a-98a9-1690a6100ed7_",
    "_8f0d2762-0b00-4e04-af4f-19010527cb93_",
    "_7d80d3db-61ee-4879-8879-5609f1100ad0_",
    "_de6cdc86-e1fb-4940-801b-c3c1a26c4da4_",
    "_655bc5c5-a784-46b7-81bc-e26328f7eb0e_",
];

/// The tree of a machine of which only this is known. `created` is a FILETIME.
pub(crate) fn bare(id: VmId, hardware: VirtualHardware, created: u64) -> Result<VmConfig, ApplyError> {
    let mut config = VmConfig::parse(TEMPLATE.as_bytes()).map_err(ApplyError::Template)?;
    let root = &mut config.root;
    root.set_str("properties/global_id", &id.to_string());
    root.set_str("settings/global/logical_id", &id.to_string());
    if hardware == VirtualHardware::Gen2 {
        for section in GENERATION_1_ONLY {
            root.remove(section);
        }
    }
    root.set("properties/creation_time", &Value::Bytes(created.to_le_bytes().to_vec()));
    Ok(config)
}

pub(crate) fn build(spec: &VmSpec, created: u64) -> Result<VmConfig, ApplyError> {
    let mut config = bare(spec.id, spec.hardware, created)?;
    let root = &mut config.root;
    let serial = serial_number(derive(spec.id.0, "serial number", 0));
    for leaf in
        ["base_board/serial_number", "bios_serial_number", "chassis/asset_tag", "chassis/serial_number"]
    {
        root.set_str(&format!("{BIOS}/{leaf}"), &serial);
    }
    let generation = derive(spec.id.0, "generation", created);
    root.set_str("global_settings/devices/generation_id", &format!("{:x}", generation.simple()));
    config.apply_spec(spec)?;
    Ok(config)
}

/// A GUID that follows from another: the same input gives the same GUID, so that this crate needs no randomness.
pub(crate) fn derive(from: Uuid, purpose: &str, number: u64) -> Uuid {
    // FNV-1a with 128 bits.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in from.as_bytes().iter().chain(purpose.as_bytes()).chain(&number.to_le_bytes()) {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    // Version 8: made by a rule of its own (RFC 9562).
    Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
}

/// 26 decimal digits in Hyper-V's grouping.
fn serial_number(from: Uuid) -> String {
    let digits: Vec<char> = format!("{:039}", from.as_u128()).chars().skip(13).collect();
    digits.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}
