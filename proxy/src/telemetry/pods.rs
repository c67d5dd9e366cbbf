//! What each pod of the node uses of its limits, and what was shed: the pods' own counts flow in, a
//! scrape's lines flow out. A pod's series go with the pod, so their number is bounded by the pods.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::limits::{Limit, PodLimits};

/// Those that are served now.
#[derive(Debug, Default)]
pub(super) struct Pods(Mutex<Vec<Served>>);

/// The counts of one that is served, for as long as its limits are held.
#[derive(Debug)]
struct Served {
    limits: Weak<PodLimits>,
    busy: Arc<AtomicU64>,
}

/// What is shown of one pod: the sum, where one of its name is still draining beside its successor.
#[derive(Default)]
struct Sum {
    shed: [u64; Limit::ALL.len()],
    reached: [u64; Limit::ALL.len()],
    in_use: BTreeMap<Limit, (u64, u64)>,
    busy: Duration,
}

impl Pods {
    pub(super) fn add(&self, limits: &Arc<PodLimits>, busy: &Arc<AtomicU64>) {
        let mut pods = self.0.lock();
        // Here too: who is never scraped must not grow.
        pods.retain(|pod| pod.limits.strong_count() > 0);
        pods.push(Served {
            limits: Arc::downgrade(limits),
            busy: Arc::clone(busy),
        });
    }

    fn sums(&self) -> BTreeMap<(Arc<str>, Arc<str>), Sum> {
        let mut sums = BTreeMap::<_, Sum>::new();
        for Served { limits, busy } in &*self.0.lock() {
            let Some(pod) = limits.upgrade() else {
                continue;
            };
            let key = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
            let sum = sums.entry(key).or_default();
            sum.busy += Duration::from_nanos(busy.load(Relaxed));
            for at in 0..Limit::ALL.len() {
                sum.shed[at] += pod.shed_counts()[at].load(Relaxed);
                sum.reached[at] += pod.reached_counts()[at].load(Relaxed);
            }
            for (limit, used, most) in pod.in_use() {
                let entry = sum.in_use.entry(limit).or_default();
                entry.0 += used as u64;
                entry.1 += most as u64;
            }
        }
        sums
    }
}

pub(super) struct PodCollector(pub(super) Arc<Pods>);

impl fmt::Debug for PodCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodCollector")
    }
}

impl Collector for PodCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sums = self.0.sums();
        if sums.is_empty() {
            return Ok(());
        }
        type Of = fn(&Sum) -> &[u64; Limit::ALL.len()];
        let counters: [(&str, &str, &str, Of); 2] = [
            (
                "weft_shed",
                "Refused or broken off because the pod had reached a limit",
                "reason",
                |sum| &sum.shed,
            ),
            (
                "weft_limit_reached",
                "Times that the pod had reached a limit and what came had to wait",
                "limit",
                |sum| &sum.reached,
            ),
        ];
        for (name, help, label, of) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ((namespace, pod), sum) in &sums {
                let counts = Limit::ALL.iter().zip(of(sum));
                for (limit, count) in counts.filter(|(_, count)| **count > 0) {
                    let labels = [
                        ("namespace", &**namespace),
                        ("pod", &**pod),
                        (label, limit.label()),
                    ];
                    metric
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(count, None)?;
                }
            }
        }
        let (name, help) = (
            "weft_pod_busy_seconds",
            "Time that the proxy's threads have run for a pod",
        );
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for ((namespace, pod), sum) in &sums {
            metric
                .encode_family(&[("namespace", &**namespace), ("pod", &**pod)])?
                .encode_counter::<NoLabelSet, _, u64>(&sum.busy.as_secs_f64(), None)?;
        }
        type Part = fn(&(u64, u64)) -> u64;
        let gauges: [(&str, &str, Part); 2] = [
            ("weft_pod_in_use", "What the pod uses of a limit", |it| it.0),
            ("weft_pod_limit", "A limit of the pod", |it| it.1),
        ];
        for (name, help, part) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((namespace, pod), sum) in &sums {
                for (limit, values) in &sum.in_use {
                    let labels = [
                        ("namespace", &**namespace),
                        ("pod", &**pod),
                        ("limit", limit.label()),
                    ];
                    metric.encode_family(&labels)?.encode_gauge(&part(values))?;
                }
            }
        }
        Ok(())
    }
}
