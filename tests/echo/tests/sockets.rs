//! The server over real sockets on loopback, spoken to in raw bytes: what no client library would send.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{Started, start, until_end};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_echo::answer::{Answer, Banner};
use weft_echo::health_proto::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Sends raw bytes, ends the direction and reads everything that comes back.
async fn raw(server: &Started, request: &str) -> String {
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    until_end(&mut stream).await.unwrap()
}

fn answer(response: &str) -> Answer {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{response}");
    serde_json::from_str(body).unwrap()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn headers_come_back_in_the_order_and_case_in_which_they_were_sent() {
    let server = start().await;
    let response = raw(
        &server,
        "PUT /a%20b/../c?x=1&y HTTP/1.1\r\nX-B: 1\r\nhOsT: shop.example\r\nx-a: 2\r\nX-b:  3 \r\n\
         Content-Length: 5\r\n\r\nhello",
    )
    .await;
    let answer = answer(&response);
    let headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        headers,
        [
            ("X-B", "1"),
            ("hOsT", "shop.example"),
            ("x-a", "2"),
            ("X-b", "3"),
            ("Content-Length", "5")
        ]
    );
    assert_eq!(
        (answer.method.as_str(), answer.path.as_str()),
        ("PUT", "/a%20b/../c")
    );
    assert_eq!(
        (answer.query.as_str(), answer.host.as_str()),
        ("x=1&y", "shop.example")
    );
    assert_eq!(
        (answer.body_length, answer.body.as_deref()),
        (5, Some("hello"))
    );
    assert_eq!(answer.protocol, "HTTP/1.1");
    assert_eq!(answer.identity.pod, "test-pod");
    assert!(answer.peer_ip.is_loopback());
    assert_eq!(answer.local, server.http);
}

#[tokio::test]
async fn requests_on_one_connection_are_numbered_and_keep_their_own_headers() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    for number in 1..=3 {
        let body = "4\r\nwxyz\r\n0\r\nX-Trail: t\r\n\r\n";
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-NUMBER: {number}\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let answer: Answer = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer.request, number);
        assert_eq!(
            answer.headers[1],
            ("X-NUMBER".to_owned(), number.to_string())
        );
        assert_eq!(answer.body.as_deref(), Some("wxyz"));
        assert_eq!(answer.trailers, [("x-trail".to_owned(), "t".to_owned())]);
    }
}

#[tokio::test]
async fn a_request_that_expects_100_continue_gets_it_before_its_body_is_read() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        read_head(&mut stream).await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    stream.write_all(b"ok").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_upgraded_connection_echoes_bytes_and_passes_the_half_close_on() {
    let server = start().await;
    for (protocol, expected) in [
        (
            "websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        ),
        ("echo", "upgrade: echo"),
    ] {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(expected), "{head}");
        stream
            .write_all(b"GET / HTTP/1.1\r\n\r\n\x00\xff")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).await.unwrap();
        assert_eq!(echoed, b"GET / HTTP/1.1\r\n\r\n\x00\xff");
    }
}

#[tokio::test]
async fn an_upgrade_to_something_else_is_answered_as_an_ordinary_request() {
    let server = start().await;
    let response = raw(
        &server,
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    )
    .await;
    assert_eq!(answer(&response).method, "GET");
}

#[tokio::test]
async fn a_connection_is_closed_or_reset_without_an_answer() {
    let server = start().await;
    assert_eq!(
        raw(&server, "GET /?close=1 HTTP/1.1\r\nHost: a\r\n\r\n").await,
        ""
    );
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    stream
        .write_all(b"GET /?reset HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let error = until_end(&mut stream).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn pieces_come_chunked_and_with_trailers_for_those_who_take_them() {
    let server = start().await;
    let response = raw(
        &server,
        "GET /?stream=3&interval=1ms&trailers=1 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
    )
    .await;
    let expected =
        "8\r\npiece 0\n\r\n8\r\npiece 1\n\r\n8\r\npiece 2\n\r\n0\r\nx-echo-trailer: done\r\n\r\n";
    assert!(response.ends_with(expected), "{response}");
}

#[tokio::test]
async fn a_body_is_streamed_back_while_it_is_still_being_sent() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let head = "POST /?echo=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream
        .write_all(format!("{head}3\r\none\r\n").as_bytes())
        .await
        .unwrap();
    read_head(&mut stream).await;
    let mut chunk = [0; 8];
    stream.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"3\r\none\r\n", "before the request's end");
    stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    stream.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"3\r\ntwo\r\n");
}

#[tokio::test]
async fn a_cut_body_ends_before_the_length_that_was_promised() {
    let server = start().await;
    let response = raw(
        &server,
        "GET /?bytes=1000&cut=100 HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 1000"), "{head}");
    assert_eq!(body.len(), 100);
}

#[tokio::test]
async fn tcp_is_echoed_to_the_end_after_a_half_close() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.tcp).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(until_end(&mut stream).await.unwrap(), "last");
}

#[tokio::test]
async fn a_port_that_speaks_first_does_so_before_anything_is_sent() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.speak_first).await.unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await.unwrap());
    }
    let banner: Banner = serde_json::from_slice(&line).unwrap();
    assert_eq!(banner.identity.version, "v1");
    assert_eq!(banner.peer, stream.local_addr().unwrap());
    stream.write_all(b"x").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(until_end(&mut stream).await.unwrap(), "x");
}

#[tokio::test]
async fn readiness_follows_what_it_is_told() {
    let server = start().await;
    let status = async |request: &str| {
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        raw(&server, &request)
            .await
            .split(' ')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    assert_eq!(status("GET /healthz").await, "200");
    assert_eq!(status("GET /readyz").await, "200");
    assert_eq!(status("POST /readyz?ready=false").await, "200");
    assert_eq!(status("GET /readyz").await, "503");
    assert_eq!(status("GET /healthz").await, "200");
    assert_eq!(status("POST /readyz?ready=maybe").await, "400");
    assert_eq!(status("POST /readyz?ready=true").await, "200");
    assert_eq!(status("GET /readyz").await, "200");
    assert_eq!(status("GET /?status=unheard").await, "400");
}

#[tokio::test]
async fn the_grpc_health_service_tells_readiness_and_does_not_know_other_services() {
    let server = start().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.grpc))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = HealthClient::new(channel);
    let mut check = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = client.check(request).await;
        answer.map(|answer| answer.into_inner().status())
    };
    for service in ["", "weft.echo.v1.Echo"] {
        assert_eq!(check(service).await.unwrap(), ServingStatus::Serving);
    }
    let unknown = check("no.such.Service").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    raw(
        &server,
        "POST /readyz?ready=false HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
}

#[tokio::test]
async fn on_shutdown_the_request_under_way_is_answered_and_new_ones_are_refused() {
    let server = start().await;
    let mut slow = TcpStream::connect(server.http).await.unwrap();
    let request = b"POST /?delay=20ms HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    slow.write_all(request).await.unwrap();
    // The server has it in hand once it asks for the body.
    read_head(&mut slow).await;
    let mut idle = TcpStream::connect(server.http).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    read_head(&mut idle).await;

    server.shutdown.cancel();
    until_end(&mut idle).await.unwrap();
    slow.write_all(b"x").await.unwrap();
    let answered = until_end(&mut slow).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
    let cut_off = tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap();
    assert_eq!(cut_off.unwrap(), 0);
    assert!(TcpStream::connect(server.http).await.is_err());
}
