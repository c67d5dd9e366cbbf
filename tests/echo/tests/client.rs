//! The client against the server: counts, causes and limits, over HTTP/1.1, HTTP/2, gRPC and TCP.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use http::Method;
use support::{Started, start};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use weft_echo::answer::Answer;
use weft_echo::client::{Options, Outcome, Summary, run};
use weft_echo::proto::EchoRequest;
use weft_echo::proto::echo_client::EchoClient;

fn options(url: &str) -> Options {
    Options::new(url.parse().unwrap())
}

fn http(server: &Started, path: &str) -> Options {
    options(&format!("http://{}{path}", server.http))
}

async fn send(options: Options) -> (Summary, Vec<Outcome>) {
    let mut outcomes = Vec::new();
    let each = |outcome: &Outcome| outcomes.push(outcome.clone());
    let summary = run(options, CancellationToken::new(), each).await.unwrap();
    (summary, outcomes)
}

fn answers(outcomes: &[Outcome]) -> Vec<Answer> {
    let answer = |outcome: &Outcome| serde_json::from_value(outcome.answer.clone().unwrap());
    outcomes
        .iter()
        .map(|outcome| answer(outcome).unwrap())
        .collect()
}

#[tokio::test]
async fn each_request_has_its_own_connection_unless_they_are_kept() {
    let server = start().await;
    for http2 in [false, true] {
        for keep_alive in [false, true] {
            let options = Options {
                requests: Some(5),
                http2,
                keep_alive,
                ..http(&server, "/a?b=c")
            };
            let (summary, outcomes) = send(options).await;
            assert_eq!((summary.requests, summary.failed), (5, 0));
            assert_eq!((summary.versions["v1"], summary.pods["test-pod"]), (5, 5));
            let answers = answers(&outcomes);
            let mut connections: Vec<_> = answers.iter().map(|answer| answer.connection).collect();
            connections.dedup();
            assert_eq!(connections.len(), if keep_alive { 1 } else { 5 });
            assert_eq!(
                answers[0].protocol,
                if http2 { "HTTP/2" } else { "HTTP/1.1" }
            );
            assert_eq!(answers[0].host, server.http.to_string());
        }
    }
}

#[tokio::test]
async fn a_host_header_replaces_the_urls_on_both_versions() {
    let server = start().await;
    for http2 in [false, true] {
        let headers = vec![
            (http::header::HOST, "shop.example".parse().unwrap()),
            ("x-b".parse().unwrap(), "1".parse().unwrap()),
            ("x-a".parse().unwrap(), "2".parse().unwrap()),
        ];
        let (_, outcomes) = send(Options {
            headers,
            http2,
            ..http(&server, "/")
        })
        .await;
        let answer = &answers(&outcomes)[0];
        assert_eq!(answer.host, "shop.example");
        let order: Vec<_> = answer
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let b = order.iter().position(|name| *name == "x-b").unwrap();
        assert_eq!(order[b + 1], "x-a");
    }
}

#[tokio::test]
async fn failures_are_counted_by_status_and_by_cause() {
    let server = start().await;
    let load = |path| Options {
        requests: Some(4),
        concurrency: 2,
        ..http(&server, path)
    };
    let (summary, _) = send(load("/?status=503")).await;
    assert_eq!((summary.failed, summary.statuses["503"]), (4, 4));
    let (summary, _) = send(load("/?fail=1")).await;
    assert_eq!(summary.statuses["500"], 4);
    let (summary, _) = send(load("/?status=302&set-header=location:/x")).await;
    assert_eq!((summary.failed, summary.statuses["302"]), (0, 4));
    for path in ["/?close=1", "/?reset=1", "/?bytes=100&cut=10"] {
        let (summary, _) = send(load(path)).await;
        assert_eq!((summary.failed, summary.statuses.len()), (4, 0), "{path}");
        assert_eq!(summary.errors.values().sum::<u64>(), 4);
    }
    let (summary, _) = send(Options {
        timeout: Duration::from_millis(50),
        ..load("/?delay=30s")
    })
    .await;
    assert_eq!(summary.errors["no answer within 50ms"], 4);

    server.shutdown.cancel();
    server.task.await.unwrap();
    let (summary, _) = send(options(&format!("http://{}/", server.http))).await;
    let (cause, _) = summary.errors.first_key_value().unwrap();
    assert!(
        cause.starts_with("connect to") && cause.contains("refused"),
        "{cause}"
    );
}

#[tokio::test]
async fn on_http_2_a_stream_or_the_whole_connection_is_reset() {
    let server = start().await;
    for path in [
        "/?reset=stream",
        "/?reset=1",
        "/?close=1",
        "/?bytes=100&cut=10",
    ] {
        let (summary, _) = send(Options {
            http2: true,
            ..http(&server, path)
        })
        .await;
        assert_eq!((summary.failed, summary.statuses.len()), (1, 0), "{path}");
    }
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions() {
    let server = start().await;
    let length = 20_000_000;
    for http2 in [false, true] {
        let path = format!("/?bytes={length}");
        let (summary, _) = send(Options {
            http2,
            ..http(&server, &path)
        })
        .await;
        assert_eq!((summary.failed, summary.bytes), (0, length));

        let body: bytes::Bytes = (0..length).map(|at| (at % 251) as u8).collect();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body);
        let digest: String = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let upload = Options {
            method: Method::POST,
            body,
            http2,
            ..http(&server, "/?digest=1")
        };
        let (_, outcomes) = send(upload.clone()).await;
        let answer = &answers(&outcomes)[0];
        assert_eq!((answer.body_length, answer.body.as_deref()), (length, None));
        assert_eq!(answer.body_sha256.as_deref(), Some(digest.as_str()));

        let (summary, _) = send(Options {
            url: http(&server, "/?echo=1").url,
            ..upload
        })
        .await;
        assert_eq!((summary.failed, summary.bytes), (0, length));
    }
}

