//! How the proxy reaches the controller. In flow its address, the trust bundle's file and the
//! token's file; out flow gRPC channels over TLS, and requests that carry the token. Both files
//! are read anew each time, since both are rotated under a running proxy; and the controller's name is
//! resolved anew, since its replicas come and go.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use weft_api::names::{CONTROLLER_DNS_NAME, PORT_CONTROLLER};
use weft_certs::{BundleCell, TrustBundle, bundle::BundleError, tls};

use crate::resolve;

/// To connect, with all that belongs to it.
const CONNECT: Duration = Duration::from_secs(15);
/// To connect to one address of the controller's, TLS included; then the next one is tried.
const ADDRESS: Duration = Duration::from_secs(5);
/// A controller that does not answer a ping for this long is away, and another one is dialled.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The controller, as the flags name it.
#[derive(Clone, Debug)]
pub struct Controller {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    uri: Uri,
    trust_bundle: PathBuf,
    token_file: PathBuf,
}

/// The controller can't be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The address is not one.
    #[error("--controller {0}: expected https://ADDRESS:PORT")]
    Uri(Uri),
    /// No connection.
    #[error("can't connect to the controller at {uri}: {source}")]
    Connect {
        /// Its address.
        uri: Uri,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The token can't be read.
    #[error("can't read the token from {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The token has characters that no token has.
    #[error("{0} does not hold a token")]
    TokenSyntax(PathBuf),
    /// The trust bundle can't be read.
    #[error("can't read the trust bundle from {path}: {source}")]
    BundleFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The trust bundle is none.
    #[error("{path}: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BundleError,
    },
}

impl Controller {
    /// Nothing is read or dialled yet.
    pub fn new(uri: Uri, trust_bundle: PathBuf, token_file: PathBuf) -> Self {
        Self {
            inner: Arc::new(Inner {
                uri,
                trust_bundle,
                token_file,
            }),
        }
    }

    /// A new connection. It reconnects by itself, with the trust bundle of that moment.
    pub async fn channel(&self) -> Result<Channel, ControllerError> {
        let inner = Arc::clone(&self.inner);
        let authority = inner
            .uri
            .authority()
            .ok_or_else(|| ControllerError::Uri(inner.uri.clone()))?;
        // TLS is made by the connector below, with weft's verification: tonic need not know.
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))
            .map_err(|_| ControllerError::Uri(inner.uri.clone()))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let connector = {
            let inner = Arc::clone(&inner);
            tower::service_fn(move |_: Uri| {
                let inner = Arc::clone(&inner);
                async move { inner.connect().await.map(TokioIo::new) }
            })
        };
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| ControllerError::Connect {
                uri: self.inner.uri.clone(),
                source,
            })
    }

    /// A request that carries the token of this moment.
    pub async fn request<T>(&self, message: T) -> Result<tonic::Request<T>, ControllerError> {
        let path = &self.inner.token_file;
        let token =
            tokio::fs::read_to_string(path)
                .await
                .map_err(|source| ControllerError::Token {
                    path: path.clone(),
                    source,
                })?;
        let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| ControllerError::TokenSyntax(path.clone()))?;
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    /// The trust bundle's file as it is now.
    pub fn trust_bundle(&self) -> Result<TrustBundle, ControllerError> {
        self.inner.trust_bundle()
    }
}

impl Inner {
    fn trust_bundle(&self) -> Result<TrustBundle, ControllerError> {
        let path = &self.trust_bundle;
        let pem = std::fs::read_to_string(path).map_err(|source| ControllerError::BundleFile {
            path: path.clone(),
            source,
        })?;
        TrustBundle::from_pem(&pem).map_err(|source| ControllerError::Bundle {
            path: path.clone(),
            source,
        })
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let bundle = self.trust_bundle().map_err(io::Error::other)?;
        let config =
            tls::controller_client_config(Arc::new(BundleCell::new(bundle)), CONTROLLER_DNS_NAME)
                .map_err(io::Error::other)?;
        let host = self.uri.host().unwrap_or_default();
        // In an URI, IPv6 addresses stand in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.uri.port_u16().unwrap_or(PORT_CONTROLLER);
        let connector = TlsConnector::from(config);
        first_of(&resolve::addresses(host, port).await?, |address| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                connector.connect(tls::unnamed(), tcp).await
            }
        })
        .await
    }
}

/// Tries addresses one after the other; if none will do, tells why, each with its reason.
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut reasons = Vec::new();
    for &address in addresses {
        match tokio::time::timeout(ADDRESS, attempt(address)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => reasons.push(format!("{address}: {error}")),
            Err(_) => reasons.push(format!("{address}: no answer within {ADDRESS:?}")),
        }
    }
    Err(io::Error::other(reasons.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_refuses_or_hangs_is_passed_over() {
        let [refuses, hangs, serves] =
            [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let attempt = |address: SocketAddr| async move {
            match address.port() {
                1 => Err(io::ErrorKind::ConnectionRefused.into()),
                2 => std::future::pending().await,
                port => Ok(port),
            }
        };
        assert_eq!(
            first_of(&[refuses, hangs, serves], attempt).await.ok(),
            Some(3)
        );
        let error = first_of(&[hangs, refuses], attempt)
            .await
            .expect_err("none serves");
        let text = error.to_string();
        assert!(
            text.contains("127.0.0.1:2: no answer") && text.contains("127.0.0.1:1: "),
            "{text}"
        );
    }
}
