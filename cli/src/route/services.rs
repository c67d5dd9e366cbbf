//! The Services that routes name: which of them the files lack, and what those must be if they exist.
//! In: routes as JSON, with the API's defaults. Out: names, and Services to assume. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weft_source::{Object, ObjectKey, defaults};

/// The port that a Service is assumed to have of which no route names one.
const ANY_PORT: u16 = 80;

/// What routes say of a Service by naming it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Named {
    /// Ports by number, with their name where a route says it.
    ports: BTreeMap<u16, Option<String>>,
    /// Ports by name alone.
    sections: BTreeSet<String>,
}

/// Services by key, and what is said of them.
pub(super) type References = BTreeMap<ObjectKey, Named>;

/// The key of a Service.
fn service(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        group: String::new(),
        kind: "Service".into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// Adds the Services that a route names anywhere in its spec: parents, backends, mirrors.
pub(super) fn named_by(route: &Object, found: &mut References) {
    if let Some(spec) = route.value.get("spec") {
        walk(spec, &route.key.namespace, found);
    }
}

fn walk(value: &Value, namespace: &str, found: &mut References) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, namespace, found)),
        Value::Object(fields) => {
            let text = |field: &str| fields.get(field).and_then(Value::as_str);
            let is_service =
                matches!(text("group"), Some("" | "core")) && text("kind") == Some("Service");
            if let (true, Some(name)) = (is_service, text("name")) {
                let namespace = text("namespace").unwrap_or(namespace);
                let named = found.entry(service(namespace, name)).or_default();
                let number = fields.get("port").and_then(Value::as_u64);
                let section = text("sectionName").map(ToOwned::to_owned);
                match (number.and_then(|n| u16::try_from(n).ok()), section) {
                    (Some(number), section) => {
                        let name = named.ports.entry(number).or_default();
                        *name = name.take().or(section);
                    }
                    (None, Some(section)) => {
                        named.sections.insert(section);
                    }
                    (None, None) => {}
                }
            }
            fields
                .values()
                .for_each(|field| walk(field, namespace, found));
        }
        _ => {}
    }
}

impl Named {
    /// The ports that such a Service must have, by number, with their names.
    fn assumed_ports(&self) -> BTreeMap<u16, String> {
        let mut ports: BTreeMap<u16, String> = self
            .ports
            .iter()
            .map(|(number, name)| (*number, name.clone().unwrap_or_default()))
            .collect();
        for section in &self.sections {
            if !ports.values().any(|name| name == section)
                && let Some(free) = (ANY_PORT..).find(|number| !ports.contains_key(number))
            {
                ports.insert(free, section.clone());
            }
        }
        if ports.is_empty() {
            ports.insert(ANY_PORT, String::new());
        }
        ports
    }

    /// A Service that is as the routes say, and what is assumed in words.
    pub(super) fn assume(&self, key: &ObjectKey) -> (Object, String) {
        let ports = self.assumed_ports();
        let words: Vec<_> = ports
            .iter()
            .map(|(number, name)| match name.as_str() {
                "" => number.to_string(),
                name => format!("{number} ({name})"),
            })
            .collect();
        let ports: Vec<_> = ports
            .iter()
            .map(|(number, name)| json!({"port": number, "name": name}))
            .collect();
        let mut value = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": {"ports": ports},
        });
        defaults::apply(&mut value);
        let object = Object {
            key: key.clone(),
            value: value.into(),
        };
        (object, format!("{key} with port {}", words.join(", ")))
    }
}
