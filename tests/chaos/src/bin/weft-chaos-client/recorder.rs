//! Counts, and tells: outcomes in, lines of JSON on standard output.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use weft_chaos::record::{Conn, Failure, Lane, Line, Tally, now};

use crate::Wrong;

/// Between two tallies.
const PERIOD: Duration = Duration::from_millis(500);

pub(crate) struct Recorder {
    tallies: Mutex<BTreeMap<String, Tally>>,
}

impl Recorder {
    pub(crate) fn new(lanes: &[Lane]) -> Self {
        let tallies = lanes
            .iter()
            .map(|lane| (lane.name.clone(), Tally::default()));
        Self {
            tallies: Mutex::new(tallies.collect()),
        }
    }

    fn change(&self, lane: &str, change: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.tallies.lock().get_mut(lane) {
            change(tally);
        }
    }

    pub(crate) fn opened(&self, lane: &str) {
        self.change(lane, |tally| tally.opened += 1);
    }

    /// The other side ended a kept connection between two requests.
    pub(crate) fn closed_in_order(&self, lane: &str) {
        self.change(lane, |tally| tally.ended += 1);
    }

    pub(crate) fn bytes(&self, lane: &str, count: u64) {
        self.change(lane, |tally| tally.bytes += count);
    }

    pub(crate) fn ok(&self, lane: &str, since: Instant) {
        let took = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.change(lane, |tally| {
            tally.ok += 1;
            tally.slow += u64::from(took > 1000);
            tally.slowest_ms = tally.slowest_ms.max(took);
        });
    }

    /// A stream came to its end as the client wanted it.
    pub(crate) fn completed(&self, lane: &str) {
        self.change(lane, |tally| tally.ok += 1);
    }

    /// A stream was ended in order by the other side.
    pub(crate) fn ended(&self, conn: &Conn) {
        self.change(&conn.lane, |tally| tally.ended += 1);
        say(&Line::Ended(Conn {
            at: now(),
            ..conn.clone()
        }));
    }

    pub(crate) fn failed(&self, lane: &Lane, conn: &Conn, began: u64, wrong: &Wrong) {
        self.change(&lane.name, |tally| tally.failed += 1);
        say(&Line::Failure(Failure {
            conn: Conn {
                at: now(),
                ..conn.clone()
            },
            kind: lane.kind,
            cause: wrong.cause,
            detail: wrong.detail.clone(),
            began,
        }));
    }

    pub(crate) async fn tell_now_and_then(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.tell();
        }
    }

    fn tell(&self) {
        say(&Line::Tally(self.tallies.lock().clone()));
    }

    pub(crate) fn finish(&self) {
        self.tell();
        say(&Line::Done {});
    }
}

fn say(line: &Line) {
    let Ok(mut text) = serde_json::to_vec(line) else {
        return;
    };
    text.push(b'\n');
    // Nobody listens any more: the load is over.
    let _ = std::io::stdout().lock().write_all(&text);
}
