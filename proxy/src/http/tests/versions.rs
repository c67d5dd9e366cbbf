//! HTTP/1.0, HTTP/1.1 and HTTP/2 on either side, and what changes between them.

use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};

use super::harness::{Answer, Mesh, Seen, full, get, h2c, request, rule, text, to};

/// A backend that notes what it saw, in both protocols.
fn backends(mesh: &Mesh) -> Seen {
    let seen = Seen::default();
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        let noted = seen.clone();
        mesh.backend(service, octet, http2, move |request: Request<_>| {
            noted.note(&request);
            async move {
                if request.method() == http::Method::HEAD {
                    let mut response = text("");
                    response
                        .headers_mut()
                        .insert("content-length", HeaderValue::from_static("7"));
                    return response;
                }
                let body = BodyExt::collect(request.into_body()).await.expect("a body");
                let body = body.to_bytes();
                text(&format!("{} bytes", body.len()))
            }
        });
    }
    seen
}

async fn http2(mesh: &Mesh, request: Request<super::harness::AnyBody>) -> Answer {
    let response = mesh.http2().await.send_request(request).await;
    Answer::of(response.expect("a response")).await
}

#[tokio::test(start_paused = true)]
async fn an_http1_client_reaches_an_http2_backend() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([h2c("two")]));
    let request = request("POST", "/path?q").header("connection", "keep-alive");
    let answer = mesh
        .send(request.body(full("hello")).expect("a request"))
        .await;
    assert_eq!(answer.body, "5 bytes");
    let seen = seen.last();
    assert_eq!(seen.version, Version::HTTP_2);
    assert_eq!(seen.uri, "http://checkout/path?q");
    assert_eq!(seen.headers["content-length"], "5");
    assert!(!seen.headers.contains_key("host"));
    assert!(!seen.headers.contains_key("connection"));
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_reaches_an_http1_backend() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("one")]));
    let request = Request::post("http://checkout:8080/path?q")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers");
    let answer = http2(&mesh, request.body(full("hello")).expect("a request")).await;
    assert_eq!(answer.body, "5 bytes");
    let seen = seen.last();
    assert_eq!(seen.version, Version::HTTP_11);
    assert_eq!(seen.uri, "/path?q");
    assert_eq!(seen.headers["host"], "checkout:8080");
    assert_eq!(seen.headers["cookie"], "a=1; b=2");
    assert_eq!(seen.headers.get_all("cookie").iter().count(), 1);
    assert_eq!(seen.headers["te"], "trailers");
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_is_chunked_towards_http1_whatever_the_method() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("one")]));
    for method in ["POST", "GET", "DELETE"] {
        let frames = ["abc", "de"].map(|it| Ok(Frame::data(Bytes::from(it))));
        let body = StreamBody::new(futures::stream::iter(frames)).boxed();
        let request = Request::builder()
            .method(method)
            .uri("http://checkout/")
            .body(body);
        let answer = http2(&mesh, request.expect("a request")).await;
        assert_eq!(answer.body, "5 bytes", "{method}");
        assert_eq!(seen.last().headers["transfer-encoding"], "chunked");
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_stays_http2_even_to_a_port_declared_http() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("two")]));
    let request = Request::post("http://checkout/pkg.Service/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    http2(&mesh, request.body(full("x")).expect("a request")).await;
    let seen = seen.last();
    assert_eq!(seen.version, Version::HTTP_2);
    assert_eq!(seen.headers["te"], "trailers");
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_whose_host_and_authority_differ_is_refused() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("one")]));
    let request = Request::get("http://checkout/").header("host", "other");
    let answer = http2(&mesh, request.body(full("")).expect("a request")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(seen.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_http10_client_is_answered_and_its_connection_closed() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("one")]));
    let answer = mesh.raw(b"GET /x HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n0 bytes"), "{answer}");
    let seen = seen.last();
    assert_eq!(seen.version, Version::HTTP_11);
    assert_eq!(seen.headers["host"], "10.96.0.1:8080", "what was dialled");
}

