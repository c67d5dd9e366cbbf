//! Connections that a pod keeps open while a test looks at what they cost, or takes their peers
//! away.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::{Lab, wire::HoldReport};

/// Open connections of a pod. Closed when dropped.
pub struct Held {
    client: Child,
    lines: BufReader<ChildStdout>,
    /// What was opened.
    pub opened: HoldReport,
}

impl Lab {
    /// Opens connections from a pod, as `weft-lab-client hold` does with these arguments, and
    /// returns when all stand or have failed.
    #[track_caller]
    pub fn hold(&self, pod: &str, args: &[&str]) -> Held {
        let mut client = Command::new(Self::bin("weft"))
            .args(["lab", "--name", &self.name, "exec", pod, "--"])
            .arg(Self::bin("weft-lab-client"))
            .arg("hold")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("weft starts");
        let stdout = client.stdout.take().expect("it was piped");
        let mut held = Held {
            client,
            lines: BufReader::new(stdout),
            opened: HoldReport::default(),
        };
        held.opened = held.report();
        held
    }

    /// What a part's proxy tells of itself: the lines of its `/metrics`.
    #[track_caller]
    pub fn metrics(&self, node: &str) -> String {
        // On the proxy's own address, which its namespace knows.
        let ask = "exec 3<>/dev/tcp/$(hostname -I | cut -d' ' -f1)/15020
            printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let space = format!("weft-{}-{node}-proxy", self.name);
        let out = Command::new("ip")
            .args(["netns", "exec", &space, "bash", "-c", ask])
            .output()
            .expect("ip runs");
        assert!(out.stdout.starts_with(b"HTTP/1.0 200"), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The sum of a proxy's series whose lines begin with `name` and contain all of `words`.
    #[track_caller]
    pub fn metric(&self, node: &str, name: &str, words: &[&str]) -> f64 {
        self.metrics(node)
            .lines()
            .filter(|line| line.starts_with(name) && words.iter().all(|word| line.contains(word)))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
}

impl Held {
    fn report(&mut self) -> HoldReport {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the client speaks");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    /// Closes them, and says what became of them.
    #[track_caller]
    pub fn close(mut self) -> HoldReport {
        drop(self.client.stdin.take());
        self.report()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.client.stdin.take());
        self.client.wait().ok();
    }
}
