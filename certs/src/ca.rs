//! The built-in CA: a CSR, the id that the caller has been granted, and the time in; a signed
//! chain out. ECDSA P-256. Who may have which id is the caller's business.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::bundle::{BundleError, TrustBundle};
use crate::pem::{self, PemError};
use crate::serving::ServingCertificate;
use crate::spiffe::{SpiffeId, SpiffeIdError, check_trust_domain};
use crate::x509::{self, rfc3339};

/// How long leaves last, and the most that a caller may ask for: there is no revocation, so a
/// stolen key is bounded by this alone.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates start this long before they were signed, for nodes whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(2 * 60);
/// How long a root lasts by default: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Holds the signing key of one trust domain.
pub struct CertificateAuthority {
    trust_domain: String,
    issuer: Issuer<'static, KeyPair>,
    /// The signing certificate first, the root last; at least one.
    chain: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub struct Signed {
    /// PEM, one certificate each: leaf first, root last (the order of Istio's CSR protocol).
    pub chain_pem: Vec<String>,
    /// First instant of the leaf's validity.
    pub not_before: SystemTime,
    /// Last instant of the leaf's validity.
    pub not_after: SystemTime,
}

/// Why the CA could not be loaded, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The name cannot be a trust domain.
    #[error("CA: {0}")]
    TrustDomain(SpiffeIdError),
    /// Certificate or key of the CA is not the PEM that it should be.
    #[error("CA: {0}")]
    Pem(#[from] PemError),
    /// A certificate of the CA's chain is unfit.
    #[error("CA: certificate {index} of the chain: {reason}")]
    Chain {
        /// Its position, from 0 (the signing certificate).
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// The CA's key is another certificate's.
    #[error(
        "CA: the key does not belong to the first certificate; check that both files are of one CA"
    )]
    KeyMismatch,
    /// The CSR is malformed or was not signed with the key that it names.
    #[error("certificate signing request for {id}: {reason}")]
    Request {
        /// The id that was granted.
        id: SpiffeId,
        /// What is wrong.
        reason: String,
    },
    /// The id is not in the CA's trust domain.
    #[error("cannot sign {id}: this CA's trust domain is {trust_domain}")]
    ForeignTrustDomain {
        /// What was to be signed.
        id: SpiffeId,
        /// The CA's.
        trust_domain: String,
    },
    /// The CA's own certificate is not valid now.
    #[error("CA of {trust_domain}: its certificate is valid from {} to {} and it is {}; rotate the root", rfc3339(*not_before), rfc3339(*not_after), rfc3339(*now))]
    NotValid {
        /// The CA's.
        trust_domain: String,
        /// Start of the CA's certificate.
        not_before: SystemTime,
        /// End of the CA's certificate.
        not_after: SystemTime,
        /// When it was asked.
        now: SystemTime,
    },
    /// Making or signing a certificate failed.
    #[error("CA: cannot sign: {0}")]
    Signing(#[from] rcgen::Error),
    /// No random numbers for a serial.
    #[error("CA: the system gives no random numbers")]
    Random,
    /// The chain's root cannot be trusted.
    #[error("CA: {0}")]
    Bundle(#[from] BundleError),
}

impl CertificateAuthority {
    /// Makes a self-signed root for `trust_domain`.
    pub fn generate(
        trust_domain: &str,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = authority_params(trust_domain, "root", &key, now, now + lifetime)?;
        let root = params.self_signed(&key)?;
        Self::from_parts(trust_domain, vec![root.into()], key)
    }

    /// Loads a CA: its certificate (a root; or an intermediate, then its issuers, the root last)
    /// and the key of the first.
    pub fn load(trust_domain: &str, chain_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let chain = pem::certificates(chain_pem)?;
        let key = KeyPair::try_from(&pem::private_key(key_pem)?)?;
        Self::from_parts(trust_domain, chain, key)
    }

    /// Loads a CA from parts in any order, as operators have them: the signing certificate (what else
    /// is in its PEM counts as one of the others), its key, and others, among which its issuers are.
    /// Beside the CA: everything self-signed among them, the CA's own root first, for during a
    /// rotation there are several.
    pub fn assemble(
        trust_domain: &str,
        certificate_pem: &str,
        key_pem: &str,
        others_pem: &str,
    ) -> Result<(Self, TrustBundle), CaError> {
        let mut certificates = pem::certificates(certificate_pem)?.into_iter();
        let first = certificates
            .next()
            .ok_or(PemError::Missing("certificate"))?;
        let mut others: Vec<_> = certificates.collect();
        if !others_pem.trim().is_empty() {
            others.extend(pem::certificates(others_pem)?);
        }
        let is_root = |der: &CertificateDer<'_>| x509::check_signed_by(der, der).is_ok();
        let mut chain = vec![first];
        while let Some(last) = chain.last().filter(|last| !is_root(last)) {
            let issuer = others
                .iter()
                .find(|other| !chain.contains(other) && x509::check_signed_by(last, other).is_ok());
            let Some(issuer) = issuer.cloned() else {
                return Err(CaError::Chain {
                    index: chain.len() - 1,
                    reason: "its issuer is missing; add every certificate up to the root"
                        .to_owned(),
                });
            };
            chain.push(issuer);
        }
        let roots = chain
            .last()
            .into_iter()
            .chain(others.iter().filter(|other| is_root(other)));
        let bundle = TrustBundle::from_ders(roots)?;
        let key = KeyPair::try_from(&pem::private_key(key_pem)?)?;
        Ok((Self::from_parts(trust_domain, chain, key)?, bundle))
    }

    /// Makes a CA below this one, so that the root's key can stay elsewhere.
    pub fn intermediate(&self, now: SystemTime, lifetime: Duration) -> Result<Self, CaError> {
        self.check_valid(now)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let end = (now + lifetime).min(self.not_after);
        let mut params = authority_params(&self.trust_domain, "intermediate", &key, now, end)?;
        params.not_before = (now - BACKDATE).max(self.not_before).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer)?;
        let mut chain = vec![signed.into()];
        chain.extend(self.chain.iter().cloned());
        Self::from_parts(&self.trust_domain, chain, key)
    }

    fn from_parts(
        trust_domain: &str,
        chain: Vec<CertificateDer<'static>>,
        key: KeyPair,
    ) -> Result<Self, CaError> {
        check_trust_domain(trust_domain).map_err(CaError::TrustDomain)?;
        let mut not_before = SystemTime::UNIX_EPOCH;
        let mut not_after: Option<SystemTime> = None;
        for (index, certificate) in chain.iter().enumerate() {
            let unfit = |reason: String| CaError::Chain { index, reason };
            let facts = x509::facts(certificate).map_err(unfit)?;
            if !facts.is_ca || !facts.key_cert_sign {
                return Err(unfit("it is not a CA certificate that may sign".to_owned()));
            }
            if index == 0 && facts.spki != key.subject_public_key_info() {
                return Err(CaError::KeyMismatch);
            }
            let issuer = chain.get(index + 1).unwrap_or(certificate);
            x509::check_signed_by(certificate, issuer).map_err(unfit)?;
            not_before = not_before.max(facts.not_before);
            not_after = Some(not_after.map_or(facts.not_after, |end| end.min(facts.not_after)));
        }
        let first = chain.first().ok_or(PemError::Missing("certificate"))?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            issuer: Issuer::from_ca_cert_der(first, key)?,
            not_before,
            not_after: not_after.unwrap_or(not_before),
            chain,
        })
    }

    /// The CA's certificate (and its issuers) and its key, as PEM. Keep the key at mode 0600.
    pub fn to_pem(&self) -> (String, String) {
        let chain = self
            .chain
            .iter()
            .map(|der| pem::encode_certificate(der))
            .collect();
        (chain, self.issuer.key().serialize_pem())
    }

    /// The trust domain that it signs for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// When its own chain ends: rotate well before.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its root, as a trust bundle.
    pub fn trust_bundle(&self) -> Result<TrustBundle, CaError> {
        Ok(TrustBundle::from_ders(self.chain.last())?)
    }

    /// Signs the public key of a CSR for `id`, which the caller has been granted. Names and
    /// extensions of the CSR are never looked at.
    ///
    /// The leaf lasts for `lifetime` ([`LEAF_LIFETIME`] if `None`, and at most), and never longer
    /// than the CA.
    pub fn sign(
        &self,
        csr_pem: &str,
        id: &SpiffeId,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<Signed, CaError> {
        if id.trust_domain() != self.trust_domain {
            return Err(CaError::ForeignTrustDomain {
                id: id.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let key = public_key(csr_pem).map_err(|reason| CaError::Request {
            id: id.clone(),
            reason,
        })?;
        let (mut params, not_before, not_after) = self.leaf_params(lifetime, now)?;
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain_pem = std::iter::once(leaf.der())
            .chain(&self.chain)
            .map(|der| pem::encode_certificate(der))
            .collect();
        Ok(Signed {
            chain_pem,
            not_before,
            not_after,
        })
    }

    /// Makes a key and certificate with DNS names, for a server of the control plane itself. It
    /// carries no SPIFFE id: it can never pass for a workload.
    pub fn serving_certificate(
        &self,
        dns_names: &[&str],
        now: SystemTime,
    ) -> Result<ServingCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (mut params, not_before, not_after) = self.leaf_params(None, now)?;
        params.subject_alt_names = dns_names
            .iter()
            .map(|name| Ok(SanType::DnsName((*name).try_into()?)))
            .collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer)?;
        let mut chain = vec![leaf.into()];
        chain.extend(self.chain.iter().take(self.chain.len() - 1).cloned());
        ServingCertificate::new(chain, key.into(), not_before, not_after).map_err(|error| {
            CaError::Chain {
                index: 0,
                reason: error.to_string(),
            }
        })
    }

    /// What all leaves share: dates inside the CA's own, no subject (so the SAN is critical, RFC
    /// 5280 section 4.2.1.6), digital signatures only, a random serial.
    fn leaf_params(
        &self,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<(CertificateParams, SystemTime, SystemTime), CaError> {
        self.check_valid(now)?;
        let lifetime = lifetime.unwrap_or(LEAF_LIFETIME).min(LEAF_LIFETIME);
        let not_before = whole_seconds((now - BACKDATE).max(self.not_before));
        let not_after = whole_seconds((now + lifetime).min(self.not_after));
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok((params, not_before, not_after))
    }

    fn check_valid(&self, now: SystemTime) -> Result<(), CaError> {
        if self.not_before <= now && now < self.not_after {
            return Ok(());
        }
        Err(CaError::NotValid {
            trust_domain: self.trust_domain.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            now,
        })
    }
}

/// Never prints the key.
impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let until = rfc3339(self.not_after);
        write!(
            f,
            "CertificateAuthority({} until {until})",
            self.trust_domain
        )
    }
}

/// The public key of a CSR that was signed with it: proof that the caller holds the private one.
fn public_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, String> {
    let der = pem::request(csr_pem).map_err(|error| error.to_string())?;
    let csr = match X509CertificationRequest::from_der(&der) {
        Ok(([], csr)) => csr,
        Ok(_) => return Err("bytes follow the request".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    csr.verify_signature()
        .map_err(|_| "it is not signed with the key that it asks to certify".to_owned())?;
    SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|error| format!("its key is of no supported kind: {error}"))
}

fn authority_params(
    trust_domain: &str,
    kind: &str,
    key: &KeyPair,
    now: SystemTime,
    end: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    // A name of its own for each key: during a rotation people (and path building) tell them apart.
    let spki = key.subject_public_key_info();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
    let short: String = digest
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("weft {kind} {short}"));
    params.subject_alt_names = vec![SanType::URI(
        format!("spiffe://{trust_domain}").as_str().try_into()?,
    )];
    params.not_before = (now - BACKDATE).into();
    params.not_after = end.into();
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// 127 random bits: rcgen's default is derived from the key, and would repeat for a renewed leaf.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    bytes[0] &= 0x7f;
    bytes[0] |= 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// X.509 knows no fractions of a second.
fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Err(_) => time,
    }
}
