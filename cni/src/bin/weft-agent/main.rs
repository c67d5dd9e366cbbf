//! The node agent's program: flags and signals flow in, the parts of the agent are wired together.

mod arguments;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, error::ErrorKind};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use weft_cni::{
    agent,
    install::{Entry, Installer, KUBECONFIG, PLUGIN, State, keep},
    kubernetes::{Place, kubeconfig, order::Follower, taint, uninstall},
};
use weft_source::{Scope, kubernetes::client};

use arguments::{Arguments, Command, LogFormat, Run};

/// Beyond the time to drain, for the rest of leaving the node: the controller's word, closing in order.
/// Below what the kubelet gives (`terminationGracePeriodSeconds`: the time to drain and 30 s).
const LEAVING: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    log(arguments.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    match (arguments.command, arguments.run) {
        (None, Some(run)) => runtime.block_on(node(run)),
        (Some(Command::Uninstall { daemonset, timeout }), _) => runtime.block_on(async {
            let client = client("").await?;
            Ok(uninstall::uninstall(&client, &daemonset, timeout).await?)
        }),
        (
            Some(Command::Cleanup {
                run_dir,
                cni_conf_dir,
                cni_bin_dir,
            }),
            _,
        ) => cleanup(&run_dir, cni_conf_dir, cni_bin_dir),
        (None, None) => Arguments::command()
            .error(
                ErrorKind::MissingRequiredArgument,
                "give --node, --source and --run-dir, or a command",
            )
            .exit(),
    }
}

async fn node(run: Run) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let scope = Scope::Node(run.node.clone());
    let (source, writer) = weft_source::open(&run.source, scope).await?;
    let ordered = watch::Sender::new(false);
    let (left, ready) = (watch::Sender::new(false), watch::Sender::new(false));

    let needs_api =
        run.daemonset.is_some() || run.remove_taint.is_some() || run.plugin_account.is_some();
    let api = if needs_api {
        let place = run.source.strip_prefix("kubernetes:").unwrap_or_default();
        Some(client(place).await?)
    } else {
        None
    };
    let mut follower = None;
    if let (Some(api), Some(daemonset)) = (&api, &run.daemonset) {
        let following = Arc::new(Follower::new(
            api.clone(),
            daemonset.clone(),
            ordered.clone(),
        ));
        let task = following.clone();
        tokio::spawn(async move { task.run().await });
        following.settled().await;
        follower = Some(following);
    }
    let chain = chain(&run, api.as_ref(), &ordered)?;
    if let (Some(api), Some(daemonset), Some(pod)) = (&api, &run.daemonset, &run.pod) {
        let pod = Place {
            namespace: daemonset.namespace.clone(),
            name: pod.clone(),
        };
        let gone = gone(left.subscribe(), chain.clone());
        tokio::spawn(uninstall::report(api.clone(), pod, gone));
    }
    if let (Some(api), Some(key)) = (&api, run.remove_taint) {
        let (node, ready) = (run.node.clone(), ready.subscribe());
        tokio::spawn(taint::remove_when_ready(api.clone(), node, key, ready));
    }

    let mut all_gone = gone(left.subscribe(), chain.clone());
    let config = agent::Config {
        node: run.node,
        run_dir: run.run_dir.clone(),
        drain_timeout: run.drain_timeout,
        node_rules: true,
        add_timeout: agent::ADD_TIMEOUT,
        sync_timeout: agent::SYNC_TIMEOUT,
        vanished_check: agent::VANISHED_CHECK,
        source,
        writer,
        cni_cache: run.cni_cache_dir,
        chain,
        uninstall: agent::Uninstall {
            ordered: ordered.subscribe(),
            done: left,
        },
        ready,
        http: run.http,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(follower) = &follower {
            follower.look().await;
        }
        if *ordered.borrow() {
            info!("stopping after the node was left");
            let limit = run.drain_timeout + LEAVING;
            if timeout(limit, all_gone.wait_for(|gone| *gone))
                .await
                .is_err()
            {
                warn!("pods could not leave in order in time");
            }
        }
    };
    agent::run(config, stop).await?;
    if *ordered.borrow() {
        finish(&run.run_dir)?;
    }
    Ok(())
}

