//! Tests of the compiler as a whole: manifests in, tables and conditions out, both as short lines.

mod attachment;
mod cors;
mod endpoints;
mod grpc;
mod http;
mod incremental;
mod l4;
mod precedence;
mod services;
mod status;
mod tolerance;
mod workloads;

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::{
    AppProtocol, Backend, HttpFilter, HttpMatch, HttpTable, RouteRef, RouteTable, backend,
    http_filter, path_match, path_modifier, route_table::Table, value_match,
};
use weft_source::{Object, ObjectKey};

use super::{Compiled, Settings, World};

/// A client's namespace, a shop with two versions of a Service, and a Service of each odd form.
const SHOP: &str = r#"
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: checkout}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80, name: http}, {port: 81, name: web}, {port: 82, name: tcp-raw}, {port: 83, name: https}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: v1}, spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: v2}, spec: {clusterIP: 10.0.0.3, ports: [{port: 80, appProtocol: kubernetes.io/h2c}, {port: 443, name: https}, {port: 53, name: dns, protocol: UDP}, {port: 90, name: ws, appProtocol: kubernetes.io/ws}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: other, name: v3}, spec: {clusterIP: 10.0.0.4, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: headless}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: alias}, spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}}
"#;

/// Reads manifests, with the API's defaults applied.
fn objects(yaml: &str) -> Vec<Object> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).expect("the test's YAML is well-formed"))
        .filter(|value| !value.is_null())
        .map(object)
        .collect()
}

/// An object, with the API's defaults applied.
fn object(mut value: Value) -> Object {
    weft_source::defaults::apply(&mut value);
    let text = |pointer| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let group = text("/apiVersion")
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    let key = ObjectKey {
        group: group.into(),
        kind: text("/kind").into(),
        namespace: text("/metadata/namespace").into(),
        name: text("/metadata/name").into(),
    };
    Object {
        key,
        value: value.into(),
    }
}

/// A route `shop/r` of `shop/checkout` port 80, unless `yaml` says otherwise.
fn route(kind: &str, yaml: &str) -> Object {
    let mut value: Value = serde_yaml_ng::from_str(yaml).expect("the test's YAML is well-formed");
    let spec = value.as_object_mut().expect("a test's route is a mapping");
    let mut metadata = spec
        .remove("metadata")
        .unwrap_or_else(|| serde_json::json!({}));
    let fields = metadata.as_object_mut().expect("metadata is a mapping");
    fields.entry("namespace").or_insert_with(|| "shop".into());
    fields.entry("name").or_insert_with(|| "r".into());
    spec.entry("parentRefs").or_insert_with(
        || serde_json::json!([{"group": "", "kind": "Service", "name": "checkout", "port": 80}]),
    );
    object(serde_json::json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec,
    }))
}

fn world<'a>(objects: impl IntoIterator<Item = &'a Object>) -> World {
    let mut world = World::new(Settings {
        trust_domain: "example.org".into(),
        cluster_domain: "cluster.local".into(),
    });
    for object in objects {
        world.apply(object);
    }
    world
}

/// Everything that follows from the shop and these objects; as if nothing had been before.
fn compile(more: &[Object]) -> Compiled {
    let shop = objects(SHOP);
    fresh(shop.iter().chain(more))
}

fn fresh<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Compiled {
    let mut compiled = world(objects).compile().clone();
    compiled.changes = super::Changes::default();
    compiled
}

/// A table as lines, one per match or rule, in order.
fn lines(compiled: &Compiled, table: &str) -> Vec<String> {
    match compiled.route_tables.get(table) {
        None => vec![format!(
            "no table {table}, only {:?}",
            compiled.route_tables.keys()
        )],
        Some(table) => render(table),
    }
}

fn render(table: &RouteTable) -> Vec<String> {
    match table.table.as_ref().expect("a table has a kind") {
        Table::Http(http) => http.matches.iter().map(|m| http_line(http, m)).collect(),
        Table::Tcp(tcp) => tcp
            .rule
            .iter()
            .map(|rule| {
                format!(
                    "tcp -> {}{}",
                    reference(rule.route.as_ref()),
                    backends(&rule.backends)
                )
            })
            .collect(),
        Table::Tls(tls) => tls
            .rules
            .iter()
            .map(|rule| {
                let route = reference(rule.route.as_ref());
                format!("tls {:?} -> {route}{}", rule.snis, backends(&rule.backends))
            })
            .collect(),
    }
}

fn http_line(table: &HttpTable, found: &HttpMatch) -> String {
    let rule = &table.rules[found.rule as usize];
    let grpc = if rule.grpc { " grpc" } else { "" };
    let timeouts = match (rule.request_timeout_ms, rule.backend_request_timeout_ms) {
        (0, 0) => String::new(),
        (request, backend) => format!(" {request}ms/{backend}ms"),
    };
    let retry = rule.retry.as_ref().map_or_else(String::new, |retry| {
        let (codes, attempts, backoff) = (&retry.codes, retry.attempts, retry.backoff_ms);
        format!(" retry{codes:?}x{attempts}/{backoff}ms")
    });
    let fixed = rule.fixed_response.as_ref();
    let fixed = fixed
        .map(|f| format!(" {} {}", f.status, f.reason))
        .unwrap_or_default();
    format!(
        "{} -> {}{grpc}{timeouts}{retry}{}{fixed}{}",
        conditions(found),
        reference(rule.route.as_ref()),
        filters(&rule.filters),
        backends(&rule.backends)
    )
}

