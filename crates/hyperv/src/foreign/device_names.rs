//! Device classes by GUID, and which of them need no counterpart.

use super::hardware::Integration;

/// Virtual TPM.
pub(super) const TPM_CLASS: &str = "736e6aa9-a3f8-49c0-9550-a963214d259a";
/// Serial ports.
pub(super) const SERIAL: &str = "_8e3a359f-559a-4b6a-98a9-1690a6100ed7_";
/// Floppy controller.
pub(super) const FLOPPY: &str = "_8f0d2762-0b00-4e04-af4f-19010527cb93_";
/// Clock.
pub(super) const CLOCK: &str = "_e51b7ef6-4a7f-4780-aaae-d4b291aacd2e_";
/// The feature of a switch port that holds its VLAN.
pub(super) const VLAN_FEATURE: &str = "feature_952c5004-4465-451c-8cb8-fa9ab382b773";

/// Integration services by device class.
pub(super) const INTEGRATION: [(&str, Integration); 6] = [
    ("84eaae65-2f2e-45f5-9bb5-0e857dc8eb47", Integration::Heartbeat),
    ("2a34b1c2-fd73-4043-8a5b-dd2159bc743f", Integration::KeyValue),
    ("9f8233ac-be49-4c79-8ee3-e7e1985b2077", Integration::Shutdown),
    ("2497f4de-e9fa-4204-80e4-4b75c46419c0", Integration::TimeSync),
    ("5ced1297-4598-4915-a5fc-ad21bb4d02a4", Integration::Vss),
    ("6c09bb55-d683-4da0-8931-c9bf705f6480", Integration::GuestServices),
];

/// Classes of later versions that every machine has: buses, chipset, video.
pub(super) const PLATFORM: [&str; 19] = [
    "35b0b12f-a0d7-482f-80a0-f52f1ab3da2e", // super I/O
    "4d42d9f7-6531-4f6c-9e46-1f0477876104", // ISA bus
    "4d46d139-7821-4dc4-98a3-01e98a586a44", // speaker
    "655bc5c5-a784-46b7-81bc-e26328f7eb0e", // i8042
    "72682fc4-040a-430a-be0b-224574b953fe", // I/O APIC
    "7d80d3db-61ee-4879-8879-5609f1100ad0", // S3 video
    "84535fad-4d98-4a6a-bdcd-21d5720dc430", // PCI bus
    "87045ce9-5323-438f-93bb-1e83dcbce18e", // DMA
    "917bd8cb-3bb6-4124-9383-b7d21ac07f79", // guest runtime state
    "9cb98db1-4d09-4538-a192-2d3d8c0b6cdb", // remote desktop encoder
    "9ed5fd4b-40c3-4de3-8597-98ecd17035da", // synthetic remote desktop
    "9edd1639-9bca-40dc-b3a2-07c828da60b5", // PIC
    "a28e4d02-3323-4148-9569-565930a5cb39", // PIT
    "ac6b8dc1-3257-4a70-b1b2-a9c9215659ad", // BIOS
    "ba8735ef-e3a9-4f1b-badd-dbf3a5909915", // monitor
    "d41a1872-3740-41ce-a1ee-4522ab82f991", // bus of synthetic devices
    "db8b9818-b4bb-4725-b99d-b4612716b6b4", // power management
    "de6cdc86-e1fb-4940-801b-c3c1a26c4da4", // input management
    "e51b7ef6-4a7f-4780-aaae-d4b291aacd2e", // clock
];

/// Classes that are counterparts in another way: what they stand for is read elsewhere.
pub(super) const READ_ELSEWHERE: [&str; 3] = [
    TPM_CLASS,
    "e3c82929-edb4-475e-85a4-29aaa2a30c2d", // dynamic memory
    "deaeeed3-4119-4b44-95cf-a73604b76971", // synthetic debugging
];
