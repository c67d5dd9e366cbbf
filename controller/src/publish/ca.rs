//! The CA as a service: Istio's CSR protocol.
//!
//! The caller's token says on which node it runs, and it may have the identities of the pods there
//! and no other. What it asks for is in the request's metadata; names in the CSR are never looked at.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use prost_types::value::Kind;
use tonic::{Request, Response, Status};
use weft_api::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use weft_certs::{CertificateAuthority, SpiffeId, ca::CaError};

use super::auth::{Authenticator, authenticate};
use crate::{metrics::Metrics, state::State};

/// How long a request waits for its pod to be known: a node's proxy may learn of a new pod from the
/// agent before the controller has heard of it from its source.
const PATIENCE: Duration = Duration::from_secs(2);

/// The request's metadata field that names the identity.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Signs for the pods of the caller's node.
pub struct CaService {
    ca: Arc<CertificateAuthority>,
    authenticator: Arc<dyn Authenticator>,
    state: Arc<State>,
    metrics: Metrics,
}

impl CaService {
    /// Signs with `ca` what `state` allows.
    pub fn new(
        ca: Arc<CertificateAuthority>,
        authenticator: Arc<dyn Authenticator>,
        state: Arc<State>,
        metrics: Metrics,
    ) -> Self {
        Self {
            ca,
            authenticator,
            state,
            metrics,
        }
    }

    async fn sign(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let node = authenticate(&self.authenticator, request.metadata())
            .await
            .map_err(|status| Refusal("unauthenticated", status))?;
        let request = request.into_inner();
        let id = identity(&request)?;
        if id.trust_domain() != self.ca.trust_domain() {
            return Err(Refusal(
                "trust_domain",
                Status::permission_denied(format!(
                    "{id} is not of the trust domain {}",
                    self.ca.trust_domain()
                )),
            ));
        }
        let (namespace, account) = (id.namespace(), id.service_account());
        if !self
            .state
            .runs_on(&node, namespace, account, PATIENCE)
            .await
        {
            return Err(Refusal(
                "not_on_node",
                Status::permission_denied(format!(
                    "no pod with the service account {namespace}/{account} runs on node {node}"
                )),
            ));
        }
        let lifetime = u64::try_from(request.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0);
        let lifetime = lifetime.map(Duration::from_secs);
        let signed = self
            .ca
            .sign(&request.csr, &id, lifetime, SystemTime::now())
            .map_err(refuse)?;
        tracing::info!(%node, %id, "signed a certificate");
        Ok(IstioCertificateResponse {
            cert_chain: signed.chain_pem,
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.sign(request).await {
            Ok(response) => {
                self.metrics.signed();
                Ok(Response::new(response))
            }
            Err(Refusal(reason, status)) => {
                self.metrics.refused(reason);
                tracing::warn!(
                    reason,
                    error = status.message(),
                    "refused to sign a certificate"
                );
                Err(status)
            }
        }
    }
}

/// A reason for metrics, and what the caller is told.
struct Refusal(&'static str, Status);

fn identity(request: &IstioCertificateRequest) -> Result<SpiffeId, Refusal> {
    let field = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get(IMPERSONATED));
    let Some(Kind::StringValue(text)) = field.and_then(|value| value.kind.as_ref()) else {
        return Err(Refusal(
            "no_identity",
            Status::invalid_argument(format!(
                "the request names no identity; put its SPIFFE id into metadata field {IMPERSONATED}"
            )),
        ));
    };
    text.parse().map_err(|error| {
        Refusal(
            "bad_identity",
            Status::invalid_argument(format!("{text:?} is no identity: {error}")),
        )
    })
}

fn refuse(error: CaError) -> Refusal {
    match error {
        CaError::Request { .. } => {
            Refusal("bad_request", Status::invalid_argument(error.to_string()))
        }
        _ => Refusal("internal", Status::internal(error.to_string())),
    }
}
