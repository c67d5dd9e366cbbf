//! Keeps what the agent knows of Namespaces and Pods up to date.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tracing::{debug, warn};
use weft_source::{Event, SourceError};

use super::Context;
use crate::objects::Objects;

/// Before a watch that ended or failed is begun again.
const AGAIN: Duration = Duration::from_secs(1);

/// Watches for ever.
pub(super) async fn run(context: Arc<Context>) {
    loop {
        match watch(&context).await {
            Ok(()) => warn!("the watch of the source ended; beginning it again"),
            Err(error) => warn!(%error, "the source can't be watched; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn watch(context: &Context) -> Result<(), SourceError> {
    let mut events = context.source.watch().await?;
    // Until the watch has told everything, it fills a copy: what it left out has been deleted.
    let mut fresh = Some(Objects::default());
    while let Some(event) = events.recv().await {
        let changed = match (&event, &mut fresh) {
            (Event::Synced, _) => {
                if let Some(fresh) = fresh.take() {
                    *context.objects.lock() = fresh;
                }
                context.synced.store(true, Ordering::Release);
                true
            }
            (Event::Invalid { origin, error }, _) => {
                debug!(origin, error, "an object that can't be read");
                false
            }
            (event, Some(fresh)) => {
                fresh.update(&context.node, event);
                false
            }
            (event, None) => context.objects.lock().update(&context.node, event),
        };
        if changed {
            context.objects_version.send_modify(|version| *version += 1);
        }
    }
    Ok(())
}
