//! CIM-XML: the text form of WMI instances, which an export of Windows Server 2008 consists of.

use crate::error::ParseError;
use crate::tree::{Element, Node, Value};
use crate::{read, write};

/// Names of the root element that occur: the whole envelope, or a part of it.
pub(crate) const ROOTS: [&str; 6] =
    ["CIM", "DECLARATIONS", "DECLGROUP", "DECLGROUP.WITHNAME", "VALUE.OBJECT", "INSTANCE"];

/// A document of CIM-XML as a lossless tree. White space between elements is layout and not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CimDocument {
    before: Vec<Node>,
    pub(crate) root: Element,
    after: Vec<Node>,
}

/// A value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CimValue {
    /// `<VALUE>`
    One(String),
    /// `<VALUE.ARRAY>`
    Many(Vec<String>),
}

/// One `<INSTANCE>`.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    element: &'a Element,
}

impl CimDocument {
    /// Reads a document; the encodings and limits are those of [`VmConfig::parse`](crate::VmConfig::parse).
    ///
    /// # Errors
    /// As there; the root has to be one of `CIM`, `DECLARATIONS`, `DECLGROUP`, `VALUE.OBJECT`, `INSTANCE`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let document = read::parse(&read::decode(bytes)?)?;
        if !ROOTS.contains(&document.root.name()) {
            return Err(ParseError::NoCim(document.root.name().chars().take(60).collect()));
        }
        Ok(Self { before: document.before, root: document.root, after: document.after })
    }

    /// A document with this root.
    pub(crate) fn of(root: Element) -> Self {
        Self { before: Vec::new(), root, after: Vec::new() }
    }

    /// The file's bytes: UTF-16LE with byte-order mark and without layout, as an export is.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        write::to_bytes_compact(&self.before, &self.root, &self.after)
    }

    /// Every instance at whatever depth, in the order of the file. Instances inside of instances are not looked for.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance<'_>> {
        let mut found = Vec::new();
        let mut open = vec![&self.root];
        while let Some(element) = open.pop() {
            if element.name() == "INSTANCE" {
                found.push(Instance { element });
                continue;
            }
            let mut children: Vec<_> = element.children().collect();
            children.reverse();
            open.append(&mut children);
        }
        found
    }

    /// Empties a property of every instance of a class; returns how many had a value. This is the cure for an export
    /// whose `ScopeOfResidence` another host refuses.
    pub fn clear(&mut self, class: &str, property: &str) -> usize {
        let mut open = vec![&mut self.root];
        let mut cleared = 0;
        while let Some(element) = open.pop() {
            if element.name() != "INSTANCE" {
                open.extend(element.nodes.iter_mut().filter_map(|node| match node {
                    Node::Element(child) => Some(child),
                    _ => None,
                }));
                continue;
            }
            if !element.attribute("CLASSNAME").is_some_and(|name| name.eq_ignore_ascii_case(class)) {
                continue;
            }
            for node in &mut element.nodes {
                if let Node::Element(found) = node
                    && found.attribute("NAME").is_some_and(|name| name.eq_ignore_ascii_case(property))
                    && !found.nodes.is_empty()
                {
                    found.nodes.clear();
                    cleared += 1;
                }
            }
        }
        cleared
    }
}

impl<'a> Instance<'a> {
    /// Its class.
    #[must_use]
    pub fn class(&self) -> &'a str {
        self.element.attribute("CLASSNAME").unwrap_or_default()
    }

    /// Names and values of all properties in the order of the file; properties without a value (null) are left out.
    pub fn properties(&self) -> impl Iterator<Item = (&'a str, CimValue)> + use<'a> {
        self.element.children().filter_map(|property| {
            let name = property.attribute("NAME")?;
            Some((name, value(property)?))
        })
    }

    /// A property by name, whatever its letter case; none when it is null.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CimValue> {
        let property = self.element.children().find(|property| {
            property.attribute("NAME").is_some_and(|found| found.eq_ignore_ascii_case(name))
        })?;
        value(property)
    }
}

fn value(property: &Element) -> Option<CimValue> {
    match property.name() {
        "PROPERTY" => property.child("VALUE").map(|value| CimValue::One(value.text())),
        "PROPERTY.ARRAY" => {
            let values = property.child("VALUE.ARRAY")?;
            Some(CimValue::Many(
                values.children().filter(|v| v.name() == "VALUE").map(Element::text).collect(),
            ))
        }
        "PROPERTY.REFERENCE" => {
            let reference = property.child("VALUE.REFERENCE")?;
            Some(CimValue::One(reference.text()))
        }
        _ => None,
    }
}

impl CimValue {
    /// The text, or the first of several.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        match self {
            Self::One(text) => Some(text),
            Self::Many(texts) => texts.first().map(String::as_str),
        }
    }
}

/// Builds one instance for a new document.
pub(crate) struct InstanceBuilder {
    element: Element,
}

impl InstanceBuilder {
    /// An instance of that class.
    pub(crate) fn new(class: &str) -> Self {
        let mut element = Element::new("INSTANCE");
        element.attributes.push(("CLASSNAME".into(), class.into()));
        Self { element }
    }

