//! What processes have cost so far, from /proc.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Nanoseconds of CPU that all threads of these processes have used.
pub(crate) fn cpu_nanos(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("process {pid} is gone"))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let nanos = text
                .split_whitespace()
                .next()
                .context("an empty schedstat")?;
            sum += nanos.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Resident memory of these processes, in bytes.
pub(crate) fn rss(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("no value")?
            .parse()?;
        sum += kib * 1024;
    }
    Ok(sum)
}

/// Processes whose command line contains `needle`.
pub(crate) fn with_argument(needle: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(line) = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")) else {
            continue;
        };
        let mut arguments = line.split(|b| *b == 0);
        let program = arguments.next().unwrap_or_default();
        if program.ends_with(b"envoy") && arguments.any(|a| a == needle.as_bytes()) {
            found.push(pid);
        }
    }
    found
}
