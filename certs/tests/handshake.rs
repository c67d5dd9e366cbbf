//! Real handshakes over in-memory streams: who gets through, and with what reason the others do not.

#![allow(clippy::unwrap_used)]

mod pki;

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use pki::{DOMAIN, HOUR, Leaf, YEAR, authority, bundle_cell, id, svid, svid_cell};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, HandshakeKind, NamedGroup,
    ServerConfig, SignatureScheme, SupportedProtocolVersion, version,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_certs::serving::ServingCell;
use weft_certs::tls::{
    client_config, controller_client_config, controller_server_config, peer_identity,
    server_config, unnamed,
};
use weft_certs::{
    BundleCell, CertificateAuthority, SpiffeId, SvidCell, TrustBundle, VerifyError, reason_of,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// What a side saw of a handshake that succeeded for it.
#[derive(Debug)]
struct Seen {
    peer: Option<SpiffeId>,
    kind: Option<HandshakeKind>,
    group: Option<NamedGroup>,
    alpn: Option<Vec<u8>>,
}

/// Shakes hands and exchanges a byte each way, as a client of TLS 1.3 learns only by reading that
/// it was refused.
async fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> (io::Result<Seen>, io::Result<Seen>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serve = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"s").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(seen(stream.get_ref().1))
    };
    let dial = async move {
        let mut stream = TlsConnector::from(client).connect(unnamed(), near).await?;
        stream.write_all(b"c").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(seen(stream.get_ref().1))
    };
    tokio::join!(serve, dial)
}

fn seen(connection: &rustls::CommonState) -> Seen {
    Seen {
        peer: peer_identity(connection),
        kind: connection.handshake_kind(),
        group: connection
            .negotiated_key_exchange_group()
            .map(|group| group.name()),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
    }
}

fn reason(result: io::Result<Seen>) -> VerifyError {
    let error = result.expect_err("the handshake should have been refused");
    reason_of(&error).unwrap_or_else(|| panic!("no reason in {error:?}"))
}

/// A peer that presents anything and accepts everything: what an attacker runs.
#[derive(Debug)]
struct AcceptsAll;

impl ServerCertVerifier for AcceptsAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for AcceptsAll {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

const BOTH_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

fn certified(leaf: &Leaf) -> CertifiedKey {
    let key = default_provider()
        .key_provider
        .load_private_key(leaf.key.clone_key())
        .unwrap();
    CertifiedKey::new(leaf.chain.clone(), key)
}

fn rogue_client(
    leaf: Option<&Leaf>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptsAll));
    Arc::new(match leaf {
        Some(leaf) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(leaf))))
        }
        None => builder.with_no_client_auth(),
    })
}

fn rogue_server(leaf: &Leaf, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(Arc::new(AcceptsAll))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(leaf))));
    Arc::new(config)
}

/// An honest pair of ends with one CA, to set against rogue ones.
struct Honest {
    ca: CertificateAuthority,
    bundle: Arc<BundleCell>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

fn honest() -> Honest {
    honest_with(authority(), TrustBundle::default())
}

fn honest_with(ca: CertificateAuthority, also_trusted: TrustBundle) -> Honest {
    let bundle = bundle_cell(ca.trust_bundle().unwrap().union(&also_trusted));
    let server = server_config(svid_cell(&ca, &id("shop", "checkout")), bundle.clone()).unwrap();
    let client = client_config(
        svid_cell(&ca, &id("shop", "web")),
        bundle.clone(),
        [id("shop", "checkout")],
    )
    .unwrap();
    Honest {
        ca,
        bundle,
        server,
        client,
    }
}

impl Honest {
    /// The reason for which the honest server refuses a client with this certificate.
    async fn server_refuses(&self, leaf: &Leaf) -> VerifyError {
        let client = rogue_client(Some(leaf), &[&version::TLS13]);
        let (server, client) = shake(self.server.clone(), client).await;
        assert!(client.is_err(), "the refused client read something");
        reason(server)
    }

