//! Checked load on a lab: clients run in pods, and what they say is kept. Lanes and pods in; failures,
//! streams that were ended, and tallies out.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use weft_lab_tests::Lab;

use crate::record::{Cause, Conn, Failure, Kind, Lane, Line, PATIENCE, Tally, now};

/// What all clients have said.
#[derive(Debug, Default)]
pub struct Book {
    /// Failures, with the client's pod.
    pub failures: Vec<(String, Failure)>,
    /// Streams that the other side ended in order, with the client's pod.
    pub ended: Vec<(String, Conn)>,
    /// The last tally of each client's run, by pod, run and lane.
    tallies: BTreeMap<(String, u32, String), Tally>,
}

impl Book {
    /// The sums by lane's name.
    pub fn sums(&self) -> BTreeMap<String, Tally> {
        let mut sums: BTreeMap<String, Tally> = BTreeMap::new();
        for ((_, _, lane), tally) in &self.tallies {
            sums.entry(lane.clone()).or_default().add(tally);
        }
        sums
    }
}

/// A client in a pod.
struct Client {
    child: Child,
    reader: JoinHandle<bool>,
    kinds: BTreeMap<String, Kind>,
}

/// All clients of a lab.
pub struct Load<'a> {
    lab: &'a Lab,
    book: Arc<Mutex<Book>>,
    clients: BTreeMap<String, Client>,
    runs: u32,
}

impl<'a> Load<'a> {
    /// None yet.
    pub fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            book: Arc::default(),
            clients: BTreeMap::new(),
            runs: 0,
        }
    }

    /// Starts a client in a pod, `NS/POD`.
    pub fn start(&mut self, pod: &str, lanes: &[Lane]) -> anyhow::Result<()> {
        self.runs += 1;
        let mut command = Command::new(Lab::bin("weft"));
        command
            .args(["lab", "--name", &self.lab.name, "exec", pod, "--"])
            .arg(Lab::bin("weft-chaos-client"))
            .args(["--lanes", &serde_json::to_string(lanes)?])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("the client in {pod}"))?;
        let out = child.stdout.take().context("its output was piped")?;
        let (book, name, run) = (Arc::clone(&self.book), pod.to_owned(), self.runs);
        let reader = std::thread::spawn(move || read(out, &book, &name, run));
        let kinds = lanes
            .iter()
            .map(|lane| (lane.name.clone(), lane.kind))
            .collect();
        self.clients.insert(
            pod.to_owned(),
            Client {
                child,
                reader,
                kinds,
            },
        );
        Ok(())
    }

    /// What has been said so far.
    pub fn book(&self) -> Arc<Mutex<Book>> {
        Arc::clone(&self.book)
    }

    /// How many requests and streams came to their end, right or wrong.
    pub fn count(&self) -> u64 {
        let sums = self.book.lock().sums();
        sums.values().map(|tally| tally.ok + tally.failed).sum()
    }

    /// Clients that have ended though nobody told them to: by pod, with their exit status.
    pub fn lost(&mut self) -> Vec<(String, String)> {
        let mut lost = Vec::new();
        for (pod, client) in &mut self.clients {
            if let Ok(Some(status)) = client.child.try_wait() {
                lost.push((pod.clone(), status.to_string()));
            }
        }
        for (pod, _) in &lost {
            if let Some(client) = self.clients.remove(pod) {
                let _ = client.reader.join();
            }
        }
        lost
    }

    /// Has a client end in order: nothing new begins, what is under way comes to its end. A client
    /// that does not say that it has ended has failed.
    pub fn stop(&mut self, pod: &str) {
        if let Some(client) = self.clients.get(pod) {
            terminate(&client.child);
        }
        if let Some(client) = self.clients.remove(pod) {
            self.end(pod, client);
        }
    }

    /// Has all clients end in order.
    pub fn stop_all(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        for client in clients.values() {
            terminate(&client.child);
        }
        for (pod, client) in clients {
            self.end(&pod, client);
        }
    }

    fn end(&self, pod: &str, mut client: Client) {
        let limit = Instant::now() + PATIENCE + Duration::from_secs(10);
        while !matches!(client.child.try_wait(), Ok(Some(_))) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
        client.child.kill().ok();
        client.child.wait().ok();
        let in_order = client.reader.join().unwrap_or_default();
        if !in_order {
            let kind = client.kinds.values().next().copied().unwrap_or_default();
            self.book.lock().failures.push((
                pod.to_owned(),
                Failure {
                    conn: Conn {
                        at: now(),
                        ..Conn::default()
                    },
                    kind,
                    cause: Cause::Protocol,
                    detail: "the client did not end in order".into(),
                    began: now(),
                },
            ));
        }
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        for client in self.clients.values_mut() {
            client.child.kill().ok();
            client.child.wait().ok();
        }
    }
}

fn terminate(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
    }
}

/// Keeps what a client says; whether it ended in order.
fn read(out: ChildStdout, book: &Mutex<Book>, pod: &str, run: u32) -> bool {
    let mut in_order = false;
    for line in BufReader::new(out).lines() {
        let Ok(text) = line else { break };
        let Ok(line) = serde_json::from_str::<Line>(&text) else {
            eprintln!("{pod} says: {text}");
            continue;
        };
        let mut book = book.lock();
        match line {
            Line::Failure(failure) => book.failures.push((pod.to_owned(), failure)),
            Line::Ended(conn) => book.ended.push((pod.to_owned(), conn)),
            Line::Tally(tallies) => {
                for (lane, tally) in tallies {
                    book.tallies.insert((pod.to_owned(), run, lane), tally);
                }
            }
            Line::Done {} => in_order = true,
        }
    }
    in_order
}
