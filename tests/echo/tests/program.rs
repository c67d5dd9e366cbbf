//! The program itself: flags, environment, output, exit codes, SIGTERM.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-echo");

struct Running {
    child: Child,
    address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server on a free port and reads from its log which one it is.
fn server(command: &str) -> Running {
    let mut child = Command::new(PROGRAM)
        .args([command, "--http", "127.0.0.1:0"])
        .env("POD_NAME", "pod-a")
        .env("VERSION", "v7")
        .env("WEFT_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.split("listening on ").nth(1).unwrap();
    let address = address.split(' ').next().unwrap().to_owned();
    Running { child, address }
}

fn client(args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("client")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_server_knows_who_it_is_from_its_environment_and_ends_on_sigterm() {
    for command in ["server", "serve"] {
        let mut server = server(command);
        let output = client(&[&format!("http://{}/", server.address), "-n", "2"]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("200 v7 pod-a "))
                .count(),
            2
        );
        kill(
            Pid::from_raw(server.child.id().cast_signed()),
            Signal::SIGTERM,
        )
        .unwrap();
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn the_clients_exit_code_tells_failure_from_bad_usage() {
    let server = server("server");
    let url = format!("http://{}/?status=503", server.address);
    let output = client(&[&url, "--summary", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let summary: weft_echo::client::Summary = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary.statuses["503"], 1);
    for bad in [
        &["ftp://a/"][..],
        &["http://a/", "--rate", "0"],
        &["http://a/", "-H", "x"],
        &[],
    ] {
        assert_eq!(client(bad).status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn a_port_in_use_is_named_in_the_error() {
    let server = server("server");
    let output = Command::new(PROGRAM)
        .args(["server", "--http", &server.address])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("cannot listen on") && text.contains("in use"),
        "{text}"
    );
}
