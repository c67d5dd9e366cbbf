//! Defaults of the Gateway API's routes, as their CRDs state them.

use serde_json::{Map, Value, json};

use super::{child, child_or_new, default, each};

type Object = Map<String, Value>;

pub(super) fn http(object: &mut Object) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    parents(spec);
    let everything = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
    default(spec, "rules", json!([{"matches": everything}]));
    for rule in each(spec, "rules") {
        default(rule, "matches", everything.clone());
        for matched in each(rule, "matches") {
            if let Some(path) = child_or_new(matched, "path") {
                default(path, "type", json!("PathPrefix"));
                default(path, "value", json!("/"));
            }
            exact_by_default(matched, "headers");
            exact_by_default(matched, "queryParams");
        }
        l7_rule(rule);
    }
}

pub(super) fn grpc(object: &mut Object) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    parents(spec);
    for rule in each(spec, "rules") {
        for matched in each(rule, "matches") {
            if let Some(method) = child(matched, "method") {
                default(method, "type", json!("Exact"));
            }
            exact_by_default(matched, "headers");
        }
        l7_rule(rule);
    }
}

pub(super) fn l4(object: &mut Object) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    parents(spec);
    for rule in each(spec, "rules") {
        for backend in each(rule, "backendRefs") {
            reference(backend);
            default(backend, "weight", json!(1));
        }
    }
}

fn parents(spec: &mut Object) {
    for parent in each(spec, "parentRefs") {
        default(parent, "group", json!("gateway.networking.k8s.io"));
        default(parent, "kind", json!("Gateway"));
    }
}

fn exact_by_default(matched: &mut Object, list: &str) {
    for entry in each(matched, list) {
        default(entry, "type", json!("Exact"));
    }
}

fn l7_rule(rule: &mut Object) {
    filters(rule);
    for backend in each(rule, "backendRefs") {
        reference(backend);
        default(backend, "weight", json!(1));
        filters(backend);
    }
    if let Some(session) = child(rule, "sessionPersistence") {
        default(session, "type", json!("Cookie"));
        if let Some(cookie) = child(session, "cookieConfig") {
            default(cookie, "lifetimeType", json!("Session"));
        }
    }
}

fn filters(holder: &mut Object) {
    for filter in each(holder, "filters") {
        if let Some(redirect) = child(filter, "requestRedirect") {
            default(redirect, "statusCode", json!(302));
        }
        if let Some(mirror) = child(filter, "requestMirror") {
            if let Some(backend) = child(mirror, "backendRef") {
                reference(backend);
            }
            if let Some(fraction) = child(mirror, "fraction") {
                default(fraction, "denominator", json!(100));
            }
        }
        if let Some(cors) = child(filter, "cors") {
            default(cors, "maxAge", json!(5));
        }
        if let Some(backend) = child(filter, "externalAuth").and_then(|a| child(a, "backendRef")) {
            reference(backend);
        }
    }
}

/// A reference to a backend: a core Service if it says nothing else.
fn reference(backend: &mut Object) {
    default(backend, "group", json!(""));
    default(backend, "kind", json!("Service"));
}
