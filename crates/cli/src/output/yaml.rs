//! YAML made of a JSON value. Strings that could be taken for something else are quoted as JSON, which YAML includes.

use serde_json::Value;
use std::fmt::Write;

/// The document, with a line feed at the end.
pub fn render(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Array(items) if !items.is_empty() => sequence(&mut text, items, 0),
        Value::Object(fields) if !fields.is_empty() => mapping(&mut text, fields, 0, false),
        scalar => {
            text.push_str(&inline(scalar));
            text.push('\n');
        }
    }
    text
}

fn mapping(out: &mut String, fields: &serde_json::Map<String, Value>, depth: usize, after_dash: bool) {
    for (index, (key, value)) in fields.iter().enumerate() {
        if index > 0 || !after_dash {
            indent(out, depth);
        }
        let _ = write!(out, "{}:", string(key));
        nested(out, value, depth);
    }
}

fn sequence(out: &mut String, items: &[Value], depth: usize) {
    for item in items {
        indent(out, depth);
        out.push('-');
        match item {
            Value::Object(fields) if !fields.is_empty() => {
                out.push(' ');
                mapping(out, fields, depth + 1, true);
            }
            other => nested(out, other, depth),
        }
    }
}

/// What follows `key:` or `-`.
fn nested(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            mapping(out, fields, depth + 1, false);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            sequence(out, items, depth + 1);
        }
        scalar => {
            let _ = writeln!(out, " {}", inline(scalar));
        }
    }
}

fn indent(out: &mut String, depth: usize) {
    for _ in 0..depth {
        out.push_str("  ");
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

fn string(text: &str) -> String {
    // Words that stay strings in every version of YAML: a letter first, then letters, digits and a few signs.
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    let reserved = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    if plain && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_values_are_laid_out_and_doubtful_words_quoted() {
        let value = json!([{"name": "web", "state": "off", "cpus": 2, "drives": [{"slot": "ide:0:0"}], "nics": []}, 7]);
        assert_eq!(
            render(&value),
            "- cpus: 2\n  drives:\n    - slot: \"ide:0:0\"\n  name: web\n  nics: []\n  state: \"off\"\n- 7\n"
        );
        assert_eq!(render(&json!({"a": {"b": null}, "c": "x: y"})), "a:\n  b: null\nc: \"x: y\"\n");
    }
}