#[tokio::test]
async fn a_share_of_requests_fails_as_asked() {
    let server = start().await;
    let load = Options {
        requests: Some(400),
        keep_alive: true,
        ..http(&server, "/?fail=0.5")
    };
    let (summary, _) = send(load).await;
    // Ten standard deviations.
    assert!((100..=300).contains(&summary.failed), "{}", summary.failed);
}

#[tokio::test]
async fn a_rate_and_a_duration_bound_the_load() {
    let server = start().await;
    let load = Options {
        requests: None,
        rate: Some(200.0),
        duration: Some(Duration::from_millis(250)),
        concurrency: 4,
        ..http(&server, "/")
    };
    let (summary, _) = send(load).await;
    assert_eq!((summary.requests, summary.failed), (50, 0));
    assert!(summary.seconds >= 0.245, "{}", summary.seconds);
}

#[tokio::test]
async fn a_stopped_client_sums_up_what_it_has() {
    let server = start().await;
    let stop = CancellationToken::new();
    let endless = Options {
        requests: None,
        ..http(&server, "/")
    };
    let mut seen = 0;
    let each = |_: &Outcome| {
        seen += 1;
        if seen == 3 {
            stop.cancel();
        }
    };
    let summary = run(endless, stop.clone(), each).await.unwrap();
    assert!(summary.requests >= 3 && summary.failed == 0);
}

#[tokio::test]
async fn tcp_is_checked_byte_by_byte_and_the_banner_names_the_pod() {
    let server = start().await;
    let body: bytes::Bytes = vec![7; 5_000_000].into();
    for (address, pods) in [(server.tcp, ""), (server.speak_first, "test-pod")] {
        let load = Options {
            body: body.clone(),
            ..options(&format!("tcp://{address}"))
        };
        let (summary, _) = send(load).await;
        assert_eq!((summary.failed, summary.statuses["tcp ok"]), (0, 1));
        assert_eq!(summary.pods[pods], 1);
    }
}

#[tokio::test]
async fn grpc_calls_are_counted_by_code() {
    let server = start().await;
    for address in [server.grpc, server.http] {
        let (summary, outcomes) = send(Options {
            body: "hello".into(),
            headers: vec![("x-tenant".parse().unwrap(), "a".parse().unwrap())],
            ..options(&format!("grpc://{address}"))
        })
        .await;
        assert_eq!(
            (summary.statuses["grpc 0 Ok"], summary.versions["v1"]),
            (1, 1)
        );
        let answer = outcomes[0].answer.as_ref().unwrap();
        assert_eq!(answer["message"], "hello");
        assert_eq!(answer["authority"], address.to_string());
        assert!(
            answer["headers"]
                .as_array()
                .unwrap()
                .contains(&serde_json::json!(["x-tenant", "a"]))
        );
    }
    let (summary, _) = send(options(&format!("grpc://{}?fail_code=14", server.grpc))).await;
    assert_eq!(
        (summary.failed, summary.statuses["grpc 14 Unavailable"]),
        (1, 1)
    );
}

#[tokio::test]
async fn grpc_streams_in_both_directions() {
    let server = start().await;
    let mut client = EchoClient::connect(format!("http://{}", server.grpc))
        .await
        .unwrap();
    let message = |text: &str| EchoRequest {
        message: text.into(),
        ..EchoRequest::default()
    };

    let three = EchoRequest {
        count: 3,
        fail_code: 8,
        fail_message: "enough".into(),
        ..message("a")
    };
    let mut replies = client.server_stream(three).await.unwrap().into_inner();
    for index in 0..3 {
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.message.as_str(), reply.index), ("a", index));
    }
    let end = replies.message().await.unwrap_err();
    assert_eq!(
        (end.code(), end.message()),
        (Code::ResourceExhausted, "enough")
    );

    let requests = tokio_stream::iter(["a", "b", "c"].map(message));
    let reply = client.client_stream(requests).await.unwrap().into_inner();
    assert_eq!((reply.received, reply.message.as_str()), (3, "c"));

    // Each request is sent only once the reply to the last one is there.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    sender.send(message("0")).await.unwrap();
    let mut replies = client.bidi_stream(requests).await.unwrap().into_inner();
    for index in 0..5_u32 {
        let reply = replies.next().await.unwrap().unwrap();
        assert_eq!((reply.message, reply.index), (index.to_string(), index));
        sender
            .send(message(&(index + 1).to_string()))
            .await
            .unwrap();
    }
    drop(sender);
    assert_eq!(replies.next().await.unwrap().unwrap().message, "5");
    assert!(replies.next().await.is_none());
}
