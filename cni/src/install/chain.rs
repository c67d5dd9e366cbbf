//! What a network configuration has to look like for the runtime to run `weft-cni` last.
//!
//! Flows in: the text of a configuration and our entry. Flows out: the new text, in which everything
//! that is not ours is byte for byte as it was. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::plugin::VERSIONS;

/// The `type` of our entry: the name of the plugin's binary.
pub const PLUGIN: &str = "weft-cni";

/// Our entry in a list of plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Where the agent's sockets and the records are, on the host.
    pub run_dir: String,
    /// Where the plugin reads objects from while the agent is away.
    pub source: String,
    /// The node's name.
    pub node: String,
}

impl Entry {
    /// An entry.
    pub fn new(run_dir: String, source: String, node: String) -> Self {
        Self {
            kind: PLUGIN,
            run_dir,
            source,
            node,
        }
    }
}

/// Why a configuration can't be chained into.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The runtime can't use it either.
    #[error("it is no network configuration: {0}")]
    Malformed(String),
    /// The plugin would fail.
    #[error(
        "its cniVersion is {0:?}, and weft-cni speaks {known}: raise it in the network plugin's configuration",
        known = VERSIONS.join(", ")
    )]
    Version(String),
}

/// A list, as far as it matters here. What it borrows tells where it is in the text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(borrow)]
    plugins: &'a RawValue,
}

/// A configuration of one plugin, or an element of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Single {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
}

/// The files that a runtime would look at, in its order: by name, whatever their kind.
pub fn in_order(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names
        .into_iter()
        .filter(|name| {
            name.rsplit_once('.')
                .is_some_and(|(_, kind)| matches!(kind, "conf" | "conflist" | "json"))
        })
        .collect();
    names.sort_unstable();
    names
}

/// Whether a file of this name holds a list; the others hold a single plugin.
pub fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

/// The list with our entry as its last; `None` if it is so already.
pub fn chained(text: &str, entry: &Entry) -> Result<Option<String>, ChainError> {
    let (list, plugins) = parse(text)?;
    let others: Vec<_> = plugins.iter().copied().filter(|p| !is_ours(p)).collect();
    if list.name.is_empty() || others.is_empty() {
        let what = "it has no name, or no plugin that connects pods";
        return Err(ChainError::Malformed(what.into()));
    }
    speaks(&list.cni_version)?;
    let ours = serde_json::to_string(entry).map_err(malformed)?;
    let is_last = plugins
        .last()
        .is_some_and(|last| same(last.get(), &ours) && others.len() + 1 == plugins.len());
    if is_last {
        return Ok(None);
    }
    let elements = others.iter().map(|p| p.get()).chain([ours.as_str()]);
    Ok(Some(with_elements(
        text,
        list.plugins.get(),
        &plugins,
        elements,
    )))
}

/// A list of the single plugin of `text` and our entry.
pub fn listed(text: &str, entry: &Entry) -> Result<String, ChainError> {
    let single: Single = serde_json::from_str(text).map_err(malformed)?;
    if single.kind.is_empty() || single.name.is_empty() {
        return Err(ChainError::Malformed("it has no name or no type".into()));
    }
    speaks(&single.cni_version)?;
    let ours = serde_json::to_string(entry).map_err(malformed)?;
    let quoted = |text: &str| Value::from(text).to_string();
    Ok(format!(
        "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [\n{},\n{ours}\n  ]\n}}\n",
        quoted(&single.cni_version),
        quoted(&single.name),
        text.trim(),
    ))
}

/// The list without our entry; `None` if there is none in it.
pub fn unchained(text: &str) -> Result<Option<String>, ChainError> {
    let (list, plugins) = parse(text)?;
    let others: Vec<_> = plugins.iter().copied().filter(|p| !is_ours(p)).collect();
    if others.len() == plugins.len() {
        return Ok(None);
    }
    let elements = others.iter().map(|p| p.get());
    Ok(Some(with_elements(
        text,
        list.plugins.get(),
        &plugins,
        elements,
    )))
}

/// Whether a list holds the plugin of `single` and nothing else but our entry.
pub fn is_made_of(list: &str, single: &str) -> bool {
    parse(list).is_ok_and(|(_, plugins)| {
        let mut others = plugins.iter().filter(|p| !is_ours(p));
        others.next().is_some_and(|p| same(p.get(), single)) && others.next().is_none()
    })
}

fn malformed(error: serde_json::Error) -> ChainError {
    ChainError::Malformed(error.to_string())
}

fn parse(text: &str) -> Result<(List<'_>, Vec<&RawValue>), ChainError> {
    let list: List<'_> = serde_json::from_str(text).map_err(malformed)?;
    let plugins: Vec<&RawValue> = serde_json::from_str(list.plugins.get()).map_err(malformed)?;
    for plugin in &plugins {
        let plugin: Single = serde_json::from_str(plugin.get()).map_err(malformed)?;
        if plugin.kind.is_empty() {
            return Err(ChainError::Malformed("a plugin has no type".into()));
        }
    }
    Ok((list, plugins))
}

fn is_ours(plugin: &RawValue) -> bool {
    serde_json::from_str::<Single>(plugin.get()).is_ok_and(|plugin| plugin.kind == PLUGIN)
}

fn same(one: &str, other: &str) -> bool {
    match (
        serde_json::from_str::<Value>(one),
        serde_json::from_str::<Value>(other),
    ) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn speaks(version: &str) -> Result<(), ChainError> {
    if VERSIONS.contains(&version) {
        Ok(())
    } else {
        Err(ChainError::Version(version.to_owned()))
    }
}

/// `text` with other elements in the array `array`, which holds `old` and is a part of it. New ones
/// are set apart as the first one is from its bracket.
fn with_elements<'a>(
    text: &str,
    array: &str,
    old: &[&RawValue],
    new: impl Iterator<Item = &'a str>,
) -> String {
    let place = |part: &str| part.as_ptr().addr() - text.as_ptr().addr();
    let (begin, end) = (place(array), place(array) + array.len());
    let (gap, tail) = match (old.first(), old.last()) {
        (Some(first), Some(last)) => (
            &text[begin + 1..place(first.get())],
            &text[place(last.get()) + last.get().len()..end],
        ),
        _ => ("", "]"),
    };
    let new: Vec<_> = new.collect();
    let elements = new.join(&format!(",{gap}"));
    format!("{}[{gap}{elements}{tail}{}", &text[..begin], &text[end..])
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
