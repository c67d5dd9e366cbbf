//! The Deployment controller. In: a Deployment and its pods. Out: the pods to make and to delete
//! next, and the Deployment's status. Pure: called again after every change until nothing is left.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

/// Label that tells pods of one template from those of another.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// What to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Create(Value),
    /// A pod's name.
    Delete(String),
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether a pod is being deleted.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The steps towards what the Deployment asks for. `pods` are all that it owns.
pub(crate) fn steps(deployment: &Deployment, pods: &[Pod]) -> Vec<Step> {
    let Some(spec) = &deployment.spec else {
        return Vec::new();
    };
    let replicas = count(spec.replicas, 1);
    let hash = template_hash(deployment);
    let strategy = spec.strategy.as_ref();
    let recreate = strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let (mut surge, unavailable) = (
        share(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true),
        share(
            rolling.and_then(|r| r.max_unavailable.as_ref()),
            replicas,
            false,
        ),
    );
    if surge == 0 && unavailable == 0 {
        surge = 1;
    }

    let live: Vec<&Pod> = pods.iter().filter(|p| !is_terminating(p)).collect();
    let is_new =
        |pod: &Pod| pod.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL)) == Some(&hash);
    let finished = live.iter().filter(|p| is_finished(p));
    let mut steps: Vec<Step> = finished.map(|p| Step::Delete(name(p).to_owned())).collect();
    let (mut new, mut old): (Vec<&Pod>, Vec<&Pod>) = live
        .into_iter()
        .filter(|p| !is_finished(p))
        .partition(|p| is_new(p));

    // Too many of the new ones: the least useful, then the last, go.
    new.sort_by_key(|p| (!is_ready(p), index(p)));
    while new.len() > replicas {
        steps.extend(new.pop().map(|p| Step::Delete(name(p).to_owned())));
    }
    if recreate && !pods.iter().all(&is_new) {
        steps.extend(old.iter().map(|p| Step::Delete(name(p).to_owned())));
        return steps;
    }

    // Old pods that serve nobody go at once, others as new ones become ready.
    old.sort_by_key(|p| (!is_ready(p), index(p)));
    let ready = new.iter().chain(&old).filter(|p| is_ready(p)).count();
    let mut spare = ready.saturating_sub(replicas.saturating_sub(unavailable));
    let room = (replicas + surge).saturating_sub(new.len() + old.len());
    while let Some(pod) = old.pop() {
        if is_ready(pod) {
            if spare == 0 {
                break;
            }
            spare -= 1;
        }
        steps.push(Step::Delete(name(pod).to_owned()));
    }

    let missing = replicas.saturating_sub(new.len()).min(room);
    let mut taken: Vec<usize> = pods.iter().filter(|p| is_new(p)).map(index).collect();
    for _ in 0..missing {
        let free = (1..).find(|i| !taken.contains(i)).unwrap_or(usize::MAX);
        taken.push(free);
        steps.push(Step::Create(pod(deployment, &hash, free)));
    }
    steps
}

/// The Deployment's status.
pub(crate) fn status(deployment: &Deployment, pods: &[Pod]) -> Value {
    let hash = template_hash(deployment);
    let live: Vec<&Pod> = pods.iter().filter(|p| !is_terminating(p)).collect();
    let updated = live
        .iter()
        .filter(|p| p.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL)) == Some(&hash))
        .count();
    let ready = live.iter().filter(|p| is_ready(p)).count();
    let wanted = count(deployment.spec.as_ref().and_then(|s| s.replicas), 1);
    let (status, reason) = if ready >= wanted {
        ("True", "MinimumReplicasAvailable")
    } else {
        ("False", "MinimumReplicasUnavailable")
    };
    json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": live.len(),
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": wanted.saturating_sub(ready),
        "conditions": [{"type": "Available", "status": status, "reason": reason}],
    })
}

fn count(value: Option<i32>, default: usize) -> usize {
    value.map_or(default, |v| usize::try_from(v).unwrap_or(0))
}

/// A number or a percentage, 25 % if absent.
fn share(value: Option<&IntOrString>, of: usize, round_up: bool) -> usize {
    let percent = match value {
        Some(IntOrString::Int(number)) => return usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().unwrap_or(25),
        None => 25,
    };
    if round_up {
        (of * percent).div_ceil(100)
    } else {
        of * percent / 100
    }
}

