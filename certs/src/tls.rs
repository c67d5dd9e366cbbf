//! rustls configurations of the mesh: SVIDs, bundles and expected identities in, TLS 1.3 out.
//!
//! No session is ever resumed, on either side: a resumed session shows no certificate, so an
//! identity that has since been rotated out, or another expected identity behind the same name,
//! would pass unchecked. Tunnels are pooled, so full handshakes are rare; no 0-RTT for the same reason.

use std::sync::{Arc, LazyLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, CommonState, ServerConfig, SignatureScheme, version};
use rustls_pki_types::{InvalidDnsNameError, ServerName};

use crate::serving::ServingCell;
use crate::source::{BundleSource, SvidSource};
use crate::spiffe::SpiffeId;
use crate::verify::{DnsServerVerifier, WorkloadClientVerifier, WorkloadServerVerifier};
use crate::x509;

/// ALPN of HBONE and of gRPC.
pub const ALPN_H2: &[u8] = b"h2";

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The crypto provider does not fit.
    #[error("TLS configuration: {0}")]
    Rustls(#[from] rustls::Error),
    /// Not a DNS name.
    #[error("TLS configuration: {name:?} is not a DNS name")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong.
        source: InvalidDnsNameError,
    },
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // AES first: all servers that run meshes have instructions for it.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // The hybrid first: what is recorded today must not be readable with a quantum computer.
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The cryptography that all of weft uses: aws-lc-rs, TLS 1.3 suites only.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// Makes weft's provider the process's default, for libraries that ask for one. Call it first in
/// every `main`; calling it again does nothing.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    let _ = CryptoProvider::clone(provider()).install_default();
}

/// For a workload's inbound HBONE. SVID and bundle are asked for in each handshake; clients must
/// prove an identity in the SVID's own trust domain. Without an SVID, handshakes are refused.
pub fn server_config(
    svid: Arc<dyn SvidSource>,
    bundle: Arc<dyn BundleSource>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WorkloadClientVerifier {
        own: svid.clone(),
        bundle,
    };
    let config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(PresentSvid(svid)));
    Ok(finish_server(config))
}

/// For a workload's outbound HBONE to a peer that must be one of `expected`.
///
/// Cheap to make, and may be kept per (source, `expected`): SVID and bundle are asked for in each
/// handshake. Dial with [`unnamed`] as the server name.
pub fn client_config(
    svid: Arc<dyn SvidSource>,
    bundle: Arc<dyn BundleSource>,
    expected: impl IntoIterator<Item = SpiffeId>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let expected = expected.into_iter().collect();
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(WorkloadServerVerifier { expected, bundle }))
        .with_client_cert_resolver(Arc::new(PresentSvid(svid)));
    // Identities, not names, are checked: there is nothing to indicate.
    config.enable_sni = false;
    Ok(finish_client(config))
}

/// The server name to give to a connector with [`client_config`]: it is neither sent nor checked.
pub fn unnamed() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into())
}

/// For the controller: its serving certificate of the moment; clients prove themselves by token.
pub fn controller_server_config(serving: Arc<ServingCell>) -> Result<Arc<ServerConfig>, TlsError> {
    let config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    Ok(finish_server(config))
}

/// For clients of the controller: its chain must end in the bundle, and its certificate be for
/// `dns_name`, whatever address and server name are dialled.
pub fn controller_client_config(
    bundle: Arc<dyn BundleSource>,
    dns_name: &str,
) -> Result<Arc<ClientConfig>, TlsError> {
    let name = ServerName::try_from(dns_name.to_owned()).map_err(|source| TlsError::Name {
        name: dns_name.to_owned(),
        source,
    })?;
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DnsServerVerifier { name, bundle }))
        .with_no_client_auth();
    Ok(finish_client(config))
}

/// Who the peer of a finished handshake is. `None` before the handshake's end, and for peers
/// without a SPIFFE id.
pub fn peer_identity(connection: &CommonState) -> Option<SpiffeId> {
    if connection.is_handshaking() {
        return None;
    }
    let leaf = connection.peer_certificates()?.first()?;
    match x509::facts(leaf).ok()?.uri_sans.as_slice() {
        [uri] => uri.parse().ok(),
        _ => None,
    }
}

fn finish_server(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

fn finish_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// Presents the SVID of the moment, to either side.
#[derive(Debug)]
struct PresentSvid(Arc<dyn SvidSource>);

impl ResolvesServerCert for PresentSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.svid().map(|svid| svid.certified_key())
    }
}

impl ResolvesClientCert for PresentSvid {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.svid().map(|svid| svid.certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
