//! Statuses across versions of a route.

use serde_json::json;

use super::{SHOP, assert_conditions, compile, lines, object, objects, route, world};

#[test]
fn a_version_that_cannot_be_used_leaves_the_last_good_one_in_force_and_says_so() {
    let good = route(
        "HTTPRoute",
        "{metadata: {generation: 3}, rules: [{backendRefs: [{name: v1, port: 80}]}]}",
    );
    for bad in [
        "{metadata: {generation: 4}, rules: 5}",
        "{metadata: {generation: 4}, rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]}",
        "{metadata: {generation: 4}, rules: [{name: a}, {name: a}]}",
        "{metadata: {generation: 4}, parentRefs: all, rules: []}",
    ] {
        let mut world = world(objects(SHOP).iter().chain([&good]));
        let before = world.compile().route_tables.clone();
        let bad = route("HTTPRoute", bad);
        world.apply(&bad);
        let compiled = world.compile();
        assert_eq!(compiled.route_tables, before);
        assert!(compiled.changes.route_tables.is_empty());
        let status = &compiled.routes[&good.key];
        assert_eq!(status.generation, 4);
        assert_eq!(status.parents[0].tables, ["shop/checkout/80"]);
        let message = &status.parents[0].conditions[0].message;
        assert!(
            message.contains("the version of generation 3 stays in force"),
            "{message}"
        );
        assert_conditions(
            compiled,
            "HTTPRoute",
            &["Accepted=false UnsupportedValue: this version can't be used"],
        );
        assert!(compiled.invalid.contains_key(&good.key));

        world.apply(&good);
        let compiled = world.compile();
        assert_conditions(
            compiled,
            "HTTPRoute",
            &["Accepted=true", "ResolvedRefs=true"],
        );
        assert!(compiled.invalid.is_empty());

        world.apply(&bad);
        world.delete(&bad.key);
        let compiled = world.compile();
        assert!(
            compiled.route_tables.is_empty()
                && compiled.routes.is_empty()
                && compiled.invalid.is_empty()
        );
    }
}

#[test]
fn a_version_that_cannot_be_used_names_its_new_parents_too() {
    let good = route("HTTPRoute", "{rules: []}");
    let bad = route(
        "HTTPRoute",
        "{parentRefs: [{group: '', kind: Service, name: v1}], rules: 5}",
    );
    let mut world = world(objects(SHOP).iter().chain([&good, &bad]));
    let parents = world.compile().routes[&good.key].parents.clone();
    let names: Vec<_> = parents
        .iter()
        .map(|p| p.parent_ref["name"].clone())
        .collect();
    assert_eq!(names, ["checkout", "v1"]);
    assert!(parents.iter().all(|parent| !parent.conditions[0].status));
}

#[test]
fn a_route_without_rules_answers_404_for_everything() {
    let compiled = compile(&[route("HTTPRoute", "{rules: []}")]);
    assert_eq!(lines(&compiled, "shop/checkout/80"), [""; 0]);
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &["Accepted=true", "ResolvedRefs=true"],
    );
}

#[test]
fn a_missing_spec_and_a_missing_parent_list_are_no_parents_of_ours() {
    for spec in [json!(null), json!({}), json!({"rules": []})] {
        let route = object(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": "r"}, "spec": spec,
        }));
        let compiled = compile(std::slice::from_ref(&route));
        assert!(compiled.route_tables.is_empty());
        assert!(compiled.routes[&route.key].parents.is_empty());
    }
}

#[test]
fn parents_are_given_back_as_the_user_wrote_them() {
    let route = route(
        "HTTPRoute",
        "{parentRefs: [{group: core, kind: Service, name: checkout, sectionName: web, extra: 1}], rules: []}",
    );
    let compiled = compile(&[route]);
    let status = compiled
        .routes
        .values()
        .next()
        .expect("the route has a status");
    assert_eq!(
        status.parents[0].parent_ref,
        json!({"group": "core", "kind": "Service", "name": "checkout", "sectionName": "web", "extra": 1})
    );
}

#[test]
fn a_route_none_of_whose_rules_can_be_executed_is_not_accepted_and_answers_500() {
    let compiled = compile(&[route(
        "HTTPRoute",
        "{rules: [{filters: [{type: ExternalAuth, externalAuth: {}}], backendRefs: [{name: v1, port: 80}]}]}",
    )]);
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &[
            "Accepted=false UnsupportedValue: no rule can be used: rules[0] (requests that it matches get 500): filters[0]: ExternalAuth",
            "ResolvedRefs=true",
        ],
    );
    assert!(
        lines(&compiled, "shop/checkout/80")[0]
            .contains(" 500 invalid rule: filters[0]: ExternalAuth")
    );
}

#[test]
fn backends_that_appear_later_resolve_then() {
    let shop = objects(SHOP);
    let route = route(
        "HTTPRoute",
        "{rules: [{backendRefs: [{name: v3, namespace: other, port: 80}]}]}",
    );
    let mut world = world(shop.iter().filter(|o| o.key.name != "v3").chain([&route]));
    assert_eq!(
        lines(world.compile(), "shop/checkout/80"),
        ["any -> shop/r[0] BackendNotFound x1"]
    );
    let late = shop
        .iter()
        .find(|o| o.key.name == "v3")
        .expect("the shop has a v3");
    world.apply(late);
    let compiled = world.compile();
    assert_eq!(
        lines(compiled, "shop/checkout/80"),
        ["any -> shop/r[0] other/v3:80 x1"]
    );
    assert_conditions(
        compiled,
        "HTTPRoute",
        &["Accepted=true", "ResolvedRefs=true"],
    );
    world.delete(&late.key);
    assert_conditions(
        world.compile(),
        "HTTPRoute",
        &["Accepted=true", "ResolvedRefs=false BackendNotFound"],
    );
}
