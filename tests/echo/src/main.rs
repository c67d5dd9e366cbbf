//! The command line of weft-echo: flags in; a server that runs until SIGTERM, or a client's report.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use http::{HeaderName, HeaderValue, Method, Uri};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_echo::answer::Identity;
use weft_echo::behaviour::parse_duration;
use weft_echo::client::{self, Options, Outcome, Summary};
use weft_echo::server::{Listen, Protocol, Server};

const BEHAVIOUR_HELP: &str = "\
HTTP answers are JSON: what was seen of the request. Query parameters or `x-echo-NAME` headers change that:
  delay=200ms                wait before the answer (us, ms, s, m)
  status=503                 answer with this status
  fail=0.3                   answer this share of requests with status 500
  close=1                    end the connection without an answer
  reset=1 | reset=stream     reset the connection, or only the HTTP/2 stream
  bytes=N                    answer with N bytes (byte i is i % 251)
  stream=N&interval=100ms    answer with N pieces, so far apart
  cut=N                      break the body off after N bytes
  echo=1                     stream the request's body back
  digest=1                   SHA-256 of the request's body in the answer
  trailers=1                 trailer `x-echo-trailer: done` (HTTP/1.1: to clients that send TE: trailers)
  set-header=name:value      add a header to the answer
`Upgrade: websocket` and `Upgrade: echo` give a connection that echoes bytes.
GET /healthz and /readyz are for probes; POST /readyz?ready=false makes the pod unready;
grpc.health.v1.Health/Check says the same by gRPC.
gRPC: weft.echo.v1.Echo, on the --http ports too.";

#[derive(Parser)]
#[command(
    name = "weft-echo",
    version,
    about = "Says what it saw; for demos, tests and benches"
)]
struct Cli {
    /// What to log (tracing's filter syntax).
    #[arg(long, env = "WEFT_LOG", default_value = "info", global = true)]
    log: String,
    /// How to log.
    #[arg(long, value_enum, default_value = "text", global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Answers with what it saw.
    #[command(visible_alias = "serve")]
    Server(ServerArgs),
    /// Sends requests and reports what came back; exits with 1 if any failed.
    Client(ClientArgs),
}

#[derive(Args)]
#[command(after_help = BEHAVIOUR_HELP)]
struct ServerArgs {
    /// HTTP/1.1, HTTP/2 (prior knowledge) and gRPC: PORT or ADDRESS:PORT; may be repeated.
    #[arg(long, value_name = "PORT")]
    http: Vec<Listen>,
    /// gRPC (and HTTP/2) only.
    #[arg(long, value_name = "PORT")]
    grpc: Vec<Listen>,
    /// TCP: bytes come back; half-close is passed on.
    #[arg(long, value_name = "PORT")]
    tcp: Vec<Listen>,
    /// TCP: a line of JSON comes before anything is read, then bytes come back.
    #[arg(long, value_name = "PORT")]
    speak_first: Vec<Listen>,
    /// The pod's name [default: the hostname].
    #[arg(long, env = "POD_NAME")]
    pod: Option<String>,
    /// The pod's namespace.
    #[arg(long, env = "NAMESPACE", default_value = "")]
    namespace: String,
    /// The application's version.
    #[arg(long, env = "VERSION", default_value = "")]
    version: String,
    /// How long requests under way may take after SIGTERM.
    #[arg(long, default_value = "10s", value_parser = duration)]
    drain_timeout: Duration,
}

#[derive(Args)]
struct ClientArgs {
    /// http://HOST[:PORT]/PATH, grpc://HOST:PORT[?fail_code=14] or tcp://HOST:PORT.
    #[arg(value_parser = url)]
    url: Uri,
    /// How many requests [default: 1, or no limit with --duration].
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Requests under way at once.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Requests a second, all together [default: as fast as answers come].
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Stop after this time.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Method [default: GET, or POST with a body].
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// Header, as name:value; may be repeated. `Host` replaces the URL's.
    #[arg(short = 'H', long = "header", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    #[arg(short, long, conflicts_with = "data_bytes")]
    data: Option<String>,
    /// Body of so many bytes.
    #[arg(long)]
    data_bytes: Option<usize>,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
    /// Keep each worker's connection for its next request.
    #[arg(long)]
    keep_alive: bool,
    /// Time for each request, connecting included.
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Print counts and latencies at the end instead of a line an answer.
    #[arg(long)]
    summary: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft-echo: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Server(args) => serve(args).await.map(|()| ExitCode::SUCCESS),
            Command::Client(args) => send(args).await,
        }
    });
    // Connections that were cut off at the drain's end must not hold the process.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        eprintln!("weft-echo: {error:#}");
        ExitCode::FAILURE
    })
}

