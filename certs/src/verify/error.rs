//! Why a peer was refused: typed, carried through rustls and `std::io` errors, and found again.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::{CertificateError, OtherError};

use crate::spiffe::{SpiffeId, SpiffeIdError};
use crate::x509::rfc3339;

/// Why a handshake was refused, by us or by the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The peer presented no certificate.
    #[error("peer presented no certificate")]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("peer's certificate is malformed: {0}")]
    Malformed(String),
    /// A certificate of the chain is over.
    #[error("peer's certificate expired at {}, it is {}", rfc3339(*not_after), rfc3339(*now))]
    Expired {
        /// When it ended.
        not_after: SystemTime,
        /// When it was verified.
        now: SystemTime,
    },
    /// A certificate of the chain has not begun.
    #[error("peer's certificate is not valid before {}, it is {}; compare the clocks", rfc3339(*not_before), rfc3339(*now))]
    NotYetValid {
        /// When it begins.
        not_before: SystemTime,
        /// When it was verified.
        now: SystemTime,
    },
    /// The chain ends in a trusted root whose own dates do not cover now.
    #[error("peer's certificate chains to a root that is not valid at {}; rotate the root", rfc3339(*now))]
    RootNotValid {
        /// When it was verified.
        now: SystemTime,
    },
    /// No trusted root signed it.
    #[error("peer's certificate is signed by no root of the trust bundle")]
    UnknownIssuer,
    /// The leaf is the certificate of a CA, or may sign like one.
    #[error("peer presented a CA certificate as its own")]
    CaAsLeaf,
    /// Not meant for this end of a connection (extended key usage).
    #[error("peer's certificate is not meant for this use: {0}")]
    WrongUsage(String),
    /// Any other failure of the chain.
    #[error("peer's certificate chain: {0}")]
    Chain(String),
    /// The leaf names nobody.
    #[error("peer's certificate has no URI SAN")]
    NoUriSan,
    /// The leaf names more than one.
    #[error("peer's certificate has {} URI SANs, expected exactly one: {}", .0.len(), .0.join(" "))]
    SeveralUriSans(Vec<String>),
    /// The URI SAN is no workload's id.
    #[error("peer's certificate: {0}")]
    BadId(SpiffeIdError),
    /// A workload of another trust domain.
    #[error("peer {presented} is of another trust domain, expected {expected}")]
    WrongTrustDomain {
        /// The trust domain that we are in.
        expected: String,
        /// Who the peer is.
        presented: SpiffeId,
    },
    /// Another workload than the one that was dialled.
    #[error("peer is {presented}, expected {}", join(expected))]
    WrongIdentity {
        /// Who it should have been.
        expected: Vec<SpiffeId>,
        /// Who it is.
        presented: SpiffeId,
    },
    /// A control plane server with another name.
    #[error("server's certificate is for {presented:?}, expected {expected:?}")]
    WrongName {
        /// The DNS name that was dialled.
        expected: String,
        /// The DNS names of the certificate.
        presented: Vec<String>,
    },
    /// The peer does not hold the key of its certificate.
    #[error("peer did not prove that it holds its certificate's key")]
    BadSignature,
    /// We have no SVID, so there is no trust domain to expect either.
    #[error("there is no SVID for this workload yet")]
    NoSvid,
    /// No TLS version or algorithm in common: TLS 1.3 is the only one.
    #[error("peer does not speak TLS 1.3 as needed: {0}")]
    Incompatible(String),
    /// The peer refused us; only it knows why.
    #[error("peer refused the handshake with alert {0}; see the peer's log for its reason")]
    RefusedByPeer(String),
}

impl VerifyError {
    /// A short, stable name for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed(_) => "malformed",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::RootNotValid { .. } => "root_not_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::WrongUsage(_) => "wrong_usage",
            Self::Chain(_) => "chain",
            Self::NoUriSan => "no_uri_san",
            Self::SeveralUriSans(_) => "several_uri_sans",
            Self::BadId(_) => "bad_id",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::WrongName { .. } => "wrong_name",
            Self::BadSignature => "bad_signature",
            Self::NoSvid => "no_svid",
            Self::Incompatible(_) => "incompatible",
            Self::RefusedByPeer(_) => "refused_by_peer",
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The reason inside the error of a failed handshake, or of the first read after it: with TLS 1.3
/// a client learns only then that the server refused its certificate.
pub fn reason_of(error: &io::Error) -> Option<VerifyError> {
    reason_in(error)
}

/// [`reason_of`] for any error, searched along its sources.
pub fn reason_in(error: &(dyn StdError + 'static)) -> Option<VerifyError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(reason) = error.downcast_ref::<VerifyError>() {
            return Some(reason.clone());
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return from_rustls(tls);
        }
        // The source of an io::Error is that of the error within, which would be passed over.
        let within = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

fn from_rustls(error: &rustls::Error) -> Option<VerifyError> {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref::<VerifyError>().cloned()
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            Some(VerifyError::BadSignature)
        }
        Error::InvalidCertificate(other) => Some(VerifyError::Chain(other.to_string())),
        Error::NoCertificatesPresented => Some(VerifyError::NoCertificate),
        Error::PeerIncompatible(how) => Some(VerifyError::Incompatible(format!("{how:?}"))),
        Error::AlertReceived(alert) => Some(VerifyError::RefusedByPeer(format!("{alert:?}"))),
        _ => None,
    }
}

fn join(ids: &[SpiffeId]) -> String {
    ids.iter()
        .map(SpiffeId::as_str)
        .collect::<Vec<_>>()
        .join(" or ")
}
