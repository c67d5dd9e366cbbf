//! Source ports of connections that the proxy makes in a client's name, towards an application.
//!
//! The same client may have connections to the same application that did not come through the
//! proxy (they were open when the pod joined, or wait to be accepted), and will make new ones.
//! Two connections of one address and port on both sides are one to conntrack and to TCP: the
//! later gets no answer, or takes the earlier's. So the proxy's ports are none that a client's
//! kernel gives out, as long as its `ip_local_port_range` is Linux's own, 32768 to 60999.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU16, Ordering},
};

/// Where hardly any application listens.
const ABOVE: RangeInclusive<u16> = 61_000..=65_535;
/// For the many, and for those whose last connection from a port is not forgotten yet (TIME_WAIT).
const BELOW: RangeInclusive<u16> = 20_000..=32_767;

/// How many ports are tried before the kernel is asked for any.
pub(crate) const TRIES: usize = 4;

/// Of one network namespace. Ports follow one another, so that the one used longest ago is next.
#[derive(Debug)]
pub(crate) struct SourcePorts(AtomicU16);

impl SourcePorts {
    /// Begins anywhere: the proxy before this one may still have connections.
    pub(crate) fn new() -> Self {
        Self(AtomicU16::new(rand::random()))
    }

    /// The port of the try of this number, from 0 on; after [`TRIES`] whatever the kernel chooses.
    pub(crate) fn of_try(&self, number: usize) -> u16 {
        let ports = match number {
            0 | 1 => ABOVE,
            2..TRIES => BELOW,
            _ => return 0,
        };
        let next = self.0.fetch_add(1, Ordering::Relaxed);
        *ports.start() + next % (ports.end() - ports.start() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_one_that_a_clients_kernel_gives_out() {
        let ports = SourcePorts(AtomicU16::new(0));
        for number in 0..TRIES {
            for _ in 0..=u16::MAX {
                let port = ports.of_try(number);
                assert!(ABOVE.contains(&port) || BELOW.contains(&port), "{port}");
                assert!(!(32_768..=60_999).contains(&port), "{port}");
            }
        }
        assert_eq!(ports.of_try(TRIES), 0);
    }

    #[test]
    fn each_port_is_used_before_one_is_used_again() {
        let ports = SourcePorts(AtomicU16::new(0));
        let used: std::collections::BTreeSet<u16> = ABOVE.map(|_| ports.of_try(0)).collect();
        assert_eq!(used.len(), ABOVE.len());
    }
}
