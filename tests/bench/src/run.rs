//! The comparison: one lab, all variants in it, in alternating order.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{
    envoy,
    lab::Lab,
    load, process,
    report::{Report, Sample},
    stream,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder of weft's release binaries.
    #[arg(long)]
    bin: PathBuf,
    /// Envoy; without it there is nothing beside weft.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Where the JSON goes.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Requests a second while latencies are taken.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    #[arg(long, default_value_t = 16)]
    connections: u32,
}

/// One way from a client to a server.
struct Variant {
    name: &'static str,
    /// The client's pod.
    from: &'static str,
    http: String,
    sink: Option<String>,
    /// The proxies whose cost counts.
    proxies: Vec<u32>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rounds == 0 {
        bail!("--rounds 0 measures nothing");
    }
    let folder = tempfile::tempdir()?;
    envoy::write_certificates(folder.path())?;
    let server = folder.path().join("envoy-server.json");
    let client = folder.path().join("envoy-client.json");
    fs::write(&server, envoy::server(folder.path()).to_string())?;
    let manifests = folder.path().join("lab.json");
    fs::write(&manifests, manifests_of(args, &server, &client).to_string())?;

    eprintln!("bench: starting a lab");
    let lab = Lab::up(&args.bin, &manifests)?;
    let mut variants = vec![
        Variant {
            name: "direct",
            from: "plain/client",
            http: format!("{}:8080", lab.pod_ip("plain", "v1")?),
            sink: Some(format!("{}:9100", lab.pod_ip("plain", "v1")?)),
            proxies: Vec::new(),
        },
        Variant {
            name: "weft-l4",
            from: "mesh/client",
            http: "unrouted:80".into(),
            sink: Some("unrouted:9100".into()),
            proxies: lab.proxies()?,
        },
        Variant {
            name: "weft-l7",
            from: "mesh/client",
            http: "routed:80".into(),
            sink: None,
            proxies: lab.proxies()?,
        },
    ];
    if args.envoy.is_some() {
        let servers = [
            (lab.pod_ip("envoy", "v1")?, 90),
            (lab.pod_ip("envoy", "v2")?, 10),
        ];
        fs::write(&client, envoy::client(folder.path(), &servers).to_string())?;
        variants.push(Variant {
            name: "envoy-l7",
            from: "envoy/client",
            http: format!("127.0.0.1:{}", envoy::CLIENT_PORT),
            sink: None,
            proxies: wait_for_envoys(&[&server, &client])?,
        });
    }

    let mut report = Report::default();
    for variant in &variants {
        warm_up(&lab, variant)?;
        if !variant.proxies.is_empty() {
            report
                .idle_rss
                .insert(variant.name.into(), process::rss(&variant.proxies)?);
        }
    }
    for round in 0..args.rounds {
        eprintln!("bench: round {} of {}", round + 1, args.rounds);
        // Every other round runs backwards, so that no variant always comes after the same one.
        let mut order: Vec<_> = variants.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for variant in order {
            let sample = measure(&lab, variant, args)
                .with_context(|| format!("{} in round {}", variant.name, round + 1))?;
            report
                .samples
                .entry(variant.name.into())
                .or_default()
                .push(sample);
        }
    }
    report.finish(args.connections, args.rate);
    println!("{}", report.table());
    if let Some(parent) = args.out.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&args.out, serde_json::to_string_pretty(&report)?)?;
    println!("JSON: {}", args.out.display());
    Ok(())
}

fn warm_up(lab: &Lab, variant: &Variant) -> Result<()> {
    let args = [
        "load",
        "--to",
        &variant.http,
        "--connections",
        "16",
        "--seconds",
        "1",
    ];
    let warm: load::Measured = lab.bench(variant.from, &args)?;
    if warm.failed > 0 || warm.requests == 0 {
        bail!("{} does not work: {warm:?}", variant.name);
    }
    Ok(())
}

