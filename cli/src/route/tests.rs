//! What lint says, held against what the compiler says and what people need to know.

use serde_json::json;

use super::{
    lint::{Report, Route, Verdict, lint},
    text,
};
use crate::manifests::Text;

const SERVICES: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {ports: [{name: http, port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: b, namespace: other}, spec: {ports: [{name: http, port: 80}]}}
";

fn texts(all: &[&str]) -> Vec<Text> {
    let text = |(index, text): (usize, &&str)| Text {
        origin: format!("{index}.yaml"),
        text: (*text).into(),
    };
    all.iter().enumerate().map(text).collect()
}

fn lint_all(all: &[&str]) -> Report {
    lint(&texts(all), false)
}

/// An HTTPRoute of namespace shop with this spec, in YAML's flow style.
fn http(name: &str, spec: &str) -> String {
    route("HTTPRoute", name, spec)
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

const PARENT_A: &str = "parentRefs: [{group: '', kind: Service, name: a}]";

/// `type status reason` of each condition of each parent.
fn conditions(route: &Route) -> Vec<String> {
    let conditions = route.parents.iter().flat_map(|parent| &parent.conditions);
    conditions
        .map(|c| format!("{} {} {}", c.type_, c.status, c.reason))
        .collect()
}

#[track_caller]
fn only(report: &Report) -> &Route {
    assert_eq!(report.routes.len(), 1, "{report:?}");
    assert_eq!(report.unread, [] as [String; 0]);
    &report.routes[0]
}

#[test]
fn each_route_has_the_conditions_of_its_status() {
    let rule = |rule: &str| format!("{{{PARENT_A}, rules: [{rule}]}}");
    let good = "{backendRefs: [{name: a, port: 80}]}";
    let missing = "{backendRefs: [{name: nobody, port: 80}]}";
    let bad = "{matches: [{path: {type: RegularExpression, value: '/['}}], backendRefs: [{name: a, port: 80}]}";
    let accepted = "Accepted True Accepted";
    let resolved = "ResolvedRefs True ResolvedRefs";
    let cases: [(&str, String, Verdict, &[&str]); 9] = [
        ("good", rule(good), Verdict::Fine, &[accepted, resolved]),
        (
            "a backend of another namespace, which needs no grant in a mesh",
            rule("{backendRefs: [{name: b, namespace: other, port: 80}]}"),
            Verdict::Fine,
            &[accepted, resolved],
        ),
        (
            "a missing backend",
            rule(missing),
            Verdict::Problem,
            &[accepted, "ResolvedRefs False BackendNotFound"],
        ),
        (
            "a port that the backend lacks",
            rule("{backendRefs: [{name: a, port: 81}]}"),
            Verdict::Problem,
            &[accepted, "ResolvedRefs False BackendNotFound"],
        ),
        (
            "a bad regular expression beside a good rule",
            rule(&format!("{good}, {bad}")),
            Verdict::Problem,
            &[accepted, resolved, "PartiallyInvalid True UnsupportedValue"],
        ),
        (
            "a bad regular expression alone",
            rule(bad),
            Verdict::Problem,
            &["Accepted False UnsupportedValue"],
        ),
        (
            "a field that nobody knows",
            rule("{timeout: 1s, backendRefs: [{name: a, port: 80}]}"),
            Verdict::Problem,
            &[accepted, resolved, "PartiallyInvalid True UnsupportedValue"],
        ),
        (
            "a parent that is missing",
            format!(
                "{{parentRefs: [{{group: '', kind: Service, name: nobody}}], rules: [{good}]}}"
            ),
            Verdict::Problem,
            &["Accepted False NoMatchingParent", resolved],
        ),
        (
            "two parents, each with its own truth",
            format!(
                "{{parentRefs: [{{group: '', kind: Service, name: a, port: 80}}, {{group: '', kind: Service, name: a, port: 81}}], rules: [{good}]}}"
            ),
            Verdict::Problem,
            &[
                accepted,
                resolved,
                "Accepted False NoMatchingParent",
                resolved,
            ],
        ),
    ];
    for (what, spec, verdict, expected) in cases {
        let report = lint_all(&[SERVICES, &http("r", &spec)]);
        let route = only(&report);
        assert_eq!(conditions(route), expected, "{what}");
        assert_eq!(route.verdict, verdict, "{what}");
        assert_eq!(report.has_problems(), verdict == Verdict::Problem, "{what}");
    }
}

#[test]
fn the_services_that_no_file_holds_are_named_wherever_a_route_names_them() {
    let spec = format!(
        "{{{PARENT_A}, rules: [{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: mirror, port: 80}}}}}}], \
         backendRefs: [{{name: a, port: 80}}, {{name: nobody, namespace: else, port: 80}}]}}]}}"
    );
    let report = lint_all(&[SERVICES, &http("r", &spec)]);
    assert_eq!(
        only(&report).hints,
        [
            "not in the files: Service else/nobody, shop/mirror. If the cluster has it, give it too, or use --assume-services"
        ]
    );
}

#[test]
fn assumed_services_let_the_rules_be_judged_and_are_said() {
    let spec = "{parentRefs: [{group: '', kind: Service, name: x, sectionName: grpc}, {group: '', kind: Service, name: y}], \
         rules: [{backendRefs: [{name: x, port: 8080}, {name: a, port: 81}]}, {matches: [{path: {type: RegularExpression, value: '['}}]}]}";
    let texts = texts(&[SERVICES, &http("r", spec)]);
    let report = lint(&texts, true);
    assert_eq!(
        report.notes,
        [
            "assumed: Service shop/x with port 80 (grpc), 8080",
            "assumed: Service shop/y with port 80",
        ]
    );
    let route = only(&report);
    // What is given is not assumed: a has no port 81.
    let found = [
        "Accepted True Accepted",
        "ResolvedRefs False BackendNotFound",
        "PartiallyInvalid True UnsupportedValue",
    ];
    assert_eq!(conditions(route), [found, found].concat());
    assert_eq!(route.hints, [] as [&str; 0]);
}

#[test]
fn a_route_without_a_service_as_parent_is_nothing_for_the_mesh() {
    let gateway = http("r", "{parentRefs: [{name: gateway}], rules: []}");
    let report = lint_all(&[&gateway]);
    assert_eq!(only(&report).verdict, Verdict::NotOurs);
    assert!(!report.has_problems());

    let none = http("r", "{rules: []}");
    assert_eq!(only(&lint_all(&[&none])).verdict, Verdict::NotOurs);
    // A kind that weft cannot do is not weft's to speak of at a Gateway.
    let udp = route("UDPRoute", "r", "{parentRefs: [{name: gateway}]}");
    let report = lint_all(&[&udp]);
    assert_eq!(only(&report).verdict, Verdict::NotOurs);
    assert!(!report.has_problems());
}

#[test]
fn a_service_of_the_gateways_group_is_taken_for_the_mistake_that_it_is() {
    let report = lint_all(&[
        SERVICES,
        &http("r", "{parentRefs: [{kind: Service, name: a}], rules: []}"),
    ]);
    let route = only(&report);
    assert_eq!(route.verdict, Verdict::Problem);
    assert!(
        route.hints[0].starts_with("spec.parentRefs[0]: ")
            && route.hints[0].contains("group: \"\""),
        "{:?}",
        route.hints
    );
}

#[test]
fn of_two_kinds_on_one_port_the_loser_is_conflicted() {
    let spec = format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}");
    let grpc = route("GRPCRoute", "g", &spec);
    let report = lint_all(&[SERVICES, &grpc, &http("h", &spec)]);
    let [grpc, http] = report.routes.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(grpc.verdict, Verdict::Fine);
    assert_eq!(
        conditions(http),
        [
            "Accepted False Conflicted",
            "ResolvedRefs True ResolvedRefs"
        ]
    );
    assert_eq!(
        http.parents[0].conditions[0].message,
        "GRPCRoute shop/g takes precedence on port 80"
    );
    assert_eq!(http.hints, [] as [&str; 0]);
}

#[test]
fn of_two_tcp_routes_without_an_age_it_is_said_what_decided() {
    let spec = format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}");
    let (one, two) = (
        route("TCPRoute", "one", &spec),
        route("TCPRoute", "two", &spec),
    );
    let report = lint_all(&[SERVICES, &two, &one]);
    let verdicts: Vec<_> = report
        .routes
        .iter()
        .map(|r| (&*r.name, r.verdict))
        .collect();
    assert_eq!(
        verdicts,
        [("one", Verdict::Fine), ("two", Verdict::Problem)]
    );
    assert!(report.routes[1].hints[0].contains("the oldest"));
}

