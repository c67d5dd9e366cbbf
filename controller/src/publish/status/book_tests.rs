use std::{cell::RefCell, sync::Arc};

use serde_json::json;

use super::*;
use crate::compile::{Condition, ParentStatus};

fn key(kind: &str, name: &str) -> ObjectKey {
    let group = if kind == "Pod" {
        ""
    } else {
        "gateway.networking.k8s.io"
    };
    ObjectKey {
        group: group.into(),
        kind: kind.into(),
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn status(generation: i64, accepted: bool, tables: &[&str]) -> RouteStatus {
    let condition = Condition {
        type_: "Accepted".into(),
        status: accepted,
        reason: "Accepted".into(),
        message: String::new(),
    };
    RouteStatus {
        generation,
        parents: vec![ParentStatus {
            parent_ref: json!({"group": "core", "kind": "Service", "name": "s"}),
            conditions: vec![condition],
            tables: tables.iter().map(ToString::to_string).collect(),
        }],
    }
}

/// A book with what the proxies say.
struct Desk {
    book: Book,
    standing: RefCell<Standing>,
}

impl Desk {
    fn new() -> Self {
        let standing = Standing {
            proxies: 1,
            ..Standing::default()
        };
        Self {
            book: Book::default(),
            standing: standing.into(),
        }
    }

    /// Writes what is due at a time, and returns it.
    fn write(&mut self, now: &str) -> Vec<Write> {
        let writes = self.due(now, false);
        writes
            .iter()
            .for_each(|write| self.book.written(write.clone()));
        writes
    }

    fn due(&mut self, now: &str, settling: bool) -> Vec<Write> {
        self.book
            .take_writes(|_, _| self.standing.borrow().clone(), now, settling)
    }

    fn waiting(&self, nodes: &[&str]) {
        self.standing.borrow_mut().waiting = nodes.iter().map(ToString::to_string).collect();
    }

    /// Status, reason, message and time of a condition of the only write.
    fn condition(&mut self, now: &str, kind: &str) -> [String; 4] {
        let writes = self.write(now);
        let [Write::Parents(_, parents)] = &writes[..] else {
            panic!("{writes:?}")
        };
        let conditions = parents[0]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|c| c["type"] == kind).unwrap();
        ["status", "reason", "message", "lastTransitionTime"].map(|f| text(found, f).to_owned())
    }
}

fn workload(sandbox: &str) -> Workload {
    let tunnel = if sandbox.is_empty() {
        Tunnel::None
    } else {
        Tunnel::Hbone
    };
    Workload {
        sandbox: sandbox.into(),
        tunnel: tunnel.into(),
        ..Workload::default()
    }
}

fn captured(writes: &[Write]) -> Option<(&str, &str)> {
    match writes {
        [] => None,
        [Write::Condition(_, condition)] => {
            Some((text(condition, "status"), text(condition, "message")))
        }
        _ => panic!("{writes:?}"),
    }
}

#[test]
fn a_route_is_programmed_once_every_proxy_has_acknowledged_it() {
    let mut desk = Desk::new();
    let route = key("HTTPRoute", "r");
    desk.book
        .set_route(&route, Some(status(1, true, &["ns/s/80"])));
    desk.standing.borrow_mut().proxies = 0;
    assert_eq!(
        desk.condition("t1", CONDITION_PROGRAMMED)[..2],
        ["False", "NoProxies"]
    );

    desk.standing.borrow_mut().proxies = 2;
    desk.waiting(&["node-a", "node-b"]);
    desk.book.mark_all();
    let waiting = desk.condition("t2", CONDITION_PROGRAMMED);
    assert_eq!(waiting[..2], ["False", "NotAcknowledged"]);
    assert!(waiting[2].contains("node-a, node-b"), "{waiting:?}");
    assert_eq!(waiting[3], "t1", "still False: the time stays");

    let refusal = (
        "ns/s/80".to_owned(),
        "bad regex".to_owned(),
        "node-b".to_owned(),
    );
    desk.standing.borrow_mut().rejected.insert(refusal);
    desk.book.mark_all();
    let rejected = desk.condition("t3", CONDITION_PROGRAMMED);
    assert_eq!(rejected[..2], ["False", "Rejected"]);
    assert_eq!(rejected[2], "node-b refused ns/s/80: bad regex");

    *desk.standing.borrow_mut() = Standing {
        proxies: 2,
        ..Standing::default()
    };
    desk.book.mark_all();
    let programmed = desk.condition("t4", CONDITION_PROGRAMMED);
    assert_eq!(
        (&programmed[0], &programmed[3]),
        (&"True".to_owned(), &"t4".to_owned())
    );
    desk.book.mark_all();
    assert!(desk.write("t5").is_empty(), "nothing has changed");
}

#[test]
fn a_version_that_was_refused_is_never_programmed_though_an_earlier_one_is_in_force() {
    let mut desk = Desk::new();
    let route = key("HTTPRoute", "r");
    let refused = status(2, false, &["ns/s/80"]);
    desk.book.set_route(&route, Some(refused));
    let programmed = desk.condition("t1", CONDITION_PROGRAMMED);
    assert_eq!(programmed[..2], ["False", "LastGoodInForce"]);
}

#[test]
fn a_status_says_what_the_user_wrote_and_what_it_is_about() {
    let mut desk = Desk::new();
    let route = key("HTTPRoute", "r");
    desk.book.set_route(&route, Some(status(7, false, &[])));
    let writes = desk.write("t1");
    let expected = json!([{
        "parentRef": {"group": "core", "kind": "Service", "name": "s"},
        "controllerName": CONTROLLER_NAME,
        "conditions": [{
            "type": "Accepted", "status": "False", "observedGeneration": 7, "lastTransitionTime": "t1",
            "reason": "Accepted", "message": "",
        }],
    }]);
    assert_eq!(
        writes,
        [Write::Parents(route, expected.as_array().unwrap().clone())]
    );
}

#[test]
fn only_the_routes_of_changed_tables_are_looked_at() {
    let mut desk = Desk::new();
    for (name, table) in [("a", "ns/s/80"), ("b", "ns/s/81")] {
        desk.book
            .set_route(&key("HTTPRoute", name), Some(status(1, true, &[table])));
    }
    desk.write("t1");
    desk.waiting(&["node"]);
    let tables = BTreeSet::from([Arc::from("ns/s/81")]);
    desk.book.mark(&Dirty {
        tables,
        ..Dirty::default()
    });
    let writes = desk.write("t2");
    assert!(
        matches!(&writes[..], [Write::Parents(key, _)] if key.name == "b"),
        "{writes:?}"
    );
}

#[test]
fn a_status_of_an_earlier_controller_is_kept_or_taken_back() {
    let mut first = Desk::new();
    let route = key("HTTPRoute", "r");
    first
        .book
        .set_route(&route, Some(status(1, true, &["ns/s/80"])));
    let Write::Parents(_, there) = first.write("t1").remove(0) else {
        panic!()
    };
    let object = Object {
        key: route.clone(),
        value: Arc::new(json!({"status": {"parents": [{"controllerName": "other"}, there[0]]}})),
    };

    let mut second = Desk::new();
    second.book.observe(&object);
    second
        .book
        .set_route(&route, Some(status(1, true, &["ns/s/80"])));
    assert!(
        second.write("t2").is_empty(),
        "times and all, it is what is wanted"
    );
    second.standing.borrow_mut().proxies = 0;
    second.book.mark_all();
    assert!(
        second.due("t3", true).is_empty(),
        "proxies get time to come back"
    );
    assert_eq!(second.due("t3", false).len(), 1);

    let mut third = Desk::new();
    third.book.observe(&object);
    third.book.set_route(
        &route,
        Some(RouteStatus {
            generation: 2,
            parents: vec![],
        }),
    );
    assert_eq!(third.write("t2"), [Write::Parents(route.clone(), vec![])]);

    let mut fourth = Desk::new();
    fourth.book.observe(&object);
    fourth
        .book
        .set_route(&route, Some(status(1, true, &["ns/s/80"])));
    fourth.write("t2");
    fourth.book.forget(&route);
    assert_eq!(
        fourth.write("t3"),
        [Write::Parents(route, vec![])],
        "nothing is left of a deleted route"
    );
    assert!(fourth.write("t4").is_empty());
}

#[test]
fn a_status_that_somebody_else_changed_is_written_again() {
    let mut desk = Desk::new();
    let route = key("HTTPRoute", "r");
    desk.book
        .set_route(&route, Some(status(1, true, &["ns/s/80"])));
    desk.write("t1");
    let emptied = Object {
        key: route,
        value: Arc::new(json!({"status": {"parents": []}})),
    };
    desk.book.observe(&emptied);
    assert_eq!(desk.write("t2").len(), 1);
    assert!(desk.write("t3").is_empty());
}

#[test]
fn a_pod_is_captured_once_every_proxy_knows_and_left_once_every_proxy_knows() {
    let mut desk = Desk::new();
    let name = "ns/p/uid";
    desk.book.set_workload(name, Some(&workload("")));
    assert_eq!(captured(&desk.write("t")), None, "it never was captured");

    desk.waiting(&["node"]);
    desk.book.set_workload(name, Some(&workload("box")));
    assert_eq!(captured(&desk.write("t")), None);
    desk.waiting(&[]);
    desk.book.mark(&Dirty {
        workloads: BTreeSet::from([Arc::from(name)]),
        ..Dirty::default()
    });
    assert_eq!(captured(&desk.write("t")), Some(("True", "box")));

    // A later change or a new proxy does not take it back.
    desk.waiting(&["new"]);
    desk.book.set_workload(name, Some(&workload("box")));
    assert_eq!(captured(&desk.write("t")), None);

    desk.book.set_workload(name, Some(&workload("")));
    assert_eq!(
        captured(&desk.write("t")),
        None,
        "a proxy may still use the tunnel"
    );
    desk.waiting(&[]);
    desk.book.mark_all();
    assert_eq!(captured(&desk.write("t")), Some(("False", "box")));
    desk.book.mark_all();
    assert_eq!(captured(&desk.write("t")), None);

    // It joins again: what was said of its leaving holds no longer, at once.
    desk.waiting(&["node"]);
    desk.book.set_workload(name, Some(&workload("box")));
    assert_eq!(captured(&desk.write("t")), Some(("Unknown", "box")));
    desk.waiting(&[]);
    desk.book.mark_all();
    assert_eq!(captured(&desk.write("t")), Some(("True", "box")));

    desk.book.set_workload(name, None);
    assert_eq!(
        captured(&desk.write("t")),
        Some(("False", "box")),
        "gone from every proxy"
    );
}

#[test]
fn leaving_is_told_by_a_controller_that_started_in_between() {
    let mut desk = Desk::new();
    let condition = json!({"type": CONDITION_CAPTURED, "status": "True", "message": "box"});
    let pod = Object {
        key: key("Pod", "p"),
        value: Arc::new(json!({"metadata": {"uid": "uid"}, "status": {"conditions": [condition]}})),
    };
    desk.book.observe(&pod);
    desk.book.set_workload("ns/p/uid", Some(&workload("")));
    assert!(
        desk.due("t", true).is_empty(),
        "proxies get time to come back"
    );
    assert_eq!(captured(&desk.due("t", false)), Some(("False", "box")));
}

#[test]
fn endpoints_that_are_no_pods_have_no_condition() {
    let mut desk = Desk::new();
    desk.book
        .set_workload("slice/ns/s/10.0.0.1", Some(&workload("box")));
    assert!(desk.write("t").is_empty());
}

fn xmesh(controller: &str, generation: i64, status: Value) -> Object {
    Object {
        key: ObjectKey {
            group: "gateway.networking.x-k8s.io".into(),
            kind: "XMesh".into(),
            namespace: String::new(),
            name: "weft".into(),
        },
        value: Arc::new(json!({
            "metadata": { "generation": generation },
            "spec": { "controllerName": controller },
            "status": status,
        })),
    }
}

#[test]
fn a_meshs_status_is_kept_true_and_another_controllers_is_left_alone() {
    let mut desk = Desk::new();
    desk.book.observe(&xmesh("other/mesh", 1, json!({})));
    assert!(!desk.book.has_mesh());
    assert_eq!(desk.write("t0"), []);

    let pending = json!({ "conditions": [
        { "type": "Accepted", "status": "Unknown", "reason": "Pending" },
        { "type": "Foreign", "status": "True" },
    ]});
    desk.book.observe(&xmesh(CONTROLLER_NAME, 1, pending));
    assert!(desk.book.has_mesh());
    let writes = desk.write("t1");
    let [Write::Mesh(_, status)] = &writes[..] else {
        panic!("{writes:?}")
    };
    assert_eq!(status["conditions"][0]["status"], "True");
    assert_eq!(status["conditions"][0]["lastTransitionTime"], "t1");
    let features: Vec<_> = status["supportedFeatures"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    assert!(features.is_sorted_by_key(|feature| feature["name"].as_str()));

    let shown = status.clone();
    desk.book.observe(&xmesh(CONTROLLER_NAME, 1, shown.clone()));
    assert_eq!(desk.write("t2"), [], "nothing to say");
    desk.book.observe(&xmesh(CONTROLLER_NAME, 2, shown.clone()));
    let writes = desk.write("t3");
    let [Write::Mesh(_, status)] = &writes[..] else {
        panic!("{writes:?}")
    };
    assert_eq!(status["conditions"][0]["observedGeneration"], 2);
    assert_eq!(status["conditions"][0]["lastTransitionTime"], "t1");

    let mut altered = status.clone();
    altered["supportedFeatures"] = json!([]);
    desk.book.observe(&xmesh(CONTROLLER_NAME, 2, altered));
    assert_eq!(
        desk.write("t4").len(),
        1,
        "what somebody altered is put right"
    );
    desk.book.forget(&xmesh(CONTROLLER_NAME, 2, json!({})).key);
    assert!(!desk.book.has_mesh());
}

#[test]
fn who_follows_learns_what_the_leader_writes_and_goes_on_from_there() {
    let mut desk = Desk::new();
    desk.book.follow();
    let route = key("HTTPRoute", "r");
    desk.book.set_route(&route, Some(status(1, true, &["t"])));
    let writes = desk.due("t1", false);
    let [Write::Parents(_, parents)] = &writes[..] else {
        panic!("{writes:?}")
    };
    // The leader, who sees the same, wrote this; nothing is left to do for the next.
    let shown = Object {
        key: route.clone(),
        value: Arc::new(json!({ "status": { "parents": parents } })),
    };
    desk.book.observe(&shown);
    desk.book.lead();
    assert_eq!(desk.due("t2", false), []);
    // It goes on as leader, and follows again; the new leader's writes are what is there.
    desk.book.follow();
    let gone = Object {
        key: route,
        value: Arc::new(json!({ "status": {} })),
    };
    desk.book.observe(&gone);
    desk.book.lead();
    assert_eq!(desk.due("t3", false).len(), 1);
}
