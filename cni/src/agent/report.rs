//! The report that a sandbox is captured, and its taking back: the annotation on the pod, and the
//! controller's word that every proxy knows.

use std::{collections::BTreeMap, time::Duration};

use tracing::{info, warn};
use weft_api::names::ANNOTATION_CAPTURED;
use weft_source::{ObjectKey, SourceError};

use super::Context;
use crate::{
    objects::{Acknowledged, pod_key},
    sandbox::Sandbox,
};

/// How long proxies elsewhere may take to learn that a pod leaves. Afterwards their tunnels are
/// refused instead of awaited: a proxy that hangs must not keep a pod in the mesh.
const ACKNOWLEDGED_PATIENCE: Duration = Duration::from_secs(5);

/// How long an uninstall tries to take the report back, and how often.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(3);
const WITHDRAW_AGAIN: Duration = Duration::from_millis(300);

/// Writes the annotation.
pub(super) async fn report(context: &Context, sandbox: &Sandbox) -> Result<(), String> {
    let pod = pod_key(&sandbox.namespace, &sandbox.pod);
    annotate(context, &pod, Some(sandbox.container_id.clone()))
        .await
        .map_err(|error| format!("can't report {} as captured: {error}", sandbox.pod_name()))
}

/// Removes the annotation. While the node is left for good, the rights to do so may have gone before,
/// and nobody will go by it much longer: then it is tried for a while only.
pub(super) async fn withdraw(context: &Context, sandbox: &Sandbox) -> Result<(), String> {
    let begin = tokio::time::Instant::now();
    let mut taken = take_back(context, sandbox).await;
    while let Err(error) = taken {
        if !*context.uninstall.ordered.borrow() {
            return Err(error);
        }
        if !is_worth_another_try(begin, &error).await {
            break;
        }
        taken = take_back(context, sandbox).await;
    }
    Ok(())
}

/// Whether the time for an annotation's end is not over yet; after a while, then.
async fn is_worth_another_try(begin: tokio::time::Instant, error: &str) -> bool {
    let again = begin.elapsed() <= WITHDRAW_PATIENCE;
    if again {
        tokio::time::sleep(WITHDRAW_AGAIN).await;
    } else {
        warn!(error, "the annotation stays");
    }
    again
}

/// Removes the annotations of pods that the agent does not know: their sandboxes went with the node's
/// power, and new ones came when the plugin was no longer there to tell. For when the node is left.
pub(super) async fn withdraw_unknown(context: &Context) {
    // If it is not in time, what is known by then counts.
    context.is_synced_within(WITHDRAW_PATIENCE).await;
    let unknown: Vec<_> = {
        let (objects, workers) = (context.objects.lock(), context.workers.lock());
        objects
            .reports(&context.node)
            .filter(|(_, _, sandbox)| !workers.contains_key(*sandbox))
            .map(|(namespace, pod, _)| pod_key(namespace, pod))
            .collect()
    };
    let begin = tokio::time::Instant::now();
    for key in unknown {
        info!(pod = %key, "its report names a sandbox that there is not; taking it back");
        while let Err(error) = remove(context, &key).await {
            let error = format!("can't take the report of {key} back: {error}");
            if !is_worth_another_try(begin, &error).await {
                break;
            }
        }
    }
}

/// Removes the annotation, unless it speaks of another sandbox that there is, or the pod is gone.
pub(super) async fn take_back(context: &Context, sandbox: &Sandbox) -> Result<(), String> {
    let other = context.facts(sandbox, |facts| {
        facts
            .captured
            .as_ref()
            .is_some_and(|captured| *captured != sandbox.container_id)
    });
    if other == Some(true) && context.stale_report(sandbox).is_none() {
        return Ok(());
    }
    // What the controller said of an earlier leave must not be taken for its answer to this one.
    let seen = context
        .facts(sandbox, |facts| facts.acknowledged.clone())
        .flatten();
    context
        .acknowledged_before
        .lock()
        .insert(sandbox.container_id.clone(), seen);
    remove(context, &pod_key(&sandbox.namespace, &sandbox.pod))
        .await
        .map_err(|error| {
            let pod = sandbox.pod_name();
            format!("can't take the report of {pod} back: {error}")
        })
}

/// Removes a pod's annotation; a pod that is gone has none.
async fn remove(context: &Context, pod: &ObjectKey) -> Result<(), SourceError> {
    match annotate(context, pod, None).await {
        Err(SourceError::NotFound(_)) => Ok(()),
        done => done,
    }
}

async fn annotate(
    context: &Context,
    pod: &ObjectKey,
    value: Option<String>,
) -> Result<(), SourceError> {
    let annotations = BTreeMap::from([(ANNOTATION_CAPTURED.to_owned(), value)]);
    context.writer.annotate(pod, annotations).await
}

/// Waits for the controller's word that every proxy dials the pod without a tunnel.
pub(super) async fn acknowledged(context: &Context, sandbox: &Sandbox) {
    let mut before = context
        .acknowledged_before
        .lock()
        .remove(&sandbox.container_id)
        .unwrap_or_default();
    let mut version = context.objects_version.subscribe();
    let told = async {
        loop {
            let now = context.facts(sandbox, |facts| facts.acknowledged.clone());
            match now {
                // A pod that is gone is dialled by nobody.
                None => return,
                Some(now) if is_answer(now.as_ref(), before.as_ref(), &sandbox.container_id) => {
                    return;
                }
                // Anything else in between makes the next word a new one, whatever its time.
                Some(now) if now != before => before = None,
                Some(_) => {}
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(ACKNOWLEDGED_PATIENCE, told)
        .await
        .is_err()
    {
        info!(
            pod = sandbox.pod_name(),
            "the controller has not confirmed in time that proxies know; going on"
        );
    }
}

/// Whether a condition says, anew, that the sandbox is tunnelled to no more.
fn is_answer(now: Option<&Acknowledged>, before: Option<&Acknowledged>, sandbox: &str) -> bool {
    now.is_some_and(|now| !now.captured && now.message.contains(sandbox) && Some(now) != before)
}

/// Removes the annotation of a sandbox that is gone, as well as can be.
pub(super) async fn clean_up(context: &Context, sandbox: &Sandbox) {
    if context.reported(sandbox)
        && let Err(error) = take_back(context, sandbox).await
    {
        warn!(error, "the annotation of a sandbox that is gone stays");
    }
    context
        .acknowledged_before
        .lock()
        .remove(&sandbox.container_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_false_that_names_the_sandbox_is_an_answer() {
        let said = |captured, message: &str, since: &str| Acknowledged {
            captured,
            message: message.into(),
            since: since.into(),
        };
        let old = said(false, "abc", "1");
        let cases = [
            (None, None, false),
            (Some(said(true, "abc", "1")), None, false),
            (Some(said(false, "xyz", "1")), None, false),
            (Some(said(false, "abc", "1")), None, true),
            (Some(said(false, "sandbox abc", "1")), None, true),
            (Some(old.clone()), Some(old.clone()), false),
            (Some(said(false, "abc", "2")), Some(old), true),
            (
                Some(said(false, "abc", "2")),
                Some(said(true, "abc", "1")),
                true,
            ),
        ];
        for (now, before, expected) in cases {
            assert_eq!(
                is_answer(now.as_ref(), before.as_ref(), "abc"),
                expected,
                "{now:?} {before:?}"
            );
        }
    }
}
