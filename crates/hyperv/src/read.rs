//! Bytes to tree. Nothing here expands entities, recurses or trusts a length.

use crate::error::ParseError;
use crate::tree::{Element, Node, is_xml_char, is_xml_name};
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// Real files have 20–200 KiB.
const MAX_BYTES: usize = 16 << 20;
/// Real files nest 8 deep.
const MAX_DEPTH: usize = 64;
/// Elements and attributes together.
const MAX_ITEMS: usize = 200_000;

/// A parsed document: what stands before the root, the root, what stands after it.
pub(crate) struct Document {
    pub(crate) before: Vec<Node>,
    pub(crate) root: Element,
    pub(crate) after: Vec<Node>,
}

/// Text of `bytes` by byte-order mark, else by the look of the first character; the declaration is not believed,
/// because files converted by tools keep `encoding="UTF-16"`.
pub(crate) fn decode(bytes: &[u8]) -> Result<String, ParseError> {
    if bytes.len() > MAX_BYTES {
        return Err(ParseError::TooLarge { size: bytes.len(), limit: MAX_BYTES });
    }
    match bytes {
        [0xFF, 0xFE, rest @ ..] => decode_utf16(rest, u16::from_le_bytes, 2),
        [0xFE, 0xFF, rest @ ..] => decode_utf16(rest, u16::from_be_bytes, 2),
        [b'<' | b'{' | b'[', 0, ..] => decode_utf16(bytes, u16::from_le_bytes, 0),
        [0, b'<' | b'{' | b'[', ..] => decode_utf16(bytes, u16::from_be_bytes, 0),
        [0xEF, 0xBB, 0xBF, rest @ ..] => decode_utf8(rest, 3),
        _ => decode_utf8(bytes, 0),
    }
}

fn decode_utf8(bytes: &[u8], skipped: usize) -> Result<String, ParseError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|e| ParseError::Encoding { encoding: "UTF-8", offset: skipped + e.valid_up_to() })
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, skipped: usize) -> Result<String, ParseError> {
    let bad = |offset: usize| ParseError::Encoding { encoding: "UTF-16", offset: skipped + offset };
    let (units, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad(bytes.len() - 1));
    }
    let mut text = String::with_capacity(units.len());
    let mut offset = 0;
    for decoded in char::decode_utf16(units.iter().map(|&pair| unit(pair))) {
        let c = decoded.map_err(|_| bad(offset))?;
        offset += 2 * c.len_utf16();
        text.push(c);
    }
    Ok(text)
}

/// Parses text into a tree.
pub(crate) fn parse(text: &str) -> Result<Document, ParseError> {
    if let Some((offset, _)) = text.char_indices().find(|(_, c)| !is_xml_char(*c)) {
        return Err(malformed(offset as u64, "a character that XML does not allow"));
    }
    let mut reader = Reader::from_str(text);
    reader.config_mut().enable_all_checks(true);
    let mut builder = Builder::default();
    loop {
        let at = reader.buffer_position();
        let event = reader.read_event().map_err(|e| malformed(reader.error_position(), &e.to_string()))?;
        match event {
            Event::Eof => return builder.finish(at),
            event => builder.take(event, at)?,
        }
    }
}

fn malformed(offset: u64, reason: &str) -> ParseError {
    ParseError::Malformed { offset, reason: reason.into() }
}

