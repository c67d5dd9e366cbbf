use weft_api::discovery::ErrorDetail;

use super::*;
use crate::publish::cache::Update;
use Acknowledgement::{Acknowledged, Rejected, Waiting};
use ResourceType::{MeshConfig, RouteTable, Service, Workload};

fn put(
    cache: &mut Cache,
    session: &mut Session,
    kind: ResourceType,
    name: &str,
    body: Option<&str>,
) {
    let body = body.map(|body| body.as_bytes().to_vec());
    if let Some(name) = cache.apply(Update {
        kind,
        name: name.into(),
        body,
    }) {
        session.changed(kind, &name);
    }
}

fn subscribe(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: vec!["*".into()],
        ..Default::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(|message| ErrorDetail {
            code: 3,
            message: message.into(),
        }),
        ..Default::default()
    }
}

/// Types and names of responses; removals with a minus.
fn says(responses: &[DeltaDiscoveryResponse]) -> Vec<String> {
    let name = |r: &DeltaDiscoveryResponse| ResourceType::from_url(&r.type_url).unwrap().name();
    let said = responses.iter().map(|response| {
        let resources = response
            .resources
            .iter()
            .map(|resource| resource.name.clone());
        let removed = response
            .removed_resources
            .iter()
            .map(|name| format!("-{name}"));
        format!(
            "{}: {}",
            name(response),
            resources.chain(removed).collect::<Vec<_>>().join(" ")
        )
    });
    said.collect()
}

/// A session that is subscribed to all types and has acknowledged everything.
fn settled(cache: &mut Cache) -> Session {
    let mut session = Session::default();
    for kind in ResourceType::ALL {
        session.request(subscribe(kind), cache);
        for response in session.responses(cache) {
            session.request(answer(&response, None), cache);
        }
    }
    session
}

#[test]
fn a_subscription_is_answered_even_when_there_is_nothing() {
    let cache = Cache::default();
    let mut session = Session::default();
    session.request(subscribe(Workload), &cache);
    assert_eq!(says(&session.responses(&cache)), ["Workload: "]);
    assert!(session.responses(&cache).is_empty());
}

#[test]
fn types_are_sent_in_order_and_only_what_changed_later() {
    let (mut cache, mut session) = (Cache::default(), Session::default());
    for (kind, name) in [
        (RouteTable, "t"),
        (Workload, "w"),
        (Service, "s"),
        (MeshConfig, "m"),
    ] {
        put(&mut cache, &mut session, kind, name, Some("1"));
    }
    for kind in ResourceType::ALL {
        session.request(subscribe(kind), &cache);
    }
    let responses = session.responses(&cache);
    assert_eq!(
        says(&responses),
        [
            "MeshConfig: m",
            "Service: s",
            "Workload: w",
            "RouteTable: t"
        ]
    );
    for response in &responses {
        session.request(answer(response, None), &cache);
    }
    put(&mut cache, &mut session, Workload, "w", Some("1"));
    assert!(
        session.responses(&cache).is_empty(),
        "the same contents are no change"
    );
    put(&mut cache, &mut session, Workload, "w", Some("2"));
    assert_eq!(says(&session.responses(&cache)), ["Workload: w"]);
}

#[test]
fn a_slow_proxy_gets_the_newest_state_in_one_response() {
    let mut cache = Cache::default();
    let mut session = settled(&mut cache);
    put(&mut cache, &mut session, Workload, "w", Some("1"));
    let first = session.responses(&cache);
    for i in 0..100 {
        put(
            &mut cache,
            &mut session,
            Workload,
            "w",
            Some(&format!("v{i}")),
        );
        put(
            &mut cache,
            &mut session,
            Workload,
            "gone",
            (i % 2 == 0).then_some("x"),
        );
        assert!(
            session.responses(&cache).is_empty(),
            "one response at a time"
        );
    }
    session.request(answer(&first[0], None), &cache);
    let newest = session.responses(&cache);
    assert_eq!(says(&newest), ["Workload: w"]);
    assert_eq!(
        newest[0].resources[0].resource.as_ref().unwrap().value,
        b"v99"
    );
}

#[test]
fn a_proxy_that_comes_back_gets_what_differs() {
    let (mut cache, mut session) = (Cache::default(), Session::default());
    for (name, body) in [("same", "1"), ("changed", "2"), ("new", "1")] {
        put(&mut cache, &mut session, Workload, name, Some(body));
    }
    let same = cache.version(Workload, "same").unwrap().to_string();
    let versions = [
        ("same", same.as_str()),
        ("changed", "0"),
        ("vanished", "7"),
        ("odd", "what?"),
    ];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..subscribe(Workload)
    };
    assert_eq!(
        session.standing(Workload, "vanished", None),
        Waiting,
        "nobody knows yet"
    );
    session.request(request, &cache);
    let responses = session.responses(&cache);
    assert_eq!(says(&responses), ["Workload: changed new -odd -vanished"]);
    assert_eq!(session.standing(Workload, "vanished", None), Waiting);
    assert_eq!(
        session.standing(Workload, "same", cache.version(Workload, "same")),
        Acknowledged
    );
    session.request(answer(&responses[0], None), &cache);
    assert_eq!(session.standing(Workload, "vanished", None), Acknowledged);
}

