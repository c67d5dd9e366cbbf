//! Samples, their medians, and the ratios that are reported.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

/// One round of one variant.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_micros_per_request: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) stream_megabytes_per_second: Option<f64>,
    pub(crate) rss_bytes: u64,
}

/// Everything that a run found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) connections: u32,
    pub(crate) rate_for_latencies: u32,
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
    /// After the first second of load, in bytes, of all proxies of a variant.
    pub(crate) idle_rss: BTreeMap<String, u64>,
    pub(crate) medians: BTreeMap<String, Sample>,
    /// The figure that matters, as ratios.
    pub(crate) cpu_ratio: BTreeMap<String, f64>,
}

impl Report {
    /// Takes the medians and ratios.
    pub(crate) fn finish(&mut self, connections: u32, rate: u32) {
        self.machine = crate::run::machine();
        self.connections = connections;
        self.rate_for_latencies = rate;
        for (name, samples) in &self.samples {
            let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
            let streams: Vec<f64> = samples
                .iter()
                .filter_map(|s| s.stream_megabytes_per_second)
                .collect();
            let sample = Sample {
                requests_per_second: of(|s| s.requests_per_second),
                cpu_micros_per_request: of(|s| s.cpu_micros_per_request),
                p50_micros: of(|s| s.p50_micros),
                p99_micros: of(|s| s.p99_micros),
                stream_megabytes_per_second: (!streams.is_empty()).then(|| median(streams)),
                rss_bytes: of(|s| s.rss_bytes as f64) as u64,
            };
            self.medians.insert(name.clone(), sample);
        }
        if let Some(envoy) = self
            .medians
            .get("envoy-l7")
            .map(|s| s.cpu_micros_per_request)
        {
            for (name, sample) in &self.medians {
                if name.starts_with("weft") {
                    let ratio = sample.cpu_micros_per_request / envoy;
                    self.cpu_ratio.insert(format!("{name} / envoy-l7"), ratio);
                }
            }
        }
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "variant",
            "requests/s",
            "CPU-µs/request",
            "p50 added µs",
            "p99 added µs",
            "one stream MB/s",
            "RSS MB",
        ]);
        let direct = self.medians.get("direct");
        for (name, sample) in &self.medians {
            let base = direct.map_or((0.0, 0.0), |d| (d.p50_micros, d.p99_micros));
            let (p50, p99) = if name == "direct" {
                (format!("({:.0})", base.0), format!("({:.0})", base.1))
            } else {
                (
                    format!("{:.0}", sample.p50_micros - base.0),
                    format!("{:.0}", sample.p99_micros - base.1),
                )
            };
            table.add_row([
                name.clone(),
                format!("{:.0}", sample.requests_per_second),
                format!("{:.1}", sample.cpu_micros_per_request),
                p50,
                p99,
                sample
                    .stream_megabytes_per_second
                    .map_or("-".into(), |s| format!("{s:.0}")),
                format!("{:.1}", sample.rss_bytes as f64 / 1e6),
            ]);
        }
        let ratios: Vec<String> = self
            .cpu_ratio
            .iter()
            .map(|(what, r)| format!("CPU per request, {what}: {r:.2}"))
            .collect();
        let rounds = self.samples.values().map(Vec::len).max().unwrap_or(0);
        format!(
            "{table}\n{}\nMedians of {rounds} alternating rounds; {} kept connections for requests/s and CPU, \
             {} requests/s for latencies; {}. In brackets: not added, whole.",
            ratios.join("\n"),
            self.connections,
            self.rate_for_latencies,
            self.machine
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_does_not_follow_one_wild_round() {
        assert_eq!(median(vec![5.0, 1.0, 900.0]), 5.0);
        assert_eq!(median(vec![1.0, 2.0, 3.0, 4.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
