//! SVIDs: a signed chain and its key (PEM) in, a checked identity that rustls can present out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pem::{self, PemError};
use crate::spiffe::{SpiffeId, SpiffeIdError};
use crate::tls::provider;
use crate::x509::{self, rfc3339};

/// A workload's X.509-SVID with its key.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    certified: Arc<CertifiedKey>,
    root: Option<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a chain and key are no SVID.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SvidError {
    /// Chain or key is not the PEM that it should be.
    #[error("SVID: {0}")]
    Pem(#[from] PemError),
    /// A certificate cannot be read, or the chain does not hold together.
    #[error("SVID: certificate {index} of the chain: {reason}")]
    Chain {
        /// Its position, from 0 (the leaf).
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// The leaf must carry one URI SAN.
    #[error("SVID: the leaf has {0} URI SANs, expected exactly one")]
    UriSans(usize),
    /// The URI SAN is not the id of a workload.
    #[error("SVID: {0}")]
    Id(#[from] SpiffeIdError),
    /// Key and leaf do not belong together, or the key is of no use.
    #[error("SVID of {id}: the key does not fit the certificate: {reason}")]
    Key {
        /// Whose.
        id: SpiffeId,
        /// What is wrong.
        reason: String,
    },
}

impl Svid {
    /// Reads a chain as a CA returns it (leaf first; the root may be last) and its key.
    ///
    /// Each member of `chain_pem` may hold several certificates. Dates are not judged here: ask
    /// [`Svid::is_valid_at`].
    pub fn from_pem<S: AsRef<str>>(chain_pem: &[S], key_pem: &str) -> Result<Self, SvidError> {
        let mut chain = Vec::new();
        for part in chain_pem {
            chain.extend(pem::certificates(part.as_ref())?);
        }
        let key = pem::private_key(key_pem)?;
        Self::from_ders(chain, key)
    }

    fn from_ders(
        mut chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, SvidError> {
        let leaf = chain.first().ok_or(PemError::Missing("certificate"))?;
        let facts = x509::facts(leaf).map_err(|reason| SvidError::Chain { index: 0, reason })?;
        let [uri] = facts.uri_sans.as_slice() else {
            return Err(SvidError::UriSans(facts.uri_sans.len()));
        };
        let id: SpiffeId = uri.parse()?;
        if facts.is_ca || facts.key_cert_sign || facts.crl_sign {
            return Err(SvidError::Chain {
                index: 0,
                reason: "the leaf is a CA's".to_owned(),
            });
        }
        for (index, pair) in chain.windows(2).enumerate() {
            if let [certificate, issuer] = pair {
                x509::check_signed_by(certificate, issuer)
                    .map_err(|reason| SvidError::Chain { index, reason })?;
            }
        }
        let root = take_root(&mut chain)?;
        let wrong_key = |error: rustls::Error| SvidError::Key {
            id: id.clone(),
            reason: error.to_string(),
        };
        let signing = provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(wrong_key)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(wrong_key)?;
        Ok(Self {
            id,
            certified: Arc::new(certified),
            root,
            key: Arc::new(key),
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }

    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What is presented in handshakes: leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The root, if the CA sent it at the chain's end.
    pub fn root(&self) -> Option<&CertificateDer<'static>> {
        self.root.as_ref()
    }

    /// First instant of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Last instant of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the leaf's dates cover `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// When to ask for the next one: half the lifetime, plus or minus a tenth of that half by
    /// `jitter` (0 to 1), so that a node's certificates do not all renew in the same second.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        renew_at(self.not_before, self.not_after, jitter)
    }

    /// The chain (with the root, if known) and the key as PEM, to keep on a memory-backed volume.
    pub fn to_pem(&self) -> (Vec<String>, String) {
        let chain = self.chain().iter().chain(&self.root);
        let key = match self.key.as_ref() {
            PrivateKeyDer::Pkcs8(key) => pem::encode_key(key.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(key) => pem::encode("EC PRIVATE KEY", key.secret_sec1_der()),
            other => pem::encode("RSA PRIVATE KEY", other.secret_der()),
        };
        (chain.map(|der| pem::encode_certificate(der)).collect(), key)
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// Half the lifetime, jittered by up to a tenth of that half to both sides.
pub(crate) fn renew_at(from: SystemTime, to: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = to.duration_since(from).unwrap_or(Duration::ZERO);
    let factor = 0.9
        + 0.2
            * if jitter.is_finite() {
                jitter.clamp(0.0, 1.0)
            } else {
                0.5
            };
    from + (lifetime / 2).mul_f64(factor)
}

/// Takes a self-signed certificate off the chain's end: peers have it, or do not trust it.
fn take_root(
    chain: &mut Vec<CertificateDer<'static>>,
) -> Result<Option<CertificateDer<'static>>, SvidError> {
    let index = chain.len() - 1;
    if index == 0 {
        return Ok(None);
    }
    let facts = x509::facts(&chain[index]).map_err(|reason| SvidError::Chain { index, reason })?;
    Ok(if facts.self_issued { chain.pop() } else { None })
}

/// Never prints the key.
impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({} until {})", self.id, rfc3339(self.not_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_life_give_or_take_a_tenth_of_it() {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let to = from + Duration::from_secs(200);
        for (jitter, seconds) in [
            (0.0, 90),
            (0.5, 100),
            (1.0, 110),
            (7.0, 110),
            (f64::NAN, 100),
        ] {
            let found = renew_at(from, to, jitter).duration_since(from).unwrap();
            assert!(found.abs_diff(Duration::from_secs(seconds)) < Duration::from_millis(1));
        }
        assert_eq!(renew_at(to, from, 0.5), to);
    }
}
