use std::sync::Arc;

use tokio::{task::JoinHandle, time::timeout};
use weft_source::kubernetes::fake::FakeApi;

use super::*;
use crate::leadership::Leadership;

struct Replica {
    leadership: Leadership,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn place() -> Place {
    "weft-system/weft-controller".parse().unwrap()
}

fn start(api: &Arc<FakeApi>, name: &str) -> Replica {
    let (announcer, leadership) = Leadership::follower();
    let shutdown = CancellationToken::new();
    let candidate = Candidate::new(api.client(), &place(), name);
    let task = tokio::spawn(candidate.run(announcer, shutdown.clone()));
    Replica {
        leadership,
        shutdown,
        task,
    }
}

fn holder(api: &FakeApi) -> Option<String> {
    let lease = api.object("leases", "weft-system", "weft-controller")?;
    Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
}

async fn within(time: Duration, what: impl Future<Output = ()>) -> bool {
    timeout(time, what).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_takes_over_once_the_lease_has_run_out() {
    let api = FakeApi::new();
    let mut a = start(&api, "a");
    a.leadership.acquired().await;
    let mut b = start(&api, "b");
    assert!(!within(Duration::from_secs(600), b.leadership.acquired()).await);
    assert!(
        a.leadership.holds_for(Duration::from_secs(10)),
        "it is renewed"
    );
    assert_eq!(holder(&api).as_deref(), Some("a"));

    // A crash: nothing is given back.
    a.task.abort();
    let crashed = Instant::now();
    b.leadership.acquired().await;
    assert!(
        crashed.elapsed() >= DURATION,
        "not before the lease has run out"
    );
    assert!(
        !a.leadership.holds_for(Duration::ZERO),
        "the other knows by itself"
    );
    assert_eq!(holder(&api).as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn an_orderly_end_gives_the_lease_to_the_next_at_once() {
    let api = FakeApi::new();
    let mut a = start(&api, "a");
    a.leadership.acquired().await;
    let mut b = start(&api, "b");
    a.shutdown.cancel();
    a.task.await.unwrap();
    a.leadership.lost().await;
    assert!(within(PERIOD * 2, b.leadership.acquired()).await);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_the_api_does_not_answer_stops_leading_before_another_may_begin() {
    let api = FakeApi::new();
    let mut a = start(&api, "a");
    a.leadership.acquired().await;
    for _ in 0..100 {
        api.fail("leases", 500);
    }
    let mut leadership = a.leadership.clone();
    assert!(within(DURATION + PERIOD, leadership.lost()).await);
    assert!(!leadership.holds_for(Duration::ZERO));
    // It comes back by itself.
    a.leadership.acquired().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_who_take_it_at_the_same_time_one_is_refused() {
    let api = FakeApi::new();
    let mut first = Candidate::new(api.client(), &place(), "a");
    let mut second = Candidate::new(api.client(), &place(), "b");
    api.fail("GET /apis/coordination", 404);
    assert!(first.attempt().await.unwrap());
    api.fail("GET /apis/coordination", 404);
    assert!(!second.attempt().await.unwrap(), "it is there already: 409");

    let mut stale = first.api.get("weft-controller").await.unwrap();
    assert!(first.attempt().await.unwrap());
    stale.spec.get_or_insert_default().holder_identity = Some("b".to_owned());
    assert!(
        !second.replace(&stale).await.unwrap(),
        "it was renewed meanwhile"
    );
    assert_eq!(holder(&api).as_deref(), Some("a"));
}
