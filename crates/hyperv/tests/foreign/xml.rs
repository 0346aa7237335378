//! `.xml`: Hyper-V's own file, and files of ours.

use super::common::*;
use backstay_hyperv::VmConfig;
use backstay_hyperv::foreign::{
    Bus, DriveKind, Integration, NicKind, Place, Recovery, SourceKind, Vlan, read, read_xml,
};
use backstay_model::{BootDevice, HostStartAction, HostStopAction, VirtualHardware};
use std::collections::BTreeMap;

#[test]
fn hyper_v_2012_r2_file_is_understood_whole() {
    let Some(bytes) = fixture("vm-2012r2.XML") else { return };
    let utf16: Vec<u8> = [0xFF, 0xFE]
        .into_iter()
        .chain(String::from_utf8(bytes.clone()).unwrap().encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    let machine = only_machine(read(&bytes, Place::default()).unwrap());
    assert_eq!(machine, only_machine(read(&utf16, Place::default()).unwrap()), "whatever the encoding");
    assert_eq!(machine.source.kind, SourceKind::Xml);
    assert_eq!(machine.source.version.as_deref(), Some("5.0"));
    assert_eq!(machine.id.unwrap().to_string(), "0aa394fa-7c4a-4070-ba32-773d43b28a68");
    assert_eq!((machine.name.as_str(), machine.generation), ("2012R2", VirtualHardware::Gen1));
    // 2014-11-09 05:34:40 UTC.
    assert_eq!(machine.created_unix_ms.unwrap() / 1000, 1_415_511_280);
    assert_eq!(machine.actions.start, HostStartAction::StartIfRunning);
    assert_eq!((machine.actions.stop, machine.actions.recovery), (HostStopAction::Save, Recovery::Restart));
    let settings = &machine.settings;
    assert_eq!(
        (settings.processors.count, settings.processors.limit, settings.processors.weight),
        (1, 100_000, 100)
    );
    assert_eq!((settings.memory.startup_mib, settings.memory.dynamic), (1024, None));
    assert_eq!(settings.firmware.bios_guid.unwrap().to_string(), "7ffee066-9755-4950-9a16-4c94ac67ad00");
    assert_eq!(settings.firmware.bios_serial, "1981-9952-3234-1295-3674-7651-98");
    use BootDevice::{Floppy, HardDrive, Network, Optical};
    assert_eq!(settings.firmware.boot_order, [Optical, HardDrive, Network, Floppy]);
    let disk = r"C:\dev\vagrant\Win2k12R2\.vagrant\machines\default\hyperv\disk.vhd";
    let drives: Vec<_> =
        settings.drives().map(|(c, d)| (c.bus, c.number, d.location, d.kind, d.path.as_str())).collect();
    assert_eq!(
        drives,
        [(Bus::Ide, 0, 0, DriveKind::Vhd, disk), (Bus::Ide, 1, 0, DriveKind::EmptyOptical, "")]
    );
    let scsi = settings.controllers.last().unwrap();
    assert_eq!(scsi.instance.unwrap().to_string(), "d7a36e9b-9256-4f0d-be2c-3a13887f7b03");
    let [nic] = settings.nics.as_slice() else { panic!("{:?}", settings.nics) };
    assert_eq!(
        (nic.name.as_str(), nic.kind, nic.connected, nic.mac_is_static),
        ("Network Adapter", NicKind::Synthetic, true, false)
    );
    assert_eq!(nic.mac.unwrap().to_string(), "00-15-5D-01-07-DC");
    assert_eq!(nic.switch_name, "Virtual External Switch");
    assert_eq!(nic.switch_id.unwrap().to_string(), "438b7b13-6180-4155-b7bf-08709ccf234d");
    let off: Vec<_> = settings.integration.iter().filter(|s| !s.enabled).map(|s| s.service).collect();
    assert_eq!((settings.integration.len(), off), (6, vec![Integration::GuestServices]));
    assert_eq!(settings.time_skew_100ns, Some(-288_005_458_208), "eight hours west");
    assert!(machine.saved_state.is_none() && machine.checkpoints.is_empty() && !settings.tpm);
    assert!(settings.other_devices.is_empty(), "{:?}", settings.other_devices);
    assert_eq!(machine.not_understood, [], "everything in it is known");
}

#[test]
fn what_is_read_is_written_again() {
    let Some(bytes) = fixture("vm-2012r2.XML") else { return };
    let machine = only_machine(read(&bytes, Place::default()).unwrap());
    let written = machine.to_config(backstay_model::VmId(guid(9))).unwrap().to_bytes();
    assert_eq!(machine_of(read_xml(&written, Place::default()).unwrap()), machine);
}

/// What a leaf says, by its path; of a tree of ours.
pub fn leaves(config: &VmConfig) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), config.root())];
    while let Some((path, element)) = open.pop() {
        if element.attribute("type").is_some() {
            found.insert(path, element.text());
            continue;
        }
        for child in element.children() {
            open.push((format!("{path}/{}", child.name()), child));
        }
    }
    found
}

