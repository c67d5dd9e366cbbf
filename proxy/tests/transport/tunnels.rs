//! Which connections share a tunnel, and what becomes of tunnels.

use std::{sync::Arc, time::Duration};

use futures::future::{join_all, try_join_all};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use weft_certs::tls;
use weft_proxy::settings::Settings;

use crate::mesh::{Mesh, Spec, captured, dial, echo, ping, until};

const PORT: u16 = 8080;

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_of_one_service_account_never_share_a_tunnel() {
    let one = Spec {
        account: "shared",
        ..captured("one")
    };
    let two = Spec {
        account: "shared",
        ..captured("two")
    };
    let mesh = Mesh::new([one, two, captured("server")]).await;
    let _echo = echo(mesh.host(2).listen(PORT));
    let to = mesh.host(2).at(PORT);
    let _first = dial(&mesh, 0, to).await.expect("a connection");
    let _second = dial(&mesh, 1, to).await.expect("a connection");
    assert_eq!(mesh.tunnels(0), [1]);
    assert_eq!(mesh.tunnels(1), [1]);
    assert!(mesh.metric(r#"weft_tunnels_open{side="server"}"#, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_comes_to_an_address_gets_tunnels_of_its_own_and_nobody_elses_connections() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let to = mesh.host(1).at(PORT);
    let _first = dial(&mesh, 0, to).await.expect("a connection");
    // Of the same service account, as a StatefulSet's next.
    mesh.describe(1, |workload| workload.sandbox = "sandbox-2".to_owned());
    let early = dial(&mesh, 0, to).await;
    assert!(early.is_err(), "the one that was there before is not meant");
    let before = mesh.served(1);
    let mut info = (*before.info()).clone();
    info.sandbox = "sandbox-2".to_owned();
    before.update(info);
    let _second = dial(&mesh, 0, to).await.expect("a connection");
    assert_eq!(mesh.tunnels(0), [1, 1]);
}

/// Serves HBONE as `server`: grants CONNECTs and echoes, but breaks the first connection as soon as
/// a second CONNECT comes through it.
async fn breaks_once(mesh: &Mesh, listener: TcpListener) {
    let server = tls::server_config(mesh.svid("server"), Arc::clone(&mesh.bundle));
    let acceptor = TlsAcceptor::from(server.expect("a configuration"));
    for most in [1, usize::MAX] {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let tls = acceptor.accept(tcp).await.expect("a handshake");
        let mut connection = h2::server::handshake(tls).await.expect("HTTP/2");
        for _ in 0..most {
            let Some(next) = connection.accept().await else {
                break;
            };
            let (request, mut respond) = next.expect("a request");
            let granted = http::Response::new(());
            let mut send = respond.send_response(granted, false).expect("it is sent");
            let mut body = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(chunk)) = body.data().await {
                    let _ = body.flow_control().release_capacity(chunk.len());
                    if send.send_data(chunk, false).is_err() {
                        break;
                    }
                }
            });
        }
        // The second comes, and is not answered.
        connection.accept().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_survives_the_tunnel_that_breaks_before_it_stands() {
    let server = Spec {
        served: false,
        ..captured("server")
    };
    let mesh = Mesh::new([captured("client"), server]).await;
    let (_, listeners) = mesh.descriptors(1);
    let (_, hbone) = listeners.into_iter().nth(2).expect("a listener");
    let hbone = TcpListener::from_std(hbone.into()).expect("a listener for the runtime");
    let serving = breaks_once(&mesh, hbone);
    let dialling = async {
        let to = mesh.host(1).at(PORT);
        let _first = dial(&mesh, 0, to).await.expect("a connection");
        dial(&mesh, 0, to).await.expect("another tunnel");
    };
    tokio::select! {
        () = serving => panic!("it serves as long as it is asked"),
        () = dialling => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_connections_share_a_handshake_and_fill_several_tunnels() {
    const CONNECTIONS: usize = 250;
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let to = mesh.host(1).at(PORT);
    let dials = (0..CONNECTIONS).map(|_| dial(&mesh, 0, to));
    let mut streams = try_join_all(dials).await.expect("every connection stands");
    let mut tunnels = mesh.tunnels(0);
    tunnels.sort_unstable();
    assert_eq!(tunnels, [50, 100, 100]);
    // Every one of them still carries bytes.
    for result in join_all(streams.iter_mut().map(ping)).await {
        result.expect("it is answered");
    }
    drop(streams);
    until("all streams are given back", || {
        mesh.tunnels(0).iter().all(|streams| *streams == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_handshake_is_told_to_all_who_waited_for_it() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    mesh.describe(1, |workload| {
        workload.service_account = "somebody-else".to_owned()
    });
    let _echo = echo(mesh.host(1).listen(PORT));
    let to = mesh.host(1).at(PORT);
    let failed = join_all((0..20).map(|_| dial(&mesh, 0, to))).await;
    assert!(failed.iter().all(Result::is_err));
    assert_eq!(mesh.tunnels(0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_tunnel_is_closed_and_the_next_connection_opens_another() {
    let settings = Settings {
        idle: Duration::from_millis(300),
        ..Settings::default()
    };
    let mesh = Mesh::with(settings, [captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let to = mesh.host(1).at(PORT);
    let mut busy = dial(&mesh, 0, to).await.expect("a connection");
    tokio::time::sleep(settings.idle * 3).await;
    ping(&mut busy).await.expect("a tunnel in use is not idle");
    drop(busy);
    until("the tunnel is closed", || mesh.tunnels(0).is_empty()).await;
    until("at the server too", || {
        mesh.metric(r#"weft_tunnels_open{side="server"}"#, 0)
    })
    .await;
    dial(&mesh, 0, to).await.expect("a new tunnel");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_gone_silent_is_found_by_pings_and_its_streams_are_reset() {
    let settings = Settings {
        ping_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_millis(500),
        ..Settings::default()
    };
    let mesh = Mesh::with(settings, [captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let mut stream = dial(&mesh, 0, mesh.host(1).at(PORT))
        .await
        .expect("a connection");
    mesh.host(1).space.ip("link set eth0 down");
    let read = async { stream.read(&mut [0; 1]).await };
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(read.expect("it is noticed").is_err());
    assert_eq!(mesh.tunnels(0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_lets_streams_end_and_still_serves_stragglers() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let to = mesh.host(1).at(PORT);
    let mut open = dial(&mesh, 0, to).await.expect("a connection");
    mesh.served(1).start_draining();
    ping(&mut open).await.expect("what is open goes on");
    dial(&mesh, 0, to)
        .await
        .expect("new connections are served");
    ping(&mut open).await.expect("what is open goes on");
    open.shutdown().await.expect("the client's end");
    assert_eq!(open.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    let drained = tokio::time::timeout(Duration::from_secs(5), mesh.served(1).drained());
    drained.await.expect("nothing is left open");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_resets_what_it_has_open() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let mut stream = dial(&mesh, 0, mesh.host(1).at(PORT))
        .await
        .expect("a connection");
    let certificate = || {
        let metrics = mesh.telemetry.encode();
        let ends =
            |line: &str| line.starts_with("weft_certificate_expiry") && line.contains("/sa/server");
        metrics.lines().any(ends)
    };
    assert!(certificate());
    mesh.served.remove("sandbox-server");
    assert!(!certificate(), "the identity goes with its last pod");
    let read = async { stream.read(&mut [0; 1]).await };
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert!(read.expect("it is noticed").is_err());
}
