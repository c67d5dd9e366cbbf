//! HTTP/1.1 load over kept connections: as fast as it goes, or at a rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, timeout},
};

/// An answer that takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// HOST:PORT.
    #[arg(long)]
    to: String,
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Requests a second over all connections; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Seconds that count.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// What a load measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Answered requests.
    pub(crate) requests: u64,
    /// Requests without a good answer.
    pub(crate) failed: u64,
    /// Seconds that it took.
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let failed = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    let mut workers = JoinSet::new();
    for n in 0..args.connections {
        let period = (args.rate > 0)
            .then(|| Duration::from_secs_f64(f64::from(args.connections) / f64::from(args.rate)));
        // Connections take turns within a period: no bursts.
        let offset = period.map(|p| p * n / args.connections).unwrap_or_default();
        workers.spawn(connection(
            args.to.clone(),
            period,
            offset,
            end,
            failed.clone(),
        ));
    }
    let mut latencies = Vec::new();
    while let Some(done) = workers.join_next().await {
        latencies.extend(done??);
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies
            .get(index)
            .map_or(0.0, |nanos| *nanos as f64 / 1000.0)
    };
    let result = Measured {
        requests: latencies.len() as u64,
        failed: failed.load(Ordering::Relaxed),
        seconds,
        p50: at(0.50),
        p99: at(0.99),
    };
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// Nanoseconds of each request of one connection, made anew when it fails.
async fn connection(
    to: String,
    period: Option<Duration>,
    offset: Duration,
    end: Instant,
    failed: Arc<AtomicU64>,
) -> Result<Vec<u64>> {
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut ticks = period.map(|p| {
        let mut ticks = interval_at(tokio::time::Instant::now() + offset, p);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let request = format!(
        "GET /bench HTTP/1.1\r\nhost: {to}\r\nuser-agent: weft-bench\r\naccept: */*\r\n\r\n"
    );
    let mut buffer = Vec::with_capacity(16 << 10);
    while Instant::now() < end {
        let mut stream = TcpStream::connect(&to)
            .await
            .with_context(|| format!("dialling {to}"))?;
        stream.set_nodelay(true)?;
        while Instant::now() < end {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let start = Instant::now();
            match timeout(
                LIMIT,
                exchange(&mut stream, request.as_bytes(), &mut buffer),
            )
            .await
            {
                Ok(Ok(())) => latencies.push(u64::try_from(start.elapsed().as_nanos())?),
                _ => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
    }
    Ok(latencies)
}

async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed in the middle of an answer");
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(buffer)? else {
            continue;
        };
        if response.code != Some(200) {
            bail!("status {:?}", response.code);
        }
        let length = response
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let length: usize =
            std::str::from_utf8(length.context("no content-length")?.value)?.parse()?;
        let missing = (head + length).saturating_sub(buffer.len());
        let from = buffer.len();
        buffer.resize(from + missing, 0);
        stream.read_exact(&mut buffer[from..]).await?;
        return Ok(());
    }
}
