//! Takes a lab down, whatever is left of it: orderly after Ctrl-C, or after everything was killed
//! with -9. In: its name. Out: no process, network namespace, link, mount or file of it. Links,
//! rules and bridges go with their namespaces.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::{
    netns,
    paths::{Paths, ROOT, State},
    plan, procs,
};

/// How long processes may take to end in order.
const GRACE: Duration = Duration::from_secs(2);
/// How long the lab's own process may take to take everything down.
const DAEMON_GRACE: Duration = Duration::from_secs(20);

/// Asks the lab's process to take everything down, and waits for it. Ends it if it does not.
pub(crate) fn stop_daemon(paths: &Paths) {
    let Ok(Some(state)) = State::read(paths) else {
        return;
    };
    state.daemon.signal(Signal::SIGTERM);
    if !procs::wait(DAEMON_GRACE, || !state.daemon.runs()) {
        state.daemon.signal(Signal::SIGKILL);
        procs::wait(DAEMON_GRACE, || !state.daemon.runs());
    }
}

/// Removes everything that is left of a lab. True if there was anything.
pub(crate) fn sweep(lab: &str) -> anyhow::Result<bool> {
    let paths = Paths::of(lab);
    let all: Vec<String> = netns::list()
        .into_iter()
        .filter(|name| plan::owns_netns(lab, name))
        .collect();
    let existed = !all.is_empty() || paths.root().exists();
    // Pods first: what they still send is carried to its end.
    let (pods, parts): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|name| name.contains('.'));
    let ended = procs::kill_all(&pods, GRACE) & procs::kill_all(&parts, GRACE);
    for name in &all {
        netns::remove(name).with_context(|| format!("can't remove network namespace {name}"))?;
    }
    match fs::remove_dir_all(paths.root()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't remove {}", paths.root().display()));
        }
        _ => {}
    }
    netns::unprepare(Path::new(ROOT));
    // Only if it was the last lab.
    if fs::remove_dir(ROOT).is_ok()
        && let Some(parent) = Path::new(ROOT).parent()
    {
        let _ = fs::remove_dir(parent);
    }
    if !ended {
        bail!("lab {lab}: some processes could not be ended");
    }
    Ok(existed)
}
