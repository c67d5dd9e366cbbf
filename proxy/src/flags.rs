//! The program's flags. In flow arguments, out flow checked values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use http::Uri;
use weft_api::names::SYSTEM_NAMESPACE;

use crate::{
    http::HttpLimits,
    settings::{self, Settings, table::time},
    telemetry::Sink,
};

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
    /// Namespace whose pods may read metrics and readiness; may be repeated, `*`: all. What is no
    /// pod, such as a kubelet or a scraper on a node's own network, always may.
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub scrape_from: Vec<String>,
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
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time::parse)]
    pub drain_timeout: Duration,
    /// A limit or time, by name; may be repeated. The documentation lists them (Limits and times);
    /// a name that does not exist is answered with those that do.
    #[arg(long = "limit", value_name = "NAME=VALUE")]
    pub limits: Vec<String>,
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

impl Flags {
    /// The limits in force: the defaults, and what `--limit` says.
    ///
    /// # Errors
    /// Says what is wrong with which.
    pub fn limits(&self) -> Result<(Settings, HttpLimits), String> {
        settings::with_limits(self.limits.iter().map(String::as_str))
    }
}
