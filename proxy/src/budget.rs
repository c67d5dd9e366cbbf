//! What the proxy may hold in memory for one pod. In flow the sizes of what is read, and of what
//! peers are allowed to send; out flow the sizes that reads and windows may have.
//!
//! Nothing waits for memory that a stalled peer holds: the fuller a budget is, the smaller is the
//! piece of it that one reader gets (a fixed share of what is *free*, as switches share their
//! buffers among queues), so those who are stuck leave room for those who are not. What is open goes
//! on in the smallest pieces even when all is used. Only what is new waits then, and is shed in the
//! end.
//!
//! On the fast path this costs an atomic addition and a subtraction a chunk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// One reader, or one window, gets at most this part of what is free: 256 MiB let 256 streams have
/// 512 KiB each before anybody gets less than that.
const SHARE: usize = 256;
/// What a chunk costs besides its bytes: its owner, and its place in a queue.
const OVERHEAD: usize = 128;

/// One pod's budget. Cheap to clone: all clones are one budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
    /// Told when there is room again.
    room: Notify,
}

impl Budget {
    /// Of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            used: AtomicUsize::new(0),
            room: Notify::new(),
        }))
    }

    /// Bytes, in all.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Bytes that are in use: more than the limit if what is open already needs them.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes that are not.
    pub fn free(&self) -> usize {
        self.limit().saturating_sub(self.used())
    }

    /// How large one thing may be now: a share of what is free, between `least` and `most`.
    pub fn piece(&self, least: usize, most: usize) -> usize {
        (self.free() / SHARE).min(most).max(least)
    }

    /// Whether something new may begin.
    pub fn has_room(&self) -> bool {
        self.used() < self.limit()
    }

    /// Waits until something new may begin.
    pub async fn room(&self) {
        loop {
            let told = self.0.room.notified();
            if self.has_room() {
                return;
            }
            told.await;
        }
    }

    /// Counts `bytes` as used until what is returned is dropped.
    pub fn charge(&self, bytes: usize) -> Charge {
        let mut charge = Charge {
            budget: self.clone(),
            bytes: 0,
        };
        charge.set(bytes);
        charge
    }

    /// The same bytes, which count as used until the last piece of them is dropped: wherever they
    /// are by then.
    pub fn hold(&self, data: Bytes) -> Bytes {
        if data.is_empty() {
            return data;
        }
        let charge = self.charge(data.len() + OVERHEAD);
        Bytes::from_owner(Held {
            data,
            _charge: charge,
        })
    }

    fn take(&self, bytes: usize) {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        let before = self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        let limit = self.limit();
        if before >= limit && before - bytes < limit {
            self.0.room.notify_waiters();
        }
    }
}

/// Bytes of a budget that are in use.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    /// From now on so many.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.take(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.budget.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of what.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

struct Held {
    data: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_count_until_the_last_piece_of_them_is_dropped() {
        let budget = Budget::new(1 << 20);
        let mut held = budget.hold(Bytes::from(vec![7; 1000]));
        assert_eq!(budget.used(), 1000 + OVERHEAD);
        let piece = held.split_to(10);
        drop(held);
        assert_eq!(budget.used(), 1000 + OVERHEAD);
        assert_eq!(&piece[..], [7; 10]);
        drop(piece);
        assert_eq!(budget.used(), 0);
        drop(budget.hold(Bytes::new()));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_fuller_the_budget_the_smaller_a_piece() {
        let budget = Budget::new(256 << 20);
        assert_eq!(budget.piece(4096, 128 << 10), 128 << 10);
        let mut charge = budget.charge(240 << 20);
        assert_eq!(budget.piece(4096, 128 << 10), 64 << 10);
        charge.set(300 << 20);
        assert_eq!(budget.piece(4096, 128 << 10), 4096, "what is open goes on");
        assert_eq!(budget.free(), 0);
    }

    #[test]
    fn what_is_new_waits_until_there_is_room() {
        let budget = Budget::new(100);
        assert!(budget.room().now_or_never().is_some());
        let first = budget.charge(60);
        let second = budget.charge(60);
        let mut waiting = Box::pin(budget.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        assert!(waiting.now_or_never().is_some());
        drop(second);
    }

    proptest! {
        /// Readers that never let go of what they have cannot take everything: the next one still
        /// gets a piece, until their number alone, each with the least, fills the budget.
        #[test]
        fn those_who_are_stuck_leave_room_for_others(stuck in 1usize..2_000) {
            let budget = Budget::new(256 << 20);
            let (least, most) = (4 << 10, 128 << 10);
            let held: Vec<_> = (0..stuck)
                .map(|_| budget.charge(budget.piece(least, most)))
                .collect();
            prop_assert!(budget.has_room());
            prop_assert!(budget.used() <= budget.limit());
            drop(held);
            prop_assert_eq!(budget.used(), 0);
        }

        #[test]
        fn what_is_charged_is_what_is_used(sizes in prop::collection::vec(0usize..5000, 1..20)) {
            let budget = Budget::new(1000);
            let mut charge = budget.charge(0);
            for size in sizes {
                charge.set(size);
                prop_assert_eq!(budget.used(), size);
                prop_assert_eq!(charge.bytes(), size);
                prop_assert_eq!(budget.has_room(), size < 1000);
            }
            drop(charge);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
