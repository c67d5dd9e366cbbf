//! Ports in, connections handed to their protocol; on shutdown no new ones, and the open ones end.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Identity, canonical};
use crate::heads::Heads;
use crate::http::{Connection, Shared, handle};
use crate::tcp;

/// How many connections may wait to be accepted: benches open many at once.
const BACKLOG: i32 = 4096;
/// Pause after a failure to accept (such as too many open files), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2 with prior knowledge, and gRPC.
    Http,
    /// gRPC and other HTTP/2.
    Grpc,
    /// Bytes come back.
    Tcp,
    /// A line first, then bytes come back.
    SpeakFirst,
}

/// Where to listen: a port on all addresses of both families, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// `8080`
    Any(u16),
    /// `127.0.0.1:8080`, `[::1]:8080`
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = text.parse().map(Self::Any);
        port.or_else(|_| text.parse().map(Self::At))
            .map_err(|_| format!("{text:?} is neither a port nor ADDRESS:PORT"))
    }
}

/// Bound ports, ready to serve.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<(Protocol, TcpListener)>,
}

impl Server {
    /// Binds all ports.
    pub fn bind(
        identity: Identity,
        ports: impl IntoIterator<Item = (Protocol, Listen)>,
    ) -> io::Result<Self> {
        let listeners = ports
            .into_iter()
            .map(|(protocol, listen)| {
                let named = |error: io::Error| {
                    io::Error::new(
                        error.kind(),
                        format!("cannot listen on {listen:?}: {error}"),
                    )
                };
                Ok((protocol, bind(listen).map_err(named)?))
            })
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            identity,
            ready: AtomicBool::new(true),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        Ok(Self { shared, listeners })
    }

    /// The bound addresses, in the order in which they were asked for.
    pub fn addresses(&self) -> io::Result<Vec<(Protocol, SocketAddr)>> {
        let address = |(protocol, listener): &(Protocol, TcpListener)| {
            Ok((*protocol, listener.local_addr()?))
        };
        self.listeners.iter().map(address).collect()
    }

    /// Serves until `shutdown`; then accepts no more, lets requests under way finish for at most
    /// `drain`, and returns how many connections were cut off.
    pub async fn run(self, shutdown: CancellationToken, drain: Duration) -> usize {
        let shared = self.shared;
        let counter = Arc::new(AtomicU64::new(0));
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|(protocol, listener)| {
                tokio::spawn(accept(shared.clone(), protocol, listener, counter.clone()))
            })
            .collect();
        shutdown.cancelled().await;
        shared.draining.cancel();
        for task in accepting {
            // Only a panic makes this an error, and it has been reported by then.
            let _ = task.await;
        }
        shared.tasks.close();
        let _ = tokio::time::timeout(drain, shared.tasks.wait()).await;
        shared.tasks.len()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}

fn bind(listen: Listen) -> io::Result<TcpListener> {
    match listen {
        Listen::At(address) => bind_at(address),
        // One socket for both families; v4 alone where v6 is off.
        Listen::Any(port) => {
            bind_at((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error| match error.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
                _ => bind_at((Ipv4Addr::UNSPECIFIED, port).into()),
            })
        }
    }
}

fn bind_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    shared: Arc<Shared>,
    protocol: Protocol,
    listener: TcpListener,
    counter: Arc<AtomicU64>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.draining.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
                let task = serve(shared.clone(), protocol, stream, number);
                shared.tasks.spawn(async move {
                    if let Err(error) = task.await {
                        tracing::debug!("connection {number}: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    protocol: Protocol,
    stream: TcpStream,
    number: u64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (peer, local) = (
        canonical(stream.peer_addr()?),
        canonical(stream.local_addr()?),
    );
    match protocol {
        Protocol::Tcp => {
            let (reader, writer) = stream.into_split();
            tcp::echo(reader, writer).await;
            Ok(())
        }
        Protocol::SpeakFirst => tcp::speak_first(&shared.identity, stream, peer, local).await,
        Protocol::Http | Protocol::Grpc => {
            let connection = Arc::new(Connection {
                number,
                peer,
                local,
                requests: AtomicU64::new(0),
                heads: Mutex::new(Heads::default()),
                ended: CancellationToken::new(),
                reset: AtomicBool::new(false),
            });
            serve_http(shared, protocol, stream, connection).await;
            Ok(())
        }
    }
}

async fn serve_http(
    shared: Arc<Shared>,
    protocol: Protocol,
    stream: TcpStream,
    connection: Arc<Connection>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A client may end its direction after the request, and still wants the answer.
    builder.http1().half_close(true);
    if protocol == Protocol::Grpc {
        builder = builder.http2_only();
    }
    let service = service_fn(|request| handle(shared.clone(), connection.clone(), request));
    let watched = Watched {
        stream,
        connection: connection.clone(),
    };
    let mut serving =
        std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(watched), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = connection.ended.cancelled() => return,
        () = shared.draining.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                result = serving.as_mut() => result,
                () = connection.ended.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection {}: {error}", connection.number);
    }
}

/// The stream under hyper: shows what is read to [`Heads`], and ends by a reset if asked to.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.connection
            .heads
            .lock()
            .feed(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.connection.reset.load(Ordering::Relaxed) {
            // Closing with no time to linger sends a reset instead of an orderly end.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}
