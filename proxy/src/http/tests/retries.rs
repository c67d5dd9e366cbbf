//! Retries that a route asks for (GEP-1731). The clock is paused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use weft_api::config::{HttpRule, Retry};

use super::harness::{Answer, AnyBody, Mesh, full, h2c, request, rule, text, to};

/// The backend "one" speaks HTTP/1.1, "two" HTTP/2.
const BOTH: [(&str, u8, bool); 2] = [("one", 1, false), ("two", 2, true)];

fn backend(service: &str, http2: bool) -> weft_api::config::Backend {
    if http2 { h2c(service) } else { to(service) }
}

fn retry(codes: &[u32], attempts: u32) -> Option<Retry> {
    Some(Retry {
        codes: codes.into(),
        attempts,
        backoff_ms: 100,
    })
}

fn failed(status: u16) -> Response<AnyBody> {
    let mut response = text("failed");
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// Answers `status` so many times, then the request's body. Returns what bodies came.
fn failing(
    mesh: &Mesh,
    (service, octet, http2): (&str, u8, bool),
    times: usize,
    status: u16,
) -> Arc<Mutex<Vec<String>>> {
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&bodies);
    mesh.backend(service, octet, http2, move |request| {
        let noted = Arc::clone(&noted);
        async move {
            let body = request.into_body().collect().await.expect("a whole body");
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            let mut noted = noted.lock();
            noted.push(body.clone());
            if noted.len() > times {
                text(&body)
            } else {
                failed(status)
            }
        }
    });
    bodies
}

