//! The tree of values.

use super::layout::VmcxError;
use super::{parse, write};
use crate::tree::{Element, Value};

/// A value or a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name, as bytes: UTF-8 without the closing zero, at most 254 bytes.
    pub name: Vec<u8>,
    /// What it holds.
    pub content: Content,
    /// Flags that are not about the layout, as written.
    pub flags: u8,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Further entries in their order.
    Node {
        /// A counter of the writer's, as written.
        tracking: u64,
        /// Entries below.
        entries: Vec<Entry>,
    },
    /// A number.
    Int(i64),
    /// A number that is never negative.
    UInt(u64),
    /// A floating-point number, as its bits: no two of them are taken for equal that differ in a file.
    Double(u64),
    /// A text as UTF-16 units; with a closing zero where the writer put one.
    String(Vec<u16>),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A truth value, as written: everything but 0 is true.
    Bool(u32),
    /// A type that is not known: kept as it is.
    Unknown {
        /// The type's number.
        kind: u8,
        /// The value, as it follows the name.
        data: Vec<u8>,
    },
}

/// All values of a file. What is not part of the tree (free space, older copies, positions) is not kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// A number of the application's, as written.
    pub data_version: u32,
    /// Entries without a parent.
    pub entries: Vec<Entry>,
}

impl Store {
    /// Reads a file. The second value tells what was doubtful: checksums that do not fit, entries that hang nowhere.
    ///
    /// # Errors
    /// Another format or version, a file that was not closed cleanly, damage, more than 16 MiB, 200 000 values or 64
    /// levels.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Vec<String>), VmcxError> {
        parse::parse(bytes)
    }

    /// The bytes of a file with these values, as closed cleanly.
    ///
    /// # Errors
    /// A name that is too long or holds a zero, more tables than the format can number.
    pub fn to_bytes(&self) -> Result<Vec<u8>, VmcxError> {
        write::to_bytes(self)
    }

    /// The node `configuration` as the tree of a `.xml`; none when there is none.
    #[must_use]
    pub fn configuration(&self) -> Option<Element> {
        let node = self.entries.iter().find(|e| e.name == b"configuration")?;
        matches!(node.content, Content::Node { .. }).then(|| element(node))
    }

    /// The tree of a `.xml` as a store: typed leaves become values of their types, everything else nodes.
    #[must_use]
    pub fn of_configuration(root: &Element) -> Self {
        Self { data_version: 0, entries: vec![entry(root)] }
    }
}

/// Depth is limited by the reader, so recursion is.
fn element(entry: &Entry) -> Element {
    let mut element = Element::new(String::from_utf8_lossy(&entry.name));
    let value = match &entry.content {
        Content::Node { entries, .. } => {
            element.nodes = entries.iter().map(|e| crate::tree::Node::Element(self::element(e))).collect();
            return element;
        }
        Content::Int(number) => Value::Integer(*number),
        Content::UInt(number) => match i64::try_from(*number) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::String(number.to_string()),
        },
        Content::Double(bits) => Value::Double(f64::from_bits(*bits)),
        Content::String(units) => {
            let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
            Value::String(String::from_utf16_lossy(units.get(..end).unwrap_or_default()))
        }
        Content::Bytes(bytes) | Content::Unknown { data: bytes, .. } => Value::Bytes(bytes.clone()),
        Content::Bool(value) => Value::Bool(*value != 0),
    };
    element.put(&value);
    element
}

fn entry(element: &Element) -> Entry {
    let content = match element.value() {
        Some(Value::String(text)) => Content::String(text.encode_utf16().collect()),
        Some(Value::Integer(number)) => Content::Int(number),
        Some(Value::Bool(value)) => Content::Bool(u32::from(value)),
        Some(Value::Bytes(bytes)) => Content::Bytes(bytes),
        Some(Value::Double(number)) => Content::Double(number.to_bits()),
        None => Content::Node { tracking: 0, entries: element.children().map(entry).collect() },
    };
    Entry { name: element.name().as_bytes().to_vec(), content, flags: 0 }
}
