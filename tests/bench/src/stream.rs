//! One TCP connection as fast as it goes.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// HOST:PORT of a sink.
    #[arg(long)]
    to: String,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// What arrived.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Bytes that the sink counted.
    pub(crate) bytes: u64,
    /// Until the sink had counted them.
    pub(crate) seconds: f64,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut stream = TcpStream::connect(&args.to).await?;
    let chunk = vec![0x5a; 128 << 10];
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    while Instant::now() < end {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await?;
    let bytes = stream.read_u64().await?;
    let measured = Measured {
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
