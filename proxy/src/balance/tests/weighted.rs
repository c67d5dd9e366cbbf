use proptest::prelude::*;

use crate::balance::Weighted;

fn counts(weights: &[u32], choices: usize) -> Vec<usize> {
    let weighted = Weighted::new(weights.iter().copied());
    let mut counts = vec![0; weights.len()];
    for _ in 0..choices {
        counts[weighted.choose().expect("some weight is not zero")] += 1;
    }
    counts
}

#[test]
fn without_weight_nothing_is_chosen() {
    for weights in [vec![], vec![0], vec![0, 0, 0]] {
        assert_eq!(Weighted::new(weights).choose(), None);
    }
}

#[test]
fn the_only_backend_gets_everything_whatever_its_weight() {
    assert_eq!(counts(&[1], 10), [10]);
    assert_eq!(counts(&[0, 7, 0], 10), [0, 10, 0]);
}

#[test]
fn shares_hold_for_every_second_request_too() {
    let weighted = Weighted::new([90, 10]);
    let mut odd = 0;
    for _ in 0..10_000 {
        weighted.choose();
        odd += usize::from(weighted.choose() == Some(1));
    }
    assert!((990..=1_010).contains(&odd), "{odd}");
}

proptest! {
    /// Five standard deviations of dice are kept by far: a few requests are the bound.
    #[test]
    fn shares_are_exact_in_the_long_run(
        weights in prop::collection::vec(0u32..1_000, 1..8),
        choices in 1usize..20_000,
    ) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let counts = counts(&weights, choices);
        for (weight, count) in weights.iter().zip(&counts) {
            let p = f64::from(*weight) / f64::from(total);
            let expected = p * choices as f64;
            let off = (*count as f64 - expected).abs();
            prop_assert!(off <= 2.0 + 3.0 * (choices as f64).ln(), "{:?} {:?}", weights, counts);
            prop_assert!(*weight > 0 || *count == 0, "weight 0 is never chosen");
        }
    }

    #[test]
    fn the_largest_weights_do_not_overflow(weights in prop::collection::vec(u32::MAX - 3..=u32::MAX, 2..5)) {
        let n = weights.len();
        let counts = counts(&weights, 1_000 * n);
        prop_assert!(counts.iter().all(|count| (990..=1_010).contains(count)), "{:?}", counts);
    }
}
