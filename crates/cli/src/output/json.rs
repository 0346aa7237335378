//! JSON: what the REST API answers, indented.

use serde::Serialize;

/// The text, with a line feed at the end.
pub fn render<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
