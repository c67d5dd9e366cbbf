//! The asking side of certification: a fresh key and a signing request for a SPIFFE id, as PEM.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use crate::spiffe::SpiffeId;

/// A key and the request to certify it. The key never leaves the process that made it.
pub struct Request {
    /// PKCS#8, PEM.
    pub key_pem: String,
    /// PKCS#10, PEM.
    pub csr_pem: String,
}

/// A key or request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a signing request for {id}: {source}")]
pub struct RequestError {
    id: SpiffeId,
    source: rcgen::Error,
}

impl Request {
    /// Makes an ECDSA P-256 key and a request that names `id`. The name is a courtesy to other
    /// CAs (istio-csr reads it); ours takes only the key.
    pub fn generate(id: &SpiffeId) -> Result<Self, RequestError> {
        let make = || -> Result<Self, rcgen::Error> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
            let csr_pem = params.serialize_request(&key)?.pem()?;
            Ok(Self {
                key_pem: key.serialize_pem(),
                csr_pem,
            })
        };
        make().map_err(|source| RequestError {
            id: id.clone(),
            source,
        })
    }
}

/// Never prints the key.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}
