//! Clients' connections while the proxy drains, and when its time for that is over.

use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::{io::AsyncReadExt, time::sleep};

use super::harness::{Answer, AnyBody, Mesh, full, get, h2c, rule, text, to};

/// How many requests the metrics say were cut off by the end of the drain.
fn cut_off(mesh: &Mesh) -> u32 {
    let metrics = mesh.telemetry.encode();
    let line =
        |line: &&str| line.starts_with("weft_errors_total") && line.contains("drain_timeout");
    let count = metrics
        .lines()
        .find(line)
        .and_then(|line| line.rsplit_once(' '));
    count.map_or(0, |(_, count)| count.parse().expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn a_draining_http1_connection_ends_with_its_next_response() {
    let mesh = Mesh::new();
    mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let mut client = mesh.http1().await;
    let response = client.send_request(get("/")).await.expect("a response");
    assert!(!response.headers().contains_key("connection"));
    response.into_body().collect().await.expect("a body");
    mesh.drain.start();
    tokio::task::yield_now().await;
    client.ready().await.expect("still open");
    let response = client.send_request(get("/")).await.expect("a response");
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(Answer::of(response).await.body, "one");
    assert!(client.ready().await.is_err(), "closed");
}

#[tokio::test(start_paused = true)]
async fn an_idle_http1_connection_is_closed_when_the_time_to_drain_is_over_and_not_before() {
    let mesh = Mesh::new();
    mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let (mut uses, mut idles) = (mesh.http1().await, mesh.http1().await);
    let mut silent = mesh.connect();
    for client in [&mut uses, &mut idles] {
        let response = client.send_request(get("/")).await.expect("a response");
        Answer::of(response).await;
    }
    mesh.drain.start();
    sleep(Duration::from_secs(600)).await;
    uses.ready().await.expect("still open");
    let response = uses.send_request(get("/")).await.expect("a response");
    assert_eq!(response.headers()["connection"], "close");
    idles.ready().await.expect("still open");
    mesh.drain.close();
    sleep(Duration::from_secs(1)).await;
    assert!(idles.ready().await.is_err(), "closed");
    assert_eq!(silent.read(&mut [0; 1]).await.expect("an end"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_as_draining_begins_is_served() {
    let mesh = Mesh::new();
    let seen = mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    mesh.drain.start();
    for served in 1..=20 {
        let answer = mesh.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(seen.count(), served);
    }
}

/// A body that goes on for ever.
fn endless() -> AnyBody {
    let frames = futures::stream::unfold((), |()| async {
        sleep(Duration::from_secs(1)).await;
        Some((Ok(Frame::data(Bytes::from_static(b"more"))), ()))
    });
    StreamBody::new(frames).boxed()
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_gets_one_when_the_time_to_drain_is_over() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |_| async {
        sleep(Duration::from_secs(3600)).await;
        text("never")
    });
    mesh.route(rule([to("one")]));
    let (mut over1, mut over2) = (mesh.http1().await, mesh.http2().await);
    let request = Request::get("http://checkout/").body(full(""));
    let (one, two, ()) = tokio::join!(
        over1.send_request(get("/")),
        over2.send_request(request.expect("a request")),
        async {
            sleep(Duration::from_secs(1)).await;
            mesh.drain.close();
        }
    );
    let one = one.expect("a response");
    assert_eq!(one.headers()["connection"], "close");
    for response in [one, two.expect("a response")] {
        let answer = Answer::of(response).await;
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("drain"), "{}", answer.body);
    }
    assert_eq!(cut_off(&mesh), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_under_way_breaks_off_when_the_time_to_drain_is_over() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |_| async { Response::new(endless()) });
    mesh.route(rule([to("one")]));
    // Chunked, without its last chunk, then an end.
    let raw = mesh.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut over2 = mesh.http2().await;
    let request = Request::get("http://checkout/").body(full(""));
    let response = over2.send_request(request.expect("a request"));
    let cut = async {
        let response = response.await.expect("a response");
        response.into_body().collect().await
    };
    let (raw, cut, ()) = tokio::join!(raw, cut, async {
        sleep(Duration::from_secs(5)).await;
        mesh.drain.close();
    });
    assert!(raw.contains("transfer-encoding: chunked"), "{raw}");
    assert!(raw.ends_with("more\r\n"), "{raw}");
    let error = cut.expect_err("it is not whole");
    let reset = std::error::Error::source(&error).and_then(|it| it.downcast_ref::<h2::Error>());
    assert_eq!(reset.and_then(h2::Error::reason), Some(h2::Reason::CANCEL));
    assert_eq!(cut_off(&mesh), 2);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_that_is_under_way_ends_with_a_status_when_the_time_to_drain_is_over() {
    let mesh = Mesh::new();
    mesh.backend("two", 2, true, |_| async {
        let mut response = Response::new(endless());
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    });
    mesh.route(rule([to("two")]));
    let mut client = mesh.http2().await;
    let request = Request::post("http://checkout/a.B/C")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(full(""));
    let response = client.send_request(request.expect("a request"));
    let call = async {
        response
            .await
            .expect("a response")
            .into_body()
            .collect()
            .await
    };
    let (call, ()) = tokio::join!(call, async {
        sleep(Duration::from_secs(5)).await;
        mesh.drain.close();
    });
    let call = call.expect("an end in order");
    assert_eq!(call.trailers().expect("trailers")["grpc-status"], "14");
}

#[tokio::test(start_paused = true)]
async fn draining_keeps_no_connection_to_a_backend() {
    let mesh = Mesh::new();
    mesh.named("one", 1);
    mesh.backend("two", 2, true, |_| async { text("two") });
    let backends = || vec![rule([to("one")]), rule([h2c("two")])];
    for backend in backends() {
        mesh.route(backend);
        mesh.get("/").await;
    }
    assert_eq!(mesh.pod.backend_connections(), 2);
    mesh.pod.drain();
    assert_eq!(mesh.pod.backend_connections(), 0);
    for backend in backends() {
        mesh.route(backend);
        assert_eq!(mesh.get("/").await.status, 200, "stragglers are served");
    }
    sleep(Duration::from_secs(6)).await;
    assert_eq!(mesh.pod.backend_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_open() {
    let mesh = Mesh::new();
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        mesh.backend(service, octet, http2, |_| async {
            sleep(Duration::from_secs(20)).await;
            text("late")
        });
    }
    mesh.route(rule([to("one")]));
    let mut over1 = mesh.http1().await;
    let mut over2 = mesh.http2().await;
    let request = Request::get("http://checkout/").body(full(""));
    let (one, two, ()) = tokio::join!(
        over1.send_request(get("/")),
        over2.send_request(request.expect("a request")),
        async {
            sleep(Duration::from_secs(1)).await;
            mesh.drain.start();
        }
    );
    assert_eq!(Answer::of(one.expect("a response")).await.body, "late");
    assert_eq!(Answer::of(two.expect("a response")).await.body, "late");
    let request = Request::get("http://checkout/").body(full(""));
    let refused = over2.send_request(request.expect("a request")).await;
    assert!(refused.is_err(), "the client was told to go away");
}
