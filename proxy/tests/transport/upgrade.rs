//! Two proxies on the same sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::settings::Settings;

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