#[test]
fn a_nack_touches_only_what_it_names_until_that_changes() {
    let mut cache = Cache::default();
    let mut session = settled(&mut cache);
    for name in ["good", "bad", "slice/a/b/fd00::1"] {
        put(&mut cache, &mut session, Workload, name, Some("1"));
    }
    let responses = session.responses(&cache);
    let error = "bad: unknown field\nslice/a/b/fd00::1: no: such thing\nanything else";
    let told = session.request(answer(&responses[0], Some(error)), &cache);
    assert_eq!((told.names.len(), told.rejected), (3, 2));
    let standing =
        |s: &Session, c: &Cache, name| s.standing(Workload, name, c.version(Workload, name));
    assert_eq!(standing(&session, &cache, "good"), Acknowledged);
    assert_eq!(
        standing(&session, &cache, "bad"),
        Rejected("unknown field".into())
    );
    assert_eq!(
        standing(&session, &cache, "slice/a/b/fd00::1"),
        Rejected("no: such thing".into())
    );
    assert!(
        session.responses(&cache).is_empty(),
        "not sent again as it is"
    );
    put(&mut cache, &mut session, Workload, "bad", Some("2"));
    let again = session.responses(&cache);
    assert_eq!(says(&again), ["Workload: bad"]);
    session.request(answer(&again[0], None), &cache);
    assert_eq!(standing(&session, &cache, "bad"), Acknowledged);

    // Back to what the proxy still has: nothing to send, nothing refused.
    put(&mut cache, &mut session, Workload, "good", Some("bad"));
    let responses = session.responses(&cache);
    session.request(answer(&responses[0], Some("good: bad")), &cache);
    put(&mut cache, &mut session, Workload, "good", Some("1"));
    assert!(session.responses(&cache).is_empty());
    assert_eq!(standing(&session, &cache, "good"), Acknowledged);
}

#[test]
fn a_nack_that_names_nothing_refuses_the_whole_response() {
    let mut cache = Cache::default();
    let mut session = settled(&mut cache);
    put(&mut cache, &mut session, Workload, "a", Some("1"));
    put(&mut cache, &mut session, Workload, "b", Some("1"));
    let responses = session.responses(&cache);
    let told = session.request(answer(&responses[0], Some("can't decode")), &cache);
    assert_eq!(told.rejected, 2);
    for name in ["a", "b"] {
        let standing = session.standing(Workload, name, cache.version(Workload, name));
        assert_eq!(standing, Rejected("can't decode".into()));
    }
}

#[test]
fn an_answer_to_an_older_response_says_nothing() {
    let mut cache = Cache::default();
    let mut session = settled(&mut cache);
    put(&mut cache, &mut session, Workload, "a", Some("1"));
    let responses = session.responses(&cache);
    let mut stale = answer(&responses[0], None);
    stale.response_nonce = "0".into();
    assert_eq!(session.request(stale, &cache), Told::default());
    assert_eq!(
        session.standing(Workload, "a", cache.version(Workload, "a")),
        Waiting
    );
}

#[test]
fn a_service_goes_only_after_the_tables_that_may_name_it() {
    let (mut cache, mut before) = (Cache::default(), Session::default());
    put(&mut cache, &mut before, Service, "old", Some("1"));
    put(&mut cache, &mut before, RouteTable, "t", Some("to old"));
    let mut session = settled(&mut cache);
    put(&mut cache, &mut session, Service, "old", None);
    put(&mut cache, &mut session, Service, "new", Some("1"));
    put(&mut cache, &mut session, RouteTable, "t", Some("to new"));
    let responses = session.responses(&cache);
    assert_eq!(says(&responses), ["Service: new", "RouteTable: t"]);
    session.request(answer(&responses[0], None), &cache);
    assert_eq!(says(&session.responses(&cache)), ["Service: -old"]);
}

#[test]
fn a_large_state_comes_in_parts_and_later_types_wait() {
    let (mut cache, mut session) = (Cache::default(), Session::default());
    let body = "x".repeat(MAX_RESPONSE / 4);
    for i in 0..6 {
        put(
            &mut cache,
            &mut session,
            Workload,
            &format!("w{i}"),
            Some(&body),
        );
    }
    put(&mut cache, &mut session, RouteTable, "t", Some("1"));
    session.request(subscribe(Workload), &cache);
    session.request(subscribe(RouteTable), &cache);
    let first = session.responses(&cache);
    assert_eq!(says(&first), ["Workload: w0 w1 w2 w3"]);
    assert_eq!(first[0].system_version_info, XDS_PARTIAL);
    session.request(answer(&first[0], None), &cache);
    let rest = session.responses(&cache);
    assert_eq!(says(&rest), ["Workload: w4 w5", "RouteTable: t"]);
    assert_eq!(rest[0].system_version_info, "");
}

