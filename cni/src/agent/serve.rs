//! The agent's end of `agent.sock`.

use std::{
    os::unix::fs::PermissionsExt, path::Path, sync::Arc, sync::atomic::Ordering, time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    AgentError, Context,
    machine::Phase,
    worker::{Handle, View, in_pod},
};
use crate::{
    netns::NetNs,
    objects::is_exempt,
    protocol::{MAX_LINE, Request, Response, Status, socket_path},
    rules,
    sandbox::Sandbox,
};

/// How long DEL waits for what is left of a pod.
const DEL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take to ask.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Listens in the run directory, for its owner only.
pub(super) fn bind(run_dir: &Path) -> Result<UnixListener, AgentError> {
    let path = socket_path(run_dir);
    let failed = |what| {
        let path = path.clone();
        move |source| AgentError::Io { what, path, source }
    };
    std::fs::create_dir_all(run_dir).map_err(failed("make the directory of"))?;
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(AgentError::InUse(path));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("replace")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed("listen on"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("set the mode of"))?;
    Ok(listener)
}

/// Answers requests for ever.
pub(super) async fn run(context: Arc<Context>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let context = context.clone();
                tokio::spawn(async move {
                    if let Err(error) = exchange(&context, stream).await {
                        debug!(%error, "a request could not be answered");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "a request could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn exchange(context: &Arc<Context>, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_LINE));
    timeout(REQUEST_PATIENCE, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str(&line) {
        Ok(request) => answer(context, request).await,
        Err(error) => Response::Failed {
            retry: false,
            message: format!(
                "the request can't be understood: {error}; are plugin and agent of one version?"
            ),
        },
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

async fn answer(context: &Arc<Context>, request: Request) -> Response {
    match request {
        Request::Add(sandbox) => add(context, sandbox).await,
        Request::Del { container_id } => {
            remove(context, |id| id == container_id).await;
            Response::Done { captured: false }
        }
        Request::Gc { keep } => {
            remove(context, |id| !keep.iter().any(|kept| kept == id)).await;
            Response::Done { captured: false }
        }
        Request::Check { container_id } => check(context, &container_id).await,
        Request::Status {} => Response::Status(Status {
            node: context.node.clone(),
            synced: context.synced.load(Ordering::Acquire),
            proxies: context.proxies.status(),
            warnings: context.probed.warning().into_iter().collect(),
            sandboxes: {
                let mut all: Vec<_> = context
                    .workers
                    .lock()
                    .values()
                    .map(Handle::status)
                    .collect();
                all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
                all
            },
        }),
    }
}

/// A sandbox is settled when it is where it belongs; the annotation may follow.
fn settled(view: &View) -> bool {
    view.decided
        && match view.state.phase {
            Phase::Out => !view.state.wanted,
            Phase::Reporting | Phase::In => view.state.wanted,
            _ => false,
        }
}

async fn add(context: &Arc<Context>, sandbox: Sandbox) -> Response {
    let name = sandbox.pod_name();
    let exempt = is_exempt(&sandbox.namespace);
    if context.synced.load(Ordering::Acquire)
        && let Err(error) = context.look_up(&sandbox).await
        && !exempt
    {
        return Response::Failed {
            retry: true,
            message: format!("can't tell whether pod {name} belongs into the mesh: {error}"),
        };
    }
    let mut handle = match start(context, sandbox).await {
        Ok(handle) => handle,
        Err(failed) => return failed,
    };
    match timeout(context.add_timeout, handle.view.wait_for(settled)).await {
        Ok(Ok(view)) => {
            return Response::Done {
                captured: view.state.wanted,
            };
        }
        Ok(Err(_)) => {
            let message = format!("pod {name}: the sandbox was removed while it was being added");
            return Response::Failed {
                retry: true,
                message,
            };
        }
        Err(_) => {}
    }
    let (decided, captured, error) = {
        let view = handle.view.borrow();
        (view.decided, view.state.redirected, view.error.clone())
    };
    if !decided && exempt {
        // It joins as soon as the API says so.
        return Response::Done { captured };
    }
    // The runtime tries again, with a sandbox of another name.
    handle.delete();
    let reason = match (decided, error) {
        (_, Some(error)) => error,
        (false, None) => {
            "the API does not know the pod or could not be read; does the agent reach it?".into()
        }
        (true, None) => "it was not captured in time; see the log of weft-agent".into(),
    };
    info!(pod = name, reason, "a pod was not let start unprotected");
    Response::Failed {
        retry: true,
        message: format!("pod {name} can't be captured: {reason}"),
    }
}

/// The worker of a sandbox; a former one of the same id has to end first.
async fn start(context: &Arc<Context>, sandbox: Sandbox) -> Result<Handle, Response> {
    if let Some(handle) = context.worker_of(&sandbox) {
        return Ok(handle);
    }
    let name = sandbox.pod_name();
    let id = sandbox.container_id.clone();
    remove(context, |other| other == id).await;
    if context.workers.lock().contains_key(&id) {
        let message = format!("pod {name}: a sandbox of the same id is still being removed");
        return Err(Response::Failed {
            retry: true,
            message,
        });
    }
    let netns = NetNs::open(&sandbox.netns).map_err(|error| Response::Failed {
        retry: false,
        message: format!("pod {name}: {error}"),
    })?;
    Ok(context.take_up(sandbox, netns, None))
}

async fn remove(context: &Context, which: impl Fn(&str) -> bool) {
    let going: Vec<_> = {
        let workers = context.workers.lock();
        workers
            .iter()
            .filter(|(id, _)| which(id))
            .map(|(_, handle)| handle.clone())
            .collect()
    };
    for handle in &going {
        handle.delete();
    }
    let gone = async {
        for mut handle in going {
            let _ = handle
                .view
                .wait_for(|view| view.state.phase == Phase::Gone)
                .await;
        }
    };
    let _ = timeout(DEL_PATIENCE, gone).await;
}

async fn check(context: &Context, container_id: &str) -> Response {
    let handle = context.workers.lock().get(container_id).cloned();
    let Some(handle) = handle else {
        let message = format!("sandbox {container_id} is not known to the agent");
        return Response::Failed {
            retry: false,
            message,
        };
    };
    let view = handle.view.borrow().clone();
    if !view.state.redirected {
        return Response::Done { captured: false };
    }
    let found = in_pod(&handle.pod, |pod| {
        let plan = pod.plan(rules::Phase::Joined)?;
        rules::inspect(&pod.netns).map(|found| found.is_some_and(|found| found.matches(&plan)))
    })
    .await;
    let name = handle.pod.sandbox.pod_name();
    match found {
        Ok(true) => Response::Done { captured: true },
        Ok(false) => Response::Failed {
            retry: false,
            message: format!(
                "pod {name} is captured, but its redirect rules are not as they were made; what else changes table inet weft in its network namespace?"
            ),
        },
        Err(message) => Response::Failed {
            retry: true,
            message: format!("pod {name}: {message}"),
        },
    }
}
