//! Bodies as streams: both directions at once, large ones in little memory, breaks, and upgrades.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::sleep,
};

use super::harness::{AnyBody, Mesh, full, get, h2c, hear, request, rule, text, to};

const CHUNK: usize = 64 * 1024;
/// 100 MB.
const LARGE: usize = 1600 * CHUNK;
/// What may be held between two ends at most: sockets' buffers, HTTP/2 windows, one chunk a hop.
const HELD: usize = 4 * 1024 * 1024;

/// A body of `LARGE` bytes that counts what has been asked of it.
fn large(asked: Arc<AtomicUsize>) -> AnyBody {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let stream = futures::stream::unfold(0, move |sent| {
        let (chunk, asked) = (chunk.clone(), Arc::clone(&asked));
        async move {
            (sent < LARGE).then(|| {
                asked.fetch_add(CHUNK, Ordering::Relaxed);
                (Ok(Frame::data(chunk)), sent + CHUNK)
            })
        }
    });
    StreamBody::new(stream).boxed()
}

/// Two senders over HTTP/1.1 and HTTP/2, and routes to either kind of backend.
async fn both(
    mesh: &Mesh,
    method: &str,
    body: impl Fn() -> AnyBody,
) -> Vec<Response<hyper::body::Incoming>> {
    let over1 = request(method, "/").body(body()).expect("a request");
    let over2 = Request::builder()
        .method(method)
        .uri("http://checkout/")
        .body(body());
    let mut one = mesh.http1().await;
    let mut two = mesh.http2().await;
    let over1 = one.send_request(over1).await.expect("a response");
    let over2 = two
        .send_request(over2.expect("a request"))
        .await
        .expect("a response");
    vec![over1, over2]
}