#[test]
fn a_machine_of_later_hosts_with_everything_else() {
    let text = r#"<configuration>
      <_0c3f9f0e-0000-0000-0000-000000000001_><HostResource type="string">PCIP\VEN_10DE</HostResource></_0c3f9f0e-0000-0000-0000-000000000001_>
      <_0c3f9f0e-0000-0000-0000-000000000002_>
        <FriendlyName type="string">Old card</FriendlyName>
        <MacAddress type="string">00-00-00-00-00-00</MacAddress>
        <SwitchName type="string">Corporate</SwitchName>
      </_0c3f9f0e-0000-0000-0000-000000000002_>
      <_0c3f9f0e-0000-0000-0000-000000000003_>
        <IsConnected type="bool">True</IsConnected>
        <MacAddress type="string">nonsense</MacAddress>
        <Connection><AltSwitchName type="string">LAN</AltSwitchName>
          <Feature_952c5004-4465-451c-8cb8-fa9ab382b773><Setting_1><Data type="bytes">AAEC
</Data><Version type="integer">1</Version></Setting_1></Feature_952c5004-4465-451c-8cb8-fa9ab382b773></Connection>
      </_0c3f9f0e-0000-0000-0000-000000000003_>
      <_83f8638b-8dca-4152-9eda-2ca8b33039b4_><controller0>
        <drive0><pathname type="string">D:</pathname><type type="string">ISO</type></drive0>
        <drive1><pathname type="string">x</pathname><type type="string">HOLOGRAM</type></drive1>
      </controller0></_83f8638b-8dca-4152-9eda-2ca8b33039b4_>
      <_8e3a359f-559a-4b6a-98a9-1690a6100ed7_><port1><connection type="string">\\.\pipe\two</connection></port1></_8e3a359f-559a-4b6a-98a9-1690a6100ed7_>
      <_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_><secure_boot_enabled type="bool">True</secure_boot_enabled></_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_>
      <global_settings><snapshots><data_root type="string">D:\S</data_root>
        <list><size type="integer">1</size><node0><guid type="string">9932FF54-E40F-4AD5-9F36-5E8FBCED8825</guid></node0></list></snapshots></global_settings>
      <manifest>
        <vdev001><device type="string">2fcc454e-a36a-4c77-bb5e-a2d75a51f02c</device><instance type="string">0C3F9F0E-0000-0000-0000-000000000001</instance><name type="string">Virtual Pci Express Port</name></vdev001>
        <vdev002><device type="string">aaaaaaaa-0000-0000-0000-000000000000</device><instance type="string">0C3F9F0E-0000-0000-0000-000000000002</instance><name type="string">Emulated Ethernet Port</name></vdev002>
        <vdev003><device type="string">2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778</device><instance type="string">0C3F9F0E-0000-0000-0000-000000000003</instance><name type="string">Synthetic Ethernet Port</name></vdev003>
        <vdev004><device type="string">736e6aa9-a3f8-49c0-9550-a963214d259a</device><instance type="string">736E6AA9-A3F8-49C0-9550-A963214D259A</instance><name type="string">TPM</name></vdev004>
      </manifest>
      <properties><subtype type="integer">1</subtype><version type="integer">2304</version><mystery type="string">42</mystery></properties>
      <savedstate><memlocation type="string">D:\x.bin</memlocation><vsvlocation type="string">D:\x.vsv</vsvlocation></savedstate>
      <settings><processors><count type="integer">many</count><weight type="integer">0</weight></processors>
        <memory><bank><dynamic_memory_enabled type="bool">True</dynamic_memory_enabled><limit type="integer">4096</limit><reservation type="integer">512</reservation><size type="integer">1024</size></bank></memory></settings>
    </configuration>"#;
    let place = Place::of("Virtual Machines/0AA394FA-7C4A-4070-BA32-773D43B28A68.xml");
    let machine = machine_of(read_xml(text.as_bytes(), place).unwrap());
    assert_eq!(machine.id, place.guid, "the file's name tells what the file does not");
    assert_eq!((machine.source.version.as_deref(), machine.generation), (Some("9.0"), VirtualHardware::Gen2));
    assert_eq!(machine.saved_state.unwrap().files, [r"D:\x.bin", r"D:\x.vsv"]);
    assert_eq!(machine.named_checkpoints[0].to_string(), "9932ff54-e40f-4ad5-9f36-5e8fbced8825");
    let settings = &machine.settings;
    assert!(settings.tpm && settings.firmware.secure_boot == Some(true));
    assert_eq!((settings.processors.count, settings.processors.weight), (1, 0));
    let dynamic = settings.memory.dynamic.unwrap();
    assert_eq!((dynamic.min_mib, dynamic.max_mib), (512, 4096));
    let drives: Vec<_> = settings.drives().map(|(_, d)| d.kind).collect();
    assert_eq!(drives, [DriveKind::HostOptical]);
    assert_eq!(settings.com_ports[0].number, 2);
    assert_eq!(settings.other_devices.len(), 1);
    assert_eq!(settings.other_devices[0].host_resource, r"PCIP\VEN_10DE");
    let [old, new] = settings.nics.as_slice() else { panic!("{:?}", settings.nics) };
    assert_eq!(
        (old.kind, old.mac, old.connected, old.switch_name.as_str()),
        (NicKind::Legacy, None, true, "Corporate")
    );
    assert_eq!((new.kind, &new.vlan), (NicKind::Synthetic, &Vlan::Unreadable("AAEC".into())));
    let noted: Vec<_> = machine.not_understood.iter().map(|n| (n.path.as_str(), n.value.as_str())).collect();
    let section = "_0c3f9f0e-0000-0000-0000-000000000003_/MacAddress";
    for wanted in [("properties/mystery", "42"), ("settings/processors/count", "many"), (section, "nonsense")]
    {
        assert!(noted.contains(&wanted), "{wanted:?} in {noted:?}");
    }
    assert!(noted.iter().any(|(_, value)| value.contains("HOLOGRAM")), "{noted:?}");
}

