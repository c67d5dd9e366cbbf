//! Who is the peer? A presented chain, a trust bundle and the time in; a SPIFFE id, or the reason
//! for refusing it, out.
//!
//! webpki's ordinary verifiers want a DNS name, which an SVID does not have: here the chain is
//! verified by webpki, and the name by us. When in doubt, refuse: a certificate that could be read
//! as two identities is nobody's.

mod error;
mod rustls_glue;

pub use error::{VerifyError, reason_in, reason_of};
pub(crate) use rustls_glue::{DnsServerVerifier, WorkloadClientVerifier, WorkloadServerVerifier};

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::TrustBundle;
use crate::spiffe::SpiffeId;
use crate::tls::provider;
use crate::x509;

/// Which end of the connection the peer is; its certificate must be meant for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// Who the peer may be.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// Any workload of a trust domain.
    TrustDomain(&'a str),
    /// One of these workloads.
    OneOf(&'a [SpiffeId]),
}

/// Verifies a workload's chain and says who it is.
pub fn verify_workload(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    expected: Expected<'_>,
    role: PeerRole,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let facts = x509::facts(leaf).map_err(VerifyError::Malformed)?;
    if facts.is_ca || facts.key_cert_sign || facts.crl_sign {
        return Err(VerifyError::CaAsLeaf);
    }
    let end_entity = EndEntityCert::try_from(leaf).map_err(malformed)?;
    verify_chain(&end_entity, intermediates, bundle, role, now)?;

    let id: SpiffeId = match facts.uri_sans.as_slice() {
        [] => return Err(VerifyError::NoUriSan),
        [uri] => uri.parse().map_err(VerifyError::BadId)?,
        several => return Err(VerifyError::SeveralUriSans(several.to_vec())),
    };
    check_identity(&id, expected)?;
    Ok(id)
}

/// Verifies a control plane server's chain and DNS name.
pub(crate) fn verify_dns_server(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), VerifyError> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(malformed)?;
    verify_chain(&end_entity, intermediates, bundle, PeerRole::Server, now)?;
    end_entity
        .verify_is_valid_for_subject_name(name)
        .map_err(|_| VerifyError::WrongName {
            expected: name.to_str().into_owned(),
            presented: end_entity.valid_dns_names().map(str::to_owned).collect(),
        })
}

fn check_identity(id: &SpiffeId, expected: Expected<'_>) -> Result<(), VerifyError> {
    let (in_domain, domain) = match expected {
        Expected::TrustDomain(domain) => (id.trust_domain() == domain, domain.to_owned()),
        Expected::OneOf(ids) if ids.contains(id) => return Ok(()),
        Expected::OneOf(ids) => (
            ids.iter()
                .any(|other| other.trust_domain() == id.trust_domain()),
            ids.first()
                .map(|id| id.trust_domain().to_owned())
                .unwrap_or_default(),
        ),
    };
    match expected {
        _ if !in_domain => Err(VerifyError::WrongTrustDomain {
            expected: domain,
            presented: id.clone(),
        }),
        Expected::TrustDomain(_) => Ok(()),
        Expected::OneOf(ids) => Err(VerifyError::WrongIdentity {
            expected: ids.to_vec(),
            presented: id.clone(),
        }),
    }
}

fn verify_chain(
    end_entity: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    role: PeerRole,
    now: UnixTime,
) -> Result<(), VerifyError> {
    let verify = |anchors: &[TrustAnchor<'_>]| {
        let usage = match role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        let algorithms = provider().signature_verification_algorithms.all;
        end_entity
            .verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None)
            .map(|_| ())
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    verify(&bundle.anchors_at(at)).map_err(|error| {
        // Say so if it would have passed but for the dates of the root itself. (webpki's own error
        // depends on whether the peer sent that root along.)
        let ended = bundle.anchors_not_at(at);
        if !ended.is_empty() && verify(&ended).is_ok() {
            return VerifyError::RootNotValid { now: at };
        }
        from_webpki(error)
    })
}

fn malformed(error: webpki::Error) -> VerifyError {
    VerifyError::Malformed(error.to_string())
}

fn from_webpki(error: webpki::Error) -> VerifyError {
    use webpki::Error;
    let time = |time: UnixTime| SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    match error {
        Error::CertExpired {
            time: now,
            not_after,
        } => VerifyError::Expired {
            not_after: time(not_after),
            now: time(now),
        },
        Error::CertNotValidYet {
            time: now,
            not_before,
        } => VerifyError::NotYetValid {
            not_before: time(not_before),
            now: time(now),
        },
        // A chain that ends in a root of the right name but another key is just as unknown.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => VerifyError::UnknownIssuer,
        Error::CaUsedAsEndEntity => VerifyError::CaAsLeaf,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            VerifyError::WrongUsage(error.to_string())
        }
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => malformed(error),
        other => VerifyError::Chain(other.to_string()),
    }
}
