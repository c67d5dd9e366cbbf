//! A victim's point of view: requests that are due at fixed times, whatever became of the earlier
//! ones (so a stall shows in all that it held up), and how long each took.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use weft_lab_tests::Probed;

/// Longer than any answer should take, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// HOST:PORT of the echo's HTTP/1.1.
    #[arg(long)]
    to: String,
    /// Requests a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    #[arg(long)]
    seconds: f64,
    /// A new connection for each request.
    #[arg(long)]
    new_connections: bool,
}

pub(crate) async fn run(args: Args) -> Result<Vec<Probed>> {
    let args = Arc::new(args);
    let kept = Arc::new(Mutex::new(VecDeque::new()));
    let begin = Instant::now();
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let count = (f64::from(args.rate) * args.seconds) as u32;
    let mut asking = JoinSet::new();
    for n in 0..count {
        let due = begin + Duration::from_secs_f64(f64::from(n) / f64::from(args.rate));
        sleep_until(due).await;
        let (args, kept) = (Arc::clone(&args), Arc::clone(&kept));
        asking.spawn(async move {
            let ok = matches!(timeout(LIMIT, ask(&args, &kept)).await, Ok(Ok(())));
            Probed {
                at_micros: micros(epoch + (due - begin)),
                took_micros: micros(due.elapsed()),
                ok,
            }
        });
    }
    let mut probed = asking.join_all().await;
    probed.sort_by_key(|one| one.at_micros);
    Ok(probed)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

async fn ask(args: &Args, kept: &Mutex<VecDeque<TcpStream>>) -> Result<()> {
    // Taken in its own statement: the lock is not held while connecting.
    let idle = kept.lock().pop_front();
    let mut stream = match idle {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(&args.to).await?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {}\r\n\r\n", args.to);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("closed in the middle of an answer");
        }
        if is_whole(&answer)? {
            break;
        }
    }
    if !args.new_connections {
        kept.lock().push_back(stream);
    }
    Ok(())
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(false);
    };
    let text = std::str::from_utf8(&answer[..head])?.to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        bail!("not a good answer: {text}");
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let Some(length) = length else {
        bail!("no content-length: {text}");
    };
    Ok(answer.len() >= head + 4 + length.trim().parse::<usize>()?)
}
