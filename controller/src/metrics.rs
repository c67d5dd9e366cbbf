//! What the controller counts, for Prometheus.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use weft_api::discovery::DeltaDiscoveryResponse;

use crate::publish::ResourceType;

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Connected proxies.
    pub proxies: Gauge,
    /// Duration of compilations.
    pub compile: Histogram,
    /// Objects that can't be read.
    pub invalid: Gauge,
    objects: Family<KindLabel, Gauge>,
    responses: Family<TypeLabel, Counter>,
    resources: Family<TypeLabel, Counter>,
    rejected: Family<TypeLabel, Counter>,
    certificates: Family<CertificateLabels, Counter>,
    status_writes: Family<ResultLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a change of one pod to the first compilation of a large cluster.
        let compile = Histogram::new([0.000_1, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5]);
        let mut metrics = Self {
            registry: Arc::default(),
            proxies: Gauge::default(),
            compile,
            invalid: Gauge::default(),
            objects: Family::default(),
            responses: Family::default(),
            resources: Family::default(),
            rejected: Family::default(),
            certificates: Family::default(),
            status_writes: Family::default(),
        };
        let mut registry = Registry::with_prefix("weft_controller");
        let r = &mut registry;
        r.register("proxies", "Connected proxies", metrics.proxies.clone());
        r.register_with_unit(
            "compile",
            "Duration of compilations",
            Unit::Seconds,
            metrics.compile.clone(),
        );
        r.register(
            "invalid_objects",
            "Objects that can't be read",
            metrics.invalid.clone(),
        );
        r.register("objects", "Objects read, by kind", metrics.objects.clone());
        r.register("responses", "xDS responses sent", metrics.responses.clone());
        r.register(
            "pushed_resources",
            "Resources sent or removed",
            metrics.resources.clone(),
        );
        r.register(
            "nacks",
            "Resources that a proxy refused",
            metrics.rejected.clone(),
        );
        r.register(
            "certificates",
            "Certificates signed, and requests refused by reason",
            metrics.certificates.clone(),
        );
        r.register(
            "status_writes",
            "Writes of status",
            metrics.status_writes.clone(),
        );
        metrics.registry = Arc::new(registry);
        metrics
    }
}

impl Metrics {
    /// The text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "the metrics can't be encoded");
        }
        text
    }

    /// One object of a kind more (or, negative, less).
    pub fn object(&self, kind: &str, change: i64) {
        self.objects
            .get_or_create_owned(&KindLabel {
                kind: kind.to_owned(),
            })
            .inc_by(change);
    }

    pub(crate) fn pushed(&self, response: &DeltaDiscoveryResponse) {
        let Some(kind) = ResourceType::from_url(&response.type_url) else {
            return;
        };
        let label = TypeLabel {
            r#type: kind.name(),
        };
        self.responses.get_or_create_owned(&label).inc();
        let count = response.resources.len() + response.removed_resources.len();
        self.resources
            .get_or_create_owned(&label)
            .inc_by(count as u64);
    }

    pub(crate) fn rejected(&self, kind: ResourceType, count: usize) {
        self.rejected
            .get_or_create_owned(&TypeLabel {
                r#type: kind.name(),
            })
            .inc_by(count as u64);
    }

    pub(crate) fn signed(&self) {
        let labels = CertificateLabels {
            result: "signed",
            reason: "",
        };
        self.certificates.get_or_create_owned(&labels).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        let labels = CertificateLabels {
            result: "refused",
            reason,
        };
        self.certificates.get_or_create_owned(&labels).inc();
    }

    pub(crate) fn status_written(&self, fine: bool) {
        let result = if fine { "written" } else { "failed" };
        self.status_writes
            .get_or_create_owned(&ResultLabel { result })
            .inc();
    }
}
