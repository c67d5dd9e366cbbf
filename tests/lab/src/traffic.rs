//! Traffic that goes on while something happens to the mesh: `weft-echo` clients and byte streams
//! that live long, in the background, and what became of them.

use std::{collections::BTreeMap, process::Child};

use weft_echo::client::Summary;

use crate::{Lab, wire::LiveReport};

/// Clients that run in one pod. Dropped, they are stopped.
pub struct Traffic<'a> {
    lab: &'a Lab,
    pod: String,
    clients: Vec<(String, Child)>,
    streams: Vec<Child>,
}

impl<'a> Traffic<'a> {
    /// None yet.
    pub fn from(lab: &'a Lab, pod: &str) -> Self {
        Self {
            lab,
            pod: pod.to_owned(),
            clients: Vec::new(),
            streams: Vec::new(),
        }
    }

    /// A `weft-echo client URL ARGS…` that goes on until [`Traffic::stop`].
    pub fn client(&mut self, name: &str, url: &str, args: &[&str]) {
        let echo = Lab::bin("weft-echo").to_string_lossy().into_owned();
        let mut command = vec![&*echo, "client", url, "--duration", "300s"];
        command.extend(["--timeout", "20s", "--summary", "-o", "json"]);
        command.extend(args);
        let client = self.lab.exec_in_background(&self.pod, &command);
        self.clients.push((name.to_owned(), client));
    }

    /// A byte stream to `to` that ends after `limit` milliseconds, if nobody else ends it.
    pub fn stream(&mut self, to: &str, limit: u64) {
        let client = Lab::bin("weft-lab-client").to_string_lossy().into_owned();
        let limit = limit.to_string();
        let command = [&*client, "live", "--to", to, "--limit", &limit];
        self.streams
            .push(self.lab.exec_in_background(&self.pod, &command));
    }

    /// Waits until the byte streams have ended; how.
    #[track_caller]
    pub fn streams(&mut self) -> Vec<LiveReport> {
        std::mem::take(&mut self.streams)
            .into_iter()
            .map(|stream| {
                let done = stream.wait_with_output().expect("the client ends");
                serde_json::from_slice(&done.stdout).expect("the client prints JSON")
            })
            .collect()
    }

    /// Ends the clients; the sum of each.
    #[track_caller]
    pub fn stop(&mut self) -> BTreeMap<String, Summary> {
        let clients = std::mem::take(&mut self.clients);
        for (_, client) in &clients {
            signal("-TERM", client);
        }
        clients
            .into_iter()
            .map(|(name, client)| {
                let done = client.wait_with_output().expect("the client ends");
                let text = String::from_utf8_lossy(&done.stdout).into_owned();
                let summary = serde_json::from_str(&text);
                (name, summary.unwrap_or_else(|e| panic!("{e}: {text}")))
            })
            .collect()
    }

    /// Ends the clients, and panics unless each got all of its answers, and at least `least`.
    #[track_caller]
    pub fn nothing_failed(&mut self, least: u64) {
        for (name, summary) in self.stop() {
            assert_eq!(summary.failed, 0, "{name}: {summary:?}");
            assert!(summary.requests >= least, "{name}: {summary:?}");
        }
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        let clients = self.clients.iter_mut().map(|(_, client)| client);
        for client in clients.chain(&mut self.streams) {
            signal("-KILL", client);
            client.wait().ok();
        }
    }
}

fn signal(which: &str, to: &Child) {
    let pid = to.id().to_string();
    std::process::Command::new("kill")
        .args([which, &pid])
        .status()
        .expect("kill runs");
}
