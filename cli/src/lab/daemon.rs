//! The running lab: API server, controllers, kubelets and the mesh's parts, until a signal. In:
//! manifests from followed files and commands over the socket. Out: the lab, and lines that say
//! what happened.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
};

use super::{
    controllers,
    handler::Handler,
    kubelets::Kubelets,
    lab::Lab,
    parts::Parts,
    paths::{Paths, Process, State},
    plan::Plan,
    programs::Extra,
    reconcile::Reconciler,
};

/// How long pods wait for the mesh before they are tried without: the CNI chain tries again, and
/// pods outside the mesh need none.
const MESH_LEAD: Duration = Duration::from_secs(15);
/// Changes of files that come together are taken together.
const SETTLE: Duration = Duration::from_millis(100);
/// More than the manifests of any lab.
const MAX_REQUEST: u64 = 64 << 20;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) plan: Plan,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) mesh: bool,
    pub(crate) extra: Extra,
}

/// Runs a lab whose folder has been claimed, until SIGINT, SIGTERM or SIGHUP. What was made is
/// left to [`super::sweep`].
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        result = serve(options) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

/// Records the lab, so that `down` finds it from the first moment.
pub(crate) fn record(paths: &Paths, plan: &Plan, mesh: bool) -> anyhow::Result<()> {
    let state = State {
        name: plan.name.clone(),
        daemon: Process::of(std::process::id())?,
        nodes: u8::try_from(plan.nodes.len())?,
        mesh,
    };
    state.write(paths)
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let Options {
        plan,
        files,
        mesh,
        extra,
    } = options;
    let paths = Paths::of(&plan.name);
    let listener = UnixListener::bind(paths.socket())
        .with_context(|| format!("can't listen on {}", paths.socket().display()))?;
    let lab = Arc::new(tokio::task::block_in_place(|| {
        Lab::build(plan, mesh, extra)
    })?);
    fs::write(lab.resolv(), "")?;
    let parts = Arc::new(Parts::new(Arc::clone(&lab)));
    let kubelets = Arc::new(Kubelets::new(Arc::clone(&lab)));
    let handler = Arc::new(Handler::new(
        Arc::clone(&lab),
        Arc::clone(&parts),
        Arc::clone(&kubelets),
        files.clone(),
    ));

    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::clone(&handler)));
    controllers::nodes(&lab)?;
    handler.follow();
    let (ready, mesh_is_ready) = oneshot::channel();
    if mesh {
        tasks.spawn(async move { parts.run(ready).await });
        let _ = tokio::time::timeout(MESH_LEAD, mesh_is_ready).await;
    }
    tasks.spawn(Reconciler::new(Arc::clone(&lab), kubelets).run());
    handler.started();
    tasks.spawn(follow_files(files, handler));
    // None of them ends by itself.
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the lab's own process ended")?;
    }
    Ok(())
}

async fn accept(listener: UnixListener, handler: Arc<Handler>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &handler).await {
                        tracing::debug!(%error, "a command's connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a command can't be accepted");
                tokio::time::sleep(SETTLE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, handler: &Handler) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST))
        .read_line(&mut line)
        .await?;
    let answer = handler.handle(serde_json::from_str(&line)?).await;
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await?;
    Ok(())
}

/// Applies followed files again when they change.
async fn follow_files(files: Vec<PathBuf>, handler: Arc<Handler>) {
    use notify::Watcher;
    let (sender, mut events) = tokio::sync::mpsc::channel(1);
    let sender = Mutex::new(sender);
    let followed = files.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = |event: &notify::Event| {
            let mut paths = event.paths.iter();
            // Without a path, events were lost.
            event.paths.is_empty() || paths.any(|p| followed.iter().any(|f| p.starts_with(f)))
        };
        // Reading files is no change of them.
        if event.is_ok_and(|event| !event.kind.is_access() && concerns(&event)) {
            let _ = sender.lock().try_send(());
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::error!(%error, "the manifests can't be followed");
            return std::future::pending().await;
        }
    };
    for path in &files {
        let (folder, mode) = if path.is_dir() {
            (path.clone(), notify::RecursiveMode::Recursive)
        } else {
            // Editors replace files: the folder sees that.
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.map_or_else(|| PathBuf::from("."), ToOwned::to_owned);
            (parent, notify::RecursiveMode::NonRecursive)
        };
        if let Err(error) = watcher.watch(&folder, mode) {
            tracing::error!(path = %folder.display(), %error, "can't be followed");
        }
    }
    // What changed between the first reading and now.
    handler.follow();
    loop {
        if events.recv().await.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep(SETTLE).await;
        while events.try_recv().is_ok() {}
        handler.follow();
    }
}
