//! What must not pass.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_certs::{SpiffeId, tls};
use weft_proxy::{gate::Gate, settings::Settings};

use crate::floods::tunnel;
use crate::mesh::{Mesh, NAMESPACE, Spec, TRUST_DOMAIN, captured, outside, until};

const PORT: u16 = 8080;

async fn is_refused(stream: std::io::Result<TcpStream>) {
    let read = async { stream?.read(&mut [0; 1]).await };
    let read = timeout(Duration::from_secs(8), read)
        .await
        .expect("an answer in time");
    let kind = read.expect_err("a reset").kind();
    assert!(
        matches!(
            kind,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
        ),
        "{kind:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_pod_refuses_plaintext_and_takes_tunnels() {
    let strict = Spec {
        strict: true,
        ..captured("server")
    };
    let mesh = Mesh::new([outside("stranger"), strict, captured("client")]).await;
    let listener = mesh.host(1).listen(PORT);
    let to = mesh.host(1).at(PORT);
    is_refused(mesh.host(0).dial(to).await).await;
    until("the refusal is counted", || {
        mesh.metric(
            r#"weft_errors_total{direction="inbound",reason="strict_plaintext"}"#,
            1,
        )
    })
    .await;
    let (client, accepted) = tokio::join!(mesh.host(2).dial(to), listener.accept());
    client.expect("the client connects");
    accepted.expect("the application accepts");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_of_the_configuration_takes_effect_on_the_next_connection() {
    let mesh = Mesh::new([outside("stranger"), captured("server")]).await;
    let _listener = mesh.host(1).listen(PORT);
    let to = mesh.host(1).at(PORT);
    mesh.describe(1, |workload| {
        workload.mtls = weft_api::config::MtlsMode::Strict.into();
    });
    is_refused(mesh.host(0).dial(to).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_that_is_open_when_a_pod_becomes_strict_ends_after_the_drain_time() {
    let settings = Settings {
        plaintext_drain: Duration::from_millis(500),
        ..Settings::default()
    };
    let specs = [outside("stranger"), captured("server"), captured("client")];
    let mesh = Mesh::with(settings, specs).await;
    let listener = mesh.host(1).listen(PORT);
    let to = mesh.host(1).at(PORT);
    let (plain, application) = tokio::join!(mesh.host(0).dial(to), listener.accept());
    let (mut plain, mut application) = (plain.expect("plaintext"), application.expect("it").0);
    let (tunnel, in_tunnel) = tokio::join!(mesh.host(2).dial(to), listener.accept());
    let (mut tunnel, mut in_tunnel) = (tunnel.expect("a tunnel"), in_tunnel.expect("it").0);

    let start = tokio::time::Instant::now();
    mesh.describe(1, |workload| {
        workload.mtls = weft_api::config::MtlsMode::Strict.into();
    });
    is_refused(mesh.host(0).dial(to).await).await;
    // Until then it carries bytes.
    let mut byte = [0; 1];
    plain.write_all(b"x").await.expect("still open");
    application.read_exact(&mut byte).await.expect("still open");
    is_refused(Ok(plain)).await;
    assert!(
        start.elapsed() >= settings.plaintext_drain,
        "not before its time"
    );
    is_refused(Ok(application)).await;
    tunnel.write_all(b"x").await.expect("mTLS goes on");
    in_tunnel.read_exact(&mut byte).await.expect("mTLS goes on");
    for reason in ["strict_plaintext", "became_strict"] {
        until("it is counted, and at which pod", || {
            let of = format!(r#"{{namespace="{NAMESPACE}",pod="server",reason="{reason}"}}"#);
            mesh.metric(&format!("weft_refused_total{of}"), 1)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_dials_from_an_address_of_another_pod_gets_nowhere() {
    let mesh = Mesh::new([captured("client"), captured("server"), outside("other")]).await;
    let (other, server) = (mesh.host(2).at(0), mesh.host(1).at(PORT));
    let listener = mesh.host(1).listen(PORT);
    mesh.host(0).claim(other.ip());
    // To the mesh, and to what is outside of it.
    for to in [server, SocketAddr::from(([10, 77, 0, 99], 80))] {
        is_refused(mesh.host(0).dial_from(other, to).await).await;
    }
    until("both are counted", || {
        let of = format!(r#"{{namespace="{NAMESPACE}",pod="client",reason="foreign_source"}}"#);
        mesh.metric(&format!("weft_refused_total{of}"), 2)
    })
    .await;
    let accepted = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err(), "the application was reached");
    // From its own address it goes on.
    let (own, accepted) = tokio::join!(mesh.host(0).dial(server), listener.accept());
    own.expect("the client connects");
    accepted.expect("the application accepts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_identity_than_the_configuration_names_gets_no_byte() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    mesh.describe(1, |workload| {
        workload.service_account = "somebody-else".to_owned()
    });
    let listener = mesh.host(1).listen(PORT);
    is_refused(mesh.host(0).dial(mesh.host(1).at(PORT)).await).await;
    let accepted = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err(), "the application was reached");
    until("the refusal is counted", || {
        mesh.metric(
            r#"weft_errors_total{direction="outbound",reason="identity"}"#,
            1,
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dialling_the_proxys_own_ports_does_not_loop() {
    let mesh = Mesh::new([captured("client"), captured("server"), outside("stranger")]).await;
    for port in [15001, 15006, 15008] {
        // Through the client's redirect, to another pod.
        is_refused(mesh.host(0).dial(mesh.host(1).at(port)).await).await;
    }
    for port in [15001, 15006] {
        is_refused(mesh.host(2).dial(mesh.host(1).at(port)).await).await;
        // No redirect happens at all.
        is_refused(
            mesh.host(0)
                .dial(SocketAddr::from(([127, 0, 0, 1], port)))
                .await,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_endpoints_is_reset_at_once() {
    let mesh = Mesh::new([captured("client")]).await;
    let vip = [10, 96, 0, 9].into();
    mesh.service("empty", vip, 80, PORT, &[]);
    is_refused(mesh.host(0).dial(SocketAddr::new(vip, 80)).await).await;
    until("it is counted", || {
        mesh.metric(
            r#"weft_errors_total{direction="outbound",reason="no_endpoint"}"#,
            1,
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_nobody_listens_on_is_reset_at_the_client() {
    let mesh = Mesh::new([captured("client"), captured("server")]).await;
    is_refused(mesh.host(0).dial(mesh.host(1).at(PORT)).await).await;
}

/// What the server's proxy answers to a CONNECT (or else) of a peer of the test's own.
async fn answer(mesh: &Mesh, method: Method, authority: &str) -> (StatusCode, String) {
    let (mut requests, connection) = tunnel(mesh).await;
    let uri = if method == Method::CONNECT {
        authority.to_owned()
    } else {
        format!("http://{authority}/")
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .expect("a request");
    let (response, _send) = requests.send_request(request, false).expect("it is sent");
    let _send: h2::SendStream<Bytes> = _send;
    let response = response.await.expect("an answer");
    let reason = response
        .headers()
        .get("proxy-status")
        .map(|value| value.to_str().expect("text"));
    let result = (response.status(), reason.unwrap_or_default().to_owned());
    connection.abort();
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn only_connects_to_applications_of_the_pod_are_granted() {
    let mesh = Mesh::new([outside("peer"), captured("server"), captured("neighbour")]).await;
    let _application = mesh.host(1).listen(PORT);
    let _neighbour = mesh.host(2).listen(PORT);
    let (own, neighbour) = (mesh.host(1).v4, mesh.host(2).v4);
    for (method, authority, status) in [
        (Method::CONNECT, format!("{own}:{PORT}"), 200),
        (
            Method::CONNECT,
            format!("[{}]:{PORT}", mesh.host(1).v6),
            200,
        ),
        (Method::CONNECT, format!("{own}:9"), 503),
        (Method::CONNECT, format!("{neighbour}:{PORT}"), 403),
        (Method::CONNECT, format!("127.0.0.1:{PORT}"), 403),
        (Method::CONNECT, format!("[::1]:{PORT}"), 403),
        (Method::CONNECT, format!("[::ffff:127.0.0.1]:{PORT}"), 403),
        (Method::CONNECT, format!("0.0.0.0:{PORT}"), 403),
        (Method::CONNECT, format!("{own}:15001"), 403),
        (Method::CONNECT, format!("{own}:15006"), 403),
        (Method::CONNECT, format!("{own}:15008"), 403),
        (Method::CONNECT, format!("server.shop.svc:{PORT}"), 400),
        (Method::GET, format!("{own}:{PORT}"), 405),
    ] {
        let (answered, reason) = answer(&mesh, method.clone(), &authority).await;
        assert_eq!(answered.as_u16(), status, "{method} {authority}: {reason}");
        assert_eq!(
            reason.is_empty(),
            status == 200,
            "{method} {authority}: {reason}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_a_certificate_of_the_mesh_gets_no_tunnel() {
    let mesh = Mesh::new([outside("peer"), captured("server")]).await;
    let other = Mesh::new([]).await;
    let tcp = mesh
        .host(0)
        .dial(mesh.host(1).at(15008))
        .await
        .expect("the port is open");
    let expected = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, "server").expect("an id");
    let bundle = std::sync::Arc::clone(&mesh.bundle);
    let config = tls::client_config(other.svid("peer"), bundle, [expected]).expect("a config");
    // With TLS 1.3 the client learns only afterwards that its certificate was refused.
    let refused = async {
        let mut stream = TlsConnector::from(config)
            .connect(tls::unnamed(), tcp)
            .await?;
        stream.read(&mut [0; 1]).await
    };
    let refused = timeout(Duration::from_secs(5), refused)
        .await
        .expect("in time");
    assert!(refused.is_err() || refused.is_ok_and(|read| read == 0));
    until("the handshake is counted as failed", || {
        let metrics = mesh.telemetry.encode();
        let failed = |line: &&str| {
            line.starts_with("weft_handshakes_total")
                && line.contains(r#"side="server""#)
                && line.contains(r#"result="failed""#)
        };
        metrics.lines().any(|line| failed(&line))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_read_metrics_only_from_namespaces_that_may() {
    let mesh = Mesh::new([outside("scraper")]).await;
    let nobody = SocketAddr::from(([10, 77, 0, 200], 0)).ip();
    for (namespaces, admitted) in [
        (vec![], false),
        (vec!["weft-system"], false),
        (vec!["weft-system", NAMESPACE], true),
        (vec!["*"], true),
    ] {
        let allowed: Vec<String> = namespaces.iter().map(ToString::to_string).collect();
        let (state, telemetry) = (mesh.state.clone(), mesh.telemetry.clone());
        let gate = Gate::new("metrics", &allowed, state, telemetry);
        for pod in mesh.host(0).addresses() {
            assert_eq!(gate.admit(pod).is_ok(), admitted, "{pod} {namespaces:?}");
        }
        // A node, or whoever is no pod.
        assert!(gate.admit(nobody).is_ok());
    }
}
