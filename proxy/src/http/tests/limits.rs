//! What a pod's HTTP may hold in memory, and what becomes of requests beyond a limit.

use std::{sync::atomic::Ordering, time::Duration};

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

use super::harness::{Answer, Mesh, full, get, h2c, hear, request, rule, text, to};
use crate::limits::Limit;

fn shed(mesh: &Mesh, limit: Limit) -> u64 {
    mesh.limits.shed_counts()[limit as usize].load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_too_large_or_too_slow_are_shed_and_counted_under_the_pods_name() {
    let mesh = Mesh::new();
    mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let head = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Much: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let mut client = mesh.connect();
    // The refusal may come before all is written.
    client.write_all(head.as_bytes()).await.ok();
    hear(&mut client).await;
    drop(client);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(shed(&mesh, Limit::HeaderBytes), 1);

    let mut client = mesh.connect();
    let part = b"GET / HTTP/1.1\r\nHost:";
    client.write_all(part).await.expect("written");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an end");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(shed(&mesh, Limit::HeaderTimeout), 1);
    let metrics = mesh.telemetry.encode();
    let line = r#"weft_shed_total{namespace="shop",pod="client",reason="http_header_timeout"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert_eq!(mesh.get("/").await.body, "one");
}

#[tokio::test(start_paused = true)]
async fn without_room_in_the_budget_a_request_waits_and_is_then_503() {
    let mesh = Mesh::new();
    let seen = mesh.named("one", 1);
    mesh.route(rule([to("one")]));
    let budget = mesh.limits.budget();
    let all = budget.charge(budget.limit());
    let start = Instant::now();
    let answer = mesh.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("no room left for buffered bytes"),
        "{}",
        answer.body
    );
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!((shed(&mesh, Limit::BufferedBytes), seen.count()), (1, 0));

    let free = async {
        sleep(Duration::from_secs(1)).await;
        drop(all);
    };
    let (answer, ()) = tokio::join!(mesh.get("/"), free);
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, "one"));
    assert_eq!(shed(&mesh, Limit::BufferedBytes), 1);
}

/// Of a body: more than all buffers on its way take.
const LARGE: usize = 4 << 20;

#[tokio::test(start_paused = true)]
async fn a_response_that_nobody_reads_counts_until_the_client_goes() {
    for http2 in [false, true] {
        let mesh = Mesh::new();
        mesh.backend("one", 1, http2, |_| async { text(&"x".repeat(LARGE)) });
        mesh.route(rule([if http2 { h2c("one") } else { to("one") }]));
        let mut client = mesh.connect();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request).await.expect("written");
        sleep(Duration::from_secs(1)).await;
        let held = mesh.limits.budget().used();
        assert!(
            (10_000..2 << 20).contains(&held),
            "{held} bytes, http2: {http2}"
        );
        drop(client);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(mesh.limits.budget().used(), 0, "http2: {http2}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_backend_reads_counts_and_an_idle_connection_does_not() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |request| async move {
        sleep(Duration::from_secs(60)).await;
        let body = request.into_body().collect().await.expect("a body");
        text(&body.to_bytes().len().to_string())
    });
    mesh.route(rule([to("one")]));
    let body = "x".repeat(LARGE);
    let mut http1 = mesh.http1().await;
    let mut http2 = mesh.http2().await;
    let posts = async {
        let post = || request("POST", "/").body(full(&body)).expect("sane");
        let (one, two) = tokio::join!(http1.send_request(post()), async {
            http2.ready().await.expect("open");
            let post = request("POST", "http://checkout/")
                .body(full(&body))
                .expect("sane");
            http2.send_request(post).await
        });
        for answer in [one, two] {
            let answer = Answer::of(answer.expect("an answer")).await;
            assert_eq!(answer.body, LARGE.to_string());
        }
    };
    let look = async {
        sleep(Duration::from_secs(30)).await;
        let held = mesh.limits.budget().used();
        // The HTTP/2 stream's window, and what HTTP/1's parser has read.
        assert!((64_000 + 10_000..2 << 20).contains(&held), "{held} bytes");
    };
    tokio::join!(posts, look);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(mesh.limits.budget().used(), 0);
    let mut client = mesh.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("written");
    client.read_exact(&mut [0; 15]).await.expect("an answer");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(mesh.limits.budget().used(), 0, "it is idle");
    mesh.send(get("/")).await;
}
