//! What differs between two configurations of a machine, value by value.

use backstay_api::Change;
use backstay_model::VmSpec;
use serde_json::Value;
use std::collections::BTreeMap;

/// What differs. Lists whose members have a place or an id are compared member by member.
pub(super) fn changes(old: &VmSpec, new: &VmSpec) -> Vec<Change> {
    let flat = |spec: &VmSpec| {
        let mut values = BTreeMap::new();
        flatten("", &serde_json::to_value(spec).unwrap_or_default(), &mut values);
        values
    };
    let (old, new) = (flat(old), flat(new));
    let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
    fields.sort();
    fields.dedup();
    let changed = fields.into_iter().filter(|field| old.get(*field) != new.get(*field));
    changed
        .map(|field| Change {
            field: field.clone(),
            before: old.get(field).cloned(),
            after: new.get(field).cloned(),
        })
        .collect()
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(&below(key), value, into)),
        Value::Array(members) if members.iter().all(|member| key_of(member).is_some()) => {
            for member in members {
                flatten(&below(&key_of(member).unwrap_or_default()), &without_key(member), into);
            }
        }
        Value::Null => {}
        Value::String(text) => drop(into.insert(name.to_owned(), text.clone())),
        other => drop(into.insert(name.to_owned(), other.to_string())),
    }
}

/// What tells a member of a list from the others.
fn key_of(member: &Value) -> Option<String> {
    let key = member.get("slot").or_else(|| member.get("id"))?;
    Some(key.as_str().map_or_else(|| key.to_string(), str::to_owned))
}

fn without_key(member: &Value) -> Value {
    let mut member = member.clone();
    if let Value::Object(fields) = &mut member {
        let key = if fields.contains_key("slot") { "slot" } else { "id" };
        fields.remove(key);
    }
    member
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flat(value: &Value) -> Vec<(String, String)> {
        let mut values = BTreeMap::new();
        flatten("", value, &mut values);
        values.into_iter().collect()
    }

    #[test]
    fn values_have_the_names_of_the_api_and_members_of_lists_their_places() {
        let spec = json!({
            "notes": "a", "cpu": { "count": 2, "limit": null }, "boot_order": ["cd", "disk"],
            "drives": [{ "slot": "ide:0:0", "media": { "disk": "/a.vhd" } }],
        });
        let found = flat(&spec);
        let found: Vec<_> = found.iter().map(|(f, v)| (f.as_str(), v.as_str())).collect();
        assert_eq!(
            found,
            [
                ("boot_order", r#"["cd","disk"]"#),
                ("cpu.count", "2"),
                ("drives.ide:0:0.media.disk", "/a.vhd"),
                ("notes", "a")
            ]
        );
    }
}
