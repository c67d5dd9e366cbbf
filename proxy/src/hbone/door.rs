//! The way to a handshake. In flow connections of peers that have proven nothing yet; out flow passes
//! to begin, few at a time. Sources take turns, so one that knocks a thousand times, or stalls with
//! all that it is let do, does not keep the others out.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::sleep};

/// A source has an eighth of the passes at most, so that no seven of them keep the others out.
const SOURCES: usize = 8;
/// Connections of one source that have proven nothing yet; any more are closed at once. A source is a
/// pod, which makes one tunnel at a time to a destination, or a node behind whose address many are.
const KNOCKING: usize = 256;
/// Who has a pass while others wait must be done within it: three round trips, a lost segment, and
/// the other side's queue. Nobody is hurried while nobody waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// Passes of one pod.
#[derive(Debug)]
pub struct Door {
    passes: usize,
    a_source: usize,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    /// Passes that are out.
    out: usize,
    sources: HashMap<IpAddr, Source>,
    /// Sources with somebody waiting, in the order of their turns.
    turns: VecDeque<IpAddr>,
}

#[derive(Debug, Default)]
struct Source {
    knocking: usize,
    out: usize,
    waiting: VecDeque<oneshot::Sender<Pass>>,
}

/// A connection that has not proven anything yet.
#[derive(Debug)]
pub struct Knock {
    door: Arc<Door>,
    source: IpAddr,
}

/// The right to a handshake, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    /// `None`: it was given back already.
    door: Option<Arc<Door>>,
    source: IpAddr,
}

impl Door {
    /// With so many passes.
    #[must_use]
    pub fn new(passes: usize) -> Arc<Self> {
        Arc::new(Self {
            passes,
            a_source: (passes / SOURCES).max(1),
            line: Mutex::new(Line {
                out: 0,
                sources: HashMap::new(),
                turns: VecDeque::new(),
            }),
        })
    }

    /// Somebody comes; `None` if too many of that source are here already.
    pub fn knock(self: &Arc<Self>, source: IpAddr) -> Option<Knock> {
        let mut line = self.line.lock();
        let entry = line.sources.entry(source).or_default();
        if entry.knocking >= KNOCKING {
            return None;
        }
        entry.knocking += 1;
        Some(Knock {
            door: Arc::clone(self),
            source,
        })
    }

    /// Passes that are out.
    pub fn in_use(&self) -> usize {
        self.line.lock().out
    }

    /// Whether somebody waits for a pass.
    pub fn is_crowded(&self) -> bool {
        !self.line.lock().turns.is_empty()
    }

    fn pass(self: &Arc<Self>, source: IpAddr) -> Pass {
        Pass {
            door: Some(Arc::clone(self)),
            source,
        }
    }

    /// Gives out what passes there are, in turns.
    fn serve(self: &Arc<Self>, line: &mut Line) {
        let mut looked = 0;
        while line.out < self.passes && looked < line.turns.len() {
            let Some(ip) = line.turns.pop_front() else {
                return;
            };
            let Some(source) = line.sources.get_mut(&ip) else {
                continue;
            };
            if source.out >= self.a_source {
                line.turns.push_back(ip);
                looked += 1;
                continue;
            }
            // Who has gone meanwhile takes none.
            while let Some(waiting) = source.waiting.pop_front() {
                match waiting.send(self.pass(ip)) {
                    Ok(()) => {
                        source.out += 1;
                        line.out += 1;
                        looked = 0;
                        break;
                    }
                    Err(mut unused) => unused.door = None,
                }
            }
            if !source.waiting.is_empty() {
                line.turns.push_back(ip);
            }
        }
    }
}

