//! The verifiers in the shape that rustls asks for. The judgement is in the parent module.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Expected, PeerRole, VerifyError, verify_dns_server, verify_workload};
use crate::source::{BundleSource, SvidSource};
use crate::spiffe::SpiffeId;
use crate::tls::provider;

/// Judges clients: any workload of our own trust domain.
#[derive(Debug)]
pub(crate) struct WorkloadClientVerifier {
    pub(crate) own: Arc<dyn SvidSource>,
    pub(crate) bundle: Arc<dyn BundleSource>,
}

/// Judges servers: one of the workloads that were meant.
#[derive(Debug)]
pub(crate) struct WorkloadServerVerifier {
    pub(crate) expected: Vec<SpiffeId>,
    pub(crate) bundle: Arc<dyn BundleSource>,
}

/// Judges control plane servers: by DNS name, whatever address was dialled.
#[derive(Debug)]
pub(crate) struct DnsServerVerifier {
    pub(crate) name: ServerName<'static>,
    pub(crate) bundle: Arc<dyn BundleSource>,
}

/// Signatures of the handshake itself, the same for all three: TLS 1.3 only.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &provider().signature_verification_algorithms;
            verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

impl ClientCertVerifier for WorkloadClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: they would tell every dialler about our roots, and go stale in a rotation.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let own = self.own.svid().ok_or(VerifyError::NoSvid)?;
        let bundle = self.bundle.bundle();
        let expected = Expected::TrustDomain(own.id().trust_domain());
        verify_workload(
            end_entity,
            intermediates,
            &bundle,
            expected,
            PeerRole::Client,
            now,
        )?;
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

impl ServerCertVerifier for WorkloadServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bundle = self.bundle.bundle();
        let expected = Expected::OneOf(&self.expected);
        verify_workload(
            end_entity,
            intermediates,
            &bundle,
            expected,
            PeerRole::Server,
            now,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl ServerCertVerifier for DnsServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bundle = self.bundle.bundle();
        verify_dns_server(end_entity, intermediates, &bundle, &self.name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}
