//! What is refused at one pod, and handshakes that fail there. In flow events; out flow a counter
//! by reason, each time, and lines for people: the first few of a reason, then one now and then
//! that says how many there were. Whoever floods a pod with what is refused must not fill the log.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::Telemetry;

/// Lines of one reason that are written at once: a person who tries things out sees each.
const BURST: u32 = 5;
/// Between a pod's lines of one reason after that.
const INTERVAL: Duration = Duration::from_secs(30);

/// Of one pod.
#[derive(Debug)]
pub struct Refusals {
    telemetry: Arc<Telemetry>,
    namespace: Arc<str>,
    pod: Arc<str>,
    told: Mutex<HashMap<&'static str, Throttle>>,
}

impl Refusals {
    /// None yet.
    pub fn new(telemetry: Arc<Telemetry>, namespace: Arc<str>, pod: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            telemetry,
            namespace,
            pod,
            told: Mutex::default(),
        })
    }

    /// Something was refused.
    pub fn refused(self: &Arc<Self>, label: &'static str, peer: SocketAddr, reason: &str) {
        self.telemetry.refused(&self.namespace, &self.pod, label);
        self.tell("refused", label, peer, reason);
    }

    /// A tunnel's handshake failed.
    pub fn handshake(self: &Arc<Self>, label: &'static str, peer: SocketAddr, reason: &str) {
        self.tell("tunnel handshake failed", label, peer, reason);
    }

    fn tell(
        self: &Arc<Self>,
        what: &'static str,
        label: &'static str,
        peer: SocketAddr,
        reason: &str,
    ) {
        let verdict = {
            let mut told = self.told.lock();
            told.entry(label).or_default().event(Instant::now())
        };
        let pod = format_args!("{}/{}", self.namespace, self.pod);
        match verdict {
            Verdict::Tell => tracing::info!(%pod, %peer, reason, "{what}"),
            Verdict::HoldBack => {}
            Verdict::SumUpAt(at) => {
                // Whoever refuses is a task of the data path's runtime.
                let refusals = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep_until(at).await;
                    refusals.sum_up(what, label);
                });
            }
        }
    }

    fn sum_up(&self, what: &'static str, label: &'static str) {
        let times = {
            let mut told = self.told.lock();
            told.entry(label).or_default().sum_up(Instant::now())
        };
        let pod = format_args!("{}/{}", self.namespace, self.pod);
        tracing::info!(%pod, label, times, "{what}, more often than each is told of");
    }
}

/// Which events of one kind are told of one by one.
#[derive(Debug, Default)]
struct Throttle {
    /// End of the time in which there may be a burst.
    until: Option<Instant>,
    told: u32,
    held_back: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Tell,
    /// The first that is not told of; the sum is due then.
    SumUpAt(Instant),
    HoldBack,
}

impl Throttle {
    fn event(&mut self, now: Instant) -> Verdict {
        let until = match self.until {
            // What is held back is still to be told of.
            Some(until) if now < until || self.held_back > 0 => until,
            _ => {
                self.told = 0;
                *self.until.insert(now + INTERVAL)
            }
        };
        if self.held_back > 0 {
            self.held_back += 1;
            Verdict::HoldBack
        } else if self.told < BURST {
            self.told += 1;
            Verdict::Tell
        } else {
            self.held_back = 1;
            Verdict::SumUpAt(until)
        }
    }

    /// How many were held back. Those that follow are, too, for as long again.
    fn sum_up(&mut self, now: Instant) -> u64 {
        self.until = Some(now + INTERVAL);
        self.told = BURST;
        std::mem::take(&mut self.held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_then_one_each_interval() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        for _ in 0..BURST {
            assert_eq!(throttle.event(start), Verdict::Tell);
        }
        let end = start + INTERVAL;
        assert_eq!(throttle.event(start), Verdict::SumUpAt(end));
        for _ in 0..10_000 {
            assert_eq!(throttle.event(start), Verdict::HoldBack);
        }
        // A sum that is late loses none.
        assert_eq!(throttle.event(end + INTERVAL), Verdict::HoldBack);
        assert_eq!(throttle.sum_up(end), 10_002);
        assert_eq!(throttle.event(end), Verdict::SumUpAt(end + INTERVAL));
        assert_eq!(throttle.sum_up(end + INTERVAL), 1);
        // After an interval of quiet each is told of again.
        assert_eq!(throttle.event(end + 3 * INTERVAL), Verdict::Tell);
    }
}
