//! The process itself, from /proc/self: memory, CPU time, open descriptors, as Prometheus clients
//! name them.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Reads on each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some((cpu_seconds, resident_bytes)) = stat() {
            encoder
                .encode_descriptor(
                    "process_cpu_seconds",
                    "User and system CPU time",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<NoLabelSet, _, u64>(&cpu_seconds, None)?;
            encoder
                .encode_descriptor(
                    "process_resident_memory_bytes",
                    "Resident memory",
                    None,
                    MetricType::Gauge,
                )?
                .encode_gauge(&resident_bytes)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            encoder
                .encode_descriptor(
                    "process_open_fds",
                    "Open descriptors",
                    None,
                    MetricType::Gauge,
                )?
                .encode_gauge(&(open.count() as u64))?;
        }
        Ok(())
    }
}

/// CPU seconds and resident bytes.
fn stat() -> Option<(f64, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The fields after the program's name, which may hold spaces; see proc(5).
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    let pages = field(24)?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some((ticks as f64 / per_second as f64, pages * page as u64))
}
