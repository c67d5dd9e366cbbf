//! The chart's manifests, as `weft install` applies them. In: the manifests as `make chart` rendered
//! them, with a placeholder for each value that a flag can set, and the flags. Out: objects, in
//! the order in which they are applied. Pure.
//!
//! Defaults and patterns of the values are the chart's own files, so that both ways of installing
//! accept the same.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};
use weft_api::names::SYSTEM_NAMESPACE;

use super::object::text;

const MANIFESTS: &str = include_str!("../../manifests/weft.yaml");
const DEFAULTS: &str = include_str!("../../../charts/weft/values.yaml");
const SCHEMA: &str = include_str!("../../../charts/weft/values.schema.json");

/// What tells our objects from others': the label and its value.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] for what `weft install` made.
pub(crate) const MANAGER: &str = "weft-cli";
/// On the namespace: the values that were given, so that the next `weft install` keeps them.
pub(crate) const OPTIONS: &str = "weft.dev/install-options";

/// Values that were given, by the chart's names for them (`image.registry`).
pub(crate) type Given = BTreeMap<String, String>;

/// The chart's name of the values that placeholders stand for.
const PLACEHOLDERS: [&str; 10] = [
    "image.registry",
    "image.tag",
    "image.pullPolicy",
    PULL_SECRET,
    "trustDomain",
    "clusterDomain",
    "log.level",
    "log.format",
    "cni.binDir",
    "cni.confDir",
];
const PULL_SECRET: &str = "image.pullSecrets";
/// Decides whether its objects are there.
pub(crate) const NETWORK_POLICIES: &str = "networkPolicies.enabled";

/// The objects, the namespace first.
///
/// # Errors
/// Names the value that the chart would refuse.
pub(crate) fn objects(given: &Given) -> anyhow::Result<Vec<Value>> {
    let values = values(given)?;
    let policies = given.get(NETWORK_POLICIES).is_some_and(|on| on == "true");
    let mut objects = vec![namespace(given)?];
    for document in serde_yaml_ng::Deserializer::from_str(MANIFESTS) {
        let mut object = Value::deserialize(document)?;
        if text(&object, "/kind") == "NetworkPolicy" && !policies {
            continue;
        }
        drop_pull_secrets(&mut object, given);
        fill(&mut object, &values);
        objects.push(object);
    }
    Ok(objects)
}

/// Weft's own: its pods need what the baseline of Pod Security forbids.
fn namespace(given: &Given) -> anyhow::Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": SYSTEM_NAMESPACE,
            "labels": {
                "pod-security.kubernetes.io/enforce": "privileged",
                "app.kubernetes.io/part-of": "weft",
                (MANAGED_BY): MANAGER,
            },
            "annotations": {(OPTIONS): serde_json::to_string(given)?},
        },
    }))
}

/// What each placeholder stands for.
fn values(given: &Given) -> anyhow::Result<Vec<(String, String)>> {
    let defaults: Value = serde_yaml_ng::from_str(DEFAULTS).context("the chart's values")?;
    let schema: Value = serde_json::from_str(SCHEMA).context("the chart's schema")?;
    PLACEHOLDERS
        .into_iter()
        .map(|name| {
            let value = match given.get(name) {
                Some(value) => value.as_str(),
                None if name == "image.tag" => env!("CARGO_PKG_VERSION"),
                None => text(&defaults, &format!("/{}", name.replace('.', "/"))),
            };
            if given.contains_key(name) {
                accept(&schema, name, value)?;
            }
            Ok((format!("@{name}@"), value.to_owned()))
        })
        .collect()
}

/// Holds a value against the chart's schema.
fn accept(schema: &Value, name: &str, value: &str) -> anyhow::Result<()> {
    let mut rule = schema;
    for part in name.split('.') {
        rule = &rule["properties"][part];
    }
    let rule = rule.get("items").unwrap_or(rule);
    if let Some(allowed) = rule.get("enum").and_then(Value::as_array)
        && !allowed.iter().any(|one| one.as_str() == Some(value))
    {
        let allowed: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        bail!(
            "{name} can't be {value:?}: choose one of {}",
            allowed.join(", ")
        );
    }
    if let Some(pattern) = rule.get("pattern").and_then(Value::as_str)
        && !Regex::new(pattern)?.is_match(value)
    {
        bail!("{name} can't be {value:?}: it must match {pattern}");
    }
    Ok(())
}

/// Without a secret there is no list of them.
fn drop_pull_secrets(object: &mut Value, given: &Given) {
    if !given.contains_key(PULL_SECRET)
        && let Some(object) = object.as_object_mut()
    {
        object.remove("imagePullSecrets");
    }
}

fn fill(value: &mut Value, values: &[(String, String)]) {
    match value {
        Value::String(text) => {
            for (placeholder, value) in values {
                if text.contains(placeholder) {
                    *text = text.replace(placeholder, value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, values)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, values)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[(&str, &str)]) -> Given {
        values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn no_placeholder_is_left_whatever_is_given() {
        for values in [
            &[][..],
            &[(PULL_SECRET, "registry"), (NETWORK_POLICIES, "true")],
        ] {
            let objects = objects(&given(values)).expect("good values");
            let text = serde_json::to_string(&objects).expect("JSON");
            for name in PLACEHOLDERS {
                assert!(
                    !text.contains(&format!("@{name}@")),
                    "{name} with {values:?}"
                );
            }
        }
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let text = |values: &[(&str, &str)]| {
            let objects = objects(&given(values)).expect("good values");
            serde_json::to_string(&objects[1..]).expect("JSON")
        };
        let plain = text(&[]);
        for (name, value, before, after) in [
            (
                "image.registry",
                "reg:5000/x",
                "weft.dev/weft-proxy:",
                "reg:5000/x/weft-proxy:",
            ),
            ("image.pullPolicy", "Always", "IfNotPresent", "Always"),
            (
                "trustDomain",
                "mesh.example",
                "--trust-domain=cluster.local",
                "--trust-domain=mesh.example",
            ),
            (
                "log.format",
                "json",
                "--log-format=text",
                "--log-format=json",
            ),
            ("cni.binDir", "/opt/bin", "\"/opt/cni/bin\"", "\"/opt/bin\""),
        ] {
            assert!(plain.contains(before), "{name}");
            let changed = text(&[(name, value)]);
            assert!(changed.contains(after), "{name}");
            assert!(!changed.contains(before), "{name}");
        }
        assert!(!plain.contains("NetworkPolicy") && !plain.contains("imagePullSecrets"));
        assert!(text(&[(NETWORK_POLICIES, "true")]).contains("NetworkPolicy"));
        assert!(text(&[(PULL_SECRET, "s")]).contains(r#""imagePullSecrets":[{"name":"s"}]"#));
    }

    #[test]
    fn what_the_chart_would_refuse_is_refused() {
        for (name, value) in [
            ("image.registry", "a b"),
            ("image.tag", "-"),
            ("image.pullPolicy", "Sometimes"),
            ("trustDomain", "A"),
            ("clusterDomain", "cluster.local."),
            ("log.format", "xml"),
            ("cni.confDir", "etc"),
            (PULL_SECRET, "a/b"),
        ] {
            let error = objects(&given(&[(name, value)])).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_namespace_comes_first_and_remembers_what_was_given() {
        let objects = objects(&given(&[("trustDomain", "a.b")])).expect("good values");
        assert_eq!(text(&objects[0], "/kind"), "Namespace");
        let kept = &objects[0]["metadata"]["annotations"][OPTIONS];
        assert_eq!(kept, r#"{"trustDomain":"a.b"}"#);
    }
}