fn measure(lab: &Lab, variant: &Variant, args: &Args) -> Result<Sample> {
    let (seconds, connections) = (args.seconds.to_string(), args.connections.to_string());
    let base = ["load", "--to", &variant.http, "--seconds", &seconds];

    let before = process::cpu_nanos(&variant.proxies)?;
    let full: load::Measured = lab.bench(
        variant.from,
        &[&base[..], &["--connections", &connections]].concat(),
    )?;
    let used = process::cpu_nanos(&variant.proxies)? - before;

    let rate = args.rate.to_string();
    let paced: load::Measured = lab.bench(
        variant.from,
        &[&base[..], &["--connections", "8", "--rate", &rate]].concat(),
    )?;
    let failed = full.failed + paced.failed;
    if failed > 0 {
        bail!("{failed} requests failed");
    }
    let throughput = match &variant.sink {
        None => None,
        Some(sink) => {
            let sent: stream::Measured = lab.bench(variant.from, &["stream", "--to", sink])?;
            Some(sent.bytes as f64 / sent.seconds / 1e6)
        }
    };
    Ok(Sample {
        requests_per_second: full.requests as f64 / full.seconds,
        cpu_micros_per_request: used as f64 / 1000.0 / full.requests as f64,
        p50_micros: paced.p50,
        p99_micros: paced.p99,
        stream_megabytes_per_second: throughput,
        rss_bytes: process::rss(&variant.proxies)?,
    })
}

/// Envoys start when their configuration is there: their containers wait for the files.
fn wait_for_envoys(configurations: &[&Path]) -> Result<Vec<u32>> {
    let start = Instant::now();
    loop {
        let found: Vec<u32> = configurations
            .iter()
            .flat_map(|path| process::with_argument(&path.to_string_lossy()))
            .collect();
        // Two servers and one client.
        if found.len() == 3 && listens(&found) {
            return Ok(found);
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!(
                "{} of 3 Envoys run; weft lab logs envoy/client -c envoy says why",
                found.len()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether each process's network namespace has a listener on one of Envoy's ports.
fn listens(pids: &[u32]) -> bool {
    let ports = [envoy::CLIENT_PORT, envoy::MTLS_PORT].map(|p| format!(":{p:04X}"));
    pids.iter().all(|pid| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
        table.lines().any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().unwrap_or_default();
            let listening = columns.nth(1) == Some("0A");
            listening && ports.iter().any(|port| local.ends_with(port.as_str()))
        })
    })
}

fn manifests_of(args: &Args, server: &Path, client: &Path) -> serde_json::Value {
    let bench = args.bin.join("weft-bench");
    let mut items = Vec::new();
    for (namespace, enabled) in [("mesh", true), ("plain", false), ("envoy", false)] {
        if namespace == "envoy" && args.envoy.is_none() {
            continue;
        }
        let labels = if enabled {
            json!({"weft.dev/mesh": "enabled"})
        } else {
            json!({})
        };
        items.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
        for (pod, node) in [("client", "n1"), ("v1", "n2"), ("v2", "n2")] {
            let mut containers = vec![match pod {
                "client" => json!({"name": "client", "command": ["sleep", "infinity"]}),
                _ => json!({
                    "name": "server", "command": [&bench, "serve"],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                }),
            }];
            if let (true, Some(envoy)) = (namespace == "envoy", &args.envoy) {
                let config = if pod == "client" { client } else { server };
                let run = "until [ -s \"$1\" ]; do sleep 0.1; done; \
                           exec \"$0\" -c \"$1\" --concurrency 2 --log-level error --disable-hot-restart";
                containers
                    .push(json!({"name": "envoy", "command": ["sh", "-c", run, envoy, config]}));
            }
            items.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod, "namespace": namespace, "labels": {"app": "server", "pod": pod}},
                "spec": {"nodeName": node, "containers": containers},
            }));
        }
    }
    for (name, selector) in [
        ("v1", json!({"pod": "v1"})),
        ("v2", json!({"pod": "v2"})),
        ("unrouted", json!({"pod": "v1"})),
        ("routed", json!({"pod": "v1"})),
    ] {
        items.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "mesh"},
            "spec": {"selector": selector, "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "tcp-sink", "port": 9100},
            ]},
        }));
    }
    items.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "routed", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "routed", "port": 80}],
            "rules": [{"backendRefs": [{"name": "v1", "port": 80, "weight": 90}, {"name": "v2", "port": 80, "weight": 10}]}],
        },
    }));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// What runs the machine, for the report.
pub(crate) fn machine() -> String {
    let kernel = Command::new("uname").args(["-srm"]).output();
    let kernel = kernel.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores", kernel.unwrap_or_default())
}
