//! Counting: outcomes in, totals and latencies out. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Reply;

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The answer's status (`200`, `grpc 0 Ok`, `tcp ok`), if one came.
    pub status: Option<String>,
    /// No answer, or one with a status of 400 and above, or a gRPC failure.
    pub failed: bool,
    /// Why there was no answer.
    pub error: Option<String>,
    /// Who answered.
    pub pod: String,
    /// Its version.
    pub version: String,
    /// Length of the answer's body.
    pub bytes: u64,
    /// From before connecting to the answer's last byte.
    pub latency_ms: f64,
    /// The answer itself, if it is JSON.
    pub answer: Option<serde_json::Value>,
}

/// All requests together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// How many were sent.
    pub requests: u64,
    /// How many of them failed.
    pub failed: u64,
    /// From the first to the last.
    pub seconds: f64,
    /// Requests by status.
    pub statuses: BTreeMap<String, u64>,
    /// Answers by version.
    pub versions: BTreeMap<String, u64>,
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
    /// Requests without an answer, by cause.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of all answers' bodies.
    pub bytes: u64,
    /// Latencies of those that were answered.
    pub latency_ms: Latency,
}

/// Percentiles, in milliseconds; 0 without any answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Outcome {
    pub(super) fn new(result: Result<Reply, String>, latency: Duration) -> Self {
        let (reply, error) = match result {
            Ok(reply) => (reply, None),
            Err(error) => (
                Reply {
                    failed: true,
                    ..Reply::default()
                },
                Some(error),
            ),
        };
        Self {
            status: error.is_none().then_some(reply.status),
            failed: reply.failed,
            error,
            pod: reply.pod,
            version: reply.version,
            bytes: reply.bytes,
            latency_ms: latency.as_secs_f64() * 1e3,
            answer: reply.answer,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.status, &self.error) {
            (Some(status), _) => write!(f, "{status} {} {}", self.version, self.pod)?,
            (None, error) => write!(f, "error {}", error.as_deref().unwrap_or("unknown"))?,
        }
        write!(f, " {:.2} ms", self.latency_ms)
    }
}

/// Adds outcomes up.
#[derive(Debug, Default)]
pub(super) struct Collector {
    summary: Summary,
    latencies: Vec<f64>,
}

impl Collector {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        let summary = &mut self.summary;
        summary.requests += 1;
        summary.failed += u64::from(outcome.failed);
        summary.bytes += outcome.bytes;
        if let Some(error) = &outcome.error {
            *summary.errors.entry(error.clone()).or_default() += 1;
        }
        if let Some(status) = &outcome.status {
            *summary.statuses.entry(status.clone()).or_default() += 1;
            *summary.versions.entry(outcome.version.clone()).or_default() += 1;
            *summary.pods.entry(outcome.pod.clone()).or_default() += 1;
            self.latencies.push(outcome.latency_ms);
        }
    }

    pub(super) fn finish(mut self, took: Duration) -> Summary {
        self.latencies.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = self.latencies.len().saturating_sub(1);
            let rank = (self.latencies.len() as f64 * share).ceil() as usize;
            self.latencies
                .get(rank.saturating_sub(1).min(last))
                .copied()
                .unwrap_or_default()
        };
        let latency = Latency {
            min: at(0.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        };
        Summary {
            seconds: took.as_secs_f64(),
            latency_ms: latency,
            ..self.summary
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests,
            failed,
            seconds,
            latency_ms: latency,
            ..
        } = self;
        let rate = if *seconds > 0.0 {
            *requests as f64 / seconds
        } else {
            0.0
        };
        writeln!(
            f,
            "{requests} requests, {failed} failed, in {seconds:.2} s ({rate:.0}/s)"
        )?;
        for (title, counts) in [
            ("status", &self.statuses),
            ("version", &self.versions),
            ("pod", &self.pods),
            ("error", &self.errors),
        ] {
            for (name, count) in counts.iter().filter(|(name, _)| !name.is_empty()) {
                writeln!(f, "  {title:<8} {count:>8}  {name}")?;
            }
        }
        write!(
            f,
            "  latency  p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            latency.p50, latency.p90, latency.p99, latency.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, version: &str, milliseconds: u64) -> Outcome {
        let reply = Reply {
            status: status.to_string(),
            failed: status >= 400,
            version: version.to_owned(),
            ..Reply::default()
        };
        Outcome::new(Ok(reply), Duration::from_millis(milliseconds))
    }

    #[test]
    fn outcomes_are_counted_by_status_version_and_cause() {
        let mut collector = Collector::default();
        for milliseconds in 1..=100 {
            let version = if milliseconds % 10 == 0 { "v2" } else { "v1" };
            collector.add(&outcome(200, version, milliseconds));
        }
        collector.add(&outcome(503, "v1", 1));
        collector.add(&Outcome::new(
            Err("connect: refused".into()),
            Duration::ZERO,
        ));
        let summary = collector.finish(Duration::from_secs(2));
        assert_eq!((summary.requests, summary.failed), (102, 2));
        assert_eq!(summary.statuses["200"], 100);
        assert_eq!((summary.versions["v1"], summary.versions["v2"]), (91, 10));
        assert_eq!(summary.errors["connect: refused"], 1);
        let latency = summary.latency_ms;
        assert_eq!((latency.min, latency.p50, latency.max), (1.0, 50.0, 100.0));
        assert_eq!(latency.p99, 99.0);
    }

    #[test]
    fn nothing_sent_is_summed_up_without_a_panic() {
        let summary = Collector::default().finish(Duration::ZERO);
        assert_eq!(summary, Summary::default());
        assert!(summary.to_string().starts_with("0 requests"));
    }
}