#[test]
fn what_is_applied_anew_takes_the_place_of_what_was_and_keeps_its_age() {
    let spec = format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}");
    let one = route("TCPRoute", "one", &spec);
    let old = route("TCPRoute", "two", &spec).replace(
        "namespace: shop",
        "namespace: shop, creationTimestamp: '1960-01-01T00:00:00Z'",
    );
    let new = route("TCPRoute", "two", &spec.replace("port: 80", "port: 81"));
    let report = lint_all(&[SERVICES, &one, &old, &new]);
    assert_eq!(
        report.notes,
        ["3.yaml: TCPRoute shop/two takes the place of that in 2.yaml"]
    );
    let two = &report.routes[1];
    assert_eq!(
        conditions(two),
        [
            "Accepted True Accepted",
            "ResolvedRefs False BackendNotFound"
        ],
        "it is the older one still, with the new backend"
    );
}

#[test]
fn two_of_a_name_in_one_file_are_a_mistake() {
    let spec = format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}");
    let twice = [http("r", &spec), http("r", &spec)].join("---\n");
    let report = lint_all(&[SERVICES, &twice]);
    assert_eq!(
        report.unread,
        [
            "1.yaml (document 2): HTTPRoute shop/r is in this file already (1.yaml (document 1)); remove one of them"
        ]
    );
}

