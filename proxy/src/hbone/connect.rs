//! The client's end of one tunnel. In flow a connected socket and the identity to expect; out
//! flow CONNECTs, each a stream.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures::FutureExt;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_api::names::HEADER_SANDBOX;
use weft_certs::{SpiffeId, tls};

use super::{Usage, client_builder, describe};
use crate::{io::ConnectError, limits::PodLimits};

/// RFC 9209: how a proxy says what went wrong behind it.
pub(super) const PROXY_STATUS: &str = "proxy-status";

/// A tunnel that takes CONNECTs.
#[derive(Debug)]
pub(super) struct Tunnel {
    requests: SendRequest<Bytes>,
    pub(super) usage: Arc<Usage>,
    /// Our own limit of streams.
    limit: usize,
}

/// What drives a tunnel; to be run as a task of its own.
pub(super) type Driver = h2::client::Connection<TlsStream<TcpStream>, Bytes>;

/// Why a CONNECT failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The tunnel takes no more and has not passed this one on: another tunnel may.
    NotSent,
    /// The tunnel broke before the answer, maybe long ago and unnoticed.
    Broken(String),
    /// The answer.
    Final(ConnectError),
}

impl Tunnel {
    /// TLS and HTTP/2 on a connected socket.
    pub(super) async fn establish(
        tcp: TcpStream,
        tls: Arc<ClientConfig>,
        expected: &SpiffeId,
        limits: &PodLimits,
    ) -> Result<(Self, Driver), ConnectError> {
        let address = tcp
            .peer_addr()
            .map_err(|error| ConnectError::Io(([0, 0, 0, 0], 0).into(), error.to_string()))?;
        let stream = TlsConnector::from(tls)
            .connect(tls::unnamed(), tcp)
            .await
            .map_err(|error| match weft_certs::verify::reason_in(&error) {
                Some(reason) => ConnectError::Identity {
                    address,
                    expected: expected.as_str().to_owned(),
                    reason: reason.to_string(),
                },
                None => ConnectError::TunnelBroken(address, format!("TLS handshake: {error}")),
            })?;
        let usage = Arc::new(Usage::new(limits));
        let (requests, driver) = client_builder(usage.windows.sizes())
            .handshake(stream)
            .await
            .map_err(|error| {
                ConnectError::TunnelBroken(address, format!("HTTP/2 handshake: {error}"))
            })?;
        let tunnel = Self {
            requests,
            usage,
            limit: limits.settings().streams as usize,
        };
        Ok((tunnel, driver))
    }

    /// Counts a stream in, if there is room by our limit and the peer's.
    pub(super) fn acquire(&self) -> bool {
        let limit = self.limit.min(self.requests.current_max_send_streams());
        self.usage.acquire(limit)
    }

    /// Closes it to new streams if the peer takes none.
    pub(super) fn probe(&self) {
        if let Some(Err(_)) = self.requests.clone().ready().now_or_never() {
            self.usage.close();
        }
    }

    /// CONNECT to `address` in a sandbox; the stream was counted in by [`Tunnel::acquire`].
    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        sandbox: &str,
    ) -> Result<(SendStream<Bytes>, RecvStream), Failure> {
        let broken = |error: h2::Error| {
            Failure::Final(ConnectError::TunnelBroken(address, error.to_string()))
        };
        let authority = address.to_string();
        let uri = Uri::try_from(authority)
            .map_err(|error| Failure::Final(ConnectError::Io(address, error.to_string())))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        if let Some(sandbox) = HeaderValue::from_str(sandbox)
            .ok()
            .filter(|s| !s.is_empty())
        {
            request.headers_mut().insert(HEADER_SANDBOX, sandbox);
        }

        let closed = |_| {
            self.usage.close();
            Failure::NotSent
        };
        self.usage.signs.used();
        let mut requests = self.requests.clone().ready().await.map_err(closed)?;
        let (response, send) = requests.send_request(request, false).map_err(closed)?;
        drop(requests);
        let response = match response.await {
            Ok(response) => response,
            Err(error) if not_processed(&error) => {
                if error.is_go_away() {
                    self.usage.close();
                }
                return Err(Failure::NotSent);
            }
            Err(error) if error.is_io() || error.is_go_away() => {
                self.usage.close();
                return Err(Failure::Broken(describe(&error)));
            }
            Err(error) => return Err(broken(error)),
        };
        if response.status() != StatusCode::OK {
            return Err(Failure::Final(ConnectError::Tunnel {
                address,
                status: response.status().as_u16(),
                reason: reason(response.headers()),
            }));
        }
        Ok((send, response.into_body()))
    }
}

/// RFC 9113, 8.7: the peer promises that it has not acted on the request.
fn not_processed(error: &h2::Error) -> bool {
    error.reason() == Some(Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR))
}

fn reason(headers: &HeaderMap) -> String {
    headers
        .get(PROXY_STATUS)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default()
}
