//! The control plane's own serving certificate: chain and key in, what rustls presents out.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::svid;
use crate::tls::provider;
use crate::x509::rfc3339;

/// A certificate with DNS names, and its key.
#[derive(Clone)]
pub struct ServingCertificate {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl ServingCertificate {
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Self, rustls::Error> {
        let certified = CertifiedKey::from_der(chain, key, provider())?;
        Ok(Self {
            certified: Arc::new(certified),
            not_before,
            not_after,
        })
    }

    /// Last instant of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When to make the next one, as [`crate::Svid::renew_at`].
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        svid::renew_at(self.not_before, self.not_after, jitter)
    }
}

/// Never prints the key.
impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServingCertificate(until {})", rfc3339(self.not_after))
    }
}

/// A serving certificate that is replaced as it is renewed.
#[derive(Debug)]
pub struct ServingCell(ArcSwap<ServingCertificate>);

impl ServingCell {
    /// A cell that starts with `certificate`.
    pub fn new(certificate: ServingCertificate) -> Self {
        Self(ArcSwap::from_pointee(certificate))
    }

    /// Puts a certificate in the place of the last one.
    pub fn set(&self, certificate: ServingCertificate) {
        self.0.store(Arc::new(certificate));
    }

    /// The certificate that is presented now.
    pub fn current(&self) -> Arc<ServingCertificate> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for ServingCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified.clone())
    }
}
