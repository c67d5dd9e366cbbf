//! Connections to backends: reuse, replacement, retries.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::sleep,
};

use super::harness::{Mesh, full, h2c, hear, request, rule, text, to};
use crate::{http::HttpLimits, state::Kind};

#[tokio::test(start_paused = true)]
async fn requests_of_several_clients_share_the_pods_connections() {
    let mesh = Mesh::new();
    let seen = mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    for _ in 0..20 {
        assert_eq!(mesh.get("/").await.body, "one");
    }
    assert_eq!(seen.count(), 20);
    assert_eq!(mesh.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_at_once_have_an_http1_connection_each() {
    let mesh = Mesh::new();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    mesh.backend("one", 1, false, move |_| {
        let gate = Arc::clone(&waiting);
        async move {
            gate.acquire().await.expect("open").forget();
            text("one")
        }
    });
    mesh.route(rule([to("one")]));
    let asks = (0..5).map(|_| mesh.get("/"));
    let all = futures::future::join_all(asks);
    let release = async {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(mesh.connects(), 5);
        gate.add_permits(5);
    };
    tokio::join!(all, release);
    assert_eq!(mesh.pod.backend_connections(), 5);
    mesh.get_with(&gate).await;
    assert_eq!(mesh.connects(), 5, "an idle one is taken");
}

impl Mesh {
    async fn get_with(&self, gate: &Semaphore) {
        gate.add_permits(1);
        assert_eq!(self.get("/").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_after_a_while() {
    for backend in [to("one"), h2c("two")] {
        let mesh = Mesh::new();
        mesh.named("one", 1);
        mesh.backend("two", 2, true, |_| async { text("two") });
        mesh.route(rule([backend]));
        mesh.get("/").await;
        assert_eq!(mesh.pod.backend_connections(), 1);
        sleep(HttpLimits::default().idle + Duration::from_secs(10)).await;
        assert_eq!(mesh.pod.backend_connections(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_while_idle_ones_are_looked_for_is_kept() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |_| async {
        sleep(Duration::from_secs(12)).await;
        text("late")
    });
    mesh.route(rule([to("one")]));
    for _ in 0..3 {
        assert_eq!(mesh.get("/").await.body, "late");
    }
    assert_eq!(mesh.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_to_an_endpoint_that_is_gone_are_closed_soon() {
    let mesh = Mesh::new();
    mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    mesh.get("/").await;
    mesh.remove(Kind::Workload, "shop/one-1/1");
    sleep(Duration::from_secs(6)).await;
    assert_eq!(mesh.pod.backend_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_is_passed_over() {
    let mesh = Mesh::new();
    for octet in [1, 2, 3] {
        mesh.raw_backend("many", octet, |io| {
            super::harness::serve(io, false, |_| async { text("here") });
        });
    }
    mesh.route(rule([to("many")]));
    mesh.unplug(1);
    mesh.unplug(2);
    for _ in 0..20 {
        assert_eq!(mesh.get("/").await.body, "here");
    }
    mesh.unplug(3);
    // The connection that is open still serves.
    assert_eq!(mesh.get("/").await.body, "here");
}

#[tokio::test(start_paused = true)]
async fn no_endpoint_that_answers_is_503() {
    let mesh = Mesh::new();
    for octet in [1, 2, 3, 4, 5] {
        mesh.raw_backend("many", octet, |_| ());
        mesh.unplug(octet);
    }
    mesh.route(rule([to("many")]));
    let answer = mesh.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("refused the connection"),
        "{}",
        answer.body
    );
    assert_eq!(mesh.connects(), HttpLimits::default().attempts);
}

/// A backend that answers `answers` requests per connection, then closes when asked again.
fn closing(mesh: &Mesh, answers: usize) -> Arc<AtomicUsize> {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    mesh.raw_backend("one", 1, move |mut io| {
        counted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            for _ in 0..answers {
                let length = io.read(&mut buffer).await.unwrap_or(0);
                if length == 0 {
                    return;
                }
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .ok();
            }
            // Reads the next request, and closes without a word.
            hear(&mut io).await;
        });
    });
    connections
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_request_without_a_body_survives_a_stale_connection() {
    let mesh = Mesh::new();
    let connections = closing(&mesh, 1);
    mesh.route(rule([to("one")]));
    for at in 1..=5 {
        assert_eq!(mesh.get("/").await.body, "ok");
        assert_eq!(connections.load(Ordering::Relaxed), at);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let mesh = Mesh::new();
    let connections = closing(&mesh, 1);
    mesh.route(rule([to("one")]));
    assert_eq!(mesh.get("/").await.body, "ok");
    let post = request("POST", "/").body(full("pay"));
    assert_eq!(mesh.send(post.expect("a request")).await.status, 502);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_answered_is_not_tried_again() {
    let mesh = Mesh::new();
    let connections = closing(&mesh, 0);
    mesh.route(rule([to("one")]));
    assert_eq!(mesh.get("/").await.status, 502);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_backend_closed_while_idle_is_not_used() {
    let mesh = Mesh::new();
    mesh.raw_backend("one", 1, move |mut io| {
        tokio::spawn(async move {
            hear(&mut io).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            io.write_all(answer).await.ok();
            sleep(Duration::from_secs(5)).await;
        });
    });
    mesh.route(rule([to("one")]));
    for _ in 0..3 {
        let post = request("POST", "/").body(full(""));
        assert_eq!(mesh.send(post.expect("a request")).await.body, "ok");
        sleep(Duration::from_secs(6)).await;
        assert_eq!(mesh.pod.backend_connections(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn another_http2_connection_is_opened_when_the_backends_streams_are_used_up() {
    let mesh = Mesh::new();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    mesh.raw_backend("two", 2, move |io| {
        let gate = Arc::clone(&waiting);
        let service = hyper::service::service_fn(move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("open").forget();
                Ok::<_, std::convert::Infallible>(text("two"))
            }
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let serving = hyper::server::conn::http2::Builder::new(executor)
            .max_concurrent_streams(4)
            .serve_connection(hyper_util::rt::TokioIo::new(io), service);
        tokio::spawn(serving);
    });
    mesh.route(rule([h2c("two")]));
    // The backend's limit is known from the first connection on.
    gate.add_permits(1);
    mesh.get("/").await;
    let all = futures::future::join_all((0..16).map(|_| mesh.get("/")));
    let release = async {
        sleep(Duration::from_secs(1)).await;
        gate.add_permits(16);
    };
    let (answers, ()) = tokio::join!(all, release);
    assert!(answers.iter().all(|it| it.status == 200));
    let connects = mesh.connects();
    assert!((4..=6).contains(&connects), "{connects} connections");
}

#[tokio::test(start_paused = true)]
async fn many_http2_requests_at_once_open_one_connection() {
    let mesh = Mesh::new();
    mesh.backend("two", 2, true, |_| async {
        sleep(Duration::from_millis(10)).await;
        text("two")
    });
    mesh.route(rule([h2c("two")]));
    let answers = futures::future::join_all((0..50).map(|_| mesh.get("/"))).await;
    assert!(answers.iter().all(|it| it.status == 200));
    assert_eq!(mesh.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_http2_backend_that_goes_away_loses_no_request() {
    let mesh = Mesh::new();
    // Each connection serves three streams and says goodbye.
    mesh.raw_backend("two", 2, |io| {
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(io).await.expect("handshake");
            let mut served = 0;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut stream = respond
                    .send_response(Response::new(()), false)
                    .expect("a response");
                stream.send_data("two".into(), true).expect("sent");
                served += 1;
                if served == 3 {
                    connection.graceful_shutdown();
                }
            }
        });
    });
    mesh.route(rule([h2c("two")]));
    for _ in 0..20 {
        let answer = mesh.get("/").await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, "two"));
    }
    assert!(mesh.connects() > 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    for backend in [to("one"), h2c("two")] {
        let mesh = Mesh::new();
        let under_way = Arc::new(AtomicUsize::new(0));
        for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
            let under_way = Arc::clone(&under_way);
            mesh.backend(service, octet, http2, move |_| {
                let under_way = Arc::clone(&under_way);
                async move {
                    struct Guard(Arc<AtomicUsize>);
                    impl Drop for Guard {
                        fn drop(&mut self) {
                            self.0.fetch_sub(1, Ordering::Relaxed);
                        }
                    }
                    under_way.fetch_add(1, Ordering::Relaxed);
                    let _guard = Guard(under_way);
                    sleep(Duration::from_secs(3600)).await;
                    text("never")
                }
            });
        }
        mesh.route(rule([backend]));
        let mut client = mesh.connect();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .expect("written");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(under_way.load(Ordering::Relaxed), 1);
        drop(client);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(under_way.load(Ordering::Relaxed), 0);
    }
}
