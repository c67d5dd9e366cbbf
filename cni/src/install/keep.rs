//! Keeps the node as it is to be: looks when somebody changes one of the folders, and now and then.
//!
//! Flows in: inotify's events, and whether the plugin is wanted. Flows out: the [`State`]. Two
//! writers that undo each other's work would spin: each repair makes the wait before the next longer.

use std::{io, path::Path, time::Duration};

use inotify::{Inotify, WatchMask};
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{Chain, Installer};

/// inotify sees what is written on this node; a look now and then finds what it can't, such as a
/// folder that was replaced.
const EVERY: Duration = Duration::from_secs(30);
/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// First and longest wait before the next repair. While the chain lacks us, pods start outside the
/// mesh until the agent finds them: it must not be long.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After so long without a repair, nobody is at odds with us any more.
const CALM: Duration = Duration::from_secs(60);

/// How the node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The plugin is last in the chain. The number rises whenever it was put there: pods may have
    /// started without it.
    Chained(u64),
    /// It is not, for this reason.
    Not(String),
    /// It was taken off, as wanted.
    Removed,
}

/// Keeps the plugin on the node while `wanted` is true, and off it while it is false; ends with it.
pub async fn keep(
    installer: Installer,
    mut wanted: watch::Receiver<bool>,
    state: watch::Sender<State>,
) {
    let mut changes = Changes::watch(&installer);
    let mut patience = Patience::default();
    let mut puts = 0;
    loop {
        let put = *wanted.borrow_and_update();
        let worker = installer.clone();
        let looked = tokio::task::spawn_blocking(move || match put {
            true => worker.put().map(Some),
            false => worker.remove().map(|()| None),
        })
        .await;
        let Ok(looked) = looked else {
            return; // The runtime ends.
        };
        let mut wait = Duration::ZERO;
        let now = match looked {
            Ok(Some(Chain::InPlace(_))) => State::Chained(puts),
            Ok(Some(Chain::Put(path))) => {
                puts += 1;
                wait = patience.after_repair(Instant::now());
                tell(&path, puts, wait);
                State::Chained(puts)
            }
            Ok(Some(Chain::Missing)) => State::Not(format!(
                "there is no network configuration in {} yet: is the cluster's network plugin running on this node?",
                installer.conf_dir.display()
            )),
            Ok(None) => State::Removed,
            Err(error) => State::Not(error.to_string()),
        };
        tell_change(&state, now);
        tokio::select! {
            () = async { sleep(wait).await; changes.next().await } => {}
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn tell(path: &Path, puts: u64, wait: Duration) {
    let path = path.display();
    if puts == 1 {
        info!(%path, "weft-cni is last in the CNI chain");
    } else if wait < BACKOFF.1 {
        info!(%path, "weft-cni is last in the CNI chain again: something else had rewritten it");
    } else {
        warn!(%path, "something keeps rewriting the CNI chain without weft-cni: pods that start meanwhile join late");
    }
}

/// Said once, not at each look.
fn tell_change(state: &watch::Sender<State>, now: State) {
    state.send_if_modified(|state| {
        let changed = *state != now;
        if changed && let State::Not(reason) = &now {
            warn!(reason, "weft-cni is not in the CNI chain");
        }
        *state = now;
        changed
    });
}

/// How long to wait before the next repair.
#[derive(Debug, Default)]
struct Patience {
    last: Option<(Instant, Duration)>,
}

impl Patience {
    fn after_repair(&mut self, now: Instant) -> Duration {
        let wait = match self.last {
            Some((then, wait)) if now.duration_since(then) < CALM => (wait * 2).min(BACKOFF.1),
            _ => BACKOFF.0,
        };
        self.last = Some((now, wait));
        wait
    }
}

/// Changes of the two folders.
struct Changes(Option<AsyncFd<Inotify>>);

impl Changes {
    fn watch(installer: &Installer) -> Self {
        let watch = || -> io::Result<_> {
            let inotify = Inotify::init()?;
            let mask = WatchMask::CLOSE_WRITE
                | WatchMask::MOVE
                | WatchMask::CREATE
                | WatchMask::DELETE
                | WatchMask::ONLYDIR;
            for folder in [&installer.conf_dir, &installer.bin_dir] {
                inotify.watches().add(folder, mask)?;
            }
            // The constructor that takes its place is unsafe: it asks for a descriptor that is kept
            // open, as `Inotify` keeps its own.
            #[expect(deprecated)]
            AsyncFd::new(inotify)
        };
        match watch() {
            Ok(inotify) => Self(Some(inotify)),
            Err(error) => {
                warn!(%error, "the CNI folders can't be watched (do they exist, and is fs.inotify.max_user_instances high enough?); looking every {EVERY:?}");
                Self(None)
            }
        }
    }

    /// Ready after a change, or after a while without.
    async fn next(&mut self) {
        let Some(inotify) = &mut self.0 else {
            return sleep(EVERY).await;
        };
        let changed = async {
            loop {
                let Ok(mut ready) = inotify.readable_mut().await else {
                    return std::future::pending().await;
                };
                let mut buffer = [0; 4096];
                match ready.get_inner_mut().read_events(&mut buffer) {
                    Ok(_) => return,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    Err(error) => {
                        warn!(%error, "the watch of the CNI folders fails");
                        return sleep(EVERY).await;
                    }
                }
            }
        };
        if timeout(EVERY, changed).await.is_ok() {
            sleep(SETTLE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repair_waits_longer_until_nobody_interferes() {
        let mut patience = Patience::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = patience.after_repair(now);
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        now += CALM;
        assert_eq!(patience.after_repair(now), BACKOFF.0);
    }
}
