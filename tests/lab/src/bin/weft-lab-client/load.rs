//! Many requests, a fixed number at a time, over kept connections or new ones.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use weft_lab_tests::LoadReport;

/// Longer than any answer should take, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    url: Uri,
    #[arg(long)]
    count: u64,
    #[arg(long, default_value_t = 8)]
    concurrency: u32,
    /// A new connection for each request.
    #[arg(long)]
    new_connections: bool,
    /// Requests a second, all together; 0 for as many as go.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// name:value, added to each request.
    #[arg(long)]
    header: Vec<String>,
    /// Leave the time line out.
    #[arg(long)]
    brief: bool,
}

/// The part of the echo's answer that is counted.
#[derive(Deserialize)]
struct Seen {
    version: String,
    pod: String,
}

pub(crate) async fn run(args: Args) -> Result<LoadReport> {
    let args = Arc::new(args);
    let left = Arc::new(Mutex::new(args.count));
    let report = Arc::new(Mutex::new(LoadReport::default()));
    let mut workers = JoinSet::new();
    for _ in 0..args.concurrency {
        workers.spawn(worker(args.clone(), left.clone(), report.clone()));
    }
    while let Some(done) = workers.join_next().await {
        done?;
    }
    let report = std::mem::take(&mut *report.lock());
    Ok(report)
}

async fn worker(args: Arc<Args>, left: Arc<Mutex<u64>>, report: Arc<Mutex<LoadReport>>) {
    let mut kept = None;
    let pause = match args.rate {
        0 => None,
        rate => Some(Duration::from_secs_f64(
            f64::from(args.concurrency) / f64::from(rate),
        )),
    };
    let mut ticks = pause.map(tokio::time::interval);
    loop {
        {
            let mut left = left.lock();
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let answer = match timeout(LIMIT, one(&args, &mut kept)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("no answer within {LIMIT:?}")),
        };
        let mut report = report.lock();
        match answer {
            Ok(seen) => {
                report.ok += 1;
                *report.versions.entry(seen.version.clone()).or_default() += 1;
                *report.pods.entry(seen.pod).or_default() += 1;
                if !args.brief {
                    let now = SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .unwrap_or_default();
                    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
                    report.timeline.push((now, seen.version));
                }
            }
            Err(cause) => {
                kept = None;
                report.failed += 1;
                *report.causes.entry(format!("{cause:#}")).or_default() += 1;
            }
        }
    }
}

async fn one(args: &Args, kept: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<Seen> {
    // A kept connection that the server has closed in order is no failure: take a new one.
    let reusable = match kept.take() {
        Some(mut send) => send.ready().await.is_ok().then_some(send),
        None => None,
    };
    let mut send = match reusable {
        Some(send) => send,
        None => {
            let stream = TcpStream::connect(crate::http::authority(&args.url)?)
                .await
                .context("connect")?;
            stream.set_nodelay(true)?;
            let (send, driver) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            send
        }
    };
    let path = args.url.path_and_query().map_or("/", |p| p.as_str());
    let host = args
        .url
        .authority()
        .context("the URL has no host")?
        .as_str();
    let mut request = Request::get(path).header(HOST, host);
    for header in &args.header {
        let (name, value) = header.split_once(':').context("a header is name:value")?;
        request = request.header(name, value.trim());
    }
    let response = send
        .send_request(request.body(Empty::new())?)
        .await
        .context("request")?;
    let status = response.status();
    let closes = response
        .headers()
        .get("connection")
        .is_some_and(|v| v == "close");
    let body = response
        .into_body()
        .collect()
        .await
        .context("body")?
        .to_bytes();
    if !status.is_success() {
        bail!(
            "status {}: {}",
            status.as_u16(),
            String::from_utf8_lossy(&body)
        );
    }
    if !args.new_connections && !closes {
        *kept = Some(send);
    }
    serde_json::from_slice(&body).context("the answer is not the echo's")
}
