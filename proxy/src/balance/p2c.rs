//! Power of two choices: candidates flow in, in up to [`SLICES`] slices that stay where they are
//! (no list is built for a pick); one candidate flows out.

use std::sync::Arc;

use rand::Rng;

use super::{Load, ewma};

/// Three classes of readiness times three distances.
pub const SLICES: usize = 9;

/// Random draws that may hit a candidate that is out of question before a scan settles it.
const DRAWS: usize = 4;

/// Something that can be chosen.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &Arc<Load>;
}

/// A list of candidates, made of slices.
#[derive(Debug)]
pub struct Candidates<'a, C> {
    slices: [&'a [C]; SLICES],
    used: usize,
    len: usize,
}

impl<'a, C> Default for Candidates<'a, C> {
    fn default() -> Self {
        Self {
            slices: [&[]; SLICES],
            used: 0,
            len: 0,
        }
    }
}

impl<'a, C: Candidate> Candidates<'a, C> {
    /// Adds a slice. At most [`SLICES`] that are not empty.
    pub fn push(&mut self, slice: &'a [C]) {
        if !slice.is_empty() {
            self.slices[self.used] = slice;
            self.used += 1;
            self.len += slice.len();
        }
    }

    /// Number of candidates.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The better of two that are drawn at random from those that are allowed and not (if
    /// `healthy`) ejected. `None`: there is none.
    pub fn pick(
        &self,
        now: u32,
        healthy: bool,
        allowed: impl Fn(&C) -> bool,
        rng: &mut impl Rng,
    ) -> Option<&'a C> {
        let eligible = |c: &C| !(healthy && c.load().ejected(now)) && allowed(c);
        let first = self.draw(None, &eligible, rng)?;
        let a = self.get(first);
        let Some(second) = self.draw(Some(first), &eligible, rng) else {
            return Some(a);
        };
        let b = self.get(second);
        let score = |c: &C| (c.load().ewma(), c.load().in_flight());
        Some(if ewma::prefer_first(score(a), score(b), now) {
            a
        } else {
            b
        })
    }

    /// A random eligible index other than `not`.
    fn draw(
        &self,
        not: Option<usize>,
        eligible: &impl Fn(&C) -> bool,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let n = self.len - usize::from(not.is_some());
        if n == 0 {
            return None;
        }
        // Skips `not` without a second draw.
        let shift = |i: usize| i + usize::from(not.is_some_and(|not| i >= not));
        let mut at = 0;
        for _ in 0..DRAWS {
            at = rng.random_range(0..n);
            if eligible(self.get(shift(at))) {
                return Some(shift(at));
            }
        }
        (1..=n)
            .map(|step| shift((at + step) % n))
            .find(|&i| eligible(self.get(i)))
    }

    fn get(&self, mut index: usize) -> &'a C {
        for slice in &self.slices[..self.used] {
            match slice.get(index) {
                Some(c) => return c,
                None => index -= slice.len(),
            }
        }
        unreachable!("an index is below the sum of the slices' lengths")
    }
}
