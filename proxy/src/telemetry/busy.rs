//! What each pod's traffic costs. In flow the pods' own counters of running time; out flows one series
//! a pod, for as long as it is served.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

#[derive(Debug)]
struct Entry {
    namespace: Arc<str>,
    pod: Arc<str>,
    nanos: Weak<AtomicU64>,
}

/// The counters of all pods.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<Vec<Entry>>);

impl Busy {
    pub(super) fn add(&self, namespace: Arc<str>, pod: Arc<str>, nanos: &Arc<AtomicU64>) {
        let mut entries = self.0.lock();
        // Here too: who is never scraped must not grow.
        entries.retain(|entry| entry.nanos.strong_count() > 0);
        entries.push(Entry {
            namespace,
            pod,
            nanos: Arc::downgrade(nanos),
        });
    }
}

#[derive(Debug)]
pub(super) struct BusyCollector(pub(super) Arc<Busy>);

impl Collector for BusyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A pod's old sandbox may still drain beside its new one.
        let mut pods = BTreeMap::new();
        for entry in &*self.0.0.lock() {
            if let Some(nanos) = entry.nanos.upgrade() {
                let key = (Arc::clone(&entry.namespace), Arc::clone(&entry.pod));
                *pods.entry(key).or_insert(0) += nanos.load(Relaxed);
            }
        }
        if pods.is_empty() {
            return Ok(());
        }
        let help = "Time that the proxy's threads have run for a pod";
        let name = "weft_pod_busy_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for ((namespace, pod), nanos) in pods {
            let seconds = std::time::Duration::from_nanos(nanos).as_secs_f64();
            metric
                .encode_family(&[("namespace", &*namespace), ("pod", &*pod)])?
                .encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        Ok(())
    }
}
