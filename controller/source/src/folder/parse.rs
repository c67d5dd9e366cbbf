//! Text to objects: YAML or JSON, several documents a text, lists expanded. Each document is read
//! alone, so that a malformed one takes nothing else with it. Pure.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::layout::is_path_segment;
use crate::{Object, defaults};

/// A document (or an item of a list) that is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {error}")]
pub struct ParseError {
    /// Where it is: the text's origin and the document's place in it.
    pub origin: String,
    /// What is wrong, and what to do.
    pub error: String,
}

/// Reads the objects of a text: YAML documents separated by `---`, or JSON; lists (`kind: List`)
/// are expanded. Only `metadata.namespace` is filled in; [`defaults::apply`] does the rest.
pub fn parse_documents(text: &str, origin: &str) -> Vec<Result<Object, ParseError>> {
    parse_with_origins(text, origin)
        .into_iter()
        .map(|(_, result)| result)
        .collect()
}

/// Like [`parse_documents`], each with the place it came from.
pub fn parse_with_origins(text: &str, origin: &str) -> Vec<(String, Result<Object, ParseError>)> {
    let mut found = Vec::new();
    let documents: Vec<_> = documents(text)
        .into_iter()
        .filter(|document| !is_empty(document))
        .collect();
    let single = documents.len() == 1;
    for (index, document) in documents.into_iter().enumerate() {
        let place = if single {
            origin.to_owned()
        } else {
            format!("{origin} (document {})", index + 1)
        };
        // What the parser says of a document counts its lines: read again where it stands, it counts
        // those of the text.
        let values = values(document).or_else(|_| {
            let before = document.as_ptr().addr() - text.as_ptr().addr();
            let lines = text[..before].matches('\n').count();
            self::values(&format!("{}{document}", "\n".repeat(lines)))
        });
        match values {
            Ok(values) => {
                let single = values.len() == 1;
                for (index, value) in values.into_iter().enumerate() {
                    let place = if single {
                        &place
                    } else {
                        &format!("{place} (value {})", index + 1)
                    };
                    expand(value, place, &mut found);
                }
            }
            Err(error) => fail(&place, error, &mut found),
        }
    }
    found
}

type Found = Vec<(String, Result<Object, ParseError>)>;

fn fail(origin: &str, error: String, found: &mut Found) {
    found.push((
        origin.to_owned(),
        Err(ParseError {
            origin: origin.to_owned(),
            error,
        }),
    ));
}

/// Splits at the lines that begin a document. `---` in the first column can't be anything else,
/// not even inside a block scalar.
fn documents(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let mut start = 0;
    let mut position = 0;
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.push(&text[start..position]);
            start = position + 3;
        }
        position += line.len();
    }
    documents.push(&text[start..]);
    documents
}

/// Whether a document holds nothing but blank lines, comments and directives.
fn is_empty(document: &str) -> bool {
    document
        .lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}

/// The values of a document: one, or several if it is a row of JSON values.
fn values(document: &str) -> Result<Vec<Value>, String> {
    if document.trim_start().starts_with('{') {
        let json = serde_json::Deserializer::from_str(document).into_iter();
        if let Ok(values) = json.collect::<Result<Vec<Value>, _>>() {
            return Ok(values);
        }
        // YAML's flow style looks like JSON, too.
    }
    let say = |error: serde_yaml_ng::Error| format!("is neither YAML nor JSON: {error}");
    let yaml = serde_yaml_ng::Deserializer::from_str(document);
    let mut value = serde_yaml_ng::Value::deserialize(yaml).map_err(say)?;
    value.apply_merge().map_err(say)?;
    serde_json::to_value(value)
        .map(|value| vec![value])
        .map_err(|e| format!("is not an object: {e}"))
}

fn expand(value: Value, origin: &str, found: &mut Found) {
    let text = |field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let is_list = kind.ends_with("List") && value.get("items").is_some_and(Value::is_array);
    if !is_list {
        match object(value) {
            Ok(object) => found.push((origin.to_owned(), Ok(object))),
            Err(error) => fail(origin, error, found),
        }
        return;
    }
    let items = value
        .get("items")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let item_kind = kind.strip_suffix("List").unwrap_or_default();
    for (index, mut item) in items.into_iter().enumerate() {
        // Items of a typed list need not repeat their type.
        if let Some(item) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
            item.entry("apiVersion")
                .or_insert_with(|| api_version.clone().into());
            item.entry("kind").or_insert_with(|| item_kind.into());
        }
        expand(item, &format!("{origin} (item {})", index + 1), found);
    }
}

fn object(mut value: Value) -> Result<Object, String> {
    if !value.is_object() {
        return Err("is not an object; it needs apiVersion, kind and metadata".into());
    }
    for (pointer, name) in [
        ("/apiVersion", "apiVersion"),
        ("/kind", "kind"),
        ("/metadata/name", "metadata.name"),
    ] {
        match value.pointer(pointer) {
            Some(Value::String(text)) if !text.is_empty() => {}
            None | Some(Value::Null | Value::String(_)) => return Err(missing(&value, name)),
            Some(other) => return Err(format!("{name} is {other}; it must be a string")),
        }
    }
    let key = defaults::key_of(&value).ok_or("has no name")?;
    for (field, name) in [
        ("kind", &key.kind),
        ("metadata.name", &key.name),
        ("metadata.namespace", &key.namespace),
    ] {
        let absent = field == "metadata.namespace" && name.is_empty();
        if !absent && !is_path_segment(name) {
            return Err(format!(
                "{field} {name:?} is no valid name; use letters, digits, '-' and '.'"
            ));
        }
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        if key.namespace.is_empty() {
            metadata.remove("namespace");
        } else {
            metadata.insert("namespace".into(), key.namespace.as_str().into());
        }
    }
    Ok(Object {
        key,
        value: Arc::new(value),
    })
}

fn missing(value: &Value, field: &str) -> String {
    let generated = value.pointer("/metadata/generateName").is_some();
    match (field, value.get("kind").and_then(Value::as_str)) {
        ("metadata.name", Some(kind)) if generated => {
            format!("{kind} has a generateName but no name; give it metadata.name")
        }
        ("metadata.name", Some(kind)) => format!("{kind} has no metadata.name; add it"),
        _ => format!("has no {field}; add it"),
    }
}
