//! The client that tests run inside pods. JSON in, JSON out; see `weft_lab_tests` for the forms.
//!
//! ```text
//! weft-lab-client http                                 requests on stdin, answers on stdout
//! weft-lab-client load --url U --count N …             bounded load with a report
//! weft-lab-client bytes --to HOST:PORT --send N …      raw bytes against an echo
//! weft-lab-client probe --to HOST:PORT --seconds S …   requests at fixed times, and their latencies
//! weft-lab-client flood --kind K --to HOST:PORT …      bursts of what a proxy dislikes
//! weft-lab-client dial --to ADDR [--mark N] …       one connection of someone who tries things
//! weft-lab-client live --to HOST:PORT --limit MS         a byte stream until it is ended
//! weft-lab-client grpc --to HOST:PORT                   gRPC in every shape
//! weft-lab-client hold --to HOST:PORT --count N …       connections that are kept
//! ```

mod bytes;
mod dial;
mod flood;
mod grpc;
mod hold;
mod http;
mod live;
mod load;
mod probe;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Makes the requests on standard input.
    Http,
    /// Makes many requests.
    Load(load::Args),
    /// Exchanges raw bytes.
    Bytes(bytes::Args),
    /// Requests at fixed times, and how long each took.
    Probe(probe::Args),
    /// Floods.
    Flood(flood::Args),
    /// One connection, with a mark or from an address of choice.
    Dial(dial::Args),
    /// Keeps a byte stream in use until the other side ends it.
    Live(live::Args),
    /// Calls the echo in every shape of gRPC.
    Grpc(grpc::Args),
    /// Opens connections and keeps them.
    Hold(hold::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let json = match Command::parse() {
        Command::Http => {
            let requests = serde_json::from_reader(std::io::stdin())?;
            serde_json::to_string(&http::all(requests).await)?
        }
        Command::Load(args) => serde_json::to_string(&load::run(args).await?)?,
        Command::Bytes(args) => serde_json::to_string(&bytes::run(args).await)?,
        Command::Probe(args) => serde_json::to_string(&probe::run(args).await?)?,
        Command::Flood(args) => serde_json::to_string(&flood::run(args).await?)?,
        Command::Dial(args) => serde_json::to_string(&dial::run(args).await)?,
        Command::Live(args) => serde_json::to_string(&live::run(args).await)?,
        Command::Grpc(args) => serde_json::to_string(&grpc::run(args).await?)?,
        Command::Hold(args) => serde_json::to_string(&hold::run(args).await)?,
    };
    println!("{json}");
    Ok(())
}
