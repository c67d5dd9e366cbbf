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
use tokio::{io::AsyncWriteExt, sync::mpsc, time::sleep};

use super::harness::{AnyBody, Mesh, full, h2c, hear, request, rule, text, to};

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

#[tokio::test(start_paused = true)]
async fn each_direction_flows_while_the_other_stands_still() {
    for http2 in [false, true] {
        let mesh = Mesh::new();
        let received = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&received);
        // Sends without end, and takes whatever comes.
        mesh.backend("one", 1, http2, move |request| {
            let received = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    received.fetch_add(length, Ordering::Relaxed);
                }
            });
            async { Response::new(large(Arc::default())) }
        });
        mesh.route(rule([if http2 { h2c("one") } else { to("one") }]));
        let mut responses = Vec::new();
        for over2 in [false, true] {
            received.store(0, Ordering::Relaxed);
            let (chunks, body) = channel_body();
            // The response is not read.
            responses.push(if over2 {
                let request = Request::post("http://checkout/").body(body);
                let mut client = mesh.http2().await;
                client.send_request(request.expect("a request")).await
            } else {
                let request = request("POST", "/").body(body);
                let mut client = mesh.http1().await;
                client.send_request(request.expect("a request")).await
            });
            let chunk = Bytes::from(vec![b'x'; CHUNK]);
            for _ in 0..LARGE / CHUNK {
                let sent = chunks.send(chunk.clone());
                let sent = tokio::time::timeout(Duration::from_secs(60), sent).await;
                sent.expect("it flows").expect("it is wanted");
            }
            drop(chunks);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(received.load(Ordering::Relaxed), LARGE);
        }
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
