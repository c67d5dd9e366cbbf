//! The byte streams that the proxy's layers hand to each other, and the one way in which the
//! HTTP layer gets a new one towards an endpoint. What flows in: a chosen workload and address;
//! what flows out: a stream, or the reason why there is none.

use std::{io, net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::model::Workload;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Any [`Io`], boxed.
pub type BoxStream = Box<dyn Io>;

/// A new byte stream, and whether it should be kept for another use.
pub struct Link {
    /// The stream.
    pub stream: BoxStream,
    /// Tells when it should not.
    pub leaving: Leaving,
}

impl From<BoxStream> for Link {
    fn from(stream: BoxStream) -> Self {
        Self {
            stream,
            leaving: Leaving::default(),
        }
    }
}

/// Whether what a stream travels in takes no new ones any more: its peer drains, and will break off
/// in the end what is still used then.
#[derive(Clone, Default)]
pub struct Leaving(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Leaving {
    /// Asks `leaving`, which must be cheap.
    pub fn new(leaving: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(leaving)))
    }

    /// Whether it is so now. Never, of a stream that travels in nothing.
    pub fn is_leaving(&self) -> bool {
        self.0.as_ref().is_some_and(|leaving| leaving())
    }
}

impl std::fmt::Debug for Leaving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Leaving").field(&self.is_leaving()).finish()
    }
}

/// Makes connections on behalf of one client pod.
pub trait Connector: Send + Sync + 'static {
    /// Called every few seconds: looks which of the streams' ways are leaving.
    fn sweep(&self) {}

    /// A byte stream to `address`, one of the workload's: over HBONE if the workload is captured,
    /// else plaintext; made in the client pod's network namespace. It resolves only once the far
    /// application (or kernel) has accepted, and within the connect timeout.
    fn connect<'a>(
        &'a self,
        to: &'a Workload,
        address: SocketAddr,
    ) -> BoxFuture<'a, Result<Link, ConnectError>>;
}

/// Why there is no connection. Nothing of the client's bytes has been sent in any of these cases,
/// so every one of them may be tried again at another endpoint.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint answered with a reset.
    #[error("{0} refused the connection: is the application listening on that port?")]
    Refused(SocketAddr),
    /// No answer in time.
    #[error(
        "{0} did not answer in time: is the pod alive, and does a NetworkPolicy let its port (and 15008) through?"
    )]
    TimedOut(SocketAddr),
    /// There is no way to the address.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(SocketAddr, String),
    /// Something else failed in this node's kernel.
    #[error("cannot connect to {0}: {1}")]
    Io(SocketAddr, String),
    /// This side has no certificate for the client's identity.
    #[error("no certificate for {0}: see the proxy's /pods for why the CA gave none")]
    NoCertificate(String),
    /// The peer did not prove that it is who it must be.
    #[error("{address} is not {expected}: {reason}")]
    Identity {
        /// The tunnel's address.
        address: SocketAddr,
        /// The identity that the configuration names.
        expected: String,
        /// What was wrong.
        reason: String,
    },
    /// The far proxy answered CONNECT with something else than 200.
    #[error("the proxy in front of {address} answered CONNECT with {status}: {reason}")]
    Tunnel {
        /// The destination.
        address: SocketAddr,
        /// HTTP status.
        status: u16,
        /// What the far side says of it; empty if it says nothing.
        reason: String,
    },
    /// The tunnel broke before the CONNECT was answered.
    #[error("the tunnel to {0} broke: {1}")]
    TunnelBroken(SocketAddr, String),
    /// A limit of this pod is reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
}

impl ConnectError {
    /// A bounded word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timeout",
            Self::Unreachable(..) => "unreachable",
            Self::Io(..) => "io",
            Self::NoCertificate(_) => "no_certificate",
            Self::Identity { .. } => "identity",
            Self::Tunnel { .. } => "tunnel_status",
            Self::TunnelBroken(..) => "tunnel_broken",
            Self::Limit(_) => "limit",
        }
    }

    /// Whether another endpoint may do better: false where the cause is on this side.
    pub fn retriable(&self) -> bool {
        !matches!(self, Self::NoCertificate(_) | Self::Limit(_))
    }

    /// From what the kernel says of a `connect` to `address`.
    pub fn from_io(address: SocketAddr, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                Self::Refused(address)
            }
            io::ErrorKind::TimedOut => Self::TimedOut(address),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::Unreachable(address, error.to_string())
            }
            _ => Self::Io(address, error.to_string()),
        }
    }
}
