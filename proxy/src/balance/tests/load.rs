use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, advance};

use crate::balance::{
    Load,
    health::{FAILURES, FIRST_EJECTION_MS},
    load::millis,
};

#[tokio::test(start_paused = true)]
async fn a_request_is_in_flight_from_its_pick_to_its_end() {
    let load = Arc::new(Load::default());
    let a = load.start(Instant::now());
    let mut b = load.start(Instant::now());
    assert_eq!(load.in_flight(), 2);
    b.first_byte();
    assert_eq!(load.in_flight(), 2, "its body is still under way");
    drop((a, b));
    assert_eq!(load.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_is_the_latency_and_counts_once() {
    let load = Arc::new(Load::default());
    let mut request = load.start(Instant::now());
    advance(Duration::from_millis(7)).await;
    request.first_byte();
    assert_eq!(load.ewma().cost().round(), 7_000.0);
    advance(Duration::from_millis(500)).await;
    request.first_byte();
    assert_eq!(load.ewma().cost().round(), 7_000.0);
}

#[tokio::test(start_paused = true)]
async fn failures_eject_for_a_while_and_an_answer_forgives() {
    let load = Arc::new(Load::default());
    let fail = |times| (0..times).for_each(|_| load.start(Instant::now()).failed());
    let ejected = || load.ejected(millis(Instant::now()));

    fail(FAILURES);
    assert!(ejected());
    advance(Duration::from_millis(u64::from(FIRST_EJECTION_MS))).await;
    assert!(!ejected());

    load.start(Instant::now()).first_byte();
    fail(FAILURES - 1);
    assert!(!ejected(), "the row was broken by an answer");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_says_nothing_of_the_endpoint() {
    let load = Arc::new(Load::default());
    let request = load.start(Instant::now());
    advance(Duration::from_secs(30)).await;
    drop(request);
    assert_eq!(load.ewma(), Default::default());
    assert!(!load.ejected(millis(Instant::now())));
}
