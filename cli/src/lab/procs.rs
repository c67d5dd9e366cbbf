//! The processes of network namespaces: found by the namespace they are in, whoever started them,
//! so that what a killed lab left is found too.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{netns, paths::Process};

/// Between looks at whether processes have ended.
const POLL: Duration = Duration::from_millis(20);
/// How long a killed process may take to be gone from `/proc`.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Processes in any of the named namespaces, except this one.
pub(crate) fn inside(names: &[String]) -> Vec<Process> {
    let inodes: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| netns::inode(&netns::path(name)).ok())
        .collect();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    if inodes.is_empty() {
        return Vec::new();
    }
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let ns = format!("/proc/{pid}/ns/net");
            netns::inode(ns.as_ref()).is_ok_and(|inode| inodes.contains(&inode))
        })
        .filter_map(|pid| Process::of(pid).ok())
        .collect()
}

/// Ends every process in the namespaces: SIGTERM, and after the grace SIGKILL. False if some
/// could not be ended.
pub(crate) fn kill_all(names: &[String], grace: Duration) -> bool {
    if !grace.is_zero() {
        let all = inside(names);
        all.iter()
            .for_each(|process| process.signal(Signal::SIGTERM));
        wait(grace, || inside(names).is_empty());
    }
    // Again until none is left: one that was killed may just have started another.
    wait(KILL_TIMEOUT, || {
        let left = inside(names);
        left.iter()
            .for_each(|process| process.signal(Signal::SIGKILL));
        left.is_empty()
    })
}

/// Waits for a condition, bounded.
pub(crate) fn wait(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(POLL);
    }
}