#[test]
fn a_checkpoints_file_is_told_by_its_folder_and_comes_to_its_machine() {
    let machine = r#"<configuration><properties><global_id type="string">0AA394FA-7C4A-4070-BA32-773D43B28A68</global_id></properties></configuration>"#;
    let checkpoint = r#"<configuration>
        <properties><name type="string">first</name><global_id type="string">0AA394FA-7C4A-4070-BA32-773D43B28A68</global_id>
          <parent_guid type="string">11111111-E40F-4AD5-9F36-5E8FBCED8825</parent_guid></properties>
        <settings><global><logical_id type="string">9932FF54-E40F-4AD5-9F36-5E8FBCED8825</logical_id></global></settings></configuration>"#;
    let mut machine = machine_of(read_xml(machine.as_bytes(), Place::of("Virtual Machines/x.xml")).unwrap());
    let place = Place::of(r"D:\export\Snapshots\9932FF54-E40F-4AD5-9F36-5E8FBCED8825.xml");
    let checkpoint = checkpoint_of(read_xml(checkpoint.as_bytes(), place).unwrap());
    assert_eq!((checkpoint.id, checkpoint.machine), (place.guid, machine.id));
    assert_eq!(checkpoint.parent.unwrap().to_string(), "11111111-e40f-4ad5-9f36-5e8fbced8825");
    assert!(machine.owns(&checkpoint));
    machine.adopt(checkpoint);
    machine.settle_tree();
    assert_eq!(machine.checkpoints[0].parent, None, "a parent that is not there");
    assert!(machine.checkpoints[0].not_understood.iter().any(|n| n.path == "parent"));
}
