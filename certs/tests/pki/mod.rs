//! Certificates for tests, good and bad: the bad ones are made with rcgen, for the CA would refuse.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_certs::csr::Request;
use weft_certs::{BundleCell, CertificateAuthority, SpiffeId, Svid, SvidCell, TrustBundle};

pub const DOMAIN: &str = "cluster.local";
pub const HOUR: Duration = Duration::from_secs(3600);
pub const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(DOMAIN, namespace, account).unwrap()
}

pub fn authority() -> CertificateAuthority {
    CertificateAuthority::generate(DOMAIN, SystemTime::now(), YEAR).unwrap()
}

/// An SVID by the ordinary way: CSR, signature, parsing.
pub fn svid(ca: &CertificateAuthority, id: &SpiffeId) -> Svid {
    let request = Request::generate(id).unwrap();
    let signed = ca
        .sign(&request.csr_pem, id, None, SystemTime::now())
        .unwrap();
    Svid::from_pem(&signed.chain_pem, &request.key_pem).unwrap()
}

pub fn svid_cell(ca: &CertificateAuthority, id: &SpiffeId) -> Arc<SvidCell> {
    Arc::new(SvidCell::from(svid(ca, id)))
}

pub fn bundle_cell(bundle: TrustBundle) -> Arc<BundleCell> {
    Arc::new(BundleCell::new(bundle))
}

/// A leaf that may be anything but right, with its key.
pub struct Leaf {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Leaf {
    /// Starts from what the CA would sign for `uris`, lets `change` spoil it, and signs it with the
    /// CA's own key.
    pub fn mint(
        ca: &CertificateAuthority,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let (chain_pem, key_pem) = ca.to_pem();
        let issuers = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        Self::sign(issuers, KeyPair::from_pem(&key_pem).unwrap(), uris, change)
    }

    /// The same, but signed with a workload's own key: what one that has been taken over would try.
    pub fn mint_below(workload: &Self, uris: &[&str]) -> Self {
        let key = KeyPair::try_from(&workload.key).unwrap();
        Self::sign(workload.chain.clone(), key, uris, |_| {})
    }

    fn sign(
        issuers: Vec<CertificateDer<'static>>,
        issuer_key: KeyPair,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let issuer = Issuer::from_ca_cert_der(&issuers[0], issuer_key).unwrap();
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.not_before = (now - HOUR).into();
        params.not_after = (now + HOUR).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let mut chain = vec![leaf.into()];
        chain.extend(issuers);
        Self {
            chain,
            key: key.into(),
        }
    }
}
