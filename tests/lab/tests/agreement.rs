//! The compiler and the proxy agree: whatever is written into a route, what the controller makes
//! of it is never refused by a proxy. (Both check expressions, headers and paths on their own; this
//! holds the two together.)

use std::{fs, path::Path, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_controller::compile::{Settings, World};
use weft_proxy::{
    model::Locality,
    state::{Delta, Kind, Resource, State},
};
use weft_source::{Object, defaults, folder::parse_documents};

const SHOP: &str = include_str!("../manifests/shop.yaml");

/// The lab's shop, and every route and Service of the case table.
fn seeds() -> Vec<Object> {
    let mut all: Vec<Object> = parse_documents(SHOP, "shop")
        .into_iter()
        .map(|o| o.expect("a good manifest"))
        .collect();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases");
    for entry in fs::read_dir(cases).expect("tests/cases") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a readable file");
        let file: Value = serde_yaml_ng::from_str(&text).expect("YAML");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": file["manifests"]});
        all.extend(
            parse_documents(&list.to_string(), "cases")
                .into_iter()
                .map(|o| o.expect("good")),
        );
    }
    all.into_iter().map(|o| defaulted(&o)).collect()
}

fn defaulted(object: &Object) -> Object {
    let mut value = (*object.value).clone();
    defaults::apply(&mut value);
    Object {
        key: object.key.clone(),
        value: Arc::new(value),
    }
}

/// Every place in a value, as a JSON pointer.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                pointers(
                    value,
                    &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                    into,
                );
            }
        }
        Value::Array(items) => {
            for (n, value) in items.iter().enumerate() {
                pointers(value, &format!("{at}/{n}"), into);
            }
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i32>().prop_map(Value::from),
        ".{0,10}".prop_map(Value::from),
        // What looks right to one side and may not to the other.
        prop::sample::select(vec![
            "(",
            "[a-",
            "(?P<n>",
            "a{999999}",
            "/",
            "//",
            "/a/../b",
            "/%zz",
            "/a b",
            "a b",
            "a\u{7f}",
            "x:y",
            "Host",
            ":authority",
            "transfer-encoding",
            "connection",
            "*",
            "*.example",
            "https://*.example",
            "https://A.example:443",
            "https://a.example:70000",
            "https://*a.example",
            "1h",
            "-1s",
            "0s",
            "99999h",
            "RegularExpression",
            "Exact",
            "PathPrefix",
            "ReplacePrefixMatch",
            "http",
            "ftp",
            "70000",
            "é",
        ])
        .prop_map(Value::from),
        prop::sample::select(vec![
            json!([]),
            json!({}),
            json!([null]),
            json!(true),
            json!(70000),
            json!(0)
        ]),
    ]
}

fn resources<M: prost::Message>(
    all: &std::collections::BTreeMap<String, Arc<M>>,
    kind: Kind,
) -> Delta {
    let resource = |(name, message): (&String, &Arc<M>)| Resource {
        name: name.clone(),
        version: "1".into(),
        body: message.encode_to_vec().into(),
    };
    Delta {
        kind,
        updated: all.iter().map(resource).collect(),
        removed: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_proxy_refuses_nothing_that_the_controller_compiles(
        spoilt in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), anything()), 1..6)
    ) {
        let mut objects = seeds();
        let routes: Vec<usize> = (0..objects.len())
            .filter(|n| objects[*n].key.kind.ends_with("Route"))
            .collect();
        for (which, place, with) in &spoilt {
            let object = &mut objects[routes[which.index(routes.len())]];
            let mut value = (*object.value).clone();
            let mut places = Vec::new();
            pointers(&value["spec"], "/spec", &mut places);
            if let Some(found) = value.pointer_mut(&places[place.index(places.len())]) {
                *found = with.clone();
            }
            object.value = Arc::new(value);
        }
        let mut world = World::new(Settings {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
        });
        for object in &objects {
            world.apply(&defaulted(object));
        }
        let compiled = world.compile();
        prop_assert!(compiled.route_tables.len() > 3, "the good routes are compiled");
        let state = State::new(Locality::default());
        let mut refused = state.apply(resources(&compiled.services, Kind::Service));
        refused.extend(state.apply(resources(&compiled.workloads, Kind::Workload)));
        refused.extend(state.apply(resources(&compiled.route_tables, Kind::RouteTable)));
        prop_assert!(refused.is_empty(), "{refused:?}");
    }
}
