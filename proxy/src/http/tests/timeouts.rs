//! Times: of the rule, of one try, of a head that does not come to its end. The clock is paused.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use weft_api::config::HttpRule;

use super::harness::{Answer, Mesh, full, get, h2c, rule, text, to};

/// Answers after as many milliseconds as the path says.
fn slow(mesh: &Mesh) {
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        mesh.backend(service, octet, http2, |request| async move {
            let ms = request.uri().path()[1..].parse().expect("milliseconds");
            sleep(Duration::from_millis(ms)).await;
            text("late")
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_longer_than_its_rule_allows_is_504() {
    let mesh = Mesh::new();
    slow(&mesh);
    for backend in [to("one"), h2c("two")] {
        for (request_timeout_ms, backend_request_timeout_ms) in
            [(500, 0), (0, 500), (500, 500), (2000, 500)]
        {
            mesh.route(HttpRule {
                request_timeout_ms,
                backend_request_timeout_ms,
                ..rule([backend.clone()])
            });
            let start = Instant::now();
            assert_eq!(mesh.get("/1000").await.status, 504);
            let elapsed = start.elapsed().as_millis();
            assert!((500..600).contains(&elapsed), "{elapsed} ms");
            assert_eq!(mesh.get("/400").await.body, "late");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn zero_is_no_timeout() {
    let mesh = Mesh::new();
    slow(&mesh);
    mesh.route(rule([to("one")]));
    assert_eq!(mesh.get("/3600000").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_client_is_told_deadline_exceeded() {
    let mesh = Mesh::new();
    slow(&mesh);
    mesh.route(HttpRule {
        request_timeout_ms: 100,
        ..rule([h2c("two")])
    });
    let request = Request::post("http://checkout/1000").header("content-type", "application/grpc");
    let response = mesh
        .http2()
        .await
        .send_request(request.body(full("")).expect("a request"))
        .await;
    let answer = Answer::of(response.expect("a response")).await;
    assert_eq!(answer.header("grpc-status"), "4");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_does_not_end_in_time_is_broken_off() {
    let mesh = Mesh::new();
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        mesh.backend(service, octet, http2, |_| async {
            let endless = futures::stream::unfold((), |()| async {
                sleep(Duration::from_millis(100)).await;
                Some((Ok(Frame::data(Bytes::from("tick "))), ()))
            });
            Response::new(StreamBody::new(endless).boxed())
        });
    }
    for backend in [to("one"), h2c("two")] {
        mesh.route(HttpRule {
            request_timeout_ms: 1050,
            ..rule([backend])
        });
        let over1 = mesh.http1().await.send_request(get("/")).await;
        let request = Request::get("http://checkout/").body(full(""));
        let over2 = mesh
            .http2()
            .await
            .send_request(request.expect("a request"))
            .await;
        for response in [over1, over2] {
            let response = response.expect("a head");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            let mut ticks = 0;
            let end = loop {
                match body.frame().await {
                    Some(Ok(_)) => ticks += 1,
                    end => break end,
                }
            };
            assert!(end.expect("no orderly end").is_err());
            assert!((1..=10).contains(&ticks), "{ticks} ticks");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_too_slowly_is_408() {
    let mesh = Mesh::new();
    let seen = mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let mut client = mesh.connect();
    // A connection that just waits is nobody's harm.
    sleep(Duration::from_secs(600)).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.write_all(request).await.expect("written");
    let mut head = [0; 15];
    client.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    sleep(Duration::from_secs(600)).await;
    client.write_all(&request[..20]).await.expect("written");
    let start = Instant::now();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an end");
    let elapsed = start.elapsed().as_secs();
    assert!((30..=45).contains(&elapsed), "{elapsed} s");
    assert!(answer.contains("HTTP/1.1 408 "), "{answer}");
    assert_eq!(seen.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_head_that_comes_too_slowly_ends_the_connection() {
    let mesh = Mesh::new();
    for sent in ["GET / HTTP/1.1\r\nHost:", "PRI * HT"] {
        let mut client = mesh.connect();
        client.write_all(sent.as_bytes()).await.expect("written");
        let start = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an end");
        let elapsed = start.elapsed().as_secs();
        assert!((30..=45).contains(&elapsed), "{elapsed} s");
        if sent.starts_with("GET") {
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_no_slow_head() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |request| async move {
        let body = request.into_body().collect().await.expect("a body");
        text(&body.to_bytes().len().to_string())
    });
    mesh.route(rule([to("one")]));
    let mut client = mesh.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n";
    client.write_all(head).await.expect("written");
    for byte in b"abc" {
        sleep(Duration::from_secs(60)).await;
        client.write_all(&[*byte]).await.expect("written");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.ends_with("\r\n\r\n3"), "{answer}");
}
