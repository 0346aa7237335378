//! Tree to bytes as Hyper-V writes them: UTF-16LE with byte-order mark, CRLF, two blanks per level, every element
//! with an end tag of its own.

use crate::tree::{Element, Node};

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-16\" standalone=\"yes\"?>\r\n";

/// Where line breaks go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A line per element, at this depth.
    Lines(usize),
    /// None at all.
    Compact,
}

impl Layout {
    fn deeper(self) -> Self {
        match self {
            Self::Lines(depth) => Self::Lines(depth + 1),
            Self::Compact => Self::Compact,
        }
    }
}

pub(crate) fn to_bytes(before: &[Node], root: &Element, after: &[Node]) -> Vec<u8> {
    bytes(before, root, after, Layout::Lines(0))
}

/// The same without line breaks and indentation.
pub(crate) fn to_bytes_compact(before: &[Node], root: &Element, after: &[Node]) -> Vec<u8> {
    bytes(before, root, after, Layout::Compact)
}

fn bytes(before: &[Node], root: &Element, after: &[Node], layout: Layout) -> Vec<u8> {
    let mut text = String::from(DECLARATION);
    for node in before {
        write_node(&mut text, node, layout);
        text.push_str("\r\n");
    }
    write_element(&mut text, root, layout);
    text.push_str("\r\n");
    for node in after {
        write_node(&mut text, node, layout);
        text.push_str("\r\n");
    }
    let mut bytes = Vec::with_capacity(2 + 2 * text.len());
    bytes.extend_from_slice(&[0xFF, 0xFE]);
    for unit in text.encode_utf16() {
        bytes.extend_from_slice(&unit.to_le_bytes());
    }
    bytes
}

fn write_node(out: &mut String, node: &Node, layout: Layout) {
    match node {
        Node::Element(element) => write_element(out, element, layout),
        Node::Text(text) => escape(out, text, false),
        Node::Comment(text) => {
            out.push_str("<!--");
            out.push_str(&text.replace('\n', "\r\n"));
            out.push_str("-->");
        }
        Node::Instruction(text) => {
            out.push_str("<?");
            out.push_str(&text.replace('\n', "\r\n"));
            out.push_str("?>");
        }
    }
}

fn write_element(out: &mut String, element: &Element, layout: Layout) {
    out.push('<');
    out.push_str(&element.name);
    for (name, value) in &element.attributes {
        out.push(' ');
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value, true);
        out.push('"');
    }
    out.push('>');
    // Text makes every blank count, so only elements without any are laid out over lines.
    let lines = layout != Layout::Compact
        && !element.nodes.is_empty()
        && !element.nodes.iter().any(|node| matches!(node, Node::Text(_)));
    for node in &element.nodes {
        if lines {
            new_line(out, layout.deeper());
        }
        write_node(out, node, layout.deeper());
    }
    if lines {
        new_line(out, layout);
    }
    out.push_str("</");
    out.push_str(&element.name);
    out.push('>');
}

fn new_line(out: &mut String, layout: Layout) {
    let Layout::Lines(depth) = layout else { return };
    out.push_str("\r\n");
    for _ in 0..depth {
        out.push_str("  ");
    }
}

/// A reader turns CRLF into LF, so a line feed is written as CRLF and a carriage return as a reference; attributes
/// turn white space into blanks, so there all of it is written as references.
fn escape(out: &mut String, text: &str, in_attribute: bool) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#xD;"),
            '"' if in_attribute => out.push_str("&quot;"),
            '\n' if in_attribute => out.push_str("&#xA;"),
            '\t' if in_attribute => out.push_str("&#x9;"),
            '\n' => out.push_str("\r\n"),
            c => out.push(c),
        }
    }
}
