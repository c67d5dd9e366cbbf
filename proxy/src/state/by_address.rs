//! Who has an address. Usually one; for moments two (an address is used again before the old
//! owner's removal arrives), and on the host's network many. The order of preference depends on
//! the owners alone, never on which of them arrived first.

use std::sync::Arc;

use super::service::ServiceEntry;
use crate::model::Workload;

/// The workloads with one address, the preferred first.
#[derive(Debug, Default)]
pub(super) struct Workloads(Vec<Arc<Workload>>);

impl Workloads {
    /// Captured before not captured, for plaintext must not go where mTLS is spoken; pods before
    /// entries of hand-written slices; a pod's own network before the host's.
    fn rank(workload: &Workload) -> (bool, bool, bool, &str) {
        (
            !workload.captured,
            workload.host_network,
            workload.uid.starts_with(SLICE),
            &workload.uid,
        )
    }

    pub(super) fn set(&mut self, workload: Arc<Workload>) {
        self.0.retain(|known| known.uid != workload.uid);
        self.0.push(workload);
        self.0.sort_by(|a, b| Self::rank(a).cmp(&Self::rank(b)));
    }

    /// Returns whether any is left.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        self.0.retain(|known| &*known.uid != uid);
        !self.0.is_empty()
    }

    /// Whom the address means; nobody if it is a host's.
    pub(super) fn owner(&self) -> Option<&Arc<Workload>> {
        self.0.first().filter(|workload| !workload.host_network)
    }
}

/// Uids of entries of hand-written EndpointSlices begin with this.
pub(super) const SLICE: &str = "slice/";

/// The Services with one address, by name.
#[derive(Debug, Default)]
pub(super) struct Services(Vec<Arc<ServiceEntry>>);

impl Services {
    pub(super) fn set(&mut self, entry: &Arc<ServiceEntry>) {
        self.0.retain(|known| known.name != entry.name);
        self.0.push(Arc::clone(entry));
        self.0.sort_by(|a, b| a.name.cmp(&b.name));
    }

    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.0.retain(|known| &*known.name != name);
        !self.0.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Arc<ServiceEntry>> {
        self.0.first()
    }
}
