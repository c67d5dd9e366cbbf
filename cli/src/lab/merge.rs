//! What results from applying an object over the one that is there, and from laying a written
//! status over it. Pure.
//!
//! What the server owns (uid, creationTimestamp, generation, clusterIP, nodeName, status) outlives
//! an apply; labels and annotations merge with what was applied last, as kubectl's do.

use serde_json::{Map, Value, json};

/// Fields of the spec that the lab fills in and an apply that does not name them leaves alone.
const ALLOCATED: &[(&str, &[&str])] = &[
    (
        "Service",
        &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"],
    ),
    ("Pod", &["nodeName"]),
];

/// The object that results from applying `new` over `live`.
pub(super) fn merge(
    live: Option<&Value>,
    last: Option<&Value>,
    mut new: Value,
    now: &dyn Fn() -> String,
    uid: &dyn Fn() -> String,
) -> Value {
    let kind = new["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(live) = live {
        for field in ["labels", "annotations"] {
            let merged = merge_map(
                live["metadata"][field].as_object(),
                last.and_then(|last| last["metadata"][field].as_object()),
                new["metadata"][field].as_object(),
            );
            if !merged.is_empty() {
                object_at(&mut new, &["metadata"]).insert(field.into(), merged.into());
            }
        }
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
        ] {
            if let Some(value) = live["metadata"].get(field) {
                object_at(&mut new, &["metadata"]).insert(field.into(), value.clone());
            }
        }
        let allocated = ALLOCATED
            .iter()
            .find(|(of, _)| *of == kind)
            .map_or(&[][..], |(_, f)| f);
        for field in allocated {
            if let Some(value) = live["spec"].get(*field)
                && new["spec"].get(*field).is_none_or(Value::is_null)
                && new["spec"].is_object()
            {
                new["spec"][*field] = value.clone();
            }
        }
        if let Some(status) = live.get("status") {
            new["status"] = status.clone();
        }
    } else {
        let metadata = object_at(&mut new, &["metadata"]);
        metadata.insert("uid".into(), uid().into());
        metadata.insert("creationTimestamp".into(), now().into());
        metadata.insert("generation".into(), 1.into());
    }
    weft_source::defaults::apply(&mut new);
    if let Some(live) = live
        && desired(live) != desired(&new)
    {
        let generation = live["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = generation.into();
    }
    new
}

/// What a user asks for: all but what generation does not count.
pub(super) fn desired(object: &Value) -> Map<String, Value> {
    let mut desired = object.as_object().cloned().unwrap_or_default();
    desired.remove("metadata");
    desired.remove("status");
    desired
}

fn merge_map(
    live: Option<&Map<String, Value>>,
    last: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let dropped = |key: &String| last.is_some_and(|last| last.contains_key(key));
    let kept = live.into_iter().flatten().filter(|(key, _)| !dropped(key));
    kept.chain(new.into_iter().flatten())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The object at a path, made where it is missing.
pub(crate) fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for field in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*field];
    }
    if !at.is_object() {
        *at = json!({});
    }
    at.as_object_mut().expect("it was made an object above")
}

/// Conditions are laid over by type, every other field as a whole.
pub(super) fn overlay_status(status: &mut Map<String, Value>, over: Map<String, Value>) {
    for (field, value) in over {
        let (Some(own), Some(conditions)) = (
            status.get_mut(&field).and_then(Value::as_array_mut),
            value.as_array(),
        ) else {
            status.insert(field, value);
            continue;
        };
        if field != "conditions" {
            *own = conditions.clone();
            continue;
        }
        for condition in conditions {
            own.retain(|o| o["type"] != condition["type"]);
            own.push(condition.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(live: Option<&Value>, last: Option<&Value>, new: Value) -> Value {
        merge(live, last, new, &|| "2026-01-01T00:00:00Z".into(), &|| {
            "u-1".into()
        })
    }

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "x"}, "spec": spec})
    }

    #[test]
    fn what_the_server_owns_outlives_an_apply() {
        let mut live = merged(None, None, service(json!({"ports": [{"port": 80}]})));
        assert_eq!(live["metadata"]["uid"], "u-1");
        assert_eq!(live["metadata"]["generation"], 1);
        live["spec"]["clusterIP"] = "10.96.0.9".into();
        live["status"] = json!({"x": 1});
        let new = merged(Some(&live), None, service(json!({"ports": [{"port": 81}]})));
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"][0]["port"], 81);
        assert_eq!(new["status"]["x"], 1);
        assert_eq!(new["metadata"]["generation"], 2);
        let again = merged(Some(&new), None, service(json!({"ports": [{"port": 81}]})));
        assert_eq!(again, new);
    }

    #[test]
    fn labels_merge_with_what_was_applied_last() {
        let with = |labels: Value| {
            let mut object = service(json!({}));
            object["metadata"]["labels"] = labels;
            object
        };
        let last = with(json!({"a": "1", "b": "1"}));
        let mut live = merged(None, None, last.clone());
        live["metadata"]["labels"]["mine"] = "yes".into();
        let new = merged(Some(&live), Some(&last), with(json!({"a": "2"})));
        assert_eq!(new["metadata"]["labels"], json!({"a": "2", "mine": "yes"}));
        assert_eq!(new["metadata"]["generation"], 1);
    }

    #[test]
    fn a_written_condition_replaces_only_its_own_type() {
        let mut status =
            json!({"conditions": [{"type": "Ready"}, {"type": "X", "status": "False"}]});
        let over = json!({"conditions": [{"type": "X", "status": "True"}], "parents": [1]});
        overlay_status(
            status.as_object_mut().unwrap(),
            over.as_object().unwrap().clone(),
        );
        let expected = json!({
            "conditions": [{"type": "Ready"}, {"type": "X", "status": "True"}], "parents": [1],
        });
        assert_eq!(status, expected);
    }
}
