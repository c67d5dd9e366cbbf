//! The CA over Istio's CSR protocol: the controller's, or istio-csr. In flow requests, out flow
//! certificate chains.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::{FutureExt, future::BoxFuture};
use prost_types::{Struct, Value, value::Kind};
use tonic::transport::Channel;
use weft_api::ca::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use weft_certs::SpiffeId;

use super::{Ca, CaError};
use crate::controller::Controller;

/// Asked for; the CA may give less. A day bounds what a stolen key is worth, and half of it is
/// what a node survives without its controller.
const VALIDITY_SECONDS: i64 = 24 * 60 * 60;
/// Name by which a node says for whom it asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Asks the controller.
pub struct ControllerCa {
    controller: Controller,
    /// Kept while it works.
    channel: ArcSwapOption<Channel>,
}

impl ControllerCa {
    /// Nothing is dialled yet.
    pub fn new(controller: Controller) -> Self {
        Self {
            controller,
            channel: ArcSwapOption::empty(),
        }
    }

    async fn channel(&self) -> Result<Channel, CaError> {
        if let Some(channel) = self.channel.load_full() {
            return Ok(Channel::clone(&channel));
        }
        let channel = self
            .controller
            .channel()
            .await
            .map_err(|error| CaError(chain(&error)))?;
        self.channel.store(Some(Arc::new(channel.clone())));
        Ok(channel)
    }

    async fn request(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        let impersonated = Value {
            kind: Some(Kind::StringValue(id.as_str().to_owned())),
        };
        let message = IstioCertificateRequest {
            csr,
            validity_duration: VALIDITY_SECONDS,
            metadata: Some(Struct {
                fields: [(IMPERSONATED.to_owned(), impersonated)].into(),
            }),
        };
        let request = self
            .controller
            .request(message)
            .await
            .map_err(|error| CaError(chain(&error)))?;
        let mut client = IstioCertificateServiceClient::new(self.channel().await?);
        match client.create_certificate(request).await {
            Ok(response) => Ok(response.into_inner().cert_chain),
            Err(status) => {
                // The next attempt starts from a new connection.
                self.channel.store(None);
                Err(CaError(format!(
                    "the CA answered {:?}: {}",
                    status.code(),
                    status.message()
                )))
            }
        }
    }
}

impl Ca for ControllerCa {
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        self.request(identity, csr_pem).boxed()
    }
}

/// An error with its causes: tonic's own texts say only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text = format!("{text}: {source_text}");
        }
        next = source.source();
    }
    text
}