#[derive(Default)]
struct Builder {
    open: Vec<Element>,
    before: Vec<Node>,
    root: Option<Element>,
    after: Vec<Node>,
    items: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: u64) -> Result<(), ParseError> {
        match event {
            Event::Start(start) => {
                let element = self.start(&start, at)?;
                self.open.push(element);
            }
            Event::Empty(start) => {
                let element = self.start(&start, at)?;
                self.close(element, at)?;
            }
            Event::End(_) => {
                let element = self.open.pop().ok_or_else(|| malformed(at, "an end tag without a start"))?;
                self.close(element, at)?;
            }
            Event::Text(text) => self.text(&text.xml10_content(), at)?,
            Event::CData(text) => {
                if self.open.is_empty() {
                    return Err(malformed(at, "text outside of the root element"));
                }
                self.text(&text.xml10_content(), at)?;
            }
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(c)) if is_xml_char(c) => c.to_string(),
                    Ok(None) => match resolve_predefined_entity(&reference.xml10_content()) {
                        Some(text) => text.to_owned(),
                        None => return Err(ParseError::Entity(clip(&reference.xml10_content()))),
                    },
                    Ok(Some(_)) | Err(_) => {
                        return Err(malformed(at, "a character reference to no character"));
                    }
                };
                match self.open.last_mut() {
                    Some(element) => push_text(element, &resolved),
                    None => return Err(malformed(at, "text outside of the root element")),
                }
            }
            Event::Comment(text) => self.misc(Node::Comment(text.xml10_content().into_owned()), at)?,
            Event::PI(text) => {
                let text = text.into_inner().replace("\r\n", "\n").replace('\r', "\n");
                self.misc(Node::Instruction(text), at)?;
            }
            Event::Decl(_) if at == 0 => {}
            Event::Decl(_) => return Err(malformed(at, "an XML declaration that is not at the start")),
            Event::DocType(name) => return Err(ParseError::Entity(clip(&name.xml10_content()))),
            Event::Eof => {}
        }
        Ok(())
    }

    fn count(&mut self, items: usize) -> Result<(), ParseError> {
        self.items += items;
        if self.items > MAX_ITEMS { Err(ParseError::TooMany(MAX_ITEMS)) } else { Ok(()) }
    }

    fn start(&mut self, start: &BytesStart<'_>, at: u64) -> Result<Element, ParseError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(ParseError::TooDeep(MAX_DEPTH));
        }
        if self.open.is_empty() && self.root.is_some() {
            return Err(malformed(at, "a second root element"));
        }
        let name = start.name().into_inner();
        if !is_xml_name(name) {
            return Err(malformed(at, "an element name that XML does not allow"));
        }
        let mut element = Element::new(name);
        // Duplicates are looked for below: quick-xml's own check is quadratic in an attacker's hands.
        for attribute in start.attributes().with_checks(false) {
            self.count(1)?;
            let attribute = attribute.map_err(|e| malformed(at, &e.to_string()))?;
            let key = attribute.key.into_inner();
            if !is_xml_name(key) || element.attributes.len() >= 64 || element.attribute(key).is_some() {
                return Err(malformed(
                    at,
                    "an attribute with a bad or repeated name, or more than 64 of them",
                ));
            }
            let value = attribute
                .normalized_value(XmlVersion::Explicit1_0)
                .map_err(|e| malformed(at, &e.to_string()))?;
            if value.contains(|c| !is_xml_char(c)) {
                return Err(malformed(at, "a character reference to no character"));
            }
            element.attributes.push((key.into(), value.into_owned()));
        }
        self.count(1)?;
        Ok(element)
    }

    fn close(&mut self, mut element: Element, at: u64) -> Result<(), ParseError> {
        drop_layout(&mut element);
        match self.open.last_mut() {
            Some(parent) => parent.nodes.push(Node::Element(element)),
            None if self.root.is_none() => self.root = Some(element),
            None => return Err(malformed(at, "a second root element")),
        }
        Ok(())
    }

    fn text(&mut self, text: &str, at: u64) -> Result<(), ParseError> {
        match self.open.last_mut() {
            Some(element) => push_text(element, text),
            None if text.trim().is_empty() => {}
            None => return Err(malformed(at, "text outside of the root element")),
        }
        Ok(())
    }

    fn misc(&mut self, node: Node, at: u64) -> Result<(), ParseError> {
        self.count(1)?;
        let text = match &node {
            Node::Comment(text) | Node::Instruction(text) => text,
            _ => return Ok(()),
        };
        if matches!(node, Node::Comment(_)) && text.ends_with('-') {
            return Err(malformed(at, "a comment that ends with '-'"));
        }
        match (self.open.last_mut(), &self.root) {
            (Some(element), _) => element.nodes.push(node),
            (None, None) => self.before.push(node),
            (None, Some(_)) => self.after.push(node),
        }
        Ok(())
    }

    fn finish(self, at: u64) -> Result<Document, ParseError> {
        if !self.open.is_empty() {
            return Err(malformed(at, "the end of the file inside an element: it was cut off"));
        }
        let root = self.root.ok_or(ParseError::Empty)?;
        Ok(Document { before: self.before, root, after: self.after })
    }
}

/// Appends to the last text node, so that entities and CDATA do not split text.
fn push_text(element: &mut Element, text: &str) {
    match element.nodes.last_mut() {
        Some(Node::Text(last)) => last.push_str(text),
        _ if text.is_empty() => {}
        _ => element.nodes.push(Node::Text(text.into())),
    }
}

/// Drops white space between child elements; an element that holds nothing but white space keeps it.
fn drop_layout(element: &mut Element) {
    let blank = |node: &Node| matches!(node, Node::Text(text) if text.trim().is_empty());
    let only_blank_text = element.nodes.iter().all(|node| !matches!(node, Node::Text(_)) || blank(node));
    let has_others = element.nodes.iter().any(|node| !matches!(node, Node::Text(_)));
    if only_blank_text && has_others {
        element.nodes.retain(|node| !blank(node));
    }
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}
