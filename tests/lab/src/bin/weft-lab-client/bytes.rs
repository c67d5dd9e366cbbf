//! Raw bytes against a server that echoes them: half-close, resets, and servers that speak first.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use weft_lab_tests::ByteReport;

/// Longer than 100 MB take in a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const CHUNK: usize = 64 << 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    to: String,
    /// Bytes to send before the half-close.
    #[arg(long, default_value_t = 0)]
    send: u64,
    /// Read a line before anything is sent.
    #[arg(long)]
    banner: bool,
    /// Ask for an HTTP/1.1 upgrade of this name first.
    #[arg(long)]
    upgrade: Option<String>,
    /// Reset the connection after that many bytes have come back.
    #[arg(long)]
    reset_after: Option<u64>,
}

pub(crate) async fn run(args: Args) -> ByteReport {
    let mut report = ByteReport::default();
    report.end = match timeout(LIMIT, exchange(&args, &mut report)).await {
        Ok(Ok(())) => "eof".into(),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => "reset".into(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("still open after {LIMIT:?}"),
    };
    report
}

async fn exchange(args: &Args, report: &mut ByteReport) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(&args.to).await?;
    if let Some(protocol) = &args.upgrade {
        upgrade(&mut stream, &args.to, protocol).await?;
    }
    if args.banner {
        let mut line = Vec::new();
        while stream.read_buf(&mut line).await? > 0 && !line.ends_with(b"\n") {}
        report.banner = Some(String::from_utf8_lossy(&line).trim().to_owned());
    }
    if args.reset_after.is_some() {
        // Closing with SO_LINGER 0 sends RST instead of FIN.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    let (read, write) = tokio::io::split(stream);
    let total = args.send;
    let sender = tokio::spawn(send(write, total));
    receive(read, args.reset_after, report).await?;
    if args.reset_after.is_some() {
        sender.abort();
        return Ok(());
    }
    report.sent = sender.await.map_err(std::io::Error::other)??;
    Ok(())
}

/// Sends the request for an upgrade and takes the 101, byte by byte: what follows is the stream's.
async fn upgrade(stream: &mut TcpStream, host: &str, protocol: &str) -> std::io::Result<()> {
    let request = format!(
        "GET /upgrade HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "no upgrade: {}",
        String::from_utf8_lossy(&head)
    )))
}

/// The byte at a position: a pattern that shows lost, doubled and swapped pieces.
fn pattern(position: u64) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)).to_le_bytes()[0]
}

async fn send(mut write: WriteHalf<TcpStream>, total: u64) -> std::io::Result<u64> {
    let mut sent = 0;
    while sent < total {
        let n = (total - sent).min(CHUNK as u64);
        let chunk: Vec<u8> = (sent..sent + n).map(pattern).collect();
        write.write_all(&chunk).await?;
        sent += n;
    }
    write.shutdown().await?;
    Ok(sent)
}

async fn receive(
    mut read: ReadHalf<TcpStream>,
    stop_after: Option<u64>,
    report: &mut ByteReport,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = read.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        for byte in &buffer[..n] {
            if *byte != pattern(report.echoed) {
                return Err(std::io::Error::other(format!(
                    "byte {} is wrong",
                    report.echoed
                )));
            }
            report.echoed += 1;
        }
        if stop_after.is_some_and(|limit| report.echoed >= limit) {
            return Ok(());
        }
    }
}