fn conditions(found: &HttpMatch) -> String {
    let mut words = Vec::new();
    match found.path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => {}
        Some(path_match::Kind::Exact(path)) => words.push(format!("={path}")),
        Some(path_match::Kind::Prefix(path)) => words.push(format!("{path}/*")),
        Some(path_match::Kind::Regex(path)) => words.push(format!("~{path}")),
    }
    if !found.method.is_empty() {
        words.push(found.method.clone());
    }
    for (mark, list) in [('h', &found.headers), ('q', &found.query_params)] {
        for entry in list {
            words.push(match entry.kind.as_ref().expect("a match has a kind") {
                value_match::Kind::Exact(value) => format!("{mark}:{}={value}", entry.name),
                value_match::Kind::Regex(value) => format!("{mark}:{}~{value}", entry.name),
                value_match::Kind::Present(_) => format!("{mark}:{}", entry.name),
            });
        }
    }
    if words.is_empty() {
        "any".into()
    } else {
        words.join(" ")
    }
}

fn reference(route: Option<&RouteRef>) -> String {
    let route = route.expect("a rule names its route");
    let name = if route.rule_name.is_empty() {
        String::new()
    } else {
        format!(" {}", route.rule_name)
    };
    format!(
        "{}/{}[{}{name}]",
        route.namespace, route.name, route.rule_index
    )
}

fn backends(list: &[Backend]) -> String {
    list.iter()
        .map(|backend| {
            let target = match backend.target.as_ref().expect("a backend has a target") {
                backend::Target::Service(target) => format!("{}:{}", target.service, target.port),
                backend::Target::Invalid(invalid) => invalid.reason.clone(),
            };
            let protocol = match backend.protocol() {
                AppProtocol::H2c => " h2c",
                AppProtocol::Tcp => " tcp",
                _ => "",
            };
            format!(
                " {target} x{}{protocol}{}",
                backend.weight,
                filters(&backend.filters)
            )
        })
        .collect()
}

fn filters(list: &[HttpFilter]) -> String {
    let path =
        |path: Option<&weft_api::config::PathModifier>| match path.and_then(|p| p.kind.as_ref()) {
            None => String::new(),
            Some(path_modifier::Kind::ReplaceFullPath(path)) => format!(" path={path}"),
            Some(path_modifier::Kind::ReplacePrefixMatch(path)) => format!(" prefix={path}"),
        };
    let headers = |modifier: &weft_api::config::HeaderModifier| {
        let pairs = |list: &[weft_api::config::HeaderValue]| {
            list.iter()
                .map(|h| format!("{}={}", h.name, h.value))
                .collect::<Vec<_>>()
                .join(",")
        };
        format!(
            "set {} add {} remove {}",
            pairs(&modifier.set),
            pairs(&modifier.add),
            modifier.remove.join(",")
        )
    };
    list.iter()
        .map(
            |filter| match filter.kind.as_ref().expect("a filter has a kind") {
                http_filter::Kind::RequestHeaders(modifier) => {
                    format!(" [request: {}]", headers(modifier))
                }
                http_filter::Kind::ResponseHeaders(modifier) => {
                    format!(" [response: {}]", headers(modifier))
                }
                http_filter::Kind::Redirect(r) => {
                    format!(
                        " [redirect {} {}://{}:{}{}]",
                        r.status,
                        r.scheme,
                        r.hostname,
                        r.port,
                        path(r.path.as_ref())
                    )
                }
                http_filter::Kind::Rewrite(r) => {
                    format!(" [rewrite {}{}]", r.hostname, path(r.path.as_ref()))
                }
                http_filter::Kind::Cors(c) => {
                    let any = c.allow_any_origin.then(|| "*".to_owned());
                    let origins = c
                        .allow_origins
                        .iter()
                        .map(|o| format!("{}://{}:{}", o.scheme, o.host, o.port));
                    format!(
                        " [cors {}{} m={} h={} x={} {}s]",
                        any.into_iter().chain(origins).collect::<Vec<_>>().join(","),
                        if c.allow_credentials {
                            " credentials"
                        } else {
                            ""
                        },
                        c.allow_methods.join(","),
                        c.allow_headers.join(","),
                        c.expose_headers.join(","),
                        c.max_age_seconds,
                    )
                }
            },
        )
        .collect()
}

/// The conditions of a route's parents: `Type=Status Reason: message`.
fn conditions_of(compiled: &Compiled, kind: &str, namespace: &str, name: &str) -> Vec<Vec<String>> {
    let key = ObjectKey {
        group: "gateway.networking.k8s.io".into(),
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
    };
    let parents = &compiled
        .routes
        .get(&key)
        .expect("the route has a status")
        .parents;
    let line =
        |c: &super::Condition| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message);
    parents
        .iter()
        .map(|parent| parent.conditions.iter().map(line).collect())
        .collect()
}

/// Asserts that each line of the only parent begins as expected.
#[track_caller]
fn assert_conditions(compiled: &Compiled, kind: &str, expected: &[&str]) {
    let found = conditions_of(compiled, kind, "shop", "r");
    assert_eq!(found.len(), 1, "one parent: {found:?}");
    assert_eq!(found[0].len(), expected.len(), "{found:#?}");
    for (found, expected) in found[0].iter().zip(expected) {
        assert!(
            found.starts_with(expected),
            "\n{found}\nshould begin with\n{expected}"
        );
    }
}
