//! What of an X.509 certificate decides about identity: DER in, plain facts out.

use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// ASN.1 tag of a URI in a GeneralName (RFC 5280 section 4.2.1.6).
const TAG_URI: u32 = 6;

/// What a certificate says about its holder.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Every URI SAN, in order.
    pub(crate) uri_sans: Vec<String>,
    /// Basic constraints say CA.
    pub(crate) is_ca: bool,
    /// May sign certificates by its key usage.
    pub(crate) key_cert_sign: bool,
    /// May sign revocation lists by its key usage.
    pub(crate) crl_sign: bool,
    /// First instant of validity.
    pub(crate) not_before: SystemTime,
    /// Last instant of validity.
    pub(crate) not_after: SystemTime,
    /// Subject and issuer are the same name.
    pub(crate) self_issued: bool,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
}

/// Parses strictly: trailing bytes, repeated extensions and unreadable names are errors.
pub(crate) fn facts(der: &[u8]) -> Result<Facts, String> {
    let certificate = parse(der)?;
    let text = |error: x509_parser::error::X509Error| error.to_string();
    let mut uri_sans = Vec::new();
    if let Some(san) = certificate.subject_alternative_name().map_err(text)? {
        for name in &san.value.general_names {
            match name {
                GeneralName::URI(uri) => uri_sans.push((*uri).to_owned()),
                GeneralName::Invalid(tag, _) if tag.0 == TAG_URI => {
                    return Err("a URI SAN is not text".to_owned());
                }
                _ => {}
            }
        }
    }
    let key_usage = certificate.key_usage().map_err(text)?;
    let is_ca = certificate
        .basic_constraints()
        .map_err(text)?
        .is_some_and(|ext| ext.value.ca);
    Ok(Facts {
        uri_sans,
        is_ca,
        key_cert_sign: key_usage
            .as_ref()
            .is_some_and(|ext| ext.value.key_cert_sign()),
        crl_sign: key_usage.as_ref().is_some_and(|ext| ext.value.crl_sign()),
        not_before: at(certificate.validity().not_before.timestamp()),
        not_after: at(certificate.validity().not_after.timestamp()),
        self_issued: certificate.subject().as_raw() == certificate.issuer().as_raw(),
        spki: certificate.public_key().raw.to_vec(),
    })
}

/// Checks that `issuer`'s key signed `certificate`; of names, only that they are chained.
pub(crate) fn check_signed_by(certificate: &[u8], issuer: &[u8]) -> Result<(), String> {
    let (certificate, issuer) = (parse(certificate)?, parse(issuer)?);
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(format!(
            "issued by {}, not by {}",
            certificate.issuer(),
            issuer.subject()
        ));
    }
    certificate
        .verify_signature(Some(issuer.public_key()))
        .map_err(|_| format!("not signed by the key of {}", issuer.subject()))
}

/// Seconds since the epoch as a [`SystemTime`].
pub(crate) fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time as people read it, to the second, UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    };
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{seconds} seconds after 1970"))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
