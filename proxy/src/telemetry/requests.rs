//! Requests: what is recorded of them, and how a scrape shows it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{
    histogram::Histogram,
    series::{Bounded, Series},
};

/// Status codes that are counted by themselves; others by their class.
const CODES: [u16; 35] = [
    200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408, 409,
    410, 412, 413, 414, 415, 422, 425, 426, 429, 431, 499, 500, 501, 502, 503, 504,
];
/// What stands after [`CODES`]: classes, and "no response was made".
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const SLOTS: usize = CODES.len() + CLASSES.len();

/// Status to slot, so that recording looks at one byte.
const SLOT_OF: [u8; 600] = {
    let mut slots = [CODES.len() as u8; 600];
    let mut status = 100;
    while status < 600 {
        slots[status] = (CODES.len() + status / 100) as u8;
        status += 1;
    }
    let mut i = 0;
    while i < CODES.len() {
        slots[CODES[i] as usize] = i as u8;
        i += 1;
    }
    slots
};

/// The requests of one label set. Keep the handle per (connection, rule, backend's workload);
/// recording is a few atomic additions.
#[derive(Debug)]
pub struct Requests {
    codes: [AtomicU64; SLOTS],
    duration: Histogram,
    first_byte: Histogram,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            codes: std::array::from_fn(|_| AtomicU64::new(0)),
            duration: Histogram::default(),
            first_byte: Histogram::default(),
        }
    }
}

impl Requests {
    /// A request is over. `status` 0: no response was made. `first_byte`: from the request's head
    /// to the response's; `duration`: to the end of both bodies.
    pub fn record(&self, status: u16, first_byte: Option<Duration>, duration: Duration) {
        let slot = SLOT_OF[usize::from(status).min(SLOT_OF.len() - 1)];
        self.codes[usize::from(slot)].fetch_add(1, Relaxed);
        self.duration.record(duration);
        if let Some(first_byte) = first_byte {
            self.first_byte.record(first_byte);
        }
    }
}

impl Series for Requests {
    fn activity(&self) -> u64 {
        self.codes.iter().map(|code| code.load(Relaxed)).sum()
    }
}

pub(super) struct RequestCollector(pub(super) Arc<Bounded<Requests>>);

impl fmt::Debug for RequestCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestCollector")
    }
}

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.list();
        if all.is_empty() {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(
            "weft_requests",
            "HTTP requests by their response code (none: no response was made)",
            None,
            MetricType::Counter,
        )?;
        let codes: Vec<String> = CODES.iter().map(u16::to_string).collect();
        for (labels, series) in &all {
            let pairs = labels.pairs();
            for (slot, count) in series.codes.iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    let code = match codes.get(slot) {
                        Some(code) => code.as_str(),
                        None => CLASSES[slot - codes.len()],
                    };
                    metric
                        .encode_family(&(pairs, [("response_code", code)]))?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let mut metric = encoder.encode_descriptor(
            "weft_request_duration_seconds",
            "From a request's head to the end of its response",
            None,
            MetricType::Histogram,
        )?;
        for (labels, series) in &all {
            let pairs = labels.pairs();
            series.duration.encode(metric.encode_family(&pairs)?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "weft_request_first_byte_seconds",
            "From a request's head to its response's head",
            None,
            MetricType::Histogram,
        )?;
        for (labels, series) in &all {
            let pairs = labels.pairs();
            series.first_byte.encode(metric.encode_family(&pairs)?)?;
        }
        Ok(())
    }
}
