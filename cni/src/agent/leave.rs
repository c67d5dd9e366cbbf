//! Leaving the node for good: every pod goes out of the mesh as if its namespace were disabled.
//!
//! Flows in: the order to ([`super::Uninstall`]). Flows out: that nothing of weft's is left in any
//! network namespace; and files of the run directory removed.

use std::{io, path::Path, sync::Arc};

use tracing::{info, warn};

use super::{
    Context,
    machine::Phase,
    report,
    worker::{Handle, View},
};
use crate::{marks, protocol, rules, sandbox::Store};

/// Follows the order for ever; it may be taken back.
pub(super) async fn run(context: Arc<Context>, node_rules: bool) {
    let mut ordered = context.uninstall.ordered.clone();
    let done = context.uninstall.done.clone();
    loop {
        // Each worker looks whether its pod is to be in the mesh.
        context.objects_version.send_modify(|version| *version += 1);
        if *ordered.borrow_and_update() {
            info!("an uninstall is ordered: every pod leaves the mesh");
            tokio::select! {
                () = everything_is_out(&context, node_rules) => {
                    info!("no pod is in the mesh any more");
                    done.send_replace(true);
                }
                _ = ordered.changed() => continue,
            }
        } else {
            done.send_replace(false);
        }
        if ordered.changed().await.is_err() {
            return;
        }
    }
}

async fn everything_is_out(context: &Context, node_rules: bool) {
    let is_out = |view: &View| {
        // One that has not looked yet is told of the order in a moment.
        matches!(view.state.phase, Phase::Out | Phase::Gone) && !view.state.wanted
    };
    loop {
        let inside: Vec<Handle> = {
            let workers = context.workers.lock();
            let inside = workers.values().filter(|h| !is_out(&h.view.borrow()));
            inside.cloned().collect()
        };
        if inside.is_empty() {
            break;
        }
        for mut handle in inside {
            // An error: it has ended.
            let _ = handle.view.wait_for(is_out).await;
        }
        // One that ended is forgotten in a moment.
        tokio::task::yield_now().await;
    }
    report::withdraw_unknown(context).await;
    if node_rules {
        let removed = tokio::task::spawn_blocking(|| rules::apply_node(&rules::plan_node(&[])));
        if let Ok(Err(error)) = removed.await {
            warn!(%error, "the node's rules for probes stay");
        }
    }
}

/// Removes what agent and plugin keep in the run directory.
///
/// # Errors
/// A file can't be removed.
pub fn clear(run_dir: &Path) -> io::Result<()> {
    let files = [
        protocol::socket_path(run_dir),
        protocol::handover_path(run_dir),
        marks::path(run_dir),
    ];
    for file in files {
        ignore_missing(std::fs::remove_file(file))?;
    }
    ignore_missing(std::fs::remove_dir_all(Store::folder(run_dir)))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Takes the rules out of every recorded sandbox, and the node's, with neither agent nor API; what is
/// open through them is reset. Tells what could not be done.
pub fn strip(run_dir: &Path, node_rules: bool) -> Vec<String> {
    let mut failures = Vec::new();
    for sandbox in Store::new(run_dir).list() {
        let stripped = sandbox
            .map_err(|error| error.to_string())
            .and_then(|sandbox| {
                let netns = match crate::netns::NetNs::open(&sandbox.netns) {
                    Err(crate::netns::NetNsError::Gone(_)) => return Ok(()),
                    opened => opened.map_err(|error| error.to_string())?,
                };
                let removed = || -> Result<(), rules::RulesError> {
                    let plan = rules::plan(&rules::PodRules {
                        phase: rules::Phase::Removed,
                        ipv6: rules::ipv6_is_enabled(&netns)?,
                        probe_ports: Vec::new(),
                        mark: 0,
                    });
                    rules::apply(&netns, &plan)
                };
                removed().map_err(|error| format!("pod {}: {error}", sandbox.pod_name()))
            });
        failures.extend(stripped.err());
    }
    if node_rules && let Err(error) = rules::apply_node(&rules::plan_node(&[])) {
        failures.push(error.to_string());
    }
    failures
}
