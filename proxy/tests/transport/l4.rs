//! Bytes, their ends and their resets, along each path.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_proxy::settings::Settings;

use crate::mesh::{Mesh, captured, echo, outside, reset, seen, until};

const PORT: u16 = 8080;
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// Client and server of one connection from pod `from` to `to` of pod 1.
pub(crate) async fn pair(
    mesh: &Mesh,
    from: usize,
    to: SocketAddr,
) -> (TcpStream, TcpStream, IpAddr) {
    let listener = mesh.host(1).listen(PORT);
    let (client, accepted) = tokio::join!(mesh.host(from).dial(to), listener.accept());
    let (server, peer) = accepted.expect("the application accepts");
    (client.expect("the client connects"), server, seen(peer))
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.expect("ping is sent");
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.expect("ping arrives");
    assert_eq!(&bytes, b"ping");
    server.write_all(b"pong").await.expect("pong is sent");
    client.read_exact(&mut bytes).await.expect("pong arrives");
    assert_eq!(&bytes, b"pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_pod_is_reached_through_a_tunnel_from_the_clients_own_address() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, peer) = pair(&mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v4);
    assert_eq!(mesh.tunnels(0), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_fill_a_pod_do_not_keep_it_from_dialling() {
    let settings = Settings {
        connections: 1,
        ..Settings::default()
    };
    let mesh = Mesh::with(settings, [outside("stranger"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let _held = pair(&mesh, 0, to).await;
    let listener = mesh.host(0).listen(PORT);
    let dialled =
        async { tokio::join!(mesh.host(1).dial(mesh.host(0).at(PORT)), listener.accept()) };
    let (client, accepted) = timeout(Duration::from_secs(5), dialled)
        .await
        .expect("it is not kept waiting");
    client.expect("a connection");
    accepted.expect("a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_is_carried_like_ipv4() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let to = SocketAddr::new(mesh.host(1).v6.into(), PORT);
    let (mut client, mut server, peer) = pair(&mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v6);
    assert_eq!(mesh.tunnels(0), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_captured_is_reached_in_plaintext() {
    let mesh = Mesh::new([captured("client"), outside("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, peer) = pair(&mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v4);
    assert_eq!(mesh.tunnels(0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_from_outside_reaches_a_permissive_pod_from_the_clients_own_address() {
    let mesh = Mesh::new([outside("client"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, peer) = pair(&mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v4);
}

/// The proxy dials in the client's name, from ports of its own choice. Were they the client's, a new
/// connection of the client would meet the proxy's, and get no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_who_dials_in_its_name_never_share_a_port() {
    let mesh = Mesh::new([outside("client"), captured("server")]).await;
    // So few that each would be taken twice.
    for host in [0, 1] {
        mesh.host(host).client_ports(40_000..=40_015);
    }
    let _application = echo(mesh.host(1).listen(PORT));
    let servers = [mesh.host(1).v4.into(), mesh.host(1).v6.into()];
    for to in servers.map(|ip: IpAddr| SocketAddr::new(ip, PORT)) {
        let mut open = Vec::new();
        for count in 0..16 {
            let dialled = timeout(Duration::from_secs(5), async {
                let mut client = mesh.host(0).dial(to).await?;
                client.write_all(b"ping").await?;
                let mut answer = [0; 4];
                client.read_exact(&mut answer).await?;
                std::io::Result::Ok(client)
            });
            let client = dialled.await.unwrap_or_else(|_| {
                panic!("connection {count} to {to} gets no answer");
            });
            open.push(client.expect("an answer"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mesh_does_not_know_is_passed_through() {
    let mesh = Mesh::new([captured("client"), outside("stranger")]).await;
    mesh.state.apply(weft_proxy::state::Delta {
        kind: weft_proxy::state::Kind::Workload,
        updated: vec![],
        removed: vec!["shop/stranger/uid-stranger".to_owned()],
    });
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, peer) = pair(&mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_routes_leads_to_its_endpoints_port() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    mesh.service("web", VIP, 80, PORT, &[1]);
    let (mut client, mut server, peer) = pair(&mesh, 0, SocketAddr::new(VIP, 80)).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(0).v4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_dials_its_own_service_reaches_itself() {
    let mesh = Mesh::new([captured("other"), captured("self")]).await;
    mesh.service("web", VIP, 80, PORT, &[1]);
    let (mut client, mut server, peer) = pair(&mesh, 1, SocketAddr::new(VIP, 80)).await;
    exchange(&mut client, &mut server).await;
    assert_eq!(peer, mesh.host(1).v4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_replaced_by_another() {
    let mesh = Mesh::new([captured("client"), captured("good"), captured("bad")]).await;
    mesh.service("web", VIP, 80, PORT, &[1, 2]);
    let listener = mesh.host(1).listen(PORT);
    for _ in 0..10 {
        let dialled = mesh.host(0).dial(SocketAddr::new(VIP, 80));
        let (client, accepted) = tokio::join!(dialled, listener.accept());
        let (mut server, _) = accepted.expect("the good endpoint accepts");
        exchange(&mut client.expect("a connection"), &mut server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_speak_first() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, _) = pair(&mesh, 0, to).await;
    server.write_all(b"220 hello").await.expect("it is sent");
    let mut bytes = [0; 9];
    client.read_exact(&mut bytes).await.expect("it arrives");
    assert_eq!(&bytes, b"220 hello");
}

/// Each end closes its direction, and the other direction goes on.
async fn half_closes(mesh: &Mesh) {
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    client.write_all(b"request").await.expect("it is sent");
    client.shutdown().await.expect("the client's end");
    let mut bytes = Vec::new();
    server
        .read_to_end(&mut bytes)
        .await
        .expect("an orderly end");
    assert_eq!(bytes, b"request");
    server.write_all(b"response").await.expect("it is sent");
    server.shutdown().await.expect("the server's end");
    bytes.clear();
    client
        .read_to_end(&mut bytes)
        .await
        .expect("an orderly end");
    assert_eq!(bytes, b"response");

    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    server.shutdown().await.expect("the server's end");
    bytes.clear();
    client
        .read_to_end(&mut bytes)
        .await
        .expect("an orderly end");
    assert_eq!(bytes, b"");
    client.write_all(b"late").await.expect("it is sent");
    client.shutdown().await.expect("the client's end");
    server
        .read_to_end(&mut bytes)
        .await
        .expect("an orderly end");
    assert_eq!(bytes, b"late");
    drop((client, server));
    until("nothing is left open", || {
        mesh.served.all().iter().all(|pod| pod.open() <= 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_are_carried_both_ways_through_a_tunnel() {
    half_closes(&Mesh::new([captured("client"), captured("server")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_are_carried_both_ways_in_plaintext() {
    half_closes(&Mesh::new([outside("client"), captured("server")]).await).await;
}

async fn is_reset(stream: &mut TcpStream) {
    let mut bytes = [0; 16];
    let read = timeout(Duration::from_secs(5), stream.read(&mut bytes)).await;
    let error = read.expect("a reset in time").expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A reset of one end arrives at the other as a reset, also when directions have ended before.
async fn resets(mesh: &Mesh) {
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    reset(client);
    is_reset(&mut server).await;

    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    reset(server);
    is_reset(&mut client).await;

    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    client.shutdown().await.expect("the client's end");
    assert_eq!(server.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    reset(client);
    until("the server's side is reset", || {
        server.take_error().is_ok_and(|e| e.is_some())
    })
    .await;

    let (mut client, mut server, _) = pair(mesh, 0, to).await;
    exchange(&mut client, &mut server).await;
    server.shutdown().await.expect("the server's end");
    assert_eq!(client.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    reset(server);
    until("the client's side is reset", || {
        client.take_error().is_ok_and(|e| e.is_some())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_carried_both_ways_through_a_tunnel() {
    resets(&Mesh::new([captured("client"), captured("server")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_carried_both_ways_in_plaintext() {
    resets(&Mesh::new([outside("client"), captured("server")]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_read_stops_its_client() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (mut client, mut server, _) = pair(&mesh, 0, to).await;
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    // Kernels' buffers and the windows fill up, and then it stands still.
    while let Ok(written) = timeout(Duration::from_secs(1), client.write(&chunk)).await {
        sent += written.expect("the connection stands");
        assert!(sent < 64 * 1024 * 1024, "nothing holds the client back");
    }
    // All of it is still there.
    client.shutdown().await.expect("the client's end");
    let mut received = 0;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = server.read(&mut bytes).await.expect("the rest arrives");
        if read == 0 {
            break;
        }
        assert!(bytes[..read].iter().all(|byte| *byte == 7));
        received += read;
    }
    assert_eq!(received, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_pass_both_ways_at_once_and_unchanged() {
    const TOTAL: u64 = 100 * 1024 * 1024;
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let to = mesh.host(1).at(PORT);
    let (client, server, _) = pair(&mesh, 0, to).await;

    async fn send(mut to: impl tokio::io::AsyncWrite + Unpin, seed: u8) {
        // A pattern that no buffer size divides.
        let chunk: Vec<u8> = (0..100_003u32).map(|i| (i % 251) as u8 ^ seed).collect();
        let mut left = TOTAL as usize;
        while left > 0 {
            let take = left.min(chunk.len());
            to.write_all(&chunk[..take]).await.expect("it is taken");
            left -= take;
        }
        to.shutdown().await.expect("the end");
    }
    async fn check(mut from: impl tokio::io::AsyncRead + Unpin, seed: u8) {
        let mut buffer = vec![0; 256 * 1024];
        let mut at = 0u64;
        loop {
            let read = from.read(&mut buffer).await.expect("it arrives");
            if read == 0 {
                break;
            }
            for byte in &buffer[..read] {
                let expected = ((at % 100_003) % 251) as u8 ^ seed;
                assert_eq!(*byte, expected, "byte {at}");
                at += 1;
            }
        }
        assert_eq!(at, TOTAL);
    }
    let before = resident();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let transfer = [
        tokio::spawn(send(client_write, 0)),
        tokio::spawn(check(server_read, 0)),
        tokio::spawn(send(server_write, 0x55)),
        tokio::spawn(check(client_read, 0x55)),
    ];
    for task in transfer {
        task.await.expect("no assertion failed");
    }
    // Other tests run in the same process: this is a bound, not a measure.
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 * 1024 * 1024, "memory grew by {grown} bytes");
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = status
        .split(' ')
        .nth(1)
        .expect("two fields")
        .parse()
        .expect("a number");
    pages * 4096
}