#[tokio::test(start_paused = true)]
async fn a_status_that_the_rule_names_is_tried_again_as_often_as_it_says_and_then_passed_on() {
    for (retry, method, fails, expected, tries) in [
        (retry(&[503], 1), Method::GET, 1, 200, 2),
        (retry(&[503], 1), Method::GET, 2, 503, 2),
        (retry(&[500, 503], 3), Method::GET, 3, 200, 4),
        (retry(&[500], 3), Method::GET, 1, 503, 1),
        (retry(&[], 3), Method::GET, 1, 503, 1),
        // The route names the status: it knows what may be done twice.
        (retry(&[503], 1), Method::POST, 1, 200, 2),
        (None, Method::GET, 1, 503, 1),
    ] {
        for at in BOTH {
            let mesh = Mesh::new();
            let bodies = failing(&mesh, at, fails, 503);
            mesh.route(HttpRule {
                retry: retry.clone(),
                ..rule([backend(at.0, at.2)])
            });
            let sent = request(method.as_str(), "/")
                .body(full(""))
                .expect("a request");
            let answer = mesh.send(sent).await;
            assert_eq!(answer.status, expected, "{retry:?} {method} {at:?}");
            assert_eq!(bodies.lock().len(), tries, "{retry:?} {method} {at:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_gets_the_whole_body_and_one_too_long_to_keep_is_sent_once() {
    let most = crate::http::HttpLimits::default().replay;
    for (length, tries) in [(5, 3), (most, 3), (most + 1, 1)] {
        for at in BOTH {
            let mesh = Mesh::new();
            let bodies = failing(&mesh, at, 2, 500);
            mesh.route(HttpRule {
                retry: retry(&[500], 2),
                ..rule([backend(at.0, at.2)])
            });
            let body: String = ('a'..='z').cycle().take(length).collect();
            let sent = request("PUT", "/").body(full(&body)).expect("a request");
            let answer = mesh.send(sent).await;
            assert_eq!(answer.status == 200, tries == 3, "{length} {at:?}");
            let bodies = bodies.lock();
            assert_eq!(bodies.len(), tries, "{length} {at:?}");
            assert!(bodies.iter().all(|it| *it == body), "{length} {at:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_still_comes_goes_on_in_the_next_try() {
    for at in BOTH {
        let mesh = Mesh::new();
        let tries = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&tries);
        // The first answers before it has read anything.
        mesh.backend(at.0, at.1, at.2, move |request| {
            let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    return failed(503);
                }
                let body = request.into_body().collect().await.expect("a whole body");
                text(&String::from_utf8_lossy(&body.to_bytes()))
            }
        });
        mesh.route(HttpRule {
            retry: retry(&[503], 1),
            ..rule([backend(at.0, at.2)])
        });
        let slow = futures::stream::unfold(0, |count| async move {
            sleep(Duration::from_millis(70)).await;
            let part = Bytes::from(format!("{count} "));
            (count < 5).then(|| (Ok(Frame::data(part)), count + 1))
        });
        let sent = Request::post("http://checkout/").body(StreamBody::new(slow).boxed());
        let mut client = mesh.http2().await;
        let response = client.send_request(sent.expect("a request")).await;
        let answer = Answer::of(response.expect("a response")).await;
        assert_eq!(answer.body, "0 1 2 3 4 ", "{at:?}");
        assert_eq!(tries.load(Ordering::Relaxed), 2, "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_may_have_acted_upon_is_repeated_only_if_that_does_no_harm() {
    for (method, expected, tries) in [("GET", 200, 2), ("PUT", 200, 2), ("POST", 502, 1)] {
        let mesh = Mesh::new();
        let count = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&count);
        mesh.raw_backend("one", 1, move |mut io| {
            let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let read = io.read(&mut buffer).await.expect("a request");
                assert!(read > 0);
                if !first {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    io.write_all(answer).await.expect("an answer");
                }
            });
        });
        mesh.route(HttpRule {
            retry: retry(&[], 2),
            ..rule([to("one")])
        });
        let sent = request(method, "/").body(full("x")).expect("a request");
        assert_eq!(mesh.send(sent).await.status, expected, "{method}");
        assert_eq!(count.load(Ordering::Relaxed), tries, "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_takes_too_long_is_followed_by_another_within_the_time_of_the_request() {
    for (method, request_timeout_ms, expected, tries) in [
        ("GET", 0, 200, 3),
        ("POST", 0, 504, 1),
        // Two tries of 500 ms and two waits fit, a third of 400 ms does not.
        ("GET", 1500, 504, 3),
        ("GET", 900, 504, 2),
    ] {
        let mesh = Mesh::new();
        let count = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&count);
        mesh.backend("one", 1, false, move |_| {
            let slow = counted.fetch_add(1, Ordering::Relaxed) < 2;
            async move {
                let takes = if slow { 5000 } else { 400 };
                sleep(Duration::from_millis(takes)).await;
                text("at last")
            }
        });
        mesh.route(HttpRule {
            request_timeout_ms,
            backend_request_timeout_ms: 500,
            retry: retry(&[], 5),
            ..rule([to("one")])
        });
        let start = Instant::now();
        let sent = request(method, "/").body(full("")).expect("a request");
        let answer = mesh.send(sent).await;
        assert_eq!(answer.status, expected, "{method} {request_timeout_ms}");
        assert_eq!(
            count.load(Ordering::Relaxed),
            tries,
            "{method} {request_timeout_ms}"
        );
        if request_timeout_ms > 0 {
            let took = start.elapsed().as_millis();
            assert!((900..=1510).contains(&took), "{took} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_could_not_be_reached_is_tried_again_after_the_backoff_whatever_the_method() {
    let mesh = Arc::new(Mesh::new());
    mesh.raw_backend("one", 1, |_| {});
    mesh.unplug(1);
    mesh.route(HttpRule {
        retry: retry(&[], 3),
        ..rule([to("one")])
    });
    // It comes up while the third wait lasts: 100, 200 and 400 ms, and up to half as much more.
    let late = Arc::clone(&mesh);
    tokio::spawn(async move {
        sleep(Duration::from_millis(500)).await;
        late.backend("one", 1, false, |_| async { text("here") });
    });
    let start = Instant::now();
    let sent = request("POST", "/").body(full("x")).expect("a request");
    assert_eq!(mesh.send(sent).await.body, "here");
    let took = start.elapsed().as_millis();
    assert!((700..=1060).contains(&took), "{took} ms");
}

#[tokio::test(start_paused = true)]
async fn another_endpoint_is_tried_if_there_is_one() {
    let mesh = Mesh::new();
    for octet in [1, 2, 3] {
        mesh.backend("one", octet, false, move |_| async move {
            if octet == 3 {
                text("well")
            } else {
                failed(503)
            }
        });
    }
    mesh.route(HttpRule {
        retry: retry(&[503], 2),
        ..rule([to("one")])
    });
    for _ in 0..30 {
        assert_eq!(mesh.get("/").await.body, "well");
    }
    let metrics = mesh.telemetry.encode();
    assert!(
        metrics.contains("weft_http_retries_total{reason=\"status\"}"),
        "{metrics}"
    );
}
