//! Tests of the pages, over loopback.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::{
    model::Locality,
    telemetry::{AccessLog, Sink},
};

async fn start(pages: Pages) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(listener, pages, shutdown.clone()));
    (address, shutdown.drop_guard())
}

/// Status, head and body of an answer.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_string(&mut answer));
    read.await.expect("in time").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (
        status.expect("a status"),
        head.to_lowercase(),
        body.to_owned(),
    )
}

#[tokio::test]
async fn ready_says_why_not_one_reason_a_line() {
    let readiness = Readiness::new();
    let (address, _stop) = start(Pages::ready(Arc::clone(&readiness))).await;
    assert_eq!(ask(address, "GET", "/ready").await.0, 200);

    let configuration = readiness.condition("configuration", "not yet sent");
    let pods = readiness.condition("pods", "the agent is away");
    let (status, _, body) = ask(address, "GET", "/ready").await;
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "configuration: not yet sent\npods: the agent is away\n"
    );

    pods.ready();
    configuration.unready("the snapshot is old");
    let (_, _, body) = ask(address, "GET", "/ready").await;
    assert_eq!(body, "configuration: the snapshot is old\n");

    // Whoever is gone without a word was not ready.
    drop(configuration);
    assert_eq!(ask(address, "GET", "/ready").await.0, 503);
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let telemetry = Telemetry::new(AccessLog::open(&Sink::Off).expect("no log"));
    let (address, _stop) = start(Pages::metrics(telemetry)).await;
    let (status, head, body) = ask(address, "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(body.ends_with("# EOF\n"));
    for name in [
        "weft_xds_connected 0",
        "process_resident_memory_bytes ",
        "weft_build_info{",
    ] {
        assert!(body.contains(name), "{name} in {body}");
    }
}

#[tokio::test]
async fn the_admin_pages_are_json_documents_of_the_moment() {
    let state = State::new(Locality {
        node: "node-a".into(),
        zone: "".into(),
    });
    let levels = Arc::new(Mutex::new(Vec::new()));
    let set = Arc::clone(&levels);
    let pages = Pages::admin(state)
        .json("/pods", || serde_json::json!([{ "name": "shop/a" }]))
        .log_level(move |level| match level {
            "nonsense" => Err("no such level".into()),
            level => {
                set.lock().push(level.to_owned());
                Ok(())
            }
        });
    let (address, _stop) = start(pages).await;
    let document =
        |body: String| -> serde_json::Value { serde_json::from_str(&body).expect("JSON") };

    let (status, _, config) = ask(address, "GET", "/config").await;
    assert_eq!((status, &document(config)["node"]), (200, &"node-a".into()));
    let (_, _, pods) = ask(address, "GET", "/pods?pretty").await;
    assert_eq!(document(pods)[0]["name"], "shop/a");
    assert_eq!(ask(address, "HEAD", "/pods").await.2, "");

    for (method, path, expected) in [
        ("GET", "/nowhere", 404),
        ("POST", "/config", 405),
        ("GET", "/log?level=debug", 405),
        ("POST", "/log", 400),
        ("POST", "/log?level=nonsense", 400),
        ("POST", "/log?level=debug", 200),
    ] {
        assert_eq!(
            ask(address, method, path).await.0,
            expected,
            "{method} {path}"
        );
    }
    assert_eq!(*levels.lock(), ["debug"]);
    let (_, _, body) = ask(address, "GET", "/nowhere").await;
    assert_eq!(body, "there are: /config /log /pods\n");
}

#[tokio::test]
async fn a_full_listener_serves_the_next_client_when_one_leaves() {
    let (address, _stop) = start(Pages::ready(Readiness::new())).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    let waiting = tokio::spawn(ask(address, "GET", "/ready"));
    silent.pop();
    let (status, ..) = waiting.await.expect("no panic");
    assert_eq!(status, 200);
}

#[tokio::test]
async fn the_listener_is_closed_at_shutdown() {
    let (address, stop) = start(Pages::ready(Readiness::new())).await;
    drop(stop);
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), refused)
        .await
        .expect("closed");
}
