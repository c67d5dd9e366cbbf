//! What the two kinds of patches do to an object.

use serde_json::Value;

/// A merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Some(target) = target.as_object_mut() {
                target.remove(name);
            }
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

/// A forced server-side apply: `conditions` merge by type, other lists are replaced.
pub(super) fn apply(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    for (name, value) in fields {
        let old = &mut target[name.as_str()];
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("conditions", Value::Array(new)) => {
                let mut all = old.as_array().cloned().unwrap_or_default();
                all.retain(|c| new.iter().all(|n| n["type"] != c["type"]));
                all.extend(new.iter().cloned());
                *old = all.into();
            }
            _ => apply(old, value),
        }
    }
}
