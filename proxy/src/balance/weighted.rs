//! Weighted choice between the backends of a rule: weights flow in, an index flows out. The only
//! implementation, for L4 and L7.
//!
//! Not by dice but by a Weyl sequence: a 64-bit position that each choice moves on by the golden
//! ratio, scaled to the sum of the weights. Its points are spread evenly however long one looks
//! (after n choices a share is off by O(log n), where dice are off by √n), also for every k-th
//! request, so that clients that alternate between kinds of requests get the shares for each
//! kind. Each table starts at a random position, lest all nodes choose in step.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// 2⁶⁴ divided by the golden ratio, odd: the increment whose multiples spread most evenly.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The weights of a rule's backends.
#[derive(Debug)]
pub struct Weighted {
    /// The running sum of the weights.
    ends: Box<[u64]>,
    position: AtomicU64,
}

impl Weighted {
    /// For these weights, in the order of the backends. A weight of 0 is never chosen.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let ends = weights
            .into_iter()
            .scan(0u64, |sum, weight| {
                *sum += u64::from(weight);
                Some(*sum)
            })
            .collect();
        Self {
            ends,
            position: AtomicU64::new(rand::random()),
        }
    }

    /// The index of a backend; `None` if there is none, or none has any weight.
    pub fn choose(&self) -> Option<usize> {
        let total = *self.ends.last().filter(|total| **total > 0)?;
        if let [_] = *self.ends {
            return Some(0);
        }
        let position = self.position.fetch_add(STEP, Relaxed);
        let point = ((u128::from(position) * u128::from(total)) >> 64) as u64;
        self.ends.iter().position(|end| point < *end)
    }
}
