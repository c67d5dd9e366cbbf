//! Changes of protocols, and clients that wait for 100 before they send a body.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Mesh, full, get, hear, request, rule, to};

/// Accepts `Upgrade: echo`, then echoes bytes until the client ends its direction, and says bye.
fn echoing(mesh: &Mesh) {
    mesh.backend("one", 1, false, |mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut io = TokioIo::new(upgraded);
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..length]).await.expect("echoed");
            }
            io.write_all(b"bye").await.expect("said");
            io.shutdown().await.expect("ended");
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", request.headers()["upgrade"].clone());
        response
    });
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_carries_bytes_both_ways_and_closes_by_halves() {
    let mesh = Mesh::new();
    echoing(&mesh);
    mesh.route(rule([to("one")]));
    for protocol in ["websocket", "echo/1"] {
        let mut client = mesh.connect();
        let head = format!(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        // Bytes right behind the head are the new protocol's.
        client
            .write_all(format!("{head}early").as_bytes())
            .await
            .expect("written");
        let mut answer = vec![0; 4096];
        let mut length = 0;
        while !answer[..length].ends_with(b"early") {
            let read = client.read(&mut answer[length..]).await.expect("read");
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer[..length]));
            length += read;
        }
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(
            answer.contains(&format!("upgrade: {protocol}\r\n")),
            "{answer}"
        );
        client.write_all(b"hello").await.expect("written");
        let mut echo = [0; 5];
        client.read_exact(&mut echo).await.expect("echoed");
        assert_eq!(&echo, b"hello");
        client.shutdown().await.expect("half closed");
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.expect("an end");
        assert_eq!(rest, "bye");
    }
    // Such connections never come back to the pool.
    assert_eq!(mesh.connects(), 2);
    assert_eq!(mesh.pod.backend_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_the_backend_declines_is_an_ordinary_exchange() {
    let mesh = Mesh::new();
    let seen = mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let mut client = mesh.http1().await;
    let request = request("GET", "/")
        .header("connection", "upgrade")
        .header("upgrade", "websocket");
    let response = client
        .send_request(request.body(full("")).expect("a request"))
        .await;
    let answer = super::harness::Answer::of(response.expect("a response")).await;
    assert_eq!(answer.body, "one");
    assert_eq!(seen.last().headers["upgrade"], "websocket");
    client.ready().await.expect("keep-alive");
    let response = client.send_request(get("/")).await.expect("a response");
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_changes_the_protocol_unasked_is_502() {
    let mesh = Mesh::new();
    mesh.raw_backend("raw", 1, |mut io| {
        tokio::spawn(async move {
            hear(&mut io).await;
            io.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            )
            .await
            .ok();
            hear(&mut io).await;
        });
    });
    mesh.route(rule([to("raw")]));
    assert_eq!(mesh.get("/").await.status, 502);
}

/// Reads a head, then does what `then` says with its 100 or final answer.
fn expecting(mesh: &Mesh, answer: &'static str) -> Arc<AtomicUsize> {
    let received = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&received);
    mesh.raw_backend("raw", 1, move |mut io| {
        let received = Arc::clone(&counter);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let length = io.read(&mut buffer).await.unwrap_or(0);
                head.extend_from_slice(&buffer[..length]);
            }
            assert!(String::from_utf8_lossy(&head).contains("expect: 100-continue"));
            io.write_all(answer.as_bytes()).await.ok();
            while let Ok(length @ 1..) = io.read(&mut buffer).await {
                if received.fetch_add(length, Ordering::Relaxed) + length == 4 {
                    let done = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    io.write_all(done).await.ok();
                }
            }
        });
    });
    mesh.route(rule([to("raw")]));
    received
}

const EXPECT: &[u8] =
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

async fn read_some(client: &mut tokio::io::DuplexStream) -> String {
    let mut buffer = [0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(30), client.read(&mut buffer)).await;
    let length = read.map_or(0, |it| it.expect("read"));
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_100_is_told_what_the_backend_says() {
    let mesh = Mesh::new();
    let received = expecting(&mesh, "HTTP/1.1 100 Continue\r\n\r\n");
    let mut client = mesh.connect();
    client.write_all(EXPECT).await.expect("written");
    assert_eq!(
        read_some(&mut client).await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    assert_eq!(received.load(Ordering::Relaxed), 0);
    client.write_all(b"data").await.expect("written");
    assert!(read_some(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(received.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_backend_does_not_want_is_not_asked_for() {
    let mesh = Mesh::new();
    let received = expecting(&mesh, "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n");
    let mut client = mesh.connect();
    client.write_all(EXPECT).await.expect("written");
    let answer = read_some(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(received.load(Ordering::Relaxed), 0);
    assert_eq!(
        mesh.pod.backend_connections(),
        0,
        "the connection is not used again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_know_100_gets_the_body_after_a_while() {
    let mesh = Mesh::new();
    let received = expecting(&mesh, "");
    let mut client = mesh.connect();
    client.write_all(EXPECT).await.expect("written");
    assert_eq!(
        read_some(&mut client).await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.write_all(b"data").await.expect("written");
    assert!(read_some(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(received.load(Ordering::Relaxed), 4);
}
