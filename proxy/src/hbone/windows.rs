//! How much a tunnel's peer may send before it is read. In flow the number of streams and the bytes
//! that were consumed; out flow window sizes, which are charged to the pod's budget. No sockets here.
//!
//! Windows begin small and double while a stream's worth is consumed within [`BRISK`]: a peer that
//! is not held up by its window, or sends little, needs no larger one. What the windows let the
//! peer send counts as used, for it cannot be taken back: a stream's window for each open stream,
//! up to the tunnel's own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::budget::{Budget, Charge};

/// The least window of a stream: a request or a small response fits.
const LEAST: u32 = 16 * 1024;
/// With which a tunnel begins if there is room: carries 5 Gb/s at the 0.1 ms within a node.
const FIRST: u32 = 64 * 1024;
/// A tunnel's window in those of its streams: so many streams whose applications do not read must
/// fall silent before the others of the same pair of pods feel it.
const STREAMS: u32 = 16;
/// A stream's window consumed within it asks for a larger one: so it grows at any round trip up to
/// this, and a trickle never has it grow.
const BRISK: Duration = Duration::from_millis(200);
/// A first window takes at most this part of what is free: so a pod may have tunnels to nearly
/// 10,000 others (256 MiB: 4,096 · ln 4 tunnels until 64 MiB are left, and 4,096 of the least).
const FIRST_SHARE: usize = 4096;
/// Growing may take this part of what is free in the budget.
const SHARE: usize = 16;

/// The windows of one tunnel.
#[derive(Debug)]
pub(super) struct Windows {
    most: u32,
    state: Mutex<State>,
    /// Bytes consumed since the last look.
    consumed: AtomicU64,
    /// At how many to look again.
    look_at: AtomicU64,
    look: Notify,
}

#[derive(Debug)]
struct State {
    stream: u32,
    streams: usize,
    charge: Charge,
    looked: Instant,
}

/// Sizes for HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) stream: u32,
    pub(super) tunnel: u32,
}

impl Sizes {
    fn of(stream: u32) -> Self {
        Self {
            stream,
            tunnel: stream.saturating_mul(STREAMS),
        }
    }
}

impl Windows {
    /// Of a new tunnel, whose streams' windows may grow to `most`.
    pub(super) fn new(budget: &Budget, most: u32) -> Self {
        let fits = (budget.free() / FIRST_SHARE).next_multiple_of(LEAST as usize);
        let stream = u32::try_from(fits)
            .unwrap_or(FIRST)
            .clamp(LEAST, FIRST)
            .min(most);
        Self {
            most,
            state: Mutex::new(State {
                stream,
                streams: 0,
                charge: budget.charge(0),
                looked: Instant::now(),
            }),
            consumed: AtomicU64::new(0),
            look_at: AtomicU64::new(look_at(stream, most)),
            look: Notify::new(),
        }
    }

    /// As they are now.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes::of(self.state.lock().stream)
    }

    /// One stream more.
    pub(super) fn open(&self) {
        let mut state = self.state.lock();
        state.streams += 1;
        state.recharge();
    }

    /// One stream less.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.streams = state.streams.saturating_sub(1);
        state.recharge();
    }

    /// Bytes of the peer were consumed.
    pub(super) fn consumed(&self, bytes: usize) {
        let before = self.consumed.fetch_add(bytes as u64, Ordering::Relaxed);
        let look_at = self.look_at.load(Ordering::Relaxed);
        if before < look_at && before + bytes as u64 >= look_at {
            self.look.notify_one();
        }
    }

    /// Returns when it is time for [`Windows::larger`].
    pub(super) async fn busy(&self) {
        self.look.notified().await;
    }

    /// Larger sizes, if they are wanted and the budget allows; [`Windows::grown`] puts them in force.
    pub(super) fn larger(&self) -> Option<Sizes> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let brisk = now.saturating_duration_since(state.looked) <= BRISK;
        state.looked = now;
        self.consumed.store(0, Ordering::Relaxed);
        let larger = state.stream.saturating_mul(2).min(self.most);
        let more = state.needs(larger).saturating_sub(state.charge.bytes());
        let affordable = more <= state.charge.budget().free() / SHARE;
        (brisk && affordable && larger > state.stream).then(|| Sizes::of(larger))
    }

    /// The peer is told of these sizes.
    pub(super) fn grown(&self, sizes: Sizes) {
        let mut state = self.state.lock();
        state.stream = sizes.stream;
        state.recharge();
        let look_at = look_at(sizes.stream, self.most);
        self.look_at.store(look_at, Ordering::Relaxed);
    }
}

/// Nobody looks any more once there is nothing to gain.
fn look_at(stream: u32, most: u32) -> u64 {
    if stream < most {
        stream.into()
    } else {
        u64::MAX
    }
}

impl State {
    fn needs(&self, stream: u32) -> usize {
        self.streams.min(STREAMS as usize) * stream as usize
    }

    fn recharge(&mut self) {
        let bytes = self.needs(self.stream);
        self.charge.set(bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MOST: u32 = 1024 * 1024;
    const KIB: usize = 1024;

    /// Consumes a stream's window, and lets the windows grow if they want to.
    fn consume(windows: &Windows) -> bool {
        windows.consumed(windows.sizes().stream as usize);
        assert!(windows.busy().now_or_never().is_some(), "it is told");
        match windows.larger() {
            Some(sizes) => {
                windows.grown(sizes);
                true
            }
            None => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn windows_double_while_they_are_used_up_quickly() {
        let budget = Budget::new(256 << 20);
        let windows = Windows::new(&budget, MOST);
        windows.open();
        assert_eq!(
            windows.sizes(),
            Sizes {
                stream: FIRST,
                tunnel: 16 * FIRST
            }
        );
        assert_eq!(budget.used(), 64 * KIB);
        for size in [128, 256, 512, 1024] {
            tokio::time::advance(BRISK / 2).await;
            assert!(consume(&windows));
            assert_eq!(windows.sizes().stream as usize, size * KIB);
            assert_eq!(budget.used(), size * KIB);
        }
        windows.consumed(1 << 30);
        assert!(
            windows.busy().now_or_never().is_none(),
            "there is no more to gain"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_never_makes_a_window_grow() {
        let windows = Windows::new(&Budget::new(256 << 20), MOST);
        for _ in 0..20 {
            tokio::time::advance(BRISK * 2).await;
            assert!(!consume(&windows));
        }
        assert_eq!(windows.sizes().stream, FIRST);
    }

    #[tokio::test]
    async fn what_the_peer_may_send_is_charged_up_to_the_tunnels_own_window() {
        let budget = Budget::new(256 << 20);
        let windows = Windows::new(&budget, MOST);
        assert_eq!(budget.used(), 0, "without streams nothing can come");
        for streams in 1..=100 {
            windows.open();
            assert_eq!(budget.used(), streams.min(16) * 64 * KIB);
        }
        for _ in 0..100 {
            windows.close();
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_short_budget_gives_small_windows_and_no_growth() {
        let budget = Budget::new(16 << 20);
        let _rest = budget.charge(15 << 20);
        let windows = Windows::new(&budget, MOST);
        windows.open();
        assert_eq!(windows.sizes().stream, LEAST);
        let _all = budget.charge(1 << 20);
        assert!(!consume(&windows));
        assert_eq!(Windows::new(&budget, LEAST / 2).sizes().stream, LEAST / 2);
    }
}
