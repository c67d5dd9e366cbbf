use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::mpsc,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::labels;
use crate::telemetry::{
    AccessLog, ConnectionLog, Direction, LogPeer, RequestLog, Sink, Telemetry, Tunnel,
    access_log::QUEUE,
};

fn connection() -> ConnectionLog {
    let labels = labels("front");
    let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    ConnectionLog {
        start: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        duration: Duration::from_micros(1_500),
        direction: Direction::Outbound,
        tunnel: Tunnel::Hbone,
        src: LogPeer {
            workload: "front-1".into(),
            namespace: "web".into(),
            identity: labels.source.identity,
            address: Some(address("10.0.0.1:40000")),
        },
        dst: LogPeer::address(address("[fd00::2]:8080")),
        service: labels.service,
        route: "".into(),
        rule: "".into(),
        protocol: "tcp",
        bytes_in: 10,
        bytes_out: 20,
        error: None,
    }
}

fn request(path: &str) -> RequestLog {
    RequestLog {
        connection: ConnectionLog {
            protocol: "http/1.1",
            route: "shop/canary".into(),
            rule: "0".into(),
            error: Some("refused".into()),
            ..connection()
        },
        method: http::Method::GET,
        path: path.into(),
        status: 503,
    }
}

#[test]
fn a_sink_is_a_file_standard_output_or_nothing() {
    for (text, expected) in [
        ("off", Sink::Off),
        ("-", Sink::Stdout),
        ("/var/log/access", Sink::File("/var/log/access".into())),
    ] {
        assert_eq!(text.parse(), Ok(expected));
    }
    let missing = Sink::File("/nonexistent/access.log".into());
    let error = AccessLog::open(&missing).expect_err("no such folder");
    assert!(
        error.to_string().contains("/nonexistent/access.log"),
        "{error}"
    );
    assert!(
        !AccessLog::open(&Sink::Off)
            .expect("nothing to open")
            .is_on()
    );
}

#[tokio::test]
async fn each_entry_is_a_line_of_json() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    std::fs::write(&path, "before\n").expect("written");
    let log = AccessLog::open(&Sink::File(path.clone())).expect("opened");
    let telemetry = Telemetry::new(log);
    assert!(telemetry.logs());
    telemetry.log_connection(connection());
    telemetry.log_request(request("/a\n\"b\""));
    telemetry.flush_log().await;

    let text = std::fs::read_to_string(&path).expect("readable");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "before"), "{text}");
    let line = |at: usize| -> Value { serde_json::from_str(lines[at]).expect("JSON") };
    assert_eq!(
        line(1),
        json!({
            "time": "2023-11-14T22:13:20.123Z",
            "kind": "connection",
            "direction": "outbound",
            "src_pod": "front-1",
            "src_ns": "web",
            "src_identity": "spiffe://cluster.local/ns/web/sa/default",
            "src_address": "10.0.0.1:40000",
            "dst_workload": "",
            "dst_ns": "",
            "dst_identity": "",
            "dst_address": "[fd00::2]:8080",
            "service": "shop/checkout",
            "protocol": "tcp",
            "bytes_in": 10,
            "bytes_out": 20,
            "duration_ms": 1.5,
            "tunnel": "hbone",
        })
    );
    let request = line(2);
    for (field, expected) in [
        ("kind", json!("request")),
        ("route", json!("shop/canary")),
        ("rule", json!("0")),
        ("method", json!("GET")),
        ("path", json!("/a\n\"b\"")),
        ("status", json!(503)),
        ("error", json!("refused")),
    ] {
        assert_eq!(request[field], expected, "{field}");
    }
}

/// A sink that takes nothing until it is let go.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Fails for ever once the test has let go.
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_writer_that_is_behind_costs_lines_not_requests() {
    let (let_go, stuck) = mpsc::channel();
    let telemetry = Telemetry::new(AccessLog::to(Box::new(Stuck(stuck))).expect("a thread"));
    // At most one full batch is taken out of the queue before the writer is stuck.
    let sent = 3 * QUEUE;
    for _ in 0..sent {
        telemetry.log_request(request("/"));
    }
    let text = telemetry.encode();
    let dropped = text
        .lines()
        .find_map(|line| line.strip_prefix("weft_access_log_dropped_total "));
    let dropped: usize = dropped.expect("a metric").parse().expect("a number");
    assert!((QUEUE..sent).contains(&dropped), "{dropped}");
    drop(let_go);
    telemetry.flush_log().await;
}
