//! Finds pods that run already without a record: started before weft came to the node, or while the
//! CNI chain lacked it.
//!
//! Flows in: the runtime's results cache. Flows out: records, and workers, as if the plugin had told.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use super::Context;
use crate::{
    netns::{NetNs, NetNsError},
    results,
    sandbox::Sandbox,
};

/// How often to look: it costs a read of each cached result.
const EVERY: Duration = Duration::from_secs(20);

/// Looks now and then, and whenever `chained` changes: pods may have started without the plugin.
pub(super) async fn run(
    context: Arc<Context>,
    cache: Arc<Path>,
    mut chained: Option<watch::Receiver<crate::install::State>>,
) {
    loop {
        let changed = async {
            match &mut chained {
                Some(chained) => chained.changed().await.is_ok(),
                None => false,
            }
        };
        // Without news there is only the time.
        if timeout(EVERY, changed).await == Ok(false) {
            tokio::time::sleep(EVERY).await;
        }
        for (sandbox, netns) in scan(&context, &cache).await {
            context.take_up(sandbox, netns, None);
        }
    }
}

/// Records what is found; the records are there when it returns.
pub(super) async fn scan(context: &Arc<Context>, cache: &Arc<Path>) -> Vec<(Sandbox, NetNs)> {
    // Without the API it can't be told whose a sandbox is.
    if !context.synced.load(Ordering::Acquire) {
        return Vec::new();
    }
    let (context, cache) = (context.clone(), cache.clone());
    let found = tokio::task::spawn_blocking(move || {
        let cached = match results::read(&cache.join("results")) {
            Ok(cached) => cached,
            Err(error) => {
                warn!(path = %cache.display(), %error, "pods that run already can't be found");
                return Vec::new();
            }
        };
        let known: HashSet<_> = context.workers.lock().keys().cloned().collect();
        let found = {
            let objects = context.objects.lock();
            let pod = |s: &Sandbox| objects.pod(&s.namespace, &s.pod, &s.uid);
            let is_known =
                |id: &str| known.contains(id) || !matches!(context.store.read(id), Ok(None));
            results::adoptable(cached, is_known, pod)
        };
        found
            .into_iter()
            .filter_map(|sandbox| record(&context, sandbox))
            .collect()
    });
    found.await.unwrap_or_default()
}

fn record(context: &Context, sandbox: Sandbox) -> Option<(Sandbox, NetNs)> {
    let netns = match NetNs::open(&sandbox.netns) {
        Ok(netns) => netns,
        // The runtime's memory outlives a reboot.
        Err(NetNsError::Gone(_)) => return None,
        Err(error) => {
            warn!(pod = sandbox.pod_name(), %error, "a pod that runs already is passed over");
            return None;
        }
    };
    if let Err(error) = context.store.write(&sandbox) {
        warn!(pod = sandbox.pod_name(), %error, "a pod that runs already is passed over");
        return None;
    }
    info!(
        pod = sandbox.pod_name(),
        sandbox = sandbox.container_id,
        "found in the runtime's results cache"
    );
    Some((sandbox, netns))
}
