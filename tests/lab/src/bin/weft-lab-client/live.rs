//! A byte stream that lives long: something is sent and comes back again and again, until the other
//! side ends it. Tells how it ended, and when.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use weft_lab_tests::LiveReport;

/// Longer than an echo takes on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    to: String,
    /// Milliseconds between two exchanges.
    #[arg(long, default_value_t = 50)]
    every: u64,
    /// Milliseconds after which this side ends it.
    #[arg(long)]
    limit: u64,
}

pub(crate) async fn run(args: Args) -> LiveReport {
    let start = Instant::now();
    let mut report = LiveReport::default();
    report.end = match live(&args, &mut report).await {
        Ok(end) => end.into(),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "reset".into(),
        Err(error) => error.to_string(),
    };
    report.millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

async fn live(args: &Args, report: &mut LiveReport) -> std::io::Result<&'static str> {
    let mut stream = TcpStream::connect(&args.to).await?;
    let start = Instant::now();
    let mut answer = [0; 16];
    while start.elapsed() < Duration::from_millis(args.limit) {
        // Who is told of the end while it waits has lost nothing.
        match timeout(Duration::from_millis(args.every), stream.read(&mut answer)).await {
            Ok(Ok(0)) => return Ok("eof"),
            Ok(Ok(_)) => return Ok("an answer that was not asked for"),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        stream.write_all(b"?").await?;
        match timeout(ANSWER, stream.read(&mut answer)).await {
            Ok(Ok(0)) => return Ok("eof"),
            Ok(Ok(_)) => report.exchanges += 1,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok("no answer"),
        }
    }
    stream.shutdown().await?;
    while stream.read(&mut answer).await? > 0 {}
    Ok("ended by itself")
}