    /// The reason for which the honest client refuses a server with this certificate.
    async fn client_refuses(&self, leaf: &Leaf) -> VerifyError {
        let server = rogue_server(leaf, &[&version::TLS13]);
        let (server, client) = shake(server, self.client.clone()).await;
        assert!(server.is_err(), "the refused server read something");
        reason(client)
    }
}

#[tokio::test]
async fn both_ends_learn_the_other_ones_identity() {
    let Honest { server, client, .. } = honest();
    let (server, client) = shake(server, client).await;
    let (server, client) = (server.unwrap(), client.unwrap());
    assert_eq!(server.peer, Some(id("shop", "web")));
    assert_eq!(client.peer, Some(id("shop", "checkout")));
    assert_eq!(client.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(client.alpn.as_deref(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn a_bad_certificate_is_refused_by_both_ends_with_its_own_reason() {
    let honest = honest();
    let ca = &honest.ca;
    let now = SystemTime::now();
    let cases = [
        (
            "wrong_trust_domain",
            Leaf::mint(ca, &["spiffe://other.org/ns/shop/sa/checkout"], |_| {}),
        ),
        (
            "expired",
            Leaf::mint(ca, &[WEB], |leaf| {
                leaf.not_before = (now - 2 * HOUR).into();
                leaf.not_after = (now - HOUR).into();
            }),
        ),
        (
            "not_yet_valid",
            Leaf::mint(ca, &[WEB], |leaf| leaf.not_before = (now + HOUR / 2).into()),
        ),
        ("unknown_issuer", Leaf::mint(&authority(), &[WEB], |_| {})),
        (
            "several_uri_sans",
            Leaf::mint(
                ca,
                &["spiffe://cluster.local/ns/shop/sa/checkout", WEB],
                |_| {},
            ),
        ),
        ("several_uri_sans", Leaf::mint(ca, &[WEB, WEB], |_| {})),
        (
            "several_uri_sans",
            Leaf::mint(ca, &[WEB, "https://cluster.local/"], |_| {}),
        ),
        (
            "no_uri_san",
            Leaf::mint(ca, &[], |leaf| {
                leaf.subject_alt_names =
                    vec![SanType::DnsName("checkout.shop".try_into().unwrap())];
            }),
        ),
        (
            "bad_id",
            Leaf::mint(ca, &["spiffe://cluster.local/workload"], |_| {}),
        ),
        (
            "bad_id",
            Leaf::mint(ca, &["https://cluster.local/ns/shop/sa/web"], |_| {}),
        ),
        (
            "ca_as_leaf",
            Leaf::mint(ca, &[WEB], |leaf| {
                leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ),
        (
            "ca_as_leaf",
            Leaf::mint(ca, &[WEB], |leaf| {
                leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)
            }),
        ),
        (
            "ca_as_leaf",
            Leaf::mint(ca, &[WEB], |leaf| {
                leaf.key_usages.push(KeyUsagePurpose::CrlSign)
            }),
        ),
        (
            "wrong_usage",
            Leaf::mint(ca, &[WEB], |leaf| {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
        ),
    ];
    for (label, leaf) in &cases {
        assert_eq!(
            honest.server_refuses(leaf).await.label(),
            *label,
            "as a client"
        );
        assert_eq!(
            honest.client_refuses(leaf).await.label(),
            *label,
            "as a server"
        );
    }
}

#[tokio::test]
async fn another_workloads_certificate_is_refused_by_the_client_naming_both() {
    let honest = honest();
    let leaf = Leaf::mint(
        &honest.ca,
        &["spiffe://cluster.local/ns/shop/sa/thief"],
        |_| {},
    );
    let reason = honest.client_refuses(&leaf).await;
    assert_eq!(
        reason,
        VerifyError::WrongIdentity {
            expected: vec![id("shop", "checkout")],
            presented: id("shop", "thief"),
        }
    );
    let text = reason.to_string();
    assert!(
        text.contains("sa/thief")
            && text.contains("expected spiffe://cluster.local/ns/shop/sa/checkout")
    );
}

#[tokio::test]
async fn a_workload_cannot_sign_for_another_one() {
    let honest = honest();
    let mut thief = Leaf::mint(
        &honest.ca,
        &["spiffe://cluster.local/ns/shop/sa/thief"],
        |_| {},
    );
    for named in [false, true] {
        if named {
            // With a subject of its own, so that the chain holds together by name as well.
            thief = Leaf::mint(
                &honest.ca,
                &["spiffe://cluster.local/ns/shop/sa/thief"],
                |leaf| {
                    leaf.distinguished_name
                        .push(rcgen::DnType::CommonName, "thief");
                },
            );
        }
        let leaf = Leaf::mint_below(&thief, &["spiffe://cluster.local/ns/shop/sa/checkout"]);
        assert_eq!(honest.server_refuses(&leaf).await.label(), "chain");
        assert_eq!(honest.client_refuses(&leaf).await.label(), "chain");
    }
}

#[tokio::test]
async fn a_client_that_expects_nobody_refuses_everybody() {
    let honest = honest();
    let cell = svid_cell(&honest.ca, &id("shop", "web"));
    let client = client_config(cell, honest.bundle.clone(), []).unwrap();
    let (_, client) = shake(honest.server.clone(), client).await;
    assert!(matches!(
        reason(client),
        VerifyError::WrongTrustDomain { .. }
    ));
}

#[tokio::test]
async fn a_copied_certificate_without_its_key_is_refused() {
    let honest = honest();
    let mut leaf = Leaf::mint(
        &honest.ca,
        &["spiffe://cluster.local/ns/shop/sa/checkout"],
        |_| {},
    );
    leaf.key = KeyPair::generate().unwrap().into();
    assert_eq!(
        honest.server_refuses(&leaf).await,
        VerifyError::BadSignature
    );
    assert_eq!(
        honest.client_refuses(&leaf).await,
        VerifyError::BadSignature
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let honest = honest();
    let (server, client) = shake(
        honest.server.clone(),
        rogue_client(None, &[&version::TLS13]),
    )
    .await;
    assert_eq!(reason(server), VerifyError::NoCertificate);
    assert_eq!(reason(client).label(), "refused_by_peer");
}

#[tokio::test]
async fn tls_1_2_is_spoken_with_nobody() {
    let honest = honest();
    let leaf = Leaf::mint(
        &honest.ca,
        &["spiffe://cluster.local/ns/shop/sa/checkout"],
        |_| {},
    );
    let old = &[&version::TLS12];
    let (server, _) = shake(honest.server.clone(), rogue_client(Some(&leaf), old)).await;
    assert_eq!(reason(server).label(), "incompatible");
    let (server, client) = shake(rogue_server(&leaf, old), honest.client.clone()).await;
    assert!(server.is_err());
    assert!(matches!(
        reason(client).label(),
        "refused_by_peer" | "incompatible"
    ));
    // The same peers get through where they may speak 1.3.
    let (server, client) = shake(rogue_server(&leaf, BOTH_VERSIONS), honest.client.clone()).await;
    assert!(server.is_ok() && client.is_ok());
}

#[tokio::test]
async fn a_leaf_under_an_expired_root_is_refused() {
    let long_ago = SystemTime::now() - 20 * YEAR;
    let old = CertificateAuthority::generate(DOMAIN, long_ago, 10 * YEAR).unwrap();
    let honest = honest_with(authority(), old.trust_bundle().unwrap());
    let mut leaf = Leaf::mint(
        &old,
        &["spiffe://cluster.local/ns/shop/sa/checkout"],
        |_| {},
    );
    for with_root in [true, false] {
        leaf.chain.truncate(if with_root { 2 } else { 1 });
        assert_eq!(
            honest.server_refuses(&leaf).await.label(),
            "root_not_valid",
            "{with_root}"
        );
        assert_eq!(
            honest.client_refuses(&leaf).await.label(),
            "root_not_valid",
            "{with_root}"
        );
    }
}

#[tokio::test]
async fn a_workload_without_an_svid_shakes_no_hands() {
    let honest = honest();
    let empty = Arc::new(SvidCell::new());
    let server = server_config(empty.clone(), honest.bundle.clone()).unwrap();
    let (server, client) = shake(server, honest.client.clone()).await;
    assert!(server.is_err() && client.is_err());
    let client = client_config(empty, honest.bundle.clone(), [id("shop", "checkout")]).unwrap();
    let (server, _) = shake(honest.server.clone(), client).await;
    assert_eq!(reason(server), VerifyError::NoCertificate);
}

#[tokio::test]
async fn leaves_below_an_intermediate_are_accepted() {
    let root = authority();
    let ca = root.intermediate(SystemTime::now(), HOUR).unwrap();
    let Honest { server, client, .. } = honest_with(ca, TrustBundle::default());
    let (server, client) = shake(server, client).await;
    assert_eq!(server.unwrap().peer, Some(id("shop", "web")));
    assert!(client.is_ok());
}

#[tokio::test]
async fn while_a_root_is_rotated_leaves_of_both_are_accepted_without_new_configurations() {
    let (old, new) = (authority(), authority());
    let (web, checkout) = (id("shop", "web"), id("shop", "checkout"));
    let (old_roots, new_roots) = (old.trust_bundle().unwrap(), new.trust_bundle().unwrap());
    let bundle = bundle_cell(old_roots.clone());
    let (near, far) = (svid_cell(&old, &web), svid_cell(&old, &checkout));
    let server = server_config(far.clone(), bundle.clone()).unwrap();
    let client = client_config(near.clone(), bundle.clone(), [checkout.clone()]).unwrap();
    let passes = async || {
        let (server, client) = shake(server.clone(), client.clone()).await;
        server.is_ok() && client.is_ok()
    };

    assert!(passes().await, "old leaves under the old root");
    bundle.set(old_roots.union(&new_roots));
    assert!(passes().await, "old leaves under both");
    far.set(svid(&new, &checkout));
    assert!(passes().await, "an old client, a new server");
    near.set(svid(&new, &web));
    assert!(passes().await, "new leaves under both");
    bundle.set(new_roots);
    assert!(passes().await, "new leaves under the new root");
    near.set(svid(&old, &web));
    assert!(!passes().await, "an old leaf under the new root");
}

#[tokio::test]
async fn no_session_is_resumed_past_a_change_of_trust() {
    let Honest {
        bundle,
        server,
        client,
        ..
    } = honest();
    for _ in 0..3 {
        let (server, client) = shake(server.clone(), client.clone()).await;
        let full = |kind| matches!(kind, Some(HandshakeKind::Full));
        assert!(full(server.unwrap().kind) && full(client.unwrap().kind));
    }
    bundle.set(authority().trust_bundle().unwrap());
    let (_, client) = shake(server, client).await;
    assert_eq!(reason(client), VerifyError::UnknownIssuer);
}

#[tokio::test]
async fn the_controller_is_known_by_its_dns_name_alone() {
    let ca = authority();
    let name = "weft-controller.weft-system.svc";
    let certificate = ca.serving_certificate(&[name], SystemTime::now()).unwrap();
    let server = controller_server_config(Arc::new(ServingCell::new(certificate))).unwrap();
    let bundle = bundle_cell(ca.trust_bundle().unwrap());
    let client = controller_client_config(bundle.clone(), name).unwrap();
    let (seen, answer) = shake(server.clone(), client.clone()).await;
    assert!(seen.is_ok() && answer.is_ok());

    let other = controller_client_config(bundle.clone(), "other.weft-system.svc").unwrap();
    let (_, answer) = shake(server.clone(), other).await;
    assert_eq!(reason(answer).label(), "wrong_name");

    let stranger = bundle_cell(authority().trust_bundle().unwrap());
    let (_, answer) = shake(server, controller_client_config(stranger, name).unwrap()).await;
    assert_eq!(reason(answer), VerifyError::UnknownIssuer);

    // A workload's certificate does not make a controller, nor the other way round.
    let workload = Leaf::mint(&ca, &[WEB], |_| {});
    let (_, answer) = shake(rogue_server(&workload, BOTH_VERSIONS), client).await;
    assert_eq!(reason(answer).label(), "wrong_name");
}

#[tokio::test]
async fn the_controllers_certificate_is_no_workloads() {
    let ca = authority();
    let certificate = ca
        .serving_certificate(&["c.svc"], SystemTime::now())
        .unwrap();
    let server = controller_server_config(Arc::new(ServingCell::new(certificate))).unwrap();
    let Honest { client, .. } = honest_with(ca, TrustBundle::default());
    let (_, client) = shake(server, client).await;
    assert_eq!(reason(client), VerifyError::NoUriSan);
}
