//! Where a TLS configuration finds the SVID and the trust bundle of this very moment.
//!
//! Handshakes ask at the time they happen, so rotation changes neither listeners nor configurations.

use std::fmt::Debug;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::bundle::TrustBundle;
use crate::svid::Svid;

/// Gives a workload's current SVID.
pub trait SvidSource: Debug + Send + Sync {
    /// The SVID to present now; `None` while there is none, and handshakes are refused.
    fn svid(&self) -> Option<Arc<Svid>>;
}

/// Gives the current trust bundle.
pub trait BundleSource: Debug + Send + Sync {
    /// The roots to trust now.
    fn bundle(&self) -> Arc<TrustBundle>;
}

/// An SVID that is replaced as it is renewed.
#[derive(Debug, Default)]
pub struct SvidCell(ArcSwapOption<Svid>);

/// A trust bundle that is replaced as roots rotate.
#[derive(Debug, Default)]
pub struct BundleCell(ArcSwap<TrustBundle>);

impl SvidCell {
    /// An empty cell.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an SVID in the place of the last one.
    pub fn set(&self, svid: impl Into<Arc<Svid>>) {
        self.0.store(Some(svid.into()));
    }
}

impl From<Svid> for SvidCell {
    fn from(svid: Svid) -> Self {
        Self(ArcSwapOption::from_pointee(svid))
    }
}

impl SvidSource for SvidCell {
    fn svid(&self) -> Option<Arc<Svid>> {
        self.0.load_full()
    }
}

impl BundleCell {
    /// A cell that starts with `bundle`.
    pub fn new(bundle: TrustBundle) -> Self {
        Self(ArcSwap::from_pointee(bundle))
    }

    /// Puts a bundle in the place of the last one.
    pub fn set(&self, bundle: impl Into<Arc<TrustBundle>>) {
        self.0.store(bundle.into());
    }
}

impl BundleSource for BundleCell {
    fn bundle(&self) -> Arc<TrustBundle> {
        self.0.load_full()
    }
}
