//! The tree: elements, attributes in order, and typed leaves.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A child of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// An element.
    Element(Element),
    /// Text with entities resolved and line ends as `\n`.
    Text(String),
    /// A comment, verbatim.
    Comment(String),
    /// A processing instruction, verbatim.
    Instruction(String),
}

/// An element. White space between child elements is layout and not kept; all else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) nodes: Vec<Node>,
}

/// The content of a leaf by its `type` attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `string`
    String(String),
    /// `integer`
    Integer(i64),
    /// `bool`: `True` or `False`
    Bool(bool),
    /// `bytes`: base64 with a line feed after every 64 digits and at the end
    Bytes(Vec<u8>),
    /// `double`
    Double(f64),
}

impl Value {
    /// The word in the `type` attribute.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Integer(_) => "integer",
            Self::Bool(_) => "bool",
            Self::Bytes(_) => "bytes",
            Self::Double(_) => "double",
        }
    }

    /// The text Hyper-V writes for it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bool(true) => "True".into(),
            Self::Bool(false) => "False".into(),
            Self::Bytes(bytes) => {
                let digits = STANDARD.encode(bytes);
                let mut text = String::with_capacity(digits.len() + digits.len() / 64 + 1);
                for (index, digit) in digits.chars().enumerate() {
                    if index > 0 && index % 64 == 0 {
                        text.push('\n');
                    }
                    text.push(digit);
                }
                text.push('\n');
                text
            }
            Self::Double(number) => number.to_string(),
        }
    }

    fn parse(type_name: &str, text: &str) -> Option<Self> {
        let trimmed = text.trim();
        match type_name {
            "string" => Some(Self::String(text.into())),
            "integer" => trimmed.parse().ok().map(Self::Integer),
            "bool" if trimmed.eq_ignore_ascii_case("true") || trimmed == "1" => Some(Self::Bool(true)),
            "bool" if trimmed.eq_ignore_ascii_case("false") || trimmed == "0" => Some(Self::Bool(false)),
            "bytes" => {
                let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                STANDARD.decode(digits).ok().map(Self::Bytes)
            }
            "double" => trimmed.parse().ok().map(Self::Double),
            _ => None,
        }
    }
}

impl Element {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), attributes: Vec::new(), nodes: Vec::new() }
    }

    /// The element's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attributes in the order of the file.
    #[must_use]
    pub fn attributes(&self) -> &[(String, String)] {
        &self.attributes
    }

    /// Children in the order of the file.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Child elements in the order of the file.
    pub fn children(&self) -> impl Iterator<Item = &Self> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            _ => None,
        })
    }

    /// One attribute.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// All text directly below this element.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if let Node::Text(part) = node {
                text.push_str(part);
            }
        }
        text
    }

    /// The first child element of that name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children().find(|child| child.name == name)
    }

    /// The element at `path`, for example `settings/memory/bank`; of equal names the first.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('/').try_fold(self, |element, name| element.child(name))
    }

    /// The typed value; none when the type is missing or unknown or the text does not fit it.
    #[must_use]
    pub fn value(&self) -> Option<Value> {
        Value::parse(self.attribute("type")?, &self.text())
    }

    pub(crate) fn string(&self, path: &str) -> Option<String> {
        self.at(path).map(Self::text)
    }

    pub(crate) fn integer(&self, path: &str) -> Option<i64> {
        self.at(path)?.text().trim().parse().ok()
    }

    pub(crate) fn boolean(&self, path: &str) -> Option<bool> {
        match Value::parse("bool", &self.at(path)?.text())? {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.nodes.iter_mut().find_map(|node| match node {
            Node::Element(element) if element.name == name => Some(element),
            _ => None,
        })
    }

    pub(crate) fn at_mut(&mut self, path: &str) -> Option<&mut Self> {
        path.split('/').try_fold(self, |element, name| element.child_mut(name))
    }

    /// The element at `path`; what is missing of it is made, each at its alphabetical place as Hyper-V sorts them.
    pub(crate) fn make(&mut self, path: &str) -> &mut Self {
        path.split('/').fold(self, |element, name| {
            let index = match element.position(name) {
                Some(index) => index,
                None => element.insert_sorted(Self::new(name)),
            };
            match &mut element.nodes[index] {
                Node::Element(child) => child,
                _ => unreachable!("position and insert_sorted return the index of an element"),
            }
        })
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| matches!(node, Node::Element(e) if e.name == name))
    }

    /// Inserts before the first child element whose name is greater; returns the index.
    pub(crate) fn insert_sorted(&mut self, child: Self) -> usize {
        self.nodes.retain(|node| !matches!(node, Node::Text(text) if text.trim().is_empty()));
        let index = self
            .nodes
            .iter()
            .position(|node| matches!(node, Node::Element(e) if e.name > child.name))
            .unwrap_or(self.nodes.len());
        self.nodes.insert(index, Node::Element(child));
        index
    }

    /// Sets the leaf at `path`, unless it already says the same.
    pub(crate) fn set(&mut self, path: &str, value: &Value) {
        let leaf = self.make(path);
        if leaf.value().as_ref() != Some(value) {
            leaf.put(value);
        }
    }

    pub(crate) fn set_str(&mut self, path: &str, value: &str) {
        self.set(path, &Value::String(value.into()));
    }

    pub(crate) fn remove(&mut self, path: &str) {
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (self.at_mut(parent), name),
            None => (Some(self), path),
        };
        if let Some(parent) = parent {
            parent.nodes.retain(|node| !matches!(node, Node::Element(e) if e.name == name));
        }
    }

    /// Replaces text and `type`; other attributes and foreign children stay.
    pub(crate) fn put(&mut self, value: &Value) {
        match self.attributes.iter_mut().find(|(name, _)| name == "type") {
            Some((_, type_name)) => value.type_name().clone_into(type_name),
            None => self.attributes.push(("type".into(), value.type_name().into())),
        }
        self.nodes.retain(|node| !matches!(node, Node::Text(_)));
        let text = value.text();
        if !text.is_empty() {
            self.nodes.insert(0, Node::Text(text));
        }
    }
}

/// Whether XML 1.0 can hold the character (production 2, `Char`).
pub(crate) fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// Whether `name` can name an element or attribute: the part of XML's `Name` that every reader accepts.
pub(crate) fn is_xml_name(name: &str) -> bool {
    let start = |c: char| c.is_alphabetic() || matches!(c, '_' | ':');
    name.len() <= 256
        && name.chars().next().is_some_and(start)
        && name.chars().all(|c| start(c) || c.is_numeric() || matches!(c, '-' | '.'))
}
