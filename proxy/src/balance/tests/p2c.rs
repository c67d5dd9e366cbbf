use std::{net::SocketAddr, sync::Arc, time::Duration};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, advance};

use crate::balance::{
    Load,
    health::FAILURES,
    load::millis,
    p2c::{Candidate, Candidates},
};

struct Endpoint {
    load: Arc<Load>,
    address: SocketAddr,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

fn endpoint(id: usize) -> Endpoint {
    Endpoint {
        load: Arc::default(),
        address: SocketAddr::from(([10, 0, (id >> 8) as u8, id as u8], 8080)),
    }
}

fn candidates<'a>(slices: &[&'a [Endpoint]]) -> Candidates<'a, Endpoint> {
    let mut all = Candidates::default();
    for slice in slices {
        all.push(slice);
    }
    all
}

fn eject(endpoint: &Endpoint) {
    (0..FAILURES).for_each(|_| endpoint.load.start(Instant::now()).failed());
}

#[test]
fn of_no_candidates_none_is_picked() {
    let none = candidates(&[&[], &[]]);
    let mut rng = StdRng::seed_from_u64(1);
    assert!(none.is_empty());
    assert!(none.pick(0, true, |_| true, &mut rng).is_none());
}

proptest! {
    #[test]
    fn every_eligible_endpoint_is_picked_at_times_and_no_other_ever(
        states in prop::collection::vec(0u8..3, 1..12),
        cut in 0usize..12,
        seed: u64,
    ) {
        let endpoints: Vec<_> = (0..states.len()).map(endpoint).collect();
        let mut exclude = Vec::new();
        for (endpoint, state) in endpoints.iter().zip(&states) {
            match state {
                1 => exclude.push(endpoint.address),
                2 => eject(endpoint),
                _ => {}
            }
        }
        let (head, tail) = endpoints.split_at(cut.min(endpoints.len()));
        let all = candidates(&[head, &[], tail]);
        let now = millis(Instant::now());
        let mut rng = StdRng::seed_from_u64(seed);
        let mut picked = vec![0; states.len()];
        for _ in 0..1_000 {
            if let Some(one) = all.pick(now, true, |e| !exclude.contains(&e.address), &mut rng) {
                let at = endpoints.iter().position(|e| e.address == one.address);
                picked[at.expect("a pick is a candidate")] += 1;
            }
        }
        for (state, count) in states.iter().zip(&picked) {
            prop_assert_eq!(*state == 0, *count > 0, "{:?} {:?}", states, picked);
        }
    }
}

/// Offers `per_ms` requests each millisecond for `ms`; an endpoint answers after its latency.
/// Returns the picks of each.
async fn simulate(
    endpoints: &[Endpoint],
    latency_ms: &[u64],
    per_ms: usize,
    ms: u64,
    rng: &mut impl Rng,
) -> Vec<usize> {
    let all = candidates(&[endpoints]);
    let mut under_way = Vec::new();
    let mut picks = vec![0; endpoints.len()];
    for at in 0..ms {
        for _ in 0..per_ms {
            let now = Instant::now();
            let picked = all.pick(millis(now), true, |_| true, rng).expect("healthy");
            let id = endpoints.iter().position(|e| e.address == picked.address);
            let id = id.expect("a pick is a candidate");
            picks[id] += 1;
            under_way.push((at + latency_ms[id], picked.load.start(now)));
        }
        advance(Duration::from_millis(1)).await;
        under_way.retain_mut(|(end, request)| {
            if *end <= at {
                request.first_byte();
            }
            *end > at
        });
    }
    picks
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less_and_equal_ones_get_equal_shares() {
    let endpoints: Vec<_> = (0..5).map(endpoint).collect();
    let mut rng = StdRng::seed_from_u64(7);
    let picks = simulate(&endpoints, &[5, 5, 5, 5, 100], 4, 5_000, &mut rng).await;
    let total: usize = picks.iter().sum();
    assert!(picks[4] * 20 < total, "the slow one: {picks:?}");
    assert!(picks[4] > 0, "it is not forgotten: {picks:?}");
    let fast = total - picks[4];
    for share in &picks[..4] {
        assert!(share * 5 > fast && share * 10 < fast * 3, "{picks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_is_neither_flooded_nor_starved() {
    let mut endpoints: Vec<_> = (0..4).map(endpoint).collect();
    let mut rng = StdRng::seed_from_u64(7);
    simulate(&endpoints, &[10; 4], 2, 2_000, &mut rng).await;

    endpoints.push(endpoint(4));
    let picks = simulate(&endpoints, &[10; 5], 2, 20, &mut rng).await;
    let total: usize = picks.iter().sum();
    // A fifth would be fair: it may have up to the two fifths that two choices can give.
    assert!(picks[4] > 0 && picks[4] * 5 <= total * 2, "{picks:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_was_slow_for_a_while_is_found_again() {
    let endpoints: Vec<_> = (0..3).map(endpoint).collect();
    let mut rng = StdRng::seed_from_u64(7);
    simulate(&endpoints, &[5, 5, 500], 2, 3_000, &mut rng).await;
    simulate(&endpoints, &[5, 5, 5], 2, 60_000, &mut rng).await;
    let picks = simulate(&endpoints, &[5, 5, 5], 2, 3_000, &mut rng).await;
    let total: usize = picks.iter().sum();
    assert!(picks[2] * 5 > total, "{picks:?}");
}
