//! The program itself: flags, files, signals, exit codes.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-controller");

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn start(folder: &Path, listen: SocketAddr, http: SocketAddr) -> Running {
    let path = |name: &str| folder.join(name).display().to_string();
    let child = Command::new(PROGRAM)
        .args(["--source", &format!("folder:{}", path("api"))])
        .args(["--listen", &listen.to_string(), "--http", &http.to_string()])
        .args(["--debug", "127.0.0.1:0"])
        .args([
            "--ca-dir",
            &path("ca"),
            "--bundle-out",
            &path("out/bundle.pem"),
        ])
        .args(["--node-tokens", &path("tokens"), "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running(child)
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn it_becomes_ready_and_ends_in_order() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("api/manifests")).unwrap();
    fs::write(folder.path().join("tokens"), "t node\n").unwrap();
    let (listen, http) = (free_address(), free_address());
    let mut running = start(folder.path(), listen, http);
    let begin = Instant::now();
    while !get(http, "/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        assert!(begin.elapsed() < Duration::from_secs(20), "not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    TcpStream::connect(listen).expect("it listens once it is ready");
    let bundle = fs::read_to_string(folder.path().join("out/bundle.pem")).unwrap();
    assert_eq!(
        bundle,
        fs::read_to_string(folder.path().join("ca/root.pem")).unwrap()
    );
    let key = fs::metadata(folder.path().join("ca/root.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    let id = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    let begin = Instant::now();
    let status = running.0.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(5));
    let mut log = String::new();
    running
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = TempDir::new().unwrap();
    let usage = Command::new(PROGRAM).arg("--nonsense").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));

    let fails = |part: &str| {
        let mut running = start(folder.path(), free_address(), free_address());
        let mut log = String::new();
        running
            .0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(1), "{log}");
        assert!(log.contains(part), "{log}");
    };
    fails("tokens");
    fs::write(folder.path().join("tokens"), "t node\n").unwrap();
    fails("/api: ");
}