impl Knock {
    /// Waits for the source's turn.
    pub async fn enter(&self) -> Pass {
        let door = &self.door;
        let entered = {
            let mut line = door.line.lock();
            let line = &mut *line;
            // There from the knock to its drop.
            let source = line.sources.entry(self.source).or_default();
            if line.out < door.passes && source.out < door.a_source && source.waiting.is_empty() {
                source.out += 1;
                line.out += 1;
                return door.pass(self.source);
            }
            let (pass, entered) = oneshot::channel();
            if source.waiting.is_empty() {
                line.turns.push_back(self.source);
            }
            source.waiting.push_back(pass);
            entered
        };
        match entered.await {
            Ok(pass) => pass,
            // The sender is in the line until it is used.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Pass {
    /// Ready when others have waited too long for this one.
    pub async fn overdue(&self) {
        loop {
            sleep(PATIENCE).await;
            if self.door.as_ref().is_some_and(|door| door.is_crowded()) {
                return;
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(door) = self.door.take() else { return };
        let mut line = door.line.lock();
        line.out -= 1;
        if let Some(source) = line.sources.get_mut(&self.source) {
            source.out -= 1;
        }
        line.forget(self.source);
        door.serve(&mut line);
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        let mut line = self.door.line.lock();
        if let Some(source) = line.sources.get_mut(&self.source) {
            source.knocking -= 1;
        }
        line.forget(self.source);
    }
}

impl Line {
    /// Nothing is kept of a source that has gone.
    fn forget(&mut self, ip: IpAddr) {
        let gone = |source: &Source| source.knocking == 0 && source.out == 0;
        if self.sources.get(&ip).is_some_and(gone) {
            self.sources.remove(&ip);
            self.turns.retain(|turn| *turn != ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::FutureExt;

    use super::*;

    fn ip(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    #[test]
    fn a_source_that_holds_all_it_may_leaves_room_for_others() {
        let door = Door::new(16);
        let knock = door.knock(ip(1)).expect("room");
        let held: Vec<_> = (0..2)
            .map(|_| knock.enter().now_or_never().expect("a pass"))
            .collect();
        assert!(knock.enter().now_or_never().is_none(), "an eighth of 16");
        let other = door.knock(ip(2)).expect("room");
        assert!(other.enter().now_or_never().is_some());
        drop(held);
        assert!(knock.enter().now_or_never().is_some());
    }

    #[test]
    fn sources_take_turns_however_many_of_one_wait() {
        let door = Door::new(1);
        let loud: Vec<_> = (0..100).map(|_| door.knock(ip(1)).expect("room")).collect();
        let pass = loud[0].enter().now_or_never().expect("the first");
        let mut waiting: Vec<_> = loud[1..].iter().map(|it| Box::pin(it.enter())).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let quiet = door.knock(ip(2)).expect("room");
        let mut turn = Box::pin(quiet.enter());
        assert!(turn.as_mut().now_or_never().is_none());
        assert!(door.is_crowded());
        drop(pass);
        let next = waiting[0].as_mut().now_or_never().expect("came first");
        assert!(turn.as_mut().now_or_never().is_none());
        drop(next);
        assert!(
            turn.as_mut().now_or_never().is_some(),
            "then the other source"
        );
    }

    #[test]
    fn who_gives_up_waiting_takes_no_pass_with_it() {
        let door = Door::new(1);
        let (first, second) = (door.knock(ip(1)), door.knock(ip(2)));
        let (first, second) = (first.expect("room"), second.expect("room"));
        let pass = first.enter().now_or_never().expect("a pass");
        for _ in 0..3 {
            assert!(second.enter().now_or_never().is_none(), "and gives up");
        }
        drop(pass);
        assert!(first.enter().now_or_never().is_some());
        // It was given the pass and did not take it.
        let pass = first.enter().now_or_never().expect("a pass");
        let mut waiting = Box::pin(second.enter());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(pass);
        drop(waiting);
        assert!(first.enter().now_or_never().is_some());
    }

    #[test]
    fn a_source_with_too_many_unproven_connections_is_turned_away_until_some_have_gone() {
        let door = Door::new(64);
        let mut here: Vec<_> = (0..KNOCKING)
            .map(|_| door.knock(ip(1)).expect("room"))
            .collect();
        assert!(door.knock(ip(1)).is_none());
        assert!(door.knock(ip(2)).is_some());
        here.pop();
        assert!(door.knock(ip(1)).is_some());
        drop(here);
        assert!(
            door.line.lock().sources.is_empty(),
            "nothing is kept of them"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_is_hurried_only_while_others_wait() {
        let door = Door::new(1);
        let stalling = door.knock(ip(1)).expect("room");
        let pass = stalling.enter().await;
        let long = tokio::time::timeout(10 * PATIENCE, pass.overdue()).await;
        assert!(long.is_err(), "nobody waits");
        let other = door.knock(ip(2)).expect("room");
        let mut turn = Box::pin(other.enter());
        assert!(turn.as_mut().now_or_never().is_none());
        tokio::time::timeout(2 * PATIENCE, pass.overdue())
            .await
            .expect("hurried");
    }
}
