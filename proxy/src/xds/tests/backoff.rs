use std::time::Duration;

use crate::xds::backoff::{Backoff, FIRST, LONGEST};

#[test]
fn pauses_double_up_to_a_bound_and_jitter_takes_up_to_half() {
    let pauses = |jitter| {
        let mut backoff = Backoff::default();
        (0..10).map(|_| backoff.next(jitter)).collect::<Vec<_>>()
    };
    let longest = pauses(1.0);
    assert_eq!(longest[0], FIRST);
    assert_eq!(longest[3], FIRST * 8);
    assert_eq!(longest[9], LONGEST);
    let shortest: Vec<Duration> = longest.iter().map(|pause| *pause / 2).collect();
    assert_eq!(pauses(0.0), shortest);
}
