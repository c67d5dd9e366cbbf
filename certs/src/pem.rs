//! PEM in and out, for certificates and keys. Anything unexpected in a file is an error: a key
//! where certificates belong is a leak that must be noticed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why PEM text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Not PEM.
    #[error("not PEM: {0}")]
    Syntax(String),
    /// PEM, but not of the kind that belongs here.
    #[error("PEM holds {found}, expected {expected}")]
    Kind {
        /// What is there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// Nothing of the kind in it.
    #[error("PEM holds no {0}")]
    Missing(&'static str),
}

/// All certificates, in order; nothing but certificates, and at least one.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = sections(pem)?
        .into_iter()
        .map(|(kind, der)| match kind {
            SectionKind::Certificate => Ok(CertificateDer::from(der)),
            other => Err(wrong_kind(other, "certificates only")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        Err(PemError::Missing("certificate"))
    } else {
        Ok(found)
    }
}

/// The only private key (PKCS#8, SEC1 or PKCS#1).
pub(crate) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut sections = sections(pem)?.into_iter();
    let (kind, der) = sections.next().ok_or(PemError::Missing("private key"))?;
    if let Some((extra, _)) = sections.next() {
        return Err(wrong_kind(extra, "one private key only"));
    }
    PrivateKeyDer::from_pem(kind, der).ok_or_else(|| wrong_kind(kind, "a private key"))
}

/// The only certificate signing request, as DER.
pub(crate) fn request(pem: &str) -> Result<Vec<u8>, PemError> {
    let mut sections = sections(pem)?.into_iter();
    match (sections.next(), sections.next()) {
        (Some((SectionKind::Csr, der)), None) => Ok(der),
        (None, _) => Err(PemError::Missing("certificate signing request")),
        (Some((SectionKind::Csr, _)), Some((extra, _))) | (Some((extra, _)), _) => {
            Err(wrong_kind(extra, "one certificate signing request only"))
        }
    }
}

/// One certificate as PEM.
pub(crate) fn encode_certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// A PKCS#8 key as PEM.
pub(crate) fn encode_key(der: &[u8]) -> String {
    encode("PRIVATE KEY", der)
}

fn sections(pem: &str) -> Result<Vec<(SectionKind, Vec<u8>)>, PemError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PemError::Syntax(error.to_string()))
}

fn wrong_kind(found: SectionKind, expected: &'static str) -> PemError {
    PemError::Kind {
        found: format!("{found:?}"),
        expected,
    }
}

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
