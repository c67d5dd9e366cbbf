//! Services with routes: by weight, by server name, sniffed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_api::config::{
    self, Backend, HttpTable, InvalidBackend, RouteRef, RouteTable, TcpRule, TcpTable, TlsRule,
    TlsTable, backend, route_table::Table,
};
use weft_proxy::state::Kind;

use crate::mesh::{Mesh, captured, until};

const PORT: u16 = 8080;

fn vip(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)), 80)
}

/// A client, and two servers behind Services of their own.
async fn mesh() -> Mesh {
    let mesh = Mesh::new([captured("client"), captured("one"), captured("two")]).await;
    mesh.service("one", vip(1).ip(), 80, PORT, &[1]);
    mesh.service("two", vip(2).ip(), 80, PORT, &[2]);
    mesh.service("front", vip(3).ip(), 80, PORT, &[]);
    mesh
}

fn to(service: &str, weight: u32) -> Backend {
    Backend {
        weight,
        target: Some(backend::Target::Service(config::ServiceTarget {
            service: format!("shop/{service}"),
            port: 80,
        })),
        ..Default::default()
    }
}

fn invalid(weight: u32) -> Backend {
    Backend {
        weight,
        target: Some(backend::Target::Invalid(InvalidBackend {
            reason: "BackendNotFound".to_owned(),
            message: "there is no Service shop/lost".to_owned(),
        })),
        ..Default::default()
    }
}

fn route(kind: &str) -> Option<RouteRef> {
    Some(RouteRef {
        kind: kind.to_owned(),
        namespace: "shop".to_owned(),
        name: "front".to_owned(),
        ..Default::default()
    })
}

fn set(mesh: &Mesh, service: &str, table: Table, sniff: bool) {
    let table = RouteTable {
        service: format!("shop/{service}"),
        port: 80,
        table: Some(table),
        sniff,
        ..Default::default()
    };
    mesh.put(Kind::RouteTable, &format!("shop/{service}/80"), &table);
}

fn set_tcp(mesh: &Mesh, backends: Vec<Backend>) {
    let rule = TcpRule {
        route: route("TCPRoute"),
        backends,
    };
    set(
        mesh,
        "front",
        Table::Tcp(TcpTable { rule: Some(rule) }),
        false,
    );
}

/// Says its name first.
fn greet(listener: TcpListener, name: &'static str) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
}