#[test]
fn what_cannot_be_read_is_named_by_file_document_and_field_and_spoils_nothing_else() {
    let good = http(
        "good",
        &format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}"),
    );
    let text = format!(
        "{good}---\nkind: HTTPRoute\nmetadata: [\n---\n{}---\nkind: HTTPRoute\n",
        http(
            "typed",
            "{rules: [{backendRefs: [{name: a, port: eighty}]}]}"
        )
    );
    let report = lint_all(&[SERVICES, &text]);
    assert_eq!(report.routes.len(), 1);
    assert_eq!(report.routes[0].verdict, Verdict::Fine);
    let unread = &report.unread;
    assert_eq!(unread.len(), 3, "{unread:?}");
    // The document begins at line 5 of the file; the bracket is open when the document ends.
    assert!(
        unread[0].starts_with("1.yaml (document 2): is neither YAML nor JSON: ")
            && unread[0].contains("at line 8"),
        "{}",
        unread[0]
    );
    assert!(
        unread[1].starts_with(
            "1.yaml (document 3): HTTPRoute shop/typed: spec.rules[0].backendRefs[0].port: "
        ),
        "{}",
        unread[1]
    );
    assert_eq!(unread[2], "1.yaml (document 4): has no apiVersion; add it");
}

#[test]
fn an_object_besides_routes_that_is_wrong_is_told_as_the_controller_tells_it() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\n\
                   spec: {clusterIP: nowhere, ports: [{port: 80}]}\n";
    let tcp = route("TCPRoute", "r", "3");
    let report = lint_all(&[service, &tcp]);
    let found: Vec<_> = report
        .objects
        .iter()
        .map(|problem| (&*problem.origin, problem.message.contains("can't be read")))
        .collect();
    assert_eq!(found, [("1.yaml", true), ("0.yaml", true)], "{report:?}");
    assert!(report.objects[1].message.contains("spec.clusterIPs"));
    assert!(report.has_problems());
}

#[test]
fn a_deployment_that_only_the_lab_would_refuse_is_let_be() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  \
         selector: {matchExpressions: [{key: a, operator: Exists}]}\n  \
         template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}\n";
    assert_eq!(lint_all(&[deployment]), Report::default());
}

#[test]
fn the_text_shows_every_condition_and_counts() {
    let spec = format!(
        "{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}, {{matches: [{{path: {{type: RegularExpression, value: '/['}}}}]}}]}}"
    );
    let report = lint_all(&[
        SERVICES,
        &http("r", &spec),
        &http("gateways", "{parentRefs: [{name: gateway}]}"),
        "[]",
    ]);
    let expected = "\
- HTTPRoute shop/gateways  (2.yaml)
    no parentRef names a Service: nothing for the mesh, and no status from weft
✗ HTTPRoute shop/r at Service shop/a  (1.yaml)
    Accepted          True   Accepted             attached to port 80
    ResolvedRefs      True   ResolvedRefs         all backendRefs resolve
  ✗ PartiallyInvalid  True   UnsupportedValue     Dropped Rule rules[1] (the rule is left out): matches[0]: `/[` is no regular expression that can be used: regex parse error:
                                                      /[
                                                       ^
                                                  error: unclosed character class
✗ 3.yaml: is not an object; it needs apiVersion, kind and metadata

routes: 0 fine, 1 with problems, 1 not of a Service; not read: 1
";
    assert_eq!(text::of(&report), expected);
    assert_eq!(
        text::of(&Report::default()),
        "routes: 0 fine, 0 with problems\n"
    );
}

#[test]
fn the_json_has_the_parts_of_status_by_their_names() {
    let spec = format!("{{{PARENT_A}, rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}");
    let report = lint_all(&[SERVICES, &http("r", &spec)]);
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        json!({
            "routes": [{
                "kind": "HTTPRoute", "namespace": "shop", "name": "r",
                "origin": "1.yaml",
                "verdict": "fine",
                "parents": [{
                    "parentRef": {"group": "", "kind": "Service", "name": "a"},
                    "conditions": [
                        {"type": "Accepted", "status": "True", "reason": "Accepted",
                            "message": "attached to port 80"},
                        {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs",
                            "message": "all backendRefs resolve"},
                    ],
                }],
                "hints": [],
            }],
            "objects": [],
            "unread": [],
            "notes": [],
        })
    );
}