#[tokio::test(start_paused = true)]
async fn a_large_download_waits_for_a_client_that_reads_slowly() {
    for http2 in [false, true] {
        let mesh = Mesh::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        mesh.backend("one", 1, http2, move |_| {
            let body = large(Arc::clone(&counter));
            async move { Response::new(body) }
        });
        mesh.route(rule([if http2 { h2c("one") } else { to("one") }]));
        for response in both(&mesh, "GET", || full("")).await {
            asked.store(0, Ordering::Relaxed);
            sleep(Duration::from_secs(60)).await;
            let held = asked.load(Ordering::Relaxed);
            assert!(
                held <= HELD,
                "{held} bytes are held, HTTP/2 backend: {http2}"
            );
            let mut body = response.into_body();
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
                let ahead = asked.load(Ordering::Relaxed).saturating_sub(read);
                assert!(ahead <= HELD, "{ahead} bytes ahead");
            }
            assert_eq!(read, LARGE);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_upload_waits_for_a_backend_that_reads_slowly() {
    for http2 in [false, true] {
        let mesh = Mesh::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(AtomicUsize::new(0));
        let (counter, most) = (Arc::clone(&asked), Arc::clone(&held));
        mesh.backend("one", 1, http2, move |request| {
            let (asked, most) = (Arc::clone(&counter), Arc::clone(&most));
            async move {
                sleep(Duration::from_secs(60)).await;
                let mut body = request.into_body();
                let mut read = 0;
                most.fetch_max(asked.load(Ordering::Relaxed), Ordering::Relaxed);
                while let Some(frame) = body.frame().await {
                    read += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
                    let ahead = asked.load(Ordering::Relaxed).saturating_sub(read);
                    most.fetch_max(ahead, Ordering::Relaxed);
                }
                text(&read.to_string())
            }
        });
        mesh.route(rule([if http2 { h2c("one") } else { to("one") }]));
        let over1 = request("POST", "/").body(large(Arc::clone(&asked)));
        let response = mesh
            .http1()
            .await
            .send_request(over1.expect("a request"))
            .await;
        let one = super::harness::Answer::of(response.expect("a response")).await;
        assert_eq!(one.body, LARGE.to_string());
        asked.store(0, Ordering::Relaxed);
        let over2 = Request::post("http://checkout/").body(large(Arc::clone(&asked)));
        let response = mesh
            .http2()
            .await
            .send_request(over2.expect("a request"))
            .await;
        let two = super::harness::Answer::of(response.expect("a response")).await;
        assert_eq!(two.body, LARGE.to_string());
        let held = held.load(Ordering::Relaxed);
        assert!(
            held <= HELD,
            "{held} bytes were held, HTTP/2 backend: {http2}"
        );
    }
}

/// Echoes each message at once and ends with a gRPC status.
fn echo_stream(mesh: &Mesh) {
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        mesh.backend(service, octet, http2, |request| async move {
            let messages = futures::stream::unfold(Some(request.into_body()), |body| async {
                let mut body = body?;
                match body.frame().await {
                    Some(Ok(frame)) => Some((Ok(frame), Some(body))),
                    Some(Err(_)) => None,
                    None => {
                        let mut status = HeaderMap::new();
                        status.insert("grpc-status", HeaderValue::from_static("0"));
                        Some((Ok(Frame::trailers(status)), None))
                    }
                }
            });
            let mut response = Response::new(StreamBody::new(messages).boxed());
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert("content-type", grpc);
            response
        });
    }
}

fn channel_body() -> (mpsc::Sender<Bytes>, AnyBody) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        let data = receiver.recv().await?;
        Some((Ok(Frame::data(data)), receiver))
    });
    (sender, StreamBody::new(stream).boxed())
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_flows_in_both_directions_message_by_message() {
    let mesh = Mesh::new();
    echo_stream(&mesh);
    mesh.route(rule([h2c("two")]));
    let (messages, body) = channel_body();
    let request = Request::post("http://checkout/pkg.Chat/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let response = mesh
        .http2()
        .await
        .send_request(request.body(body).expect("a request"))
        .await;
    let mut answers = response.expect("a head before any message").into_body();
    for at in 0..100 {
        let message = Bytes::from(format!("message {at}"));
        messages.send(message.clone()).await.expect("sent");
        let frame = answers.frame().await.expect("a frame").expect("whole");
        assert_eq!(frame.into_data().expect("data"), message);
    }
    drop(messages);
    let end = answers.frame().await.expect("a frame").expect("whole");
    let trailers = end.into_trailers().expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test(start_paused = true)]
async fn a_stream_flows_in_both_directions_between_all_versions() {
    let mesh = Mesh::new();
    echo_stream(&mesh);
    for backend in [to("one"), h2c("two")] {
        mesh.route(rule([backend]));
        for over2 in [false, true] {
            let (messages, body) = channel_body();
            let response = if over2 {
                let request = Request::post("http://checkout/").body(body);
                let mut client = mesh.http2().await;
                client.send_request(request.expect("a request")).await
            } else {
                let request = request("POST", "/").body(body);
                let mut client = mesh.http1().await;
                client.send_request(request.expect("a request")).await
            };
            let mut answers = response.expect("a head before any message").into_body();
            for _ in 0..10 {
                messages.send(Bytes::from("ping")).await.expect("sent");
                let frame = answers.frame().await.expect("a frame").expect("whole");
                assert_eq!(frame.into_data().expect("data"), "ping");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_the_backend_breaks_off_does_not_look_whole() {
    let mesh = Mesh::new();
    for (octet, head) in [
        (1, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"),
        (
            2,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
    ] {
        let service = format!("raw{octet}");
        mesh.raw_backend(&service, octet, move |mut io| {
            tokio::spawn(async move {
                hear(&mut io).await;
                io.write_all(head.as_bytes()).await.ok();
            });
        });
        mesh.route(rule([to(&service)]));
        for response in both(&mesh, "GET", || full("")).await {
            assert_eq!(response.status(), 200);
            assert!(response.into_body().collect().await.is_err(), "{head}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_client_breaks_off_does_not_look_whole() {
    let mesh = Mesh::new();
    let broken = Arc::new(AtomicBool::new(false));
    let whole = Arc::new(AtomicBool::new(false));
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        let (broken, whole) = (Arc::clone(&broken), Arc::clone(&whole));
        mesh.backend(service, octet, http2, move |request| {
            let (broken, whole) = (Arc::clone(&broken), Arc::clone(&whole));
            // In a task of its own: the server's is dropped with the connection.
            let read = tokio::spawn(async move {
                match request.into_body().collect().await {
                    Ok(_) => whole.store(true, Ordering::Relaxed),
                    Err(_) => broken.store(true, Ordering::Relaxed),
                }
            });
            async move {
                read.await.ok();
                text("read")
            }
        });
    }
    for backend in [to("one"), h2c("two")] {
        mesh.route(rule([backend]));
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            broken.store(false, Ordering::Relaxed);
            let mut client = mesh.connect();
            client.write_all(head.as_bytes()).await.expect("written");
            sleep(Duration::from_secs(1)).await;
            drop(client);
            sleep(Duration::from_secs(1)).await;
            assert!(broken.load(Ordering::Relaxed), "{head}");
            assert!(!whole.load(Ordering::Relaxed), "{head}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_with_both_framings_is_passed_on_with_one() {
    let mesh = Mesh::new();
    mesh.raw_backend("raw", 1, |mut io| {
        tokio::spawn(async move {
            hear(&mut io).await;
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
                          5\r\nabcde\r\n0\r\n\r\n";
            io.write_all(answer.as_bytes()).await.ok();
        });
    });
    mesh.route(rule([to("raw")]));
    let answer = mesh.get("/").await;
    assert!(answer.status == 502 || answer.body == "abcde", "{answer:?}");
    assert_ne!(answer.header("content-length"), "3");
}

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