async fn greeting(mesh: &Mesh) -> std::io::Result<String> {
    let mut stream = mesh.host(0).dial(vip(3)).await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await.map(|_| name)
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_backends_get_their_shares_and_an_invalid_ones_share_fails() {
    let mesh = mesh().await;
    greet(mesh.host(1).listen(PORT), "one");
    greet(mesh.host(2).listen(PORT), "two");
    set_tcp(&mesh, vec![to("one", 3), to("two", 1), invalid(0)]);
    let mut counts = [0; 3];
    for _ in 0..40 {
        match greeting(&mesh).await.as_deref() {
            Ok("one") => counts[0] += 1,
            Ok("two") => counts[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((28..=32).contains(&counts[0]), "{counts:?}");
    set_tcp(&mesh, vec![to("two", 1), invalid(1)]);
    counts = [0; 3];
    for _ in 0..20 {
        match greeting(&mesh).await.as_deref() {
            Ok("two") => counts[1] += 1,
            Err(_) => counts[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((8..=12).contains(&counts[2]), "{counts:?}");
    set_tcp(&mesh, vec![to("one", 0)]);
    greeting(&mesh).await.expect_err("no backend has weight");
}

fn hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes it");
    bytes
}

async fn received(listener: &TcpListener, length: usize) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.expect("what was sent");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_by_server_name_untouched_and_what_no_rule_names_is_reset() {
    let mesh = mesh().await;
    let (one, two) = (mesh.host(1).listen(PORT), mesh.host(2).listen(PORT));
    let rule = |sni: &str, service: &str| TlsRule {
        route: route("TLSRoute"),
        snis: vec![sni.to_owned()],
        backends: vec![to(service, 1)],
    };
    let rules = vec![
        rule("one.example.com", "one"),
        rule("*.two.example.com", "two"),
    ];
    set(&mesh, "front", Table::Tls(TlsTable { rules }), false);
    for (name, listener) in [("one.example.com", &one), ("a.two.example.com", &two)] {
        let bytes = hello(name);
        let client = async {
            let mut stream = mesh.host(0).dial(vip(3)).await.expect("a connection");
            // In two pieces, as a network may cut it.
            stream.write_all(&bytes[..70]).await.expect("it is sent");
            tokio::task::yield_now().await;
            stream.write_all(&bytes[70..]).await.expect("it is sent");
            stream
        };
        let (_client, received) = tokio::join!(client, received(listener, bytes.len()));
        assert_eq!(received, bytes, "{name}");
    }
    for bytes in [
        hello("three.example.com"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut stream = mesh.host(0).dial(vip(3)).await.expect("a connection");
        stream.write_all(&bytes).await.expect("it is sent");
        stream.read(&mut [0; 1]).await.expect_err("a reset");
    }
}

async fn answer(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    let read = timeout(Duration::from_secs(5), stream.read_exact(&mut bytes)).await;
    read.expect("in time").expect("an answer");
    String::from_utf8(bytes).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeclared_port_is_routed_if_it_speaks_http_and_else_carried_and_counted() {
    let mesh = mesh().await;
    let sniffed = HttpTable::default();
    set(&mesh, "one", Table::Http(sniffed), true);
    let listener = mesh.host(1).listen(PORT);

    // No route matches: the proxy itself answers.
    let mut http = mesh.host(0).dial(vip(1)).await.expect("a connection");
    http.write_all(b"GET / HTTP/1.1\r\nhost: one\r\n\r\n")
        .await
        .expect("it is sent");
    assert_eq!(answer(&mut http, 12).await, "HTTP/1.1 404");

    let mut other = mesh.host(0).dial(vip(1)).await.expect("a connection");
    other.write_all(b"SSH-2.0-x\r\n").await.expect("it is sent");
    assert_eq!(received(&listener, 11).await, b"SSH-2.0-x\r\n");

    let mut silent = mesh.host(0).dial(vip(1)).await.expect("a connection");
    let (mut server, _) = listener.accept().await.expect("a connection");
    server.write_all(b"220 hello").await.expect("it is sent");
    assert_eq!(answer(&mut silent, 9).await, "220 hello");

    let fallbacks: u64 = mesh
        .telemetry
        .encode()
        .lines()
        .filter(|line| line.starts_with("weft_sniff_fallbacks_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(fallbacks, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_connection_that_is_closed_ends_in_order_at_the_application() {
    let mesh = mesh().await;
    let rule = config::HttpRule {
        route: route("HTTPRoute"),
        backends: vec![to("one", 1)],
        ..Default::default()
    };
    let table = HttpTable {
        matches: vec![config::HttpMatch::default()],
        rules: vec![rule],
    };
    set(&mesh, "front", Table::Http(table), false);
    let listener = mesh.host(1).listen(PORT);
    let client = async {
        let mut stream = mesh.host(0).dial(vip(3)).await.expect("a connection");
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: one\r\n\r\n")
            .await
            .expect("it is sent");
        assert_eq!(answer(&mut stream, 12).await, "HTTP/1.1 200");
        // The proxy keeps its connection to the application, until that has no endpoint any more.
        mesh.describe(1, |workload| workload.endpoints.clear());
        mesh.describe(1, |workload| workload.sandbox = "another".to_owned());
        stream
    };
    let application = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.expect("a request");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await
            .expect("it is answered");
        let end = timeout(Duration::from_secs(20), stream.read(&mut request)).await;
        assert_eq!(end.expect("in time").expect("an orderly end"), 0);
        // What breaks now would show as an error.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.shutdown().await.expect("an orderly end");
    };
    let (_client, ()) = tokio::join!(client, application);
    until("the far side has ended", || {
        let closed = |line: &str| {
            line.starts_with("weft_tcp_connections_closed_total{direction=\"inbound\"")
                && line.ends_with(" 1")
        };
        mesh.telemetry.encode().lines().any(closed)
    })
    .await;
    let metrics = mesh.telemetry.encode();
    let broken: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("weft_errors_total"))
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_http_port_never_falls_back_for_a_silent_client() {
    let mesh = mesh().await;
    set(&mesh, "one", Table::Http(HttpTable::default()), false);
    let listener = mesh.host(1).listen(PORT);
    let mut other = mesh.host(0).dial(vip(1)).await.expect("a connection");
    other
        .write_all(b"SSH-2.0-x\r\n\r\n")
        .await
        .expect("it is sent");
    let accepted = timeout(Duration::from_millis(500), listener.accept()).await;
    assert!(accepted.is_err(), "it slipped past the routes");
}
