//! Opens connections and keeps them, idle or busy, until standard input ends. A line says when all
//! are open, another at the end what became of them.

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use weft_lab_tests::HoldReport;

/// For one connection to stand: a debug build on a busy machine makes thousands of them.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections that are being made at once.
const AT_ONCE: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// host:port of an echo.
    #[arg(long)]
    to: String,
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// One HTTP/1.1 request on each, and keep it alive, instead of a byte.
    #[arg(long)]
    http: bool,
    /// Exchange a byte again after so many milliseconds each time.
    #[arg(long, conflicts_with = "http")]
    busy: Option<u64>,
}

pub(crate) async fn run(args: Args) -> HoldReport {
    // Each connection takes a descriptor. Without: what cannot be opened is in the report.
    getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .ok();
    let report = Arc::<Mutex<HoldReport>>::default();
    let args = Arc::new(args);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    let mut held = JoinSet::new();
    for _ in 0..args.count {
        let (args, places) = (Arc::clone(&args), Arc::clone(&places));
        opening.spawn(async move {
            let _place = places.acquire().await.map_err(|e| e.to_string())?;
            match timeout(LIMIT, open(&args)).await {
                Ok(opened) => opened.map_err(|e| e.to_string()),
                Err(_) => Err("not in time".to_owned()),
            }
        });
    }
    while let Some(opened) = opening.join_next().await {
        match opened {
            Ok(Ok(stream)) => {
                report.lock().open += 1;
                held.spawn(hold(stream, args.busy, Arc::clone(&report)));
            }
            Ok(Err(reason)) => report.lock().failed.push(reason),
            Err(error) => report.lock().failed.push(error.to_string()),
        }
    }
    say(&report.lock());
    let mut end = [0];
    while tokio::io::stdin().read(&mut end).await.unwrap_or(0) > 0 {}
    held.shutdown().await;
    report.lock().clone()
}

fn say(report: &HoldReport) {
    let line = serde_json::to_string(report).unwrap_or_default();
    println!("{line}");
    std::io::stdout().flush().ok();
}

async fn open(args: &Args) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(&args.to).await?;
    if !args.http {
        exchange(&mut stream).await?;
        return Ok(stream);
    }
    let request = format!("GET /?bytes=1 HTTP/1.1\r\nhost: {}\r\n\r\n", args.to);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let whole = |answer: &[u8]| {
        let head = answer.windows(4).position(|part| part == b"\r\n\r\n");
        head.is_some_and(|head| answer.len() > head + 4)
    };
    while !whole(&answer) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        let line = answer
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        return Err(std::io::Error::other(String::from_utf8_lossy(line)));
    }
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0; 1]).await.map(drop)
}

async fn hold(mut stream: TcpStream, busy: Option<u64>, report: Arc<Mutex<HoldReport>>) {
    let reason = loop {
        let ended = match busy {
            Some(pause) => {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                exchange(&mut stream).await.err()
            }
            None => match stream.read(&mut [0; 1]).await {
                Ok(0) => Some(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => None,
                Err(error) => Some(error),
            },
        };
        if let Some(error) = ended {
            break error.to_string();
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = now.unwrap_or_default().as_millis() as u64;
    report.lock().broken.push((millis, reason));
}
