use proptest::prelude::*;

use crate::balance::health::{FAILURES, FIRST_EJECTION_MS, Health, LONGEST_EJECTION_MS};

fn failed(health: Health, times: u8, now: u32) -> Health {
    (0..times).fold(health, |h, _| h.failed(now))
}

/// How long it is ejected from `now` on.
fn ejection(health: Health, now: u32) -> u32 {
    (0..=LONGEST_EJECTION_MS + 1)
        .find(|ms| !health.ejected(now.wrapping_add(*ms)))
        .expect("every ejection ends")
}

#[test]
fn only_failures_in_a_row_eject() {
    let now = 5_000;
    let almost = failed(Health::default(), FAILURES - 1, now);
    assert!(!almost.ejected(now));
    assert!(failed(almost, 1, now).ejected(now));
}

#[test]
fn each_ejection_is_twice_as_long_up_to_a_bound() {
    let mut now = 0;
    let mut health = failed(Health::default(), FAILURES, now);
    let mut lengths = Vec::new();
    for _ in 0..7 {
        let length = ejection(health, now);
        lengths.push(length);
        now += length;
        assert!(!health.ejected(now), "given another chance");
        // One more failure is enough.
        health = health.failed(now);
    }
    let first = FIRST_EJECTION_MS;
    let expected = [1, 2, 4, 8, 16].map(|n| first * n);
    assert_eq!(lengths[..5], expected);
    assert_eq!(lengths[5..], [LONGEST_EJECTION_MS; 2]);
}

#[test]
fn failures_of_connections_that_were_under_way_do_not_lengthen_an_ejection() {
    let ejected = failed(Health::default(), FAILURES, 100);
    assert_eq!(failed(ejected, 50, 101), ejected);
}

#[test]
fn an_ejection_ends_when_the_clock_wraps() {
    let now = u32::MAX - 10;
    let health = failed(Health::default(), FAILURES, now);
    assert!(health.ejected(now.wrapping_add(100)));
    assert_eq!(ejection(health, now), FIRST_EJECTION_MS);
}

proptest! {
    #[test]
    fn health_survives_its_bits(failures in 0u8..40, now: u32) {
        let health = failed(Health::default(), failures, now);
        prop_assert_eq!(Health::from_bits(health.to_bits()), health);
    }
}
