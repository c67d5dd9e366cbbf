//! Addresses that the configuration gives to nobody, though they are pods'. In: the addresses that
//! captured workloads lose, and the captured pods of this very node as the agent tells of them.
//! Out: what it means to dial one. Between a pod's end and the news of who has its address next,
//! such an address must not pass for one outside the mesh: that would be plaintext to a pod.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::Workload;

/// How long an address that a captured pod lost is not dialled unless somebody claims it: far
/// longer than it takes until the API and this proxy know a new pod, shorter than providers keep
/// an address from being given to something that is no pod.
const QUARANTINE: Duration = Duration::from_secs(60);
/// How many lost addresses are kept before those whose time is over are looked for.
const SWEEP: usize = 1024;

/// The addresses.
#[derive(Debug, Default)]
pub(super) struct Unclaimed {
    lost: Mutex<HashMap<IpAddr, Instant>>,
    here: ArcSwap<HashMap<IpAddr, Arc<Workload>>>,
}

impl Unclaimed {
    /// A captured workload had this address, and nobody has it now.
    pub(super) fn lose(&self, address: IpAddr, now: Instant) {
        let mut lost = self.lost.lock();
        if lost.len() >= SWEEP && lost.len().is_power_of_two() {
            lost.retain(|_, since| now < *since + QUARANTINE);
        }
        lost.insert(address, now);
    }

    /// Somebody has it.
    pub(super) fn claim(&self, address: IpAddr) {
        self.lost.lock().remove(&address);
    }

    /// Whether a captured workload lost it a moment ago.
    pub(super) fn is_lost(&self, address: IpAddr, now: Instant) -> bool {
        let lost = self.lost.lock();
        lost.get(&address)
            .is_some_and(|since| now < *since + QUARANTINE)
    }

    /// The captured pods of this node.
    pub(super) fn set_here(&self, pods: HashMap<IpAddr, Arc<Workload>>) {
        self.here.store(Arc::new(pods));
    }

    /// The pod of this node that has it.
    pub(super) fn here(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.here.load().get(&address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_address_is_kept_until_somebody_claims_it_or_its_time_is_over() {
        let unclaimed = Unclaimed::default();
        let [one, two]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let start = Instant::now();
        unclaimed.lose(one, start);
        unclaimed.lose(two, start);
        unclaimed.claim(two);
        assert!(unclaimed.is_lost(one, start + QUARANTINE / 2));
        assert!(!unclaimed.is_lost(two, start));
        assert!(!unclaimed.is_lost(one, start + QUARANTINE));
    }

    #[test]
    fn what_is_kept_does_not_grow_with_all_that_ever_was() {
        let unclaimed = Unclaimed::default();
        let start = Instant::now();
        for n in 0..u32::try_from(SWEEP * 8).unwrap() {
            let address = IpAddr::from(n.to_be_bytes());
            unclaimed.lose(address, start + QUARANTINE * n / 256);
        }
        assert!(unclaimed.lost.lock().len() <= SWEEP);
    }
}
