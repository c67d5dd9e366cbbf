//! Measures weft beside other proxies in the same run, and reports ratios.
//!
//! `weft-bench run` makes a lab, starts the comparisons in it, and drives the other subcommands
//! inside its pods: `serve` (a server that costs little), `load` (HTTP/1.1 over kept connections)
//! and `stream` (one TCP connection as fast as it goes).

mod envoy;
mod lab;
mod load;
mod process;
mod report;
mod run;
mod serve;
mod stream;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Measures weft beside other proxies, and reports ratios")]
enum Command {
    /// The whole comparison: makes a lab, measures, prints a table and writes JSON.
    Run(run::Args),
    /// A small HTTP/1.1 server, and a sink for streams.
    Serve(serve::Args),
    /// HTTP/1.1 load over kept connections; prints JSON.
    Load(load::Args),
    /// Sends bytes over one connection to a sink; prints JSON.
    Stream(stream::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => in_runtime(serve::run(args)),
        Command::Load(args) => in_runtime(load::run(args)),
        Command::Stream(args) => in_runtime(stream::run(args)),
    }
}

fn in_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // One thread: the machine's cores belong to what is measured.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