#[test]
fn named_subscriptions_get_those_names_and_are_told_what_does_not_exist() {
    let (mut cache, mut session) = (Cache::default(), Session::default());
    put(&mut cache, &mut session, Service, "a", Some("1"));
    put(&mut cache, &mut session, Service, "b", Some("1"));
    let mut request = subscribe(Service);
    request.resource_names_subscribe = vec!["a".into(), "none".into()];
    session.request(request, &cache);
    let responses = session.responses(&cache);
    assert_eq!(says(&responses), ["Service: a -none"]);
    session.request(answer(&responses[0], None), &cache);
    put(&mut cache, &mut session, Service, "b", Some("2"));
    assert!(session.responses(&cache).is_empty());
    put(&mut cache, &mut session, Service, "none", Some("1"));
    let responses = session.responses(&cache);
    assert_eq!(says(&responses), ["Service: none"]);
    session.request(answer(&responses[0], None), &cache);

    let unsubscribe = DeltaDiscoveryRequest {
        type_url: Service.url().into(),
        resource_names_unsubscribe: vec!["a".into()],
        ..Default::default()
    };
    session.request(unsubscribe, &cache);
    put(&mut cache, &mut session, Service, "a", Some("2"));
    assert!(session.responses(&cache).is_empty());
}

#[test]
fn unknown_types_are_left_unanswered() {
    let cache = Cache::default();
    let mut session = Session::default();
    let request = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/other".into(),
        ..Default::default()
    };
    assert_eq!(session.request(request, &cache), Told::default());
    assert!(session.responses(&cache).is_empty());
}

mod law {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Change {
            kind: usize,
            name: u8,
            body: Option<u8>,
        },
        Answer {
            kind: usize,
            refuse: bool,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let body = prop::option::weighted(0.7, 0..4u8);
        prop_oneof![
            (0..4usize, 0..4u8, body).prop_map(|(kind, name, body)| Step::Change {
                kind,
                name,
                body
            }),
            (0..4usize, prop::bool::weighted(0.2))
                .prop_map(|(kind, refuse)| Step::Answer { kind, refuse }),
        ]
    }

    proptest! {
        /// Whatever happens in between, a proxy that answers everything ends with everything, but for
        /// what it refused, of which it keeps the last good version or none.
        #[test]
        fn a_proxy_ends_with_what_there_is(steps in prop::collection::vec(step(), 0..60)) {
            let (mut cache, mut session) = (Cache::default(), Session::default());
            let mut holds: [BTreeMap<String, String>; 4] = Default::default();
            let mut waiting: [Option<DeltaDiscoveryResponse>; 4] = Default::default();
            for kind in ResourceType::ALL {
                session.request(subscribe(kind), &cache);
            }
            let mut steps: Vec<_> = steps;
            for _ in 0..4 {
                steps.extend((0..4).map(|kind| Step::Answer { kind, refuse: false }));
            }
            for step in steps {
                match step {
                    Step::Change { kind, name, body } => {
                        let body = body.map(|body| body.to_string());
                        put(&mut cache, &mut session, ResourceType::ALL[kind], &name.to_string(), body.as_deref());
                    }
                    Step::Answer { kind, refuse } => if let Some(response) = waiting[kind].take() {
                        let refused = response.resources.first().filter(|_| refuse).map(|r| r.name.clone());
                        for resource in &response.resources {
                            if Some(&resource.name) != refused.as_ref() {
                                holds[kind].insert(resource.name.clone(), resource.version.clone());
                            }
                        }
                        for name in &response.removed_resources {
                            prop_assert!(holds[kind].remove(name).is_some(), "a needless removal");
                        }
                        let error = refused.map(|name| format!("{name}: refused"));
                        session.request(answer(&response, error.as_deref()), &cache);
                    },
                }
                for response in session.responses(&cache) {
                    let kind = ResourceType::from_url(&response.type_url).unwrap() as usize;
                    prop_assert!(waiting[kind].is_none(), "two responses at once");
                    waiting[kind] = Some(response);
                }
            }
            for kind in ResourceType::ALL {
                prop_assert!(waiting[kind as usize].is_none());
                for (name, resource) in cache.all(kind) {
                    let held = holds[kind as usize].get(&**name);
                    match session.standing(kind, name, Some(resource.version)) {
                        Acknowledged => prop_assert_eq!(held, Some(&resource.version.to_string())),
                        Rejected(_) => prop_assert_ne!(held, Some(&resource.version.to_string())),
                        Waiting => prop_assert!(false, "{name} was never sent"),
                    }
                }
                for name in holds[kind as usize].keys() {
                    prop_assert!(cache.get(kind, name).is_some(), "{name} was never removed");
                }
            }
        }
    }
}
