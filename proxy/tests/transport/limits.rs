//! A pod's limits: what is beyond them waits or is shed, is counted under the pod's name, is no
//! other pod's business, and is over when the load is.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_proxy::settings::Settings;

use crate::mesh::{Mesh, captured, dial, echo, outside, ping, until};

const PORT: u16 = 8080;
/// Long enough to see that something waits; what goes wrong sooner or later fails a test either way.
const A_WHILE: Duration = Duration::from_millis(300);

fn shed(pod: &str, reason: &str) -> String {
    format!(r#"weft_shed_total{{namespace="shop",pod="{pod}",reason="{reason}"}}"#)
}

fn reached(pod: &str, limit: &str) -> String {
    format!(r#"weft_limit_reached_total{{namespace="shop",pod="{pod}",limit="{limit}"}}"#)
}

fn in_use(pod: &str, limit: &str) -> String {
    format!(r#"weft_pod_in_use{{namespace="shop",pod="{pod}",limit="{limit}"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_in_their_own_pod_and_are_served_when_others_end() {
    let settings = Settings {
        connections: 2,
        ..Settings::default()
    };
    let pods = [captured("client"), captured("other"), captured("server")];
    let mesh = Mesh::with(settings, pods).await;
    let _echo = echo(mesh.host(2).listen(PORT));
    let to = mesh.host(2).at(PORT);
    let first = dial(&mesh, 0, to).await.expect("a connection");
    let _second = dial(&mesh, 0, to).await.expect("a connection");
    assert!(mesh.metric(&in_use("client", "connections"), 2));
    let mut third = mesh.host(0).dial(to).await.expect("the kernel takes it");
    assert!(
        timeout(A_WHILE, ping(&mut third)).await.is_err(),
        "it waits"
    );
    assert!(mesh.metric(&reached("client", "connections"), 1));
    assert!(
        !mesh.telemetry.encode().contains("weft_shed_total{"),
        "nothing is shed"
    );

    dial(&mesh, 1, to).await.expect("another pod's connection");
    drop(first);
    third
        .read_exact(&mut [0; 1])
        .await
        .expect("its turn has come");
    assert!(mesh.metric(&in_use("client", "connections"), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_beyond_the_limit_wait_until_one_is_closed() {
    let settings = Settings {
        tunnels: 1,
        idle: Duration::from_millis(200),
        connect: Duration::from_secs(20),
        handshake: Duration::from_secs(20),
        ..Settings::default()
    };
    let pods = [
        captured("one"),
        captured("two"),
        captured("server"),
        captured("elsewhere"),
    ];
    let mesh = Mesh::with(settings, pods).await;
    let _servers = [2, 3].map(|at| echo(mesh.host(at).listen(PORT)));
    let to = mesh.host(2).at(PORT);
    let first = dial(&mesh, 0, to).await.expect("a connection");
    let mut second = mesh.host(1).dial(to).await.expect("the kernel takes it");
    assert!(
        timeout(A_WHILE, ping(&mut second)).await.is_err(),
        "it waits"
    );
    assert!(mesh.metric(&reached("server", "tunnels"), 1));
    dial(&mesh, 1, mesh.host(3).at(PORT))
        .await
        .expect("another pod's tunnel");
    // Without streams its tunnel is closed, and makes room.
    drop(first);
    second
        .read_exact(&mut [0; 1])
        .await
        .expect("its turn has come");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_beyond_the_limit_queue_and_who_stalls_is_shed() {
    let settings = Settings {
        handshakes: 1,
        ..Settings::default()
    };
    let mesh = Mesh::with(
        settings,
        [captured("client"), captured("server"), outside("stranger")],
    )
    .await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let mut stalled = mesh
        .host(2)
        .dial(mesh.host(1).at(15008))
        .await
        .expect("a connection");
    stalled
        .write_all(&[22, 3, 1])
        .await
        .expect("the beginning of a ClientHello");
    until("it takes the only place", || {
        mesh.metric(&in_use("server", "handshakes"), 1)
    })
    .await;
    // Who stalls while others wait is not waited for long.
    dial(&mesh, 0, mesh.host(1).at(PORT))
        .await
        .expect("a connection");
    assert!(mesh.metric(&reached("server", "handshakes"), 1));
    assert!(mesh.metric(&shed("server", "handshakes"), 1));
    assert!(mesh.metric(&in_use("server", "handshakes"), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_to_one_destination_are_limited_and_more_are_shed() {
    let settings = Settings {
        streams: 1,
        tunnels_per_destination: 2,
        ..Settings::default()
    };
    let pods = [
        captured("client"),
        captured("server"),
        captured("elsewhere"),
    ];
    let mesh = Mesh::with(settings, pods).await;
    let _servers = [1, 2].map(|at| echo(mesh.host(at).listen(PORT)));
    let to = mesh.host(1).at(PORT);
    let first = dial(&mesh, 0, to).await.expect("a connection");
    let _second = dial(&mesh, 0, to).await.expect("a connection");
    dial(&mesh, 0, to).await.expect_err("a third one");
    assert!(mesh.metric(&shed("client", "tunnels_per_destination"), 1));
    dial(&mesh, 0, mesh.host(2).at(PORT))
        .await
        .expect("another destination");
    drop(first);
    until("a stream is free", || mesh.tunnels(0).contains(&0)).await;
    // The server's side learns a moment later that the stream is over.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = dial(&mesh, 0, to).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_budget_of_bytes_is_used_up_sheds_what_is_new_and_recovers() {
    let settings = Settings {
        // Eight of the smallest windows.
        buffered_bytes: 128 * 1024,
        budget_wait: A_WHILE,
        ..Settings::default()
    };
    let pods = [
        captured("greedy"),
        captured("client"),
        captured("server"),
        captured("other"),
    ];
    let mesh = Mesh::with(settings, pods).await;
    let _servers = [2, 3].map(|at| echo(mesh.host(at).listen(PORT)));
    let (server, other) = (mesh.host(2).at(PORT), mesh.host(3).at(PORT));
    let _open = dial(&mesh, 1, server).await.expect("a connection");
    let mut greedy = Vec::new();
    for _ in 0..6 {
        greedy.push(dial(&mesh, 0, server).await.expect("a connection"));
    }
    assert!(mesh.metric(&in_use("server", "buffered_bytes"), 7 * 16 * 1024));
    assert!(!mesh.metric(&shed("server", "buffered_bytes"), 1));

    dial(&mesh, 1, server)
        .await
        .expect_err("there is no room for it");
    assert!(mesh.metric(&shed("server", "buffered_bytes"), 1));
    assert!(mesh.metric(&reached("server", "buffered_bytes"), 1));
    dial(&mesh, 1, other)
        .await
        .expect("another pod's connection");
    for stream in &mut greedy {
        ping(stream).await.expect("what is open goes on");
    }

    drop(greedy);
    until("it is given back", || {
        mesh.metric(&in_use("server", "buffered_bytes"), 16 * 1024)
    })
    .await;
    dial(&mesh, 1, server).await.expect("a connection");
}

/// Never reads.
async fn deaf(listener: TcpListener, streams: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    while all.len() < streams {
        all.push(listener.accept().await.expect("a connection").0);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_applications_that_do_not_read_is_bounded_and_counted() {
    const STREAMS: usize = 60;
    const LIMIT: usize = 1024 * 1024;
    let settings = Settings {
        buffered_bytes: LIMIT,
        ..Settings::default()
    };
    // One that is reached in plaintext, one through a tunnel.
    for server in [outside("server"), captured("server")] {
        let mesh = Mesh::with(settings, [captured("client"), server]).await;
        let listener = mesh.host(1).listen(PORT);
        let deaf = tokio::spawn(deaf(listener, STREAMS));
        let mut clients = Vec::new();
        for _ in 0..STREAMS {
            clients.push(
                mesh.host(0)
                    .dial(mesh.host(1).at(PORT))
                    .await
                    .expect("a connection"),
            );
        }
        let applications = deaf.await.expect("all of them come");
        // More than all the kernel's buffers together take.
        let writers: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                tokio::spawn(async move {
                    let chunk = vec![0; 64 * 1024];
                    while client.write_all(&chunk).await.is_ok() {}
                })
            })
            .collect();
        let used = || mesh.served(0).limits().budget().used();
        let mut last = usize::MAX;
        loop {
            // All are stuck when nothing changes any more.
            tokio::time::sleep(A_WHILE).await;
            let now = used();
            if now == std::mem::replace(&mut last, now) {
                break;
            }
        }
        assert!(last > 0, "something is held");
        assert!(last <= LIMIT, "{last} bytes are held");
        drop(applications);
        for writer in writers {
            writer.await.expect("the reset ends it");
        }
        until("nothing is held", || used() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_of_a_busy_stream_grows_and_is_given_back() {
    let pods = [captured("client"), captured("server")];
    let mesh = Mesh::new(pods).await;
    let _echo = echo(mesh.host(1).listen(PORT));
    let mut stream = dial(&mesh, 0, mesh.host(1).at(PORT))
        .await
        .expect("a connection");
    let used = |at: usize| mesh.served(at).limits().budget().used();
    assert_eq!([used(0), used(1)], [64 * 1024; 2]);
    let (mut read, mut write) = stream.split();
    let sending = async {
        let chunk = vec![0; 256 * 1024];
        while used(1) < 1024 * 1024 {
            write.write_all(&chunk).await?;
        }
        write.shutdown().await
    };
    let mut sink = tokio::io::sink();
    let receiving = tokio::io::copy(&mut read, &mut sink);
    let busy = async { tokio::try_join!(sending, receiving) };
    let (_, bytes) = timeout(Duration::from_secs(60), busy)
        .await
        .expect("in time")
        .expect("all of it");
    assert!(bytes > 1024 * 1024);
    until("nothing is held", || used(0) == 0 && used(1) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_series_go_with_the_pod() {
    let mut mesh = Mesh::new([captured("client"), captured("server")]).await;
    assert!(mesh.metric(&in_use("client", "connections"), 0));
    mesh.served.remove("sandbox-client");
    mesh.pods[0].pod = None;
    until("it is gone", || {
        !mesh.telemetry.encode().contains(r#"pod="client""#)
    })
    .await;
    assert!(mesh.metric(&in_use("server", "connections"), 0));
}
