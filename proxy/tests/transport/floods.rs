//! Those who ask for more than they mean to use: what becomes of their requests, and of others'.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use weft_certs::{SpiffeId, tls};
use weft_proxy::settings::Settings;

use crate::mesh::{Mesh, NAMESPACE, TRUST_DOMAIN, captured, outside, until};

const PORT: u16 = 8080;

/// A tunnel of the test's own from the first pod to the second, which is called `server`.
pub(crate) async fn tunnel(mesh: &Mesh) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let tcp = mesh
        .host(0)
        .dial(mesh.host(1).at(15008))
        .await
        .expect("the port is open");
    let expected = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, "server").expect("an id");
    let bundle = Arc::clone(&mesh.bundle);
    let config = tls::client_config(mesh.svid("peer"), bundle, [expected]).expect("a config");
    let stream = TlsConnector::from(config)
        .connect(tls::unnamed(), tcp)
        .await;
    let (requests, connection) = h2::client::handshake(stream.expect("a handshake"))
        .await
        .expect("HTTP/2");
    (requests, tokio::spawn(connection))
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_whose_handshakes_stall_do_not_keep_a_peer_out() {
    let settings = Settings {
        handshakes: 8,
        // Longer than the peer waits.
        handshake: Duration::from_secs(60),
        ..Settings::default()
    };
    let specs = [outside("stranger"), captured("server"), captured("client")];
    let mesh = Mesh::with(settings, specs).await;
    let application = mesh.host(1).listen(PORT);
    // Each begins a handshake and says no more: many times what may be under way.
    let stalled = join_all((0..100).map(|_| async {
        let mut stream = mesh.host(0).dial(mesh.host(1).at(15008)).await?;
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").await?;
        Ok::<TcpStream, std::io::Error>(stream)
    }))
    .await;
    assert!(stalled.iter().all(Result::is_ok), "they were accepted");
    until("the server knows of them", || mesh.served(1).open() >= 100).await;
    // As one that has a certificate finds out: within the time that it gives itself.
    let dialled = async {
        let mut stream = mesh.host(2).dial(mesh.host(1).at(PORT)).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0; 1]).await
    };
    let answered = async {
        let (mut stream, _) = application.accept().await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await
    };
    let (dialled, answered) = tokio::join!(dialled, answered);
    answered.expect("the application was asked");
    dialled.expect("the peer was let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_the_client_gives_up_is_given_up() {
    let settings = Settings {
        // The test would not wait for it.
        connect: Duration::from_secs(600),
        ..Settings::default()
    };
    let mesh = Mesh::with(settings, [outside("peer"), captured("server")]).await;
    // An application that takes no connections, and refuses none: its queue is full.
    let application = mesh.host(1).bind(PORT);
    let wedged = socket2::SockRef::from(&application);
    wedged.listen(0).expect("a shorter queue");
    let to = mesh.host(1).at(PORT);
    let mut filling = Vec::new();
    for _ in 0..3 {
        let dialled = tokio::time::timeout(Duration::from_millis(300), mesh.host(1).dial(to)).await;
        filling.push(dialled);
    }
    assert!(
        filling.iter().any(Result::is_err),
        "the application's queue is full"
    );
    let (requests, connection) = tunnel(&mesh).await;
    let open = || mesh.served(1).open();
    until("the tunnel stands", || open() == 1).await;
    // More than it may before it must wait for the application to be asked.
    for _ in 0..3 {
        let mut answers = Vec::new();
        for _ in 0..50 {
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri(to.to_string())
                .body(())
                .expect("a request");
            let mut ready = requests.clone().ready().await.expect("room for a stream");
            answers.push(ready.send_request(request, false).expect("it is sent"));
        }
        until("the server is asked", || open() == 51).await;
        drop(answers);
        until("the server has given up", || open() == 1).await;
    }
    connection.abort();
}
