//! What the CA signs and refuses to sign, and what is accepted as an SVID or a trust bundle.

#![allow(clippy::unwrap_used)]

mod pki;

use std::time::{Duration, SystemTime};

use pki::{DOMAIN, HOUR, Leaf, YEAR, authority, id, svid};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_certs::bundle::BundleError;
use weft_certs::ca::{BACKDATE, CaError, LEAF_LIFETIME};
use weft_certs::csr::Request;
use weft_certs::svid::SvidError;
use weft_certs::{CertificateAuthority, SpiffeId, Svid, TrustBundle};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::parse_x509_certificate;

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// X.509 dates have whole seconds.
fn same_second(left: SystemTime, right: SystemTime) -> bool {
    let (early, late) = if left < right {
        (left, right)
    } else {
        (right, left)
    };
    late.duration_since(early).unwrap() <= Duration::from_secs(1)
}

#[test]
fn a_csr_that_asks_for_more_is_signed_with_the_granted_id_alone() {
    let mut greedy =
        CertificateParams::new(vec!["controller.svc".into(), "10.0.0.1".into()]).unwrap();
    greedy.subject_alt_names.push(SanType::URI(
        "spiffe://cluster.local/ns/kube-system/sa/admin"
            .try_into()
            .unwrap(),
    ));
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();

    let granted = id("shop", "web");
    let signed = authority()
        .sign(&csr, &granted, None, SystemTime::now())
        .unwrap();
    let leaf = der(&signed.chain_pem[0]);
    let (_, leaf) = parse_x509_certificate(&leaf).unwrap();

    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical, "the subject is empty");
    assert_eq!(
        san.value.general_names,
        [GeneralName::URI(granted.as_str())]
    );
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && extended.other.is_empty());
    let known = |ext: &ParsedExtension<'_>| !matches!(ext, ParsedExtension::NameConstraints(_));
    assert!(
        leaf.extensions()
            .iter()
            .all(|ext| known(ext.parsed_extension()))
    );
    assert!(Svid::from_pem(&signed.chain_pem, &key.serialize_pem()).is_ok());
}

#[test]
fn a_csr_without_proof_of_its_key_is_refused() {
    let ca = authority();
    let web = id("shop", "web");
    let request = Request::generate(&web).unwrap();
    // One bit of the signature's last byte.
    let pem = with_last_byte_changed(&request.csr_pem);
    let refused = |csr: &str| {
        matches!(
            ca.sign(csr, &web, None, SystemTime::now()),
            Err(CaError::Request { .. })
        )
    };
    assert!(refused(&pem));
    assert!(refused(""));
    assert!(refused(
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    ));
    assert!(refused(&request.key_pem));
    assert!(refused(&format!("{0}{0}", request.csr_pem)));
    assert!(!refused(&request.csr_pem));
}

/// The same PEM with the last byte of its DER changed.
fn with_last_byte_changed(pem: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = STANDARD.decode(body).unwrap();
    *der.last_mut().unwrap() ^= 1;
    let body = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn other_kinds_of_keys_are_signed_too() {
    let ca = authority();
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .pem()
            .unwrap();
        let signed = ca
            .sign(&csr, &id("shop", "web"), None, SystemTime::now())
            .unwrap();
        assert!(Svid::from_pem(&signed.chain_pem, &key.serialize_pem()).is_ok());
    }
}

#[test]
fn a_leaf_lasts_as_long_as_asked_but_never_longer_than_a_day_or_the_ca() {
    let now = SystemTime::now();
    let web = id("shop", "web");
    let csr = Request::generate(&web).unwrap().csr_pem;
    let long = CertificateAuthority::generate(DOMAIN, now - HOUR, YEAR).unwrap();
    let short = CertificateAuthority::generate(DOMAIN, now - HOUR, 3 * HOUR).unwrap();
    for (ca, asked, expected) in [
        (&long, None, LEAF_LIFETIME),
        (&long, Some(HOUR), HOUR),
        (&long, Some(30 * LEAF_LIFETIME), LEAF_LIFETIME),
        (&short, None, 2 * HOUR),
        (&short, Some(HOUR), HOUR),
    ] {
        let signed = ca.sign(&csr, &web, asked, now).unwrap();
        assert!(same_second(signed.not_after, now + expected), "{asked:?}");
        assert!(same_second(signed.not_before, now - BACKDATE));
        let leaf = der(&signed.chain_pem[0]);
        let (_, leaf) = parse_x509_certificate(&leaf).unwrap();
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs()
                .cast_signed()
        };
        assert_eq!(
            leaf.validity().not_after.timestamp(),
            seconds(signed.not_after)
        );
        assert_eq!(
            leaf.validity().not_before.timestamp(),
            seconds(signed.not_before)
        );
    }
    let late = short.sign(&csr, &web, None, now + 3 * HOUR);
    assert!(matches!(late, Err(CaError::NotValid { .. })));
}

#[test]
fn an_id_of_another_trust_domain_is_not_signed() {
    let foreign: SpiffeId = "spiffe://other.org/ns/shop/sa/web".parse().unwrap();
    let csr = Request::generate(&foreign).unwrap().csr_pem;
    let refused = authority().sign(&csr, &foreign, None, SystemTime::now());
    assert!(matches!(refused, Err(CaError::ForeignTrustDomain { .. })));
}