#[tokio::test(start_paused = true)]
async fn a_chunked_response_reaches_an_http10_client_unchunked() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |_| async {
        let frames = ["abc", "de"].map(|it| Ok(Frame::data(Bytes::from(it))));
        Response::new(StreamBody::new(futures::stream::iter(frames)).boxed())
    });
    mesh.route(rule([to("one")]));
    let answer = mesh.raw(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nabcde"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_absolute_target_overrides_the_host() {
    let mesh = Mesh::new();
    let seen = backends(&mesh);
    mesh.route(rule([to("one")]));
    mesh.raw(b"GET http://meant:81/x HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n")
        .await;
    let seen = seen.last();
    assert_eq!(seen.uri, "/x");
    assert_eq!(seen.headers["host"], "meant:81");
}

#[tokio::test(start_paused = true)]
async fn head_is_answered_with_the_length_and_no_body() {
    let mesh = Mesh::new();
    backends(&mesh);
    for backend in [to("one"), h2c("two")] {
        mesh.route(rule([backend]));
        let head = request("HEAD", "/").body(full("")).expect("a request");
        let answer = mesh.send(head).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-length"), "7");
        assert_eq!(answer.body, "");
        let head = Request::head("http://checkout/").body(full(""));
        let answer = http2(&mesh, head.expect("a request")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "");
    }
}

#[tokio::test(start_paused = true)]
async fn statuses_without_a_body_pass() {
    let mesh = Mesh::new();
    mesh.backend("one", 1, false, |request| async move {
        let status = request.uri().path()[1..].parse::<u16>().expect("a status");
        let mut response = Response::new(full(""));
        *response.status_mut() = status.try_into().expect("a status");
        response
    });
    mesh.route(rule([to("one")]));
    let mut client = mesh.http1().await;
    for status in [204, 304, 205, 200, 404, 500] {
        client.ready().await.expect("keep-alive");
        let response = client.send_request(get(&format!("/{status}"))).await;
        let answer = Answer::of(response.expect("a response")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, "");
    }
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("42"));
    trailers
}

/// Answers with the request's trailer as a header, and with trailers of its own.
fn trailing(mesh: &Mesh) {
    for (service, octet, http2) in [("one", 1, false), ("two", 2, true)] {
        mesh.backend(service, octet, http2, |request| async move {
            let body = request.into_body().collect().await.expect("a body");
            let got = body.trailers().and_then(|it| it.get("x-checksum")).cloned();
            let frames = [
                Ok(Frame::data(Bytes::from("data"))),
                Ok(Frame::trailers(trailers())),
            ];
            let mut response =
                Response::new(StreamBody::new(futures::stream::iter(frames)).boxed());
            let names = HeaderValue::from_static("x-checksum");
            response.headers_mut().insert("trailer", names);
            if let Some(got) = got {
                response.headers_mut().insert("x-got", got);
            }
            response
        });
    }
}

fn with_trailers(builder: http::request::Builder) -> Request<super::harness::AnyBody> {
    let frames = [
        Ok(Frame::data(Bytes::from("data"))),
        Ok(Frame::trailers(trailers())),
    ];
    builder
        .header("te", "trailers")
        .header("trailer", "x-checksum")
        .body(StreamBody::new(futures::stream::iter(frames)).boxed())
        .expect("a request")
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_in_both_directions_between_all_versions() {
    let mesh = Mesh::new();
    trailing(&mesh);
    for backend in [to("one"), h2c("two")] {
        mesh.route(rule([backend.clone()]));
        let over1 = mesh.send(with_trailers(request("POST", "/"))).await;
        let over2 = http2(&mesh, with_trailers(Request::post("http://checkout/"))).await;
        for answer in [over1, over2] {
            assert_eq!(answer.header("x-got"), "42", "{backend:?}");
            let trailers = answer.trailers.expect("trailers");
            assert_eq!(trailers["x-checksum"], "42", "{backend:?}");
        }
    }
}
