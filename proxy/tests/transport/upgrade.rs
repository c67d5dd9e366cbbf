//! Two proxies on the same sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_api::config::{self, route_table::Table};
use weft_proxy::{settings::Settings, state::Kind};

use crate::mesh::{Mesh, captured, until};

const PORT: u16 = 8080;

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_loses_no_connection_and_lets_open_ones_end() {
    let mesh = Arc::new(Mesh::new([captured("client"), captured("server")]).await);
    let listener = mesh.host(1).listen(PORT);
    let application = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    let to = mesh.host(1).at(PORT);
    let mut long = mesh.host(0).dial(to).await.expect("a connection");
    long.write_all(b"a").await.expect("it is sent");
    long.read_exact(&mut [0; 1]).await.expect("it is answered");

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mesh, stop, done) = (Arc::clone(&mesh), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = mesh.host(0).dial(to).await?;
                    stream.write_all(b"request").await?;
                    stream.shutdown().await?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await?;
                    assert_eq!(answer, b"request");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, std::io::Error>(())
            })
        })
        .collect();
    let more = |count: usize| {
        let (done, goal) = (Arc::clone(&done), done.load(Ordering::Relaxed) + count);
        async move { until("requests go on", || done.load(Ordering::Relaxed) >= goal).await }
    };
    more(50).await;
    let successor = mesh.proxy(Settings::default());
    for at in 0..2 {
        let pod = mesh.hand_over(at, &successor);
        pod.ready().await.expect("the successor serves");
    }
    more(50).await;
    let predecessor = Arc::clone(&mesh.served);
    let gone = tokio::spawn(async move { predecessor.shut_down(Duration::from_secs(30)).await });
    more(100).await;
    // What was open before still is, through the predecessor.
    long.write_all(b"b").await.expect("it is sent");
    long.read_exact(&mut [0; 1]).await.expect("it is answered");
    assert!(!gone.is_finished());
    long.shutdown().await.expect("the client's end");
    assert_eq!(long.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    gone.await.expect("the predecessor ends");
    more(50).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client
            .await
            .expect("no panic")
            .expect("no connection failed");
    }
    application.abort();
}

/// Answers HTTP/1.1 requests without a body, on connections that it keeps.
async fn serve_http(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return stream.shutdown().await;
        }
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_at_the_server_ends_while_clients_go_on_over_pooled_connections() {
    let mesh = Arc::new(Mesh::new([captured("client"), captured("server")]).await);
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    mesh.service("front", vip.ip(), 80, PORT, &[1]);
    let table = config::RouteTable {
        service: "shop/front".to_owned(),
        port: 80,
        table: Some(Table::Http(config::HttpTable {
            matches: vec![config::HttpMatch::default()],
            rules: vec![config::HttpRule {
                route: Some(config::RouteRef {
                    namespace: "shop".to_owned(),
                    name: "front".to_owned(),
                    ..Default::default()
                }),
                backends: vec![config::Backend {
                    weight: 1,
                    target: Some(config::backend::Target::Service(config::ServiceTarget {
                        service: "shop/front".to_owned(),
                        port: 80,
                    })),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        })),
        ..Default::default()
    };
    mesh.put(Kind::RouteTable, "shop/front/80", &table);
    let listener = mesh.host(1).listen(PORT);
    let application = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_http(stream));
        }
    });
    let done = Arc::new(AtomicUsize::new(0));
    let client = {
        let (mesh, done) = (Arc::clone(&mesh), Arc::clone(&done));
        tokio::spawn(async move {
            let mut stream = mesh.host(0).dial(vip).await?;
            loop {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: front\r\n\r\n")
                    .await?;
                let mut answer = Vec::new();
                while !answer.ends_with(b"ok") {
                    if stream.read_buf(&mut answer).await? == 0 {
                        return Err::<(), std::io::Error>(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                let text = String::from_utf8_lossy(&answer).into_owned();
                assert!(text.starts_with("HTTP/1.1 200"), "{text}");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let more = |count: usize| {
        let (done, goal) = (Arc::clone(&done), done.load(Ordering::Relaxed) + count);
        async move { until("requests go on", || done.load(Ordering::Relaxed) >= goal).await }
    };
    more(50).await;
    // Of the server's pod alone: the client's goes on as it is.
    let successor = mesh.proxy(Settings::default());
    let pod = mesh.hand_over(1, &successor);
    pod.ready().await.expect("the successor serves");
    let predecessor = mesh.served(1);
    predecessor.stop_accepting();
    predecessor.start_draining();
    let drained = tokio::time::timeout(Duration::from_secs(25), predecessor.drained());
    drained.await.expect("nothing is left in use");
    more(50).await;
    assert!(!client.is_finished());
    client.abort();
    application.abort();
}