/// Puts the plugin onto the node, and keeps it there until the node is left.
fn chain(
    run: &Run,
    api: Option<&kube::Client>,
    ordered: &watch::Sender<bool>,
) -> anyhow::Result<Option<watch::Receiver<State>>> {
    let (Some(conf_dir), Some(bin_dir)) = (&run.cni_conf_dir, &run.cni_bin_dir) else {
        return Ok(None);
    };
    let plugin = match &run.plugin {
        Some(plugin) => plugin.clone(),
        None => std::env::current_exe()
            .context("can't find the plugin beside this program; give --plugin")?
            .with_file_name(PLUGIN),
    };
    let source = if run.plugin_account.is_some() {
        let host_conf_dir = run.host_cni_conf_dir.as_ref().unwrap_or(conf_dir);
        format!("kubernetes:{}", host_conf_dir.join(KUBECONFIG).display())
    } else {
        run.source.clone()
    };
    let run_dir = run.run_dir.display().to_string();
    let installer = Installer {
        conf_dir: conf_dir.clone(),
        bin_dir: bin_dir.clone(),
        entry: Entry::new(run_dir, source, run.node.clone()),
        plugin,
    };
    if let (Some(api), Some(account)) = (api, &run.plugin_account) {
        let server = kubeconfig::Server::of_this_pod(|name| std::env::var(name).ok());
        let Some(server) = server else {
            bail!(
                "--plugin-account needs the API server's address: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, as every pod has them"
            );
        };
        let (api, account, installer) = (api.clone(), account.clone(), installer.clone());
        let wanted = ordered.subscribe();
        tokio::spawn(kubeconfig::keep(api, account, server, installer, wanted));
    }
    let (state, states) = watch::channel(State::Not("it is being put there".into()));
    let (wanted, want) = watch::channel(!*ordered.borrow());
    let mut orders = ordered.subscribe();
    tokio::spawn(async move {
        while orders.changed().await.is_ok() {
            wanted.send_replace(!*orders.borrow());
        }
    });
    tokio::spawn(keep(installer, want, state));
    Ok(Some(states))
}

/// Whether both are so: no pod is in the mesh, and the chain is without the plugin.
fn gone(
    mut left: watch::Receiver<bool>,
    chain: Option<watch::Receiver<State>>,
) -> watch::Receiver<bool> {
    let (sender, gone) = watch::channel(false);
    tokio::spawn(async move {
        let mut chain = chain.unwrap_or_else(|| watch::Sender::new(State::Removed).subscribe());
        loop {
            let now = *left.borrow_and_update() && *chain.borrow_and_update() == State::Removed;
            sender.send_replace(now);
            tokio::select! {
                changed = left.changed() => if changed.is_err() {
                    return;
                },
                Ok(()) = chain.changed() => {}
            }
        }
    });
    gone
}

/// After an uninstall: what pods that could not leave in order still have, and the run directory.
fn finish(run_dir: &Path) -> anyhow::Result<()> {
    for failure in agent::strip(run_dir, true) {
        warn!(failure, "rules stay behind");
    }
    agent::clear(run_dir).with_context(|| format!("can't clear {}", run_dir.display()))?;
    info!("nothing of weft's is left on this node");
    Ok(())
}

fn cleanup(
    run_dir: &Path,
    conf_dir: std::path::PathBuf,
    bin_dir: std::path::PathBuf,
) -> anyhow::Result<()> {
    let installer = Installer {
        conf_dir,
        bin_dir,
        entry: Entry::new(String::new(), String::new(), String::new()),
        plugin: std::path::PathBuf::new(),
    };
    installer.remove()?;
    finish(run_dir)
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
