//! `weft lab capture` as a test uses it: texts go in, and how often each passed in clear comes out.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use serde::Deserialize;

use crate::Lab;

/// A capture under way on every link between nodes and pods of a lab.
pub struct Capture {
    child: Child,
}

/// What was seen.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Seen {
    /// Frames, each counted on every link that it passed.
    pub frames: u64,
    /// Of them, those of HBONE tunnels.
    pub tunnel: u64,
    /// Frames that held each text, in the order in which they were given.
    pub texts: Vec<u64>,
}

impl Lab {
    /// Begins to look for texts in clear.
    #[track_caller]
    pub fn capture(&self, texts: &[&str]) -> Capture {
        let mut child = Command::new(Self::bin("weft"))
            .args(["lab", "--name", &self.name, "capture"])
            .args(texts)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("weft starts");
        let stderr = child.stderr.take().expect("it was piped");
        let mut line = String::new();
        let read = BufReader::new(stderr).read_line(&mut line);
        assert!(
            read.is_ok() && line.starts_with("listening"),
            "weft lab capture: {line}"
        );
        Capture { child }
    }
}

impl Capture {
    /// Ends it.
    #[track_caller]
    pub fn stop(mut self) -> Seen {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").arg(pid).status();
        assert!(killed.is_ok_and(|status| status.success()), "kill");
        let mut out = String::new();
        let mut stdout = self.child.stdout.take().expect("it was piped");
        stdout.read_to_string(&mut out).expect("it prints text");
        serde_json::from_str(&out).expect("weft prints JSON")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
