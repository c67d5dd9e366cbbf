//! One TCP connection by someone who tries to get around the mesh: with a mark, or from an address
//! of his choice. It says a line of HTTP and tells how far that came.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};
use weft_lab_tests::Dialled;

/// For the whole: what is dropped is tried again by the kernel for longer.
const LIMIT: Duration = Duration::from_secs(3);
/// More than a proxy's metrics need.
const MOST: u64 = 16 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// ADDRESS:PORT.
    #[arg(long)]
    to: SocketAddr,
    /// SO_MARK of the socket.
    #[arg(long)]
    mark: Option<u32>,
    /// The source address.
    #[arg(long)]
    from: Option<IpAddr>,
    #[arg(long, default_value = "/healthz")]
    path: String,
}

pub(crate) async fn run(args: Args) -> Dialled {
    let mut dialled = Dialled::default();
    dialled.end = match timeout(LIMIT, talk(&args, &mut dialled)).await {
        Ok(Ok(())) => "eof".into(),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => "reset".into(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "silence".into(),
    };
    dialled
}

async fn talk(args: &Args, dialled: &mut Dialled) -> std::io::Result<()> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(args.to), kind, Some(Protocol::TCP))?;
    if let Some(mark) = args.mark {
        socket.set_mark(mark)?;
    }
    if let Some(from) = args.from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let mut stream = socket.connect(args.to).await?;
    dialled.connected = true;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        args.path, args.to
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.take(MOST).read_to_end(&mut answer).await;
    dialled.answer = String::from_utf8_lossy(&answer).into_owned();
    read.map(drop)
}
