//! Series by labels, in bounded number: labels flow in, a handle flows out that is kept for as
//! long as its labels hold (a connection; a rule and a backend) and recorded on without look-up.
//!
//! Beyond [`CAP`] label sets everything is counted in one series `overflow` per direction and
//! per `tls`. A series that nobody holds and nothing changed for [`IDLE`] goes: a scraper sees it end.

use std::{collections::HashMap, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::labels::Labels;

/// Label sets per metric. A series costs about half a kilobyte here and some lines in each scrape;
/// a node's pods talk to some hundreds of others at most.
pub(super) const CAP: usize = 2_000;
/// Longer than two scrapes of the slowest usual scraper.
pub(super) const IDLE: Duration = Duration::from_secs(600);
/// How often a full map looks for room, for a look costs in proportion to the map.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);

/// What is recorded for one label set.
pub(super) trait Series: Default + Send + Sync + 'static {
    /// Grows whenever something is recorded.
    fn activity(&self) -> u64;
}

#[derive(Debug)]
struct Entry<S> {
    series: Arc<S>,
    /// Activity when last looked at, and since when it is so.
    seen: u64,
    since: Instant,
}

#[derive(Debug)]
struct Table<S> {
    entries: HashMap<Labels, Entry<S>, RandomState>,
    looked: Option<Instant>,
}

/// All series of one kind.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    cap: usize,
    table: RwLock<Table<S>>,
    /// Look-ups that found no room and were given `overflow`.
    overflowed: Counter,
}

impl<S: Series> Bounded<S> {
    pub(super) fn new(cap: usize, overflowed: Counter) -> Self {
        Self {
            cap,
            table: RwLock::new(Table {
                entries: HashMap::default(),
                looked: None,
            }),
            overflowed,
        }
    }

    /// The series of these labels.
    pub(super) fn get(&self, labels: &Labels) -> Arc<S> {
        if let Some(entry) = self.table.read().entries.get(labels) {
            return Arc::clone(&entry.series);
        }
        let now = Instant::now();
        let mut table = self.table.write();
        if table.entries.len() >= self.cap && table.may_look(now) {
            table.expire(now);
        }
        if table.entries.len() >= self.cap && !table.entries.contains_key(labels) {
            self.overflowed.inc();
            return table.entry(labels.overflow(), now);
        }
        table.entry(labels.clone(), now)
    }

    /// Drops what is idle, and lists the rest for a scrape.
    pub(super) fn list(&self) -> Vec<(Labels, Arc<S>)> {
        let mut table = self.table.write();
        table.expire(Instant::now());
        let entries = table.entries.iter();
        entries
            .map(|(labels, entry)| (labels.clone(), Arc::clone(&entry.series)))
            .collect()
    }
}

impl<S: Series> Table<S> {
    fn entry(&mut self, labels: Labels, now: Instant) -> Arc<S> {
        let entry = self.entries.entry(labels).or_insert_with(|| Entry {
            series: Arc::default(),
            seen: 0,
            since: now,
        });
        Arc::clone(&entry.series)
    }

    fn may_look(&mut self, now: Instant) -> bool {
        let may = self.looked.is_none_or(|at| now - at >= LOOK_FOR_ROOM);
        if may {
            self.looked = Some(now);
        }
        may
    }

    fn expire(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let activity = entry.series.activity();
            if activity != entry.seen || Arc::strong_count(&entry.series) > 1 {
                entry.seen = activity;
                entry.since = now;
            }
            now - entry.since < IDLE
        });
    }
}
