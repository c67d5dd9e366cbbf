//! Trust bundles: the roots that are trusted now. PEM or DER in; anchors for verification, and PEM, out.
//!
//! While a root is rotated the bundle is the union of old and new, so that no leaf of either fails.

use std::fmt;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::pem::{self, PemError};
use crate::x509;

/// A set of root certificates, in the order in which they were added, without repetition.
#[derive(Clone, Default)]
pub struct TrustBundle {
    roots: Vec<Root>,
}

#[derive(Clone)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a trust bundle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The text is not PEM certificates.
    #[error("trust bundle: {0}")]
    Pem(#[from] PemError),
    /// A member cannot be a root.
    #[error("trust bundle: certificate {index} is unusable as a root: {reason}")]
    Root {
        /// Its position, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
}

impl TrustBundle {
    /// Reads a PEM file of one or more roots.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        Self::from_ders(pem::certificates(pem)?)
    }

    /// Takes DER certificates; none at all makes a bundle that trusts nobody.
    pub fn from_ders<D: AsRef<[u8]>>(
        ders: impl IntoIterator<Item = D>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self::default();
        for (index, der) in ders.into_iter().enumerate() {
            let root =
                Root::parse(der.as_ref()).map_err(|reason| BundleError::Root { index, reason })?;
            bundle.add(root);
        }
        Ok(bundle)
    }

    /// All roots as one PEM file.
    pub fn to_pem(&self) -> String {
        self.roots()
            .map(|der| pem::encode_certificate(der))
            .collect()
    }

    /// The roots, DER.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// What either trusts: the bundle to use during a rotation.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for root in &other.roots {
            both.add(root.clone());
        }
        both
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Anchors whose own certificate is valid at `now` (webpki looks at no root's dates).
    pub(crate) fn anchors_at(&self, now: SystemTime) -> Vec<TrustAnchor<'_>> {
        self.anchors(|root| root.not_before <= now && now <= root.not_after)
    }

    /// Anchors whose own certificate is not valid at `now`, to tell that reason from others.
    pub(crate) fn anchors_not_at(&self, now: SystemTime) -> Vec<TrustAnchor<'_>> {
        self.anchors(|root| now < root.not_before || root.not_after < now)
    }

    fn anchors(&self, wanted: impl Fn(&Root) -> bool) -> Vec<TrustAnchor<'_>> {
        self.roots
            .iter()
            .filter(|root| wanted(root))
            .map(|root| root.anchor.clone())
            .collect()
    }

    fn add(&mut self, root: Root) {
        if !self.roots.iter().any(|known| known.der == root.der) {
            self.roots.push(root);
        }
    }
}

impl Root {
    fn parse(der: &[u8]) -> Result<Self, String> {
        let der = CertificateDer::from(der.to_vec());
        let facts = x509::facts(&der)?;
        if !facts.is_ca {
            return Err("it is not a CA certificate".to_owned());
        }
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| error.to_string())?
            .to_owned();
        Ok(Self {
            anchor,
            not_before: facts.not_before,
            not_after: facts.not_after,
            der,
        })
    }
}

/// Same roots, in any order.
impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self
                .roots()
                .all(|der| other.roots().any(|theirs| theirs == der))
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.len())
    }
}
