//! Drives a lab of plain pods through the command line, and removes it.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "a failed test is what they are for; each test file uses a part"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

pub struct Lab {
    pub name: String,
    pub folder: tempfile::TempDir,
}

pub struct Output {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Output {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

impl Lab {
    pub fn new(what: &str) -> Self {
        Self {
            name: format!("{what}-{}", std::process::id()),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("lab").args(args).args(["--name", &self.name]);
        command
    }

    pub fn weft(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        Output {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    #[track_caller]
    pub fn up(&self, manifests: &Path) -> String {
        let path = manifests.to_str().unwrap();
        self.weft(&["up", "-f", path, "--detach", "--no-mesh", "--timeout", "60"])
            .ok()
    }

    pub fn exec(&self, pod: &str, script: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args([
            "lab", "--name", &self.name, "exec", pod, "--", "bash", "-c", script,
        ]);
        let output = command.output().unwrap();
        Output {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// What `host` answers on port 80 to a pod.
    #[track_caller]
    pub fn get(&self, pod: &str, host: &str) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/{host}/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && \
             timeout 5 cat <&3"
        );
        let out = self.exec(pod, &script).ok();
        out.rsplit("\r\n").next().unwrap_or_default().to_owned()
    }

    /// What is left on this machine that bears the lab's name.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            found.push(format!("netns {}", entry.file_name().display()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().map(|line| format!("mount {line}")));
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            // A zombie has no command line.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if entry
                .file_name()
                .to_str()
                .is_some_and(|n| n.parse::<u32>().is_ok())
            {
                found.push(format!("process {} {line}", entry.file_name().display()));
            }
        }
        if Path::new("/run/weft/lab").join(&self.name).exists() {
            found.push(format!("folder of {}", self.name));
        }
        found.retain(|trace| trace.contains(&self.name));
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.weft(&["status"]);
            eprintln!(
                "{}{}{}",
                status.out,
                status.err,
                self.weft(&["logs", "lab"]).out
            );
        }
        let _ = self.weft(&["down"]);
    }
}

#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "not in time: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
