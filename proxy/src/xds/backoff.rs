//! Pauses between attempts to reach the controller: doubling, with jitter, bounded.

use std::time::Duration;

/// The first pause is up to this: a restarted controller is back within a second.
pub(super) const FIRST: Duration = Duration::from_millis(250);
/// The longest, so that a controller that comes back is found soon; with jitter, a thousand
/// nodes then come back over seconds, not at once.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// The pauses so far.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next pause: between half and all of its length, by `jitter` in 0..1.
    pub(super) fn next(&mut self, jitter: f64) -> Duration {
        let longest = self.next;
        self.next = (self.next * 2).min(LONGEST);
        longest.mul_f64(0.5 + jitter / 2.0)
    }
}
