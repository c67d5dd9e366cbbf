//! Peak EWMA: latencies flow in, an endpoint's cost flows out.
//!
//! A latency above the estimate replaces it at once (a slow endpoint is left quickly); one below
//! pulls it down exponentially, by the time since the last observation. An estimate that has not
//! been confirmed for a while means little: in a comparison it fades, by the same decay, into
//! what is known of both candidates. So an endpoint that is new, or was slow long ago, is taken
//! for as good as its peer, and only its requests in flight count: it is neither flooded (a
//! request in flight makes it dearer at once) nor starved.

/// Time in which an estimate loses 63 % of its weight. Ten seconds, as Finagle and linkerd: long
/// against a burst, short against the time in which a person would notice.
pub const DECAY_MS: f32 = 10_000.0;

/// The estimate. Fits 64 bits, so that an atomic can hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ewma {
    /// Microseconds; 0 if nothing was observed yet.
    cost: f32,
    /// When it was last observed: milliseconds of a clock that wraps.
    at: u32,
}

impl Ewma {
    /// The estimate after a latency (microseconds) was observed at `now` (milliseconds).
    #[must_use]
    pub fn observe(self, now: u32, latency: f32) -> Self {
        // Not below 1 µs: zero means "nothing observed".
        let latency = latency.max(1.0);
        let cost = if latency >= self.cost {
            latency
        } else {
            let w = self.weight(now);
            self.cost.mul_add(w, latency * (1.0 - w))
        };
        Self { cost, at: now }
    }

    /// How much the estimate still counts at `now`: 1 when fresh, 0 if nothing was observed.
    pub fn weight(self, now: u32) -> f32 {
        if self.cost == 0.0 {
            return 0.0;
        }
        match now.wrapping_sub(self.at) {
            0 => 1.0,
            // Another thread's reading of the clock was a little later than ours.
            age if age > u32::MAX / 2 => 1.0,
            age => (-(age as f32) / DECAY_MS).exp(),
        }
    }

    /// The estimate in microseconds, as it was when last observed.
    pub fn cost(self) -> f32 {
        self.cost
    }

    /// As 64 bits.
    pub fn to_bits(self) -> u64 {
        u64::from(self.cost.to_bits()) << 32 | u64::from(self.at)
    }

    /// From [`Self::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self {
            cost: f32::from_bits((bits >> 32) as u32),
            at: bits as u32,
        }
    }
}

/// Whether the first of two candidates (estimate, requests in flight) is to be preferred at `now`.
pub fn prefer_first(a: (Ewma, u32), b: (Ewma, u32), now: u32) -> bool {
    let (wa, wb) = (a.0.weight(now), b.0.weight(now));
    let weights = wa + wb;
    let common = if weights > 0.0 {
        a.0.cost.mul_add(wa, b.0.cost * wb) / weights
    } else {
        1.0
    };
    let score = |(ewma, in_flight): (Ewma, u32), w: f32| {
        ewma.cost.mul_add(w, common * (1.0 - w)) * (in_flight as f32 + 1.0)
    };
    score(a, wa) <= score(b, wb)
}
