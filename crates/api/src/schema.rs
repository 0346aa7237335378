//! How the words of `backstay-model` appear in the OpenAPI document. `model` knows nothing of OpenAPI, so each of its
//! types that is a string on the wire has a stand-in here; a test keeps the words equal.

use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};

macro_rules! words {
    ($(#[$doc:meta] $name:ident = [$($word:literal),+];)+) => {
        $(
            #[$doc]
            pub(crate) struct $name;
            impl utoipa::PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    ObjectBuilder::new()
                        .schema_type(Type::String)
                        .enum_values(Some([$($word),+]))
                        .into()
                }
            }
            impl utoipa::ToSchema for $name {}
        )+
        #[cfg(test)]
        mod words_tests {
            #[test]
            fn every_word_is_one_the_model_knows() {
                use backstay_model as model;
                $(
                    for word in [$($word),+] {
                        let value = serde_json::Value::String(word.into());
                        assert!(serde_json::from_value::<model::$name>(value).is_ok(), "{word}");
                    }
                )+
            }
        }
    };
}

words! {
    /// States of a machine.
    VmState = ["off", "starting", "running", "paused", "paused-critical", "saving", "saved", "stopping", "failed"];
    /// How memory was captured.
    MemoryMethod = ["background", "live-mapped-ram", "stopped"];
    /// Accelerator policy.
    AccelPolicy = ["auto", "kvm", "tcg"];
    /// When QEMU ends by itself.
    RecoveryAction = ["none", "restart"];
    /// When the host starts.
    HostStartAction = ["nothing", "start-if-running", "start"];
    /// When the host stops.
    HostStopAction = ["turn-off", "save", "shutdown"];
    /// Boot sources.
    BootDevice = ["optical", "hard-drive", "network", "floppy"];
    /// Virtual hardware.
    VirtualHardware = ["gen1", "gen2"];
    /// Network card models.
    NicModel = ["e1000", "virtio"];
}

fn text(pattern: &str, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([example]).into()
}

/// A place for a drive.
pub(crate) struct DriveSlot;
impl utoipa::PartialSchema for DriveSlot {
    fn schema() -> RefOr<Schema> {
        text("^(ide:[01]:[01]|scsi:[0-3]:[0-9]{1,2}|virtio:[0-9]{1,2})$", "ide:0:0")
    }
}
impl utoipa::ToSchema for DriveSlot {}

/// An Ethernet address.
pub(crate) struct MacAddress;
impl utoipa::PartialSchema for MacAddress {
    fn schema() -> RefOr<Schema> {
        text("^([0-9A-F]{2}-){5}[0-9A-F]{2}$", "00-15-5D-01-07-DC")
    }
}
impl utoipa::ToSchema for MacAddress {}

/// A point in time, RFC 3339 in UTC.
pub(crate) struct Timestamp;
impl utoipa::PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("date-time".into())))
            .examples(["2026-01-31T09:15:00Z"])
            .into()
    }
}
impl utoipa::ToSchema for Timestamp {}
