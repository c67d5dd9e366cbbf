//! Whatever is written into one route, the others stay as they were.

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_source::Object;

use super::{Compiled, SHOP, objects, render, route, world};

/// The route that is spoilt, with something in every field.
fn victim() -> Object {
    route(
        "HTTPRoute",
        r#"
metadata: {name: victim, generation: 1}
parentRefs: [{group: '', kind: Service, name: checkout, port: 80}, {group: '', kind: Service, name: v1}]
hostnames: [a.example]
rules:
- name: first
  matches:
  - path: {type: PathPrefix, value: /a}
    headers: [{name: x, type: RegularExpression, value: '[a-z]+'}]
    queryParams: [{name: q, value: '1'}]
    method: GET
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}
  - {type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}
  timeouts: {request: 10s, backendRequest: 2s}
  backendRefs:
  - {name: v1, port: 80, weight: 9}
  - {name: v2, port: 80, weight: 1, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: b}]}}]}
- filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}]
"#,
    )
}

fn neighbours() -> Vec<Object> {
    let mut all = objects(SHOP);
    for (namespace, name, path) in [
        ("shop", "a", "/a"),
        ("shop", "z", "/a/b"),
        ("client", "c", "/"),
    ] {
        all.push(route("HTTPRoute", &format!("{{metadata: {{namespace: {namespace}, name: {name}}}, parentRefs: [{{group: '', kind: Service, name: checkout, namespace: shop}}], rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: v1, namespace: shop, port: 80}}]}}]}}")));
    }
    all
}

/// The lines of all tables that are not the victim's, and the others' statuses.
fn others(compiled: &Compiled) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let lines = |(name, table): (&String, &std::sync::Arc<weft_api::config::RouteTable>)| {
        let mut lines = render(table);
        lines.retain(|line| !line.contains("/victim["));
        (!lines.is_empty()).then(|| (name.clone(), lines))
    };
    let statuses = compiled
        .routes
        .iter()
        .filter(|(key, _)| key.name != "victim");
    (
        compiled.route_tables.iter().filter_map(lines).collect(),
        statuses
            .map(|(key, status)| format!("{key} {status:?}"))
            .collect(),
    )
}

fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u32..100_000).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(vec![
            json!([]),
            json!({}),
            json!([null]),
            json!([{}]),
            json!(["x"]),
            json!("("),
            json!("*"),
            json!("/"),
            json!("Service"),
            json!("Gateway"),
            json!("core"),
            json!("shop"),
            json!("0s"),
            json!({"type": "RequestMirror"}),
            json!({"name": "v1", "port": 80}),
            json!("\u{0}\n"),
            json!({"group": "", "kind": "Service", "name": "checkout"}),
        ]),
    ]
}

/// JSON pointers of all places in a value, itself included.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                pointers(entry, &format!("{at}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                pointers(
                    field,
                    &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")),
                    found,
                );
            }
        }
        _ => {}
    }
}

/// Adds to, takes from, doubles or replaces the value at some place.
fn mutate(value: &mut Value, place: prop::sample::Index, how: u8, new: Value) {
    let mut places = Vec::new();
    pointers(value, "", &mut places);
    let Some(target) = value.pointer_mut(place.get(&places).as_str()) else {
        return;
    };
    match (how, target) {
        (0, Value::Object(fields)) => drop(fields.insert("unheardOf".into(), new)),
        (0, Value::Array(entries)) => entries.push(new),
        (1, Value::Object(fields)) => {
            drop(fields.keys().next().cloned().map(|k| fields.remove(&k)))
        }
        (1, Value::Array(entries)) => drop(entries.pop()),
        (2, Value::Array(entries)) => entries.extend_from_within(..),
        (_, target) => *target = new,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_mutation_of_one_route_changes_another(
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any_json()), 1..4),
        after_a_good_version in any::<bool>(),
    ) {
        let good = victim();
        let mut value = good.value["spec"].clone();
        for (place, how, new) in mutations {
            mutate(&mut value, place, how, new);
        }
        let mut spoilt = Value::clone(&good.value);
        spoilt["spec"] = value;
        let spoilt = Object { key: good.key.clone(), value: spoilt.into() };

        let neighbours = neighbours();
        let expected = others(world(&neighbours).compile());
        let first = after_a_good_version.then_some(&good);
        let mut world = world(neighbours.iter().chain(first));
        world.compile();
        world.apply(&spoilt);
        let compiled = world.compile();
        prop_assert_eq!(others(compiled), expected);
        // Something is always said: a status for every version that has parents of ours.
        let status = &compiled.routes[&good.key];
        for parent in &status.parents {
            let accepted = &parent.conditions[0];
            prop_assert_eq!(&accepted.type_, "Accepted");
            prop_assert!(accepted.status || !accepted.message.is_empty());
        }
        // And the spoilt version leaves nothing behind.
        world.apply(&good);
        let mut healed = world.compile().clone();
        healed.changes = crate::compile::Changes::default();
        prop_assert_eq!(healed, super::fresh(neighbours.iter().chain([&good])));
    }
}
