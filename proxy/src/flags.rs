//! The program's flags. In flow arguments, out flow checked values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use http::Uri;

use crate::telemetry::Sink;

/// Weft's data plane: one proxy a node.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-proxy", version)]
pub struct Flags {
    /// Name of the node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Topology zone of the node.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// The agent's socket, by which pods come.
    #[arg(long, value_name = "SOCKET")]
    pub handover: PathBuf,
    /// The controller: configuration and CA.
    #[arg(long, value_name = "https://ADDR:15010")]
    pub controller: Uri,
    /// Roots by which the controller is verified, PEM; read anew for each connection.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: PathBuf,
    /// The token by which the node proves itself to the controller; read anew for each call.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Where configuration and certificates outlive this process: memory-backed, never a disk.
    #[arg(long, value_name = "DIR")]
    pub snapshot_dir: PathBuf,
    /// Prometheus metrics. `[::]` is all addresses of both families.
    #[arg(long, value_name = "ADDR", default_value = "[::]:15020")]
    pub metrics: SocketAddr,
    /// Readiness.
    #[arg(long, value_name = "ADDR", default_value = "[::]:15021")]
    pub ready: SocketAddr,
    /// The admin interface, which shows everything: on loopback.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Threads of the data path; by default one a processor.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// One line of JSON per request and connection: a file, `-` for standard output, or `off`.
    #[arg(long, value_name = "FILE|-|off", default_value = "off")]
    pub access_log: Sink,
    /// How long what is open may go on after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// How the program's own log looks (its level: WEFT_LOG).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Looks of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// `500ms`, `30s`, `5m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a time such as 500ms, 30s or 5m"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        unit => Err(format!("{unit:?} is not one of ms, s, m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("7", Some(7_000)),
            ("2m", Some(120_000)),
            ("2h", None),
            ("s", None),
            ("", None),
            ("-1s", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
    }
}
