//! Passive health: connect failures and successes flow in, "leave it alone until" flows out.
//!
//! An endpoint that refuses several connections in a row is ejected, each time for twice as long;
//! when the time is over one more failure is enough to eject it again. A success forgets all.
//! That not all endpoints of a Service are ejected is [`super::p2c`]'s care.

/// Failures in a row that eject. More than one, for a single failure may be the network's.
pub const FAILURES: u8 = 3;
/// The first ejection's length in milliseconds.
pub const FIRST_EJECTION_MS: u32 = 1_000;
/// The longest ejection: an endpoint that is back must not wait longer than a person would.
pub const LONGEST_EJECTION_MS: u32 = 30_000;

/// What is remembered of an endpoint. Fits 64 bits, so that an atomic can hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Failures in a row, up to [`FAILURES`].
    failures: u8,
    /// Ejections since the last success.
    ejections: u8,
    /// The end of the ejection: milliseconds of a clock that wraps.
    until: u32,
}

impl Health {
    /// After a failure to connect at `now`.
    #[must_use]
    pub fn failed(self, now: u32) -> Self {
        if self.ejected(now) {
            // Connections that were under way when it was ejected say nothing new.
            return self;
        }
        let failures = (self.failures + 1).min(FAILURES);
        if failures < FAILURES {
            return Self { failures, ..self };
        }
        let length = FIRST_EJECTION_MS
            .saturating_mul(1 << self.ejections.min(16))
            .min(LONGEST_EJECTION_MS);
        Self {
            failures,
            ejections: self.ejections.saturating_add(1),
            until: now.wrapping_add(length),
        }
    }

    /// Whether it is ejected at `now`.
    pub fn ejected(self, now: u32) -> bool {
        self.failures >= FAILURES
            && (1..=LONGEST_EJECTION_MS).contains(&self.until.wrapping_sub(now))
    }

    /// As 64 bits; 0 is a healthy endpoint.
    pub fn to_bits(self) -> u64 {
        u64::from(self.until) << 32 | u64::from(self.ejections) << 8 | u64::from(self.failures)
    }

    /// From [`Self::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self {
            failures: bits as u8,
            ejections: (bits >> 8) as u8,
            until: (bits >> 32) as u32,
        }
    }
}
