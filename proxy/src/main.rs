//! weft-proxy: flags and signals flow in, the parts of the data plane are wired together and,
//! on SIGTERM, brought to an orderly end.
//!
//! Three runtimes: the data path's threads do nothing else, so that a burst of configuration,
//! certificates or scrapes does not delay bytes; and pods that keep these busy have threads of their
//! own.

use std::{
    io::IsTerminal,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    panic,
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, error::ErrorKind};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};
use weft_proxy::{
    admin::{self, Pages, Readiness},
    controller::Controller,
    flags::{Flags, LogFormat},
    gate::Gate,
    handover::Handover,
    http::HttpLimits,
    identity::{Identities, ca::ControllerCa, snapshot as keys},
    model::Locality,
    netns, pages,
    pods::{Node, Pods},
    settings::Settings,
    share,
    state::State,
    telemetry::{AccessLog, Telemetry},
    trust::MeshTrust,
    xds,
};

/// glibc's keeps what it once had: a connection storm would be paid for ever after.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Configuration, certificates and the admin pages are rarely busy, and never at once.
const CONTROL_THREADS: usize = 2;

/// For three pods with 10,000 connections each.
const ENOUGH_DESCRIPTORS: u64 = 65_536;

type LogFilter = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    // As any other mistake in the flags.
    let limits = flags.limits().unwrap_or_else(|error| {
        Flags::command()
            .error(ErrorKind::ValueValidation, format!("--limit {error}"))
            .exit()
    });
    weft_certs::tls::install_crypto_provider();
    let filter = log(flags.log_format)?;
    // A panic ends its task, and with it one connection: someone should look.
    panic::set_hook(Box::new(|info| tracing::error!(%info, "panic")));
    netns::remember_home().context("can't open the proxy's own network namespace")?;
    raise_descriptor_limit();
    give_memory_back();
    let control = runtime("control", Some(CONTROL_THREADS))?;
    let data = runtime("data", flags.workers)?;
    // As many again, for a pod may be as busy as it likes.
    let busy = share::busy_threads(data.metrics().num_workers())
        .context("can't start the threads for busy pods")?;
    let handles = (data.handle().clone(), busy.handle().clone());
    let result = control.block_on(run(flags, limits, handles, filter));
    // What is open now was given its time.
    busy.shutdown_background();
    data.shutdown_background();
    control.shutdown_background();
    result
}

async fn run(
    flags: Flags,
    (settings, http): (Settings, HttpLimits),
    (data, busy): (Handle, Handle),
    filter: LogFilter,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let incarnation = format!("{:016x}", rand::random::<u64>());
    tracing::info!(node = flags.node, incarnation, "starting");

    let log = AccessLog::open(&flags.access_log).context("can't open the access log")?;
    let telemetry = Telemetry::new(log);
    let readiness = Readiness::new();
    let state = State::new(Locality {
        node: flags.node.as_str().into(),
        zone: flags.zone.as_str().into(),
    });
    let controller = Controller::new(
        flags.controller.clone(),
        flags.trust_bundle.clone(),
        flags.token_file.clone(),
    );
    // Without the file nobody is trusted until the configuration names roots.
    let bundle = controller.trust_bundle().unwrap_or_else(|error| {
        tracing::warn!(%error, "starting without the trust bundle");
        Default::default()
    });

    let control = CancellationToken::new();
    let (synced, configured) = watch::channel(false);
    let configuration = xds::Client {
        transport: Arc::new(controller.clone()),
        node: xds::node(&flags.node, &incarnation, &flags.zone),
        state: Arc::clone(&state),
        telemetry: Arc::clone(&telemetry),
        snapshot: Some(
            xds::snapshot::Snapshot::new(&flags.snapshot_dir)
                .context("can't make --snapshot-dir")?,
        ),
        configured: readiness.condition("configuration", "the controller has not sent it yet"),
        synced,
    };
    let draining = CancellationToken::new();
    let configuration = tokio::spawn(configuration.run(draining.clone(), control.clone()));

    let identities = Identities::new(
        Arc::new(ControllerCa::new(controller)),
        Some(keys::Snapshot::open(flags.snapshot_dir.join("identities"))?),
        Arc::clone(&telemetry),
        Arc::new(SystemTime::now),
        Handle::current(),
    );
    let pods = Arc::new(Pods::new(Arc::new(Node {
        state: Arc::clone(&state),
        settings,
        http,
        telemetry: Arc::clone(&telemetry),
        bundle: Arc::new(MeshTrust::new(Arc::clone(&state), bundle)),
        identities,
        busy_threads: Some(busy),
    })));

    data.spawn(Arc::clone(&pods).follow_modes());

    let gate = |port| {
        let (state, telemetry) = (Arc::clone(&state), Arc::clone(&telemetry));
        Gate::new(port, &flags.scrape_from, state, telemetry)
    };
    let metrics = Pages::metrics(Arc::clone(&telemetry)).behind(gate("metrics"));
    let ready = Pages::ready(Arc::clone(&readiness)).behind(gate("ready"));
    for (address, pages) in [
        (flags.metrics, metrics),
        (flags.ready, ready),
        (flags.admin, admin_pages(&state, &pods, filter)),
    ] {
        tokio::spawn(admin::serve(listen(address).await?, pages, control.clone()));
    }

    let handover = Handover {
        path: flags.handover,
        pods: Arc::clone(&pods),
        state,
        configured,
        incarnation,
        received: readiness.condition(
            "pods",
            "waiting for all of the agent's pods, and their certificates",
        ),
    };
    let receiving = CancellationToken::new();
    let handover = data.spawn(handover.run(receiving.clone()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(limit = ?flags.drain_timeout, "draining");
    let _unready = readiness.condition("draining", "the proxy was told to stop");
    draining.cancel();
    // The agent is listened to all the while: it must not take the rules of a pod away while this
    // proxy has connections of it open.
    pods.shut_down(flags.drain_timeout).await;
    receiving.cancel();
    let _ = handover.await;
    control.cancel();
    let _ = configuration.await;
    telemetry.flush_log().await;
    tracing::info!("stopped");
    Ok(())
}

fn admin_pages(state: &Arc<State>, pods: &Arc<Pods>, filter: LogFilter) -> Pages {
    let (shown, tunnels) = (Arc::clone(pods), Arc::clone(pods));
    Pages::admin(Arc::clone(state))
        .json("/pods", move || pages::pods(&shown))
        .json("/tunnels", move || pages::tunnels(&tunnels))
        .log_level(move |level| {
            let level = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
            filter.reload(level).map_err(|error| error.to_string())
        })
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        // All addresses, of a kernel without IPv6.
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("can't listen on {address}"))
}

fn runtime(name: &str, threads: Option<usize>) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.max(1));
    }
    builder
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("can't start the {name} runtime"))
}

fn log(format: LogFormat) -> anyhow::Result<LogFilter> {
    let filter = match std::env::var("WEFT_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).context("WEFT_LOG")?,
        Err(_) => EnvFilter::new("info"),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    Ok(handle)
}

/// jemalloc returns what was not used for ten seconds, but by itself only while something allocates:
/// after a storm of connections nothing does. Its own thread returns it then.
fn give_memory_back() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "the allocator keeps the memory of past peaks");
    }
}

/// Each connection takes two descriptors; the usual soft limit of 1,024 is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) if limit < ENOUGH_DESCRIPTORS => tracing::warn!(
            limit,
            "few open files are allowed, for all pods of the node: raise the hard limit (RLIMIT_NOFILE) to {ENOUGH_DESCRIPTORS}"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "can't raise the limit of open files"),
    }
}
