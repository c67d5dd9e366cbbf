//! L4 connections: what is recorded of them, and how a scrape shows it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::series::{Bounded, Series};

/// The connections of one label set.
#[derive(Debug, Default)]
pub(super) struct Connections {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Series for Connections {
    fn activity(&self) -> u64 {
        let all = [&self.opened, &self.closed, &self.sent, &self.received];
        all.iter().map(|counter| counter.load(Relaxed)).sum()
    }
}

/// One open connection: counted as closed when dropped.
#[derive(Debug)]
pub struct ConnectionHandle(Arc<Connections>);

impl ConnectionHandle {
    pub(super) fn open(series: Arc<Connections>) -> Self {
        series.opened.fetch_add(1, Relaxed);
        Self(series)
    }

    /// Bytes went from the client to the server.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Relaxed);
    }

    /// Bytes came from the server to the client.
    pub fn received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Relaxed);
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Relaxed);
    }
}

pub(super) struct ConnectionCollector(pub(super) Arc<Bounded<Connections>>);

impl fmt::Debug for ConnectionCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionCollector")
    }
}

type Counter = (&'static str, &'static str, fn(&Connections) -> &AtomicU64);

const COUNTERS: [Counter; 4] = [
    (
        "weft_tcp_connections_opened",
        "Connections that were opened",
        |c| &c.opened,
    ),
    (
        "weft_tcp_connections_closed",
        "Connections that were closed",
        |c| &c.closed,
    ),
    (
        "weft_tcp_sent_bytes",
        "Bytes from clients to servers",
        |c| &c.sent,
    ),
    (
        "weft_tcp_received_bytes",
        "Bytes from servers to clients",
        |c| &c.received,
    ),
];

impl Collector for ConnectionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.list();
        if all.is_empty() {
            return Ok(());
        }
        for (name, help, of) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &all {
                metric
                    .encode_family(&labels.pairs())?
                    .encode_counter::<NoLabelSet, _, u64>(&of(series).load(Relaxed), None)?;
            }
        }
        Ok(())
    }
}