#[test]
fn a_key_that_is_signed_again_gets_another_serial() {
    let ca = authority();
    let web = id("shop", "web");
    let csr = Request::generate(&web).unwrap().csr_pem;
    let serial = || {
        let signed = ca.sign(&csr, &web, None, SystemTime::now()).unwrap();
        let leaf = der(&signed.chain_pem[0]);
        parse_x509_certificate(&leaf)
            .unwrap()
            .1
            .raw_serial_as_string()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_saved_ca_signs_on_after_it_is_loaded() {
    let ca = authority();
    for ca in [ca.intermediate(SystemTime::now(), HOUR).unwrap(), ca] {
        let (chain, key) = ca.to_pem();
        let again = CertificateAuthority::load(DOMAIN, &chain, &key).unwrap();
        assert_eq!(again.trust_bundle().unwrap(), ca.trust_bundle().unwrap());
        assert_eq!(again.not_after(), ca.not_after());
        let svid = svid(&again, &id("shop", "web"));
        let root = ca.trust_bundle().unwrap();
        assert_eq!(svid.root(), root.roots().next());
    }
}

#[test]
fn what_is_no_ca_is_not_loaded() {
    let (ca, other) = (authority(), authority());
    let (chain, key) = ca.to_pem();
    let (other_chain, other_key) = other.to_pem();
    let load = |chain: &str, key: &str| CertificateAuthority::load(DOMAIN, chain, key);
    assert!(matches!(
        load(&chain, &other_key),
        Err(CaError::KeyMismatch)
    ));
    assert!(matches!(load("", &key), Err(CaError::Pem(_))));
    assert!(matches!(load(&chain, &chain), Err(CaError::Pem(_))));
    assert!(matches!(load(&key, &key), Err(CaError::Pem(_))));
    let broken = format!("{chain}{other_chain}");
    assert!(matches!(
        load(&broken, &key),
        Err(CaError::Chain { index: 0, .. })
    ));
    let (chain, key) = svid(&ca, &id("shop", "web")).to_pem();
    assert!(matches!(
        load(&chain.concat(), &key),
        Err(CaError::Chain { index: 0, .. })
    ));
    assert!(matches!(
        CertificateAuthority::load("not/a/domain", "", ""),
        Err(CaError::TrustDomain(_) | CaError::Pem(_))
    ));
    assert!(CertificateAuthority::generate("not/a/domain", SystemTime::now(), HOUR).is_err());
}

#[test]
fn an_svid_survives_being_written_and_read() {
    let ca = authority().intermediate(SystemTime::now(), HOUR).unwrap();
    let svid = svid(&ca, &id("shop", "web"));
    assert_eq!(svid.chain().len(), 2, "leaf and intermediate, not the root");
    let (chain, key) = svid.to_pem();
    let again = Svid::from_pem(&chain, &key).unwrap();
    assert_eq!(again.id(), svid.id());
    assert_eq!(again.chain(), svid.chain());
    assert_eq!(again.root(), svid.root());
    assert_eq!(again.not_after(), svid.not_after());
    assert!(again.is_valid_at(SystemTime::now()));
    assert!(!again.is_valid_at(svid.not_after() + HOUR));
    // In one text as well.
    assert!(Svid::from_pem(&[chain.concat()], &key).is_ok());
}

#[test]
fn what_is_no_svid_is_refused() {
    let ca = authority();
    let (web, checkout) = (
        svid(&ca, &id("shop", "web")),
        svid(&ca, &id("shop", "checkout")),
    );
    let (chain, key) = web.to_pem();
    let (_, other_key) = checkout.to_pem();
    assert!(matches!(
        Svid::from_pem(&chain, &other_key),
        Err(SvidError::Key { .. })
    ));
    assert!(matches!(
        Svid::from_pem::<&str>(&[], &key),
        Err(SvidError::Pem(_))
    ));
    assert!(matches!(
        Svid::from_pem(&[&key], &key),
        Err(SvidError::Pem(_))
    ));
    let stranger = authority().to_pem().0;
    let unchained = [chain[0].clone(), stranger];
    assert!(matches!(
        Svid::from_pem(&unchained, &key),
        Err(SvidError::Chain { index: 0, .. })
    ));

    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for (uris, count) in [(vec![], 0), (vec![web, web], 2)] {
        let leaf = Leaf::mint(&ca, &uris, |_| {});
        let pem = KeyPair::try_from(&leaf.key).unwrap().serialize_pem();
        let chain: Vec<_> = leaf.chain.iter().map(certificate_pem).collect();
        let refused = Svid::from_pem(&chain, &pem);
        assert!(matches!(refused, Err(SvidError::UriSans(found)) if found == count));
    }
}

fn certificate_pem(der: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[test]
fn trust_bundles_are_sets_of_roots() {
    let (old, new) = (
        authority().trust_bundle().unwrap(),
        authority().trust_bundle().unwrap(),
    );
    let both = old.union(&new);
    assert_eq!((both.len(), both.union(&old).len()), (2, 2));
    assert_eq!(both, new.union(&old));
    assert_ne!(both, old);
    assert_eq!(TrustBundle::from_pem(&both.to_pem()).unwrap(), both);
    assert_eq!(TrustBundle::from_ders(both.roots()).unwrap(), both);
    assert!(TrustBundle::default().is_empty());
}

#[test]
fn leaves_keys_and_nothing_are_no_trust_bundle() {
    let ca = authority();
    let (chain, key) = svid(&ca, &id("shop", "web")).to_pem();
    let root = ca.to_pem().0;
    assert!(matches!(
        TrustBundle::from_pem(""),
        Err(BundleError::Pem(_))
    ));
    assert!(matches!(
        TrustBundle::from_pem(&format!("{root}{key}")),
        Err(BundleError::Pem(_))
    ));
    let with_leaf = format!("{root}{}", chain[0]);
    assert!(matches!(
        TrustBundle::from_pem(&with_leaf),
        Err(BundleError::Root { index: 1, .. })
    ));
}
