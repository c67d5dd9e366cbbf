//! Takes a lab down, whatever is left of it: orderly after Ctrl-C, or after everything was killed
//! with -9. In: its name. Out: no process, network namespace, link, mount or file of it. Links,
//! rules and bridges go with their namespaces.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use anyhow::{Context, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

use super::{
    netns,
    paths::{self, Paths, ROOT, State},
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

/// Removes everything that is left of a lab, and what only labs need if it was the last. True if
/// there was anything.
pub(crate) fn sweep(lab: &str) -> anyhow::Result<bool> {
    let existed = remove(lab)?;
    let _turn = turn()?;
    if paths::labs().is_empty() {
        netns::unprepare(Path::new(ROOT));
        if fs::remove_dir(ROOT).is_ok()
            && let Some(parent) = Path::new(ROOT).parent()
        {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(existed)
}

/// Removes everything that is left of a lab. True if there was anything.
pub(crate) fn remove(lab: &str) -> anyhow::Result<bool> {
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
    if !ended {
        bail!("lab {lab}: some processes could not be ended");
    }
    Ok(existed)
}

/// One at a time: who starts a lab and who removes the last must not meet in the folder of all
/// labs.
pub(crate) fn turn() -> anyhow::Result<Flock<fs::File>> {
    loop {
        fs::create_dir_all(ROOT).with_context(|| format!("can't make {ROOT}"))?;
        let Ok(folder) = fs::File::open(ROOT) else {
            continue;
        };
        let lock = Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("can't lock {ROOT}"))?;
        // Whoever had it before may have removed the folder.
        let locked = lock.metadata()?.ino();
        if fs::metadata(ROOT).is_ok_and(|now| now.ino() == locked) {
            return Ok(lock);
        }
    }
}
