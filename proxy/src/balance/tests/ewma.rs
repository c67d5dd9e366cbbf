use proptest::prelude::*;

use crate::balance::ewma::{Ewma, prefer_first};

fn seen(at: u32, latency: f32) -> Ewma {
    Ewma::default().observe(at, latency)
}

#[test]
fn a_peak_counts_at_once_and_fades_by_time() {
    let slow = seen(0, 1_000.0).observe(10, 50_000.0);
    assert_eq!(slow.cost(), 50_000.0);

    // Ten seconds are one decay: 1/e of the old estimate is left.
    let later = slow.observe(10_010, 1_000.0);
    let expected = 50_000.0 / std::f32::consts::E + 1_000.0 * (1.0 - 1.0 / std::f32::consts::E);
    assert!((later.cost() - expected).abs() < 1.0, "{later:?}");

    // Many fast answers in one moment do not forget the peak.
    let burst = (0..100).fold(slow, |e, _| e.observe(10, 1_000.0));
    assert_eq!(burst.cost(), 50_000.0);
}

#[test]
fn a_comparison_prefers_what_is_cheaper_now() {
    let now = 100_000;
    let fast = || seen(now, 1_000.0);
    let slow = || seen(now, 10_000.0);
    let new = Ewma::default;
    let slow_long_ago = seen(0, 1_000_000.0);
    for (name, a, b, expected) in [
        ("faster", (fast(), 0), (slow(), 0), true),
        ("slower", (slow(), 0), (fast(), 0), false),
        ("slower but idle", (slow(), 0), (fast(), 20), true),
        ("faster, not yet as full", (fast(), 8), (slow(), 0), true),
        ("both new, fewer in flight", (new(), 1), (new(), 2), true),
        ("both new, more in flight", (new(), 2), (new(), 1), false),
        (
            "new against known: in flight decides",
            (new(), 1),
            (fast(), 0),
            false,
        ),
        (
            "known against new: in flight decides",
            (fast(), 1),
            (new(), 0),
            false,
        ),
        (
            "slow long ago and idle",
            (slow_long_ago, 0),
            (fast(), 1),
            true,
        ),
        (
            "slow long ago but busy",
            (slow_long_ago, 2),
            (fast(), 0),
            false,
        ),
    ] {
        assert_eq!(prefer_first(a, b, now), expected, "{name}");
    }
}

#[test]
fn the_clock_may_wrap_and_lag() {
    let before = seen(u32::MAX - 5, 1_000.0);
    assert!((before.weight(4) - (-10f32 / 10_000.0).exp()).abs() < 1e-6);
    // Observed "later" than now, by a thread that read the clock a moment after this one.
    assert_eq!(seen(101, 1_000.0).weight(100), 1.0);
}

proptest! {
    #[test]
    fn an_estimate_stays_between_what_was_observed(
        latencies in prop::collection::vec((0u32..60_000, 1.0f32..1e7), 1..50),
    ) {
        let mut now = 0u32;
        let mut ewma = Ewma::default();
        let (mut low, mut high) = (f32::MAX, 0f32);
        for (step, latency) in latencies {
            now += step;
            low = low.min(latency);
            high = high.max(latency);
            ewma = ewma.observe(now, latency);
            prop_assert!(ewma.cost() >= low * 0.999 && ewma.cost() <= high * 1.001);
            prop_assert!(ewma.cost() >= latency * 0.999, "never below the last observation");
        }
        prop_assert_eq!(Ewma::from_bits(ewma.to_bits()), ewma);
    }

    #[test]
    fn of_two_candidates_one_is_preferred_whichever_comes_first(
        a in (1.0f32..1e7, 0u32..100_000, 0u32..100),
        b in (1.0f32..1e7, 0u32..100_000, 0u32..100),
    ) {
        let [a, b] = [a, b].map(|(cost, at, in_flight)| (seen(at, cost), in_flight));
        prop_assert!(prefer_first(a, b, 100_000) || prefer_first(b, a, 100_000));
    }
}