fn index(pod: &Pod) -> usize {
    name(pod)
        .rsplit('-')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// FNV-1a of the template: names of pods stay the same over labs.
fn template_hash(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let text = serde_json::to_string(&template).unwrap_or_default();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

fn pod(deployment: &Deployment, hash: &str, index: usize) -> Value {
    let meta = &deployment.metadata;
    let owner = meta.name.clone().unwrap_or_default();
    let template = deployment
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let template_meta = template.metadata.unwrap_or_default();
    let mut labels = template_meta.labels.unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{owner}-{hash}-{index}"),
            "namespace": meta.namespace,
            "labels": labels,
            "annotations": template_meta.annotations.unwrap_or_default(),
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": owner,
                "uid": meta.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": template.spec.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i32, version: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d1"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web", "version": version}},
                    "spec": {"containers": [{"name": "c"}]},
                },
            },
        }))
        .unwrap()
    }

    /// Makes what a step asks for; a deleted pod is gone at once.
    fn take(steps: Vec<Step>, pods: &mut Vec<Pod>) {
        for step in steps {
            match step {
                Step::Create(pod) => pods.push(serde_json::from_value(pod).unwrap()),
                Step::Delete(gone) => pods.retain(|p| name(p) != gone),
            }
        }
    }

    fn make_ready(pod: &mut Pod) {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        pod.status = Some(serde_json::from_value(status).unwrap());
    }

    #[test]
    fn missing_replicas_are_made_and_surplus_ones_removed_from_the_end() {
        let mut pods = Vec::new();
        take(steps(&deployment(3, "v1"), &pods), &mut pods);
        assert_eq!(pods.iter().map(index).collect::<Vec<_>>(), [1, 2, 3]);
        pods.iter_mut().for_each(make_ready);
        assert_eq!(steps(&deployment(3, "v1"), &pods), []);
        take(steps(&deployment(1, "v1"), &pods), &mut pods);
        assert_eq!(pods.iter().map(index).collect::<Vec<_>>(), [1]);
        take(steps(&deployment(2, "v1"), &pods), &mut pods);
        assert_eq!(pods.len(), 2);
        assert_eq!(
            pods[0].metadata.owner_references.as_ref().unwrap()[0].name,
            "web"
        );
    }

    #[test]
    fn a_changed_template_rolls_without_losing_capacity() {
        let (v1, v2) = (deployment(2, "v1"), deployment(2, "v2"));
        let mut pods = Vec::new();
        take(steps(&v1, &pods), &mut pods);
        pods.iter_mut().for_each(make_ready);
        let mut rounds = 0;
        loop {
            let next = steps(&v2, &pods);
            if next.is_empty() && pods.iter().all(is_ready) {
                break;
            }
            take(next, &mut pods);
            let ready = pods.iter().filter(|p| is_ready(p)).count();
            assert!(ready >= 2, "only {ready} ready in round {rounds}");
            assert!(pods.len() <= 3);
            pods.iter_mut().for_each(make_ready);
            rounds += 1;
            assert!(rounds < 10, "does not settle");
        }
        let hash = template_hash(&v2);
        assert!(pods.iter().all(|p| name(p).contains(&hash)));
        assert_eq!(pods.len(), 2);
    }

    #[test]
    fn old_pods_that_are_not_ready_do_not_hold_up_a_rollout() {
        let mut pods = Vec::new();
        take(steps(&deployment(2, "broken"), &pods), &mut pods);
        let next = steps(&deployment(2, "fixed"), &pods);
        let deleted = next.iter().filter(|s| matches!(s, Step::Delete(_))).count();
        assert_eq!(deleted, 2);
    }

    #[test]
    fn recreate_waits_until_the_old_pods_are_gone() {
        let mut v2 = deployment(1, "v2");
        v2.spec.as_mut().unwrap().strategy =
            Some(serde_json::from_value(json!({"type": "Recreate"})).unwrap());
        let mut pods = Vec::new();
        take(steps(&deployment(1, "v1"), &pods), &mut pods);
        let next = steps(&v2, &pods);
        assert!(matches!(next[..], [Step::Delete(_)]), "{next:?}");
        take(next, &mut pods);
        assert!(matches!(steps(&v2, &pods)[..], [Step::Create(_)]));
    }
}