fn start_log(cli: &Cli) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new(&cli.log));
    match cli.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let pod = match args.pod {
        Some(pod) => pod,
        None => nix::unistd::gethostname()
            .context("cannot read the hostname; say --pod")?
            .to_string_lossy()
            .into_owned(),
    };
    let identity = Identity {
        pod,
        namespace: args.namespace,
        version: args.version,
    };
    let with = |protocol| move |listen| (protocol, listen);
    let mut ports: Vec<_> = args.http.into_iter().map(with(Protocol::Http)).collect();
    ports.extend(args.grpc.into_iter().map(with(Protocol::Grpc)));
    ports.extend(args.tcp.into_iter().map(with(Protocol::Tcp)));
    ports.extend(args.speak_first.into_iter().map(with(Protocol::SpeakFirst)));
    if ports.is_empty() {
        ports.push((Protocol::Http, Listen::Any(8080)));
    }
    let server = Server::bind(identity, ports)?;
    for (protocol, address) in server.addresses()? {
        tracing::info!("listening on {address} ({protocol:?})");
    }
    let shutdown = stop_signal()?;
    let cut_off = server.run(shutdown, args.drain_timeout).await;
    if cut_off > 0 {
        tracing::warn!(
            "{cut_off} connections were still open after {:?}",
            args.drain_timeout
        );
    }
    Ok(())
}

async fn send(args: ClientArgs) -> anyhow::Result<ExitCode> {
    let body = match (args.data, args.data_bytes) {
        (Some(data), _) => Bytes::from(data),
        (None, Some(length)) => (0..length).map(|at| (at % 251) as u8).collect(),
        (None, None) => Bytes::new(),
    };
    let method = if body.is_empty() {
        Method::GET
    } else {
        Method::POST
    };
    let options = Options {
        method: args.method.unwrap_or(method),
        headers: args.headers,
        body,
        requests: args.requests.or(args.duration.is_none().then_some(1)),
        duration: args.duration,
        concurrency: args.concurrency.into(),
        rate: args.rate,
        http2: args.http2,
        keep_alive: args.keep_alive,
        timeout: args.timeout,
        ..Options::new(args.url)
    };
    let mut out = std::io::stdout();
    let each = |outcome: &Outcome| {
        if !args.summary {
            // A reader that went away is not the requests' failure.
            let _ = print(&mut out, args.output, outcome);
        }
    };
    let summary: Summary = client::run(options, stop_signal()?, each)
        .await
        .map_err(anyhow::Error::from_boxed)?;
    if args.summary {
        print(&mut std::io::stdout(), args.output, &summary)?;
    }
    let failed = summary.failed > 0 || summary.requests == 0;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print<T: serde::Serialize + std::fmt::Display>(
    out: &mut impl Write,
    output: Output,
    value: &T,
) -> std::io::Result<()> {
    match output {
        Output::Text => writeln!(out, "{value}"),
        Output::Json => writeln!(out, "{}", serde_json::to_string(value)?),
    }
}

/// Cancelled by the first SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

fn url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme_str() {
        Some("http" | "grpc" | "tcp") => Ok(url),
        _ => Err("expected http://, grpc:// or tcp://".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a time such as 200ms or 1.5s".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a positive number".to_owned())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected name:value")?;
    let name = name
        .trim()
        .parse()
        .map_err(|error| format!("{name:?}: {error}"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|error| format!("{value:?}: {error}"))?;
    Ok((name, value))
}
