//! Network cards.

use super::disks::{boot_index, boot_order};
use super::{Args, pci, root_bus};
use backstay_model::{BootDevice, MacAddress, NicAttachment, NicModel, VmSpec};

/// Id of the guest's card number `index`, for `set_link`.
#[must_use]
pub fn nic_device_id(index: usize) -> String {
    format!("nic{index}")
}

/// Returns the cards whose link is to be set down and what the user should know.
pub(super) fn push(args: &mut Args, spec: &VmSpec) -> (Vec<String>, Vec<String>) {
    let (mut links_down, mut warnings) = (Vec::new(), Vec::new());
    let network_rank = boot_order(spec).iter().position(|device| *device == BootDevice::Network);
    // `validate` allows 8 cards, so they end below the SCSI controllers.
    for ((index, nic), addr) in spec.nics.iter().enumerate().zip(pci::NIC..pci::SCSI) {
        let id = nic_device_id(index);
        let model = match nic.model {
            NicModel::E1000 => "e1000",
            NicModel::Virtio => "virtio-net-pci",
        };
        let mut device = format!(
            "{model},id={id},bus={},addr={addr:#x},mac={}",
            root_bus(spec.hardware),
            colon_mac(nic.mac)
        );
        match &nic.attachment {
            NicAttachment::User => {
                args.option("-netdev", format!("user,id=net{index}"));
                device.push_str(&format!(",netdev=net{index}"));
            }
            NicAttachment::Disconnected => links_down.push(id),
            NicAttachment::Switch(name) => {
                warnings.push(format!(
                    "network card {} is attached to switch '{name}', which this host does not have: its cable is \
                     unplugged until the switch is created or the card is attached elsewhere",
                    nic.mac
                ));
                links_down.push(id);
            }
        }
        match network_rank {
            Some(rank) => device.push_str(&format!(",bootindex={}", boot_index(rank, index))),
            // The boot program of the card would only cost boot time.
            None => device.push_str(",romfile="),
        }
        args.option("-device", device);
    }
    (links_down, warnings)
}

/// QEMU wants colons.
fn colon_mac(mac: MacAddress) -> String {
    mac.to_string().replace('-', ":").to_lowercase()
}
