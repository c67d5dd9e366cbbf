//! The program itself: its exit codes, its readiness, its end.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-proxy");
const LONG: Duration = Duration::from_secs(20);

struct Proxy {
    child: Child,
    ready: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    /// A proxy whose agent and controller are away.
    fn start(folder: &Path) -> Self {
        let [ready, admin, metrics] = [free(), free(), free()];
        let file = |name: &str| folder.join(name).display().to_string();
        let child = Command::new(PROGRAM)
            .args(["--node", "n1", "--controller", "https://127.0.0.1:1"])
            .args(["--handover", &file("handover.sock")])
            .args(["--trust-bundle", &file("bundle.pem")])
            .args(["--token-file", &file("token")])
            .args(["--snapshot-dir", &file("snapshot")])
            .args(["--ready", &ready.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(["--metrics", &metrics.to_string()])
            .args(["--workers", "1", "--drain-timeout", "1s"])
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        Self {
            child,
            ready,
            admin,
        }
    }

    fn get(&self, at: SocketAddr, path: &str) -> String {
        let start = Instant::now();
        loop {
            match get(at, path) {
                Ok(answer) => return answer,
                Err(error) => assert!(start.elapsed() < LONG, "{path}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn exit_code(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < LONG {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the program does not end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address")
}

fn get(at: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn without_agent_and_controller_it_waits_unready_says_why_and_ends_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut proxy = Proxy::start(folder.path());
    let answer = proxy.get(proxy.ready, "/ready");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    for reason in ["configuration: ", "pods: "] {
        assert!(answer.contains(reason), "{answer}");
    }
    assert!(proxy.get(proxy.admin, "/pods").ends_with("[]\n"));
    assert!(proxy.get(proxy.admin, "/tunnels").ends_with("[]\n"));
    let pid = Pid::from_raw(proxy.child.id().try_into().expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("a signal");
    assert_eq!(proxy.exit_code(), Some(0));
}

#[test]
fn bad_usage_is_exit_code_2() {
    let output = Command::new(PROGRAM)
        .arg("--nonsense")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.is_empty());
}
