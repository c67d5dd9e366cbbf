//! A server that costs as little as possible, so that the proxies are what is measured.

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port for HTTP/1.1.
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// Port that reads and throws away; answers the count of bytes (8, big endian) after the end.
    #[arg(long, default_value_t = 9100)]
    sink: u16,
    /// Size of each answer's body in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let http = TcpListener::bind(("0.0.0.0", args.http)).await?;
    let sink = TcpListener::bind(("0.0.0.0", args.sink)).await?;
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
        args.body
    )
    .into_bytes();
    answer.resize(answer.len() + args.body, b'x');
    let answer: &'static [u8] = answer.leak();
    loop {
        tokio::select! {
            accepted = http.accept() => { tokio::spawn(answer_all(accepted?.0, answer)); }
            accepted = sink.accept() => { tokio::spawn(swallow(accepted?.0)); }
        }
    }
}

/// Answers every request head; requests of the bench have no bodies.
async fn answer_all(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            stream.write_all(answer).await?;
        }
    }
}

async fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => total += n as u64,
        }
    }
    stream.write_all(&total.to_be_bytes()).await
}
