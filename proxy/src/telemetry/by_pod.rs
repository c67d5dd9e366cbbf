//! Counters by pod of this node and reason: what was refused, what was shed. In flow single
//! events, out flow series `{namespace, pod, reason}`; a pod's series end with it.
//!
//! Bounded by itself: a node has some hundred pods, and reasons are words of the program.

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Namespace and name.
type PodName = (Arc<str>, Arc<str>);

/// One such counter. Cheap to clone.
#[derive(Clone)]
pub struct ByPod {
    name: &'static str,
    help: &'static str,
    pods: Arc<Mutex<BTreeMap<PodName, BTreeMap<&'static str, u64>>>>,
}

impl ByPod {
    /// `name` without `_total`. To be registered as a collector.
    pub fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            pods: Arc::default(),
        }
    }

    /// It happened, for a reason that is a word of the program.
    pub fn add(&self, namespace: &Arc<str>, pod: &Arc<str>, reason: &'static str) {
        let mut pods = self.pods.lock();
        let pod = pods.entry((Arc::clone(namespace), Arc::clone(pod)));
        *pod.or_default().entry(reason).or_default() += 1;
    }

    /// The pod is gone.
    pub fn forget(&self, namespace: &Arc<str>, pod: &Arc<str>) {
        let name = (Arc::clone(namespace), Arc::clone(pod));
        self.pods.lock().remove(&name);
    }
}

impl fmt::Debug for ByPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByPod").field(&self.name).finish()
    }
}

impl Collector for ByPod {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pods = self.pods.lock();
        if pods.is_empty() {
            return Ok(());
        }
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        for ((namespace, pod), reasons) in &*pods {
            for (reason, count) in reasons {
                let labels = [
                    ("namespace", &**namespace),
                    ("pod", &**pod),
                    ("reason", *reason),
                ];
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        Ok(())
    }
}