    fn property(&mut self, tag: &str, name: &str, kind: &str, content: Option<Element>) {
        let mut property = Element::new(tag);
        property.attributes.push(("NAME".into(), name.into()));
        property.attributes.push(("TYPE".into(), kind.into()));
        property.nodes.extend(content.map(Node::Element));
        self.element.nodes.push(Node::Element(property));
    }

    /// A property with one value, or null.
    pub(crate) fn one(&mut self, name: &str, kind: &str, text: Option<&str>) -> &mut Self {
        self.property("PROPERTY", name, kind, text.map(value_element));
        self
    }

    /// A text; null when it is empty.
    pub(crate) fn string(&mut self, name: &str, text: &str) -> &mut Self {
        self.one(name, "string", Some(text).filter(|text| !text.is_empty()))
    }

    /// A number.
    pub(crate) fn number(&mut self, name: &str, kind: &str, number: u64) -> &mut Self {
        self.one(name, kind, Some(&number.to_string()))
    }

    /// A truth value.
    pub(crate) fn boolean(&mut self, name: &str, value: bool) -> &mut Self {
        self.one(name, "boolean", Some(if value { "TRUE" } else { "FALSE" }))
    }

    /// Several values, or null.
    pub(crate) fn many(&mut self, name: &str, kind: &str, texts: &[String]) -> &mut Self {
        let array = (!texts.is_empty()).then(|| {
            let mut array = Element::new("VALUE.ARRAY");
            array.nodes.extend(texts.iter().map(|text| Node::Element(value_element(text))));
            array
        });
        self.property("PROPERTY.ARRAY", name, kind, array);
        self
    }

    /// The finished element.
    pub(crate) fn build(self) -> Element {
        self.element
    }
}

fn value_element(text: &str) -> Element {
    let mut value = Element::new("VALUE");
    let text = Value::String(text.into()).text();
    if !text.is_empty() {
        value.nodes.push(Node::Text(text));
    }
    value
}

/// The envelope of an export around instances.
pub(crate) fn envelope(instances: Vec<Element>) -> CimDocument {
    let mut group = Element::new("DECLGROUP");
    for instance in instances {
        let mut object = Element::new("VALUE.OBJECT");
        object.nodes.push(Node::Element(instance));
        group.nodes.push(Node::Element(object));
    }
    let mut root = Element::new("DECLARATIONS");
    root.nodes.push(Node::Element(group));
    CimDocument::of(root)
}

/// Milliseconds since the Unix epoch of a CIM time, `yyyymmddhhmmss.mmmmmm±uuu` with the offset in minutes.
pub(crate) fn unix_ms(text: &str) -> Option<i64> {
    let digits = |from: usize, to: usize| -> Option<i64> {
        let part = text.get(from..to)?;
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
    };
    if text.get(14..15)? != "." {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(4, 6)?, digits(6, 8)?);
    let (hour, minute, second, micros) = (digits(8, 10)?, digits(10, 12)?, digits(12, 14)?, digits(15, 21)?);
    let offset = match text.get(21..22)? {
        "+" => digits(22, 25)?,
        "-" => -digits(22, 25)?,
        _ => return None,
    };
    if !(1601..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let minutes = days_from_civil(year, month, day) * 1440 + hour * 60 + minute - offset;
    Some((minutes * 60 + second) * 1000 + micros / 1000)
}

/// A CIM time of milliseconds since the Unix epoch, in UTC.
pub(crate) fn cim_time(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{ms:03}000-000")
}

/// Seconds of a CIM interval, `ddddddddhhmmss.mmmmmm:000`.
pub(crate) fn interval_s(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| -> Option<u64> {
        let part = text.get(from..to)?;
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
    };
    if !text.ends_with(":000") {
        return None;
    }
    Some(digits(0, 8)? * 86_400 + digits(8, 10)? * 3600 + digits(10, 12)? * 60 + digits(12, 14)?)
}

/// A CIM interval of seconds.
pub(crate) fn cim_interval(seconds: u64) -> String {
    let days = (seconds / 86_400).min(99_999_999);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{days:08}{hour:02}{minute:02}{second:02}.000000:000")
}

/// Days from 1970-01-01 of a date in the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // `date -u -d @N` agrees.
        for (text, ms) in [
            ("19700101000000.000000+000", 0),
            ("20090228235959.123456-000", 1_235_865_599_123),
            ("20120229120000.000000+060", 1_330_513_200_000),
            ("20120229120000.000000-480", 1_330_545_600_000),
            ("20000301000000.000000+000", 951_868_800_000),
            ("16010101000000.000000-000", -11_644_473_600_000),
        ] {
            assert_eq!(unix_ms(text), Some(ms), "{text}");
            assert_eq!(unix_ms(&cim_time(ms)), Some(ms), "{text}");
        }
        for text in [
            "",
            "2009",
            "20090228235959.123456",
            "20091328235959.123456-000",
            "2009022823595é.123456-000",
            "00000000000000.000000:000",
        ] {
            assert_eq!(unix_ms(text), None, "{text}");
        }
        assert_eq!(interval_s("00000001000130.000000:000"), Some(86_490));
        assert_eq!(interval_s(&cim_interval(86_490)), Some(86_490));
        assert_eq!(interval_s("00000000000000.000000:000"), Some(0));
        assert_eq!(interval_s("garbage"), None);
    }
}
