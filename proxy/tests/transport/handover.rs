//! The agent's protocol, with an agent of the test's own.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_api::handover::{
    AddPod, DrainPod, FromAgent, FromProxy, Held, ListenerKind, Pod, RemovePod, SnapshotSent,
    UpdatePod, from_agent::Message, from_proxy,
};
use weft_handover::{Connection, Listener};
use weft_proxy::{admin::Readiness, handover::Handover};

use crate::{
    l4::pair,
    mesh::{Mesh, NAMESPACE, Spec, UNSIGNED, captured, octets, outside, until},
};

const PORT: u16 = 8080;
/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(20);

struct Agent {
    listener: Listener,
    connection: Connection,
    readiness: Arc<Readiness>,
    seq: u64,
    /// What the proxy gave back when it connected.
    held: Vec<(Held, Vec<OwnedFd>)>,
    _proxy: DropGuard,
    _folder: TempDir,
}

impl Agent {
    /// A proxy that serves the mesh's pods, once it is told to.
    async fn new(mesh: &Mesh) -> Self {
        Self::with(mesh, watch::channel(true).1).await
    }

    /// Waits for a proxy that dials as soon as it is `configured`.
    async fn with(mesh: &Mesh, configured: watch::Receiver<bool>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("handover.sock");
        let listener = Listener::bind(&path).expect("a socket");
        let readiness = Readiness::new();
        let proxy = Handover {
            path,
            pods: Arc::clone(&mesh.served),
            state: Arc::clone(&mesh.state),
            configured,
            incarnation: "test".to_owned(),
            received: readiness.condition("pods", "none were sent"),
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(proxy.run(shutdown.clone()));
        let mut agent = Self {
            connection: timeout(LONG, listener.accept())
                .await
                .expect("in time")
                .expect("a proxy"),
            listener,
            readiness,
            seq: 0,
            held: Vec::new(),
            _proxy: shutdown.drop_guard(),
            _folder: folder,
        };
        agent.hello().await;
        agent
    }

    /// The agent loses the connection, and the proxy dials again by itself.
    async fn reconnect(mut self) -> Self {
        drop(self.connection);
        self.connection = timeout(LONG, self.listener.accept())
            .await
            .expect("in time")
            .expect("a proxy");
        self.hello().await;
        self
    }

    async fn hello(&mut self) {
        match self.receive().await {
            from_proxy::Message::Hello(hello) => {
                assert_eq!(hello.protocol, 1);
                self.held.clear();
                for _ in 0..hello.held {
                    match self.receive_with_descriptors().await {
                        (from_proxy::Message::Held(held), fds) => self.held.push((held, fds)),
                        other => panic!("{other:?} instead of a pod that is held"),
                    }
                }
            }
            other => panic!("{other:?} instead of a hello"),
        }
    }

    async fn receive(&self) -> from_proxy::Message {
        self.receive_with_descriptors().await.0
    }

    async fn receive_with_descriptors(&self) -> (from_proxy::Message, Vec<OwnedFd>) {
        let received = timeout(LONG, self.connection.recv::<FromProxy>()).await;
        let (message, descriptors) = received
            .expect("in time")
            .expect("a message")
            .expect("an open socket");
        (message.message.expect("a known message"), descriptors)
    }

    /// Sends, and returns the error of the Ack.
    async fn ask(&mut self, message: Message, descriptors: &[OwnedFd]) -> String {
        self.seq += 1;
        let message = FromAgent {
            seq: self.seq,
            message: Some(message),
        };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.connection
            .send(&message, &borrowed)
            .await
            .expect("it is sent");
        match self.receive().await {
            from_proxy::Message::Ack(ack) => {
                assert_eq!(ack.seq, self.seq);
                ack.error
            }
            other => panic!("{other:?} instead of an ack"),
        }
    }

    /// Orders the drain of the pod "server".
    async fn drain_server(&mut self, timeout_ms: u64) {
        let drain = DrainPod {
            sandbox: "sandbox-server".to_owned(),
            timeout_ms,
        };
        assert_eq!(self.ask(Message::Drain(drain), &[]).await, "");
    }

    async fn add(&mut self, mesh: &Mesh, at: usize) -> String {
        let (netns, listeners) = mesh.descriptors(at);
        let (kinds, listeners): (Vec<ListenerKind>, Vec<OwnedFd>) = listeners.into_iter().unzip();
        let add = AddPod {
            pod: Some(pod(mesh, at)),
            listeners: kinds.into_iter().map(Into::into).collect(),
        };
        let descriptors: Vec<_> = std::iter::once(netns).chain(listeners).collect();
        self.ask(Message::Add(add), &descriptors).await
    }
}

fn pod(mesh: &Mesh, at: usize) -> Pod {
    let info = mesh.info(at);
    Pod {
        sandbox: info.sandbox,
        uid: info.uid,
        namespace: NAMESPACE.to_owned(),
        name: info.name.to_string(),
        service_account: info.service_account,
        addresses: info
            .addresses
            .into_iter()
            .map(|ip| octets(ip).into())
            .collect(),
        strict: info.strict,
        mark: info.mark,
    }
}

fn unserved(name: &'static str) -> Spec {
    Spec {
        served: false,
        ..captured(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_pod_is_served_and_has_its_certificate() {
    let mesh = Mesh::new([outside("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let pod = mesh.served.get("sandbox-server").expect("the pod");
    assert!(pod.identity().svid().svid().is_some());
    assert_eq!(agent.readiness.reasons(), ["pods: none were sent"]);
    assert_eq!(
        agent.ask(Message::SnapshotSent(SnapshotSent {}), &[]).await,
        ""
    );
    assert!(agent.readiness.reasons().is_empty());
    let listener = mesh.host(1).listen(PORT);
    let (client, accepted) =
        tokio::join!(mesh.host(0).dial(mesh.host(1).at(PORT)), listener.accept());
    client.expect("a connection");
    accepted.expect("a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_is_not_ready_before_each_of_the_agents_pods_has_its_certificate_or_is_gone() {
    let unsigned = Spec {
        account: UNSIGNED,
        ..unserved("unsigned")
    };
    let mesh = Mesh::new([unserved("server"), unsigned]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 0).await, "");
    assert!(agent.add(&mesh, 1).await.contains("no certificate"));
    let sent = Message::SnapshotSent(SnapshotSent {});
    assert_eq!(agent.ask(sent, &[]).await, "");
    assert_eq!(agent.readiness.reasons(), ["pods: none were sent"]);
    let remove = RemovePod {
        sandbox: "sandbox-unsigned".to_owned(),
    };
    assert_eq!(agent.ask(Message::Remove(remove), &[]).await, "");
    let ready = async {
        while !agent.readiness.reasons().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, ready).await.expect("it is ready");
}

/// What tells one open file from another.
fn inodes(descriptors: &[OwnedFd]) -> Vec<u64> {
    let inode = |fd| nix::sys::stat::fstat(fd).expect("an open file").st_ino;
    descriptors.iter().map(inode).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gives_an_agent_that_comes_back_what_it_holds_and_only_that() {
    let mesh = Mesh::new([unserved("server"), unserved("leaves")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert!(agent.held.is_empty());
    assert_eq!(agent.add(&mesh, 0).await, "");
    assert_eq!(agent.add(&mesh, 1).await, "");
    let remove = RemovePod {
        sandbox: "sandbox-leaves".to_owned(),
    };
    assert_eq!(agent.ask(Message::Remove(remove), &[]).await, "");
    let (netns, listeners) = mesh.descriptors(0);
    let (kinds, listeners): (Vec<i32>, Vec<_>) = listeners
        .into_iter()
        .map(|(kind, fd)| (i32::from(kind), fd))
        .unzip();
    let own: Vec<_> = std::iter::once(netns).chain(listeners).collect();
    for _ in 0..2 {
        agent = agent.reconnect().await;
        let [(held, descriptors)] = &agent.held[..] else {
            panic!("{:?}", agent.held)
        };
        assert_eq!(held.sandbox, "sandbox-server");
        assert_eq!(held.listeners, kinds);
        assert_eq!(inodes(descriptors), inodes(&own));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_ends_takes_no_new_pod_and_still_says_when_one_is_drained() {
    let mesh = Mesh::new([unserved("server"), unserved("late")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 0).await, "");
    mesh.served.shut_down(Duration::ZERO).await;
    let refusal = agent.add(&mesh, 1).await;
    assert!(refusal.contains("its successor"), "{refusal}");
    agent.drain_server(60_000).await;
    assert!(matches!(
        agent.receive().await,
        from_proxy::Message::Drained(drained) if drained.sandbox == "sandbox-server"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_all_of_its_descriptors_is_refused_by_name() {
    let mesh = Mesh::new([unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    let add = AddPod {
        pod: Some(pod(&mesh, 0)),
        listeners: vec![ListenerKind::Outbound.into()],
    };
    let only = File::open("/dev/null").expect("a file").into();
    let error = agent.ask(Message::Add(add), &[only]).await;
    assert!(error.contains("shop/server"), "{error}");
    assert!(mesh.served.get("sandbox-server").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_word_on_the_mode_counts_until_the_configuration_knows_the_pod() {
    let mesh = Mesh::new([outside("client"), unserved("server")]).await;
    mesh.state.apply(weft_proxy::state::Delta {
        kind: weft_proxy::state::Kind::Workload,
        updated: vec![],
        removed: vec!["shop/server/uid-server".to_owned()],
    });
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let served = mesh.served.get("sandbox-server").expect("the pod");
    assert!(!served.is_strict());
    let strict = Pod {
        strict: true,
        ..pod(&mesh, 1)
    };
    assert_eq!(
        agent
            .ask(Message::Update(UpdatePod { pod: Some(strict) }), &[])
            .await,
        ""
    );
    assert!(served.is_strict());
    mesh.describe(1, |_| {});
    assert!(!served.is_strict());
    // The last pod of this address says nothing of the one that is there now.
    mesh.describe(1, |workload| workload.name = "earlier".to_owned());
    assert!(served.is_strict());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pod_serves_what_is_open_until_it_ends() {
    let mesh = Mesh::new([outside("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let (client, mut server, _) = pair(&mesh, 0, mesh.host(1).at(PORT)).await;
    agent.drain_server(60_000).await;
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    drop(server);
    match agent.receive().await {
        from_proxy::Message::Drained(drained) => assert_eq!(drained.sandbox, "sandbox-server"),
        other => panic!("{other:?} instead of drained"),
    }
    let remove = RemovePod {
        sandbox: "sandbox-server".to_owned(),
    };
    assert_eq!(agent.ask(Message::Remove(remove), &[]).await, "");
    assert!(mesh.served.get("sandbox-server").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_is_served_before_the_configuration_is_there() {
    let mesh = Mesh::new([unserved("server")]).await;
    let (synced, configured) = watch::channel(false);
    let mut dialled = Box::pin(Agent::with(&mesh, configured));
    let early = timeout(Duration::from_millis(300), &mut dialled).await;
    assert!(early.is_err(), "the agent was dialled");
    synced.send_replace(true);
    let mut agent = dialled.await;
    assert_eq!(agent.add(&mesh, 0).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_with_a_drain_that_a_pod_thinks_better_of_until_the_pod_leaves_again() {
    let mesh = Mesh::new([outside("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let listener = mesh.host(1).listen(PORT);
    let to = mesh.host(1).at(PORT);
    let old = tokio::join!(mesh.host(0).dial(to), listener.accept());
    let drain = |timeout_ms| {
        Message::Drain(DrainPod {
            sandbox: "sandbox-server".to_owned(),
            timeout_ms,
        })
    };
    assert_eq!(agent.ask(drain(300), &[]).await, "");
    assert_eq!(agent.add(&mesh, 1).await, "");
    let mut open = Vec::new();
    for _ in 0..20 {
        let (client, accepted) = tokio::join!(mesh.host(0).dial(to), listener.accept());
        open.push((client.expect("one"), accepted.expect("one").0));
    }
    open.push((old.0.expect("one"), old.1.expect("one").0));
    let silence = timeout(Duration::from_secs(1), agent.receive()).await;
    assert!(silence.is_err(), "{silence:?}");
    for (client, server) in &mut open {
        client.write_all(b"x").await.expect("it is open");
        server.read_exact(&mut [0; 1]).await.expect("it is open");
    }
    // The redirects are needed as long as anything is open, be it from before.
    assert_eq!(agent.ask(drain(60_000), &[]).await, "");
    let last = open.pop().expect("the oldest");
    drop(open);
    let silence = timeout(Duration::from_millis(300), agent.receive()).await;
    assert!(silence.is_err(), "{silence:?}");
    drop(last);
    assert!(matches!(
        agent.receive().await,
        from_proxy::Message::Drained(_)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_added_again_goes_on_as_it_is() {
    let mesh = Mesh::new([unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 0).await, "");
    let mut agent = agent.reconnect().await;
    let add = AddPod {
        pod: Some(pod(&mesh, 0)),
        listeners: vec![ListenerKind::Outbound.into()],
    };
    let only = File::open("/dev/null").expect("a file").into();
    assert_ne!(agent.ask(Message::Add(add), &[only]).await, "");
    assert_eq!(
        agent.ask(Message::SnapshotSent(SnapshotSent {}), &[]).await,
        ""
    );
    assert!(mesh.served.get("sandbox-server").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_within_the_drain_time_gets_an_end_in_order_both_ways() {
    let mesh = Mesh::new([captured("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let (client, server, _) = pair(&mesh, 0, mesh.host(1).at(PORT)).await;
    let mut ends = [client, server];
    for end in &mut ends {
        end.write_all(b"before").await.expect("it is sent");
    }
    let begin = std::time::Instant::now();
    agent.drain_server(100).await;
    for end in &mut ends {
        let mut all = Vec::new();
        let read = timeout(LONG, end.read_to_end(&mut all)).await;
        read.expect("in time").expect("an end, no reset");
        assert_eq!(all, b"before");
        // What it still says is not answered with a reset.
        end.write_all(b"late").await.expect("it is sent");
        end.shutdown().await.expect("its own end");
    }
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert!(matches!(
        agent.receive().await,
        from_proxy::Message::Drained(_)
    ));
    let tunnels = || mesh.tunnels(0).iter().sum::<usize>();
    until("no stream is left in the tunnel", || tunnels() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_on_its_way_when_the_drain_time_is_over_arrives_before_the_end() {
    let mesh = Mesh::new([captured("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let (mut client, mut server, _) = pair(&mesh, 0, mesh.host(1).at(PORT)).await;
    client.write_all(b"question").await.expect("it is sent");
    let mut question = [0; 8];
    server.read_exact(&mut question).await.expect("it arrives");
    agent.drain_server(100).await;
    // The application thinks for longer than the drain lasts.
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.write_all(b"answer").await.expect("it is sent");
    let mut all = Vec::new();
    let read = timeout(LONG, client.read_to_end(&mut all)).await;
    read.expect("in time").expect("an end, no reset");
    assert_eq!(all, b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_an_end_does_not_hold_up_the_drain() {
    let mesh = Mesh::new([outside("client"), unserved("server")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    let listener = mesh.host(1).listen(PORT);
    let to = mesh.host(1).at(PORT);
    let open = tokio::join!(mesh.host(0).dial(to), listener.accept());
    agent.drain_server(100).await;
    assert!(matches!(
        agent.receive().await,
        from_proxy::Message::Drained(_)
    ));
    assert!(open.0.is_ok() && open.1.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stay_served_while_the_agent_is_away_and_stale_ones_go_when_it_is_back() {
    let mesh = Mesh::new([outside("client"), unserved("stays"), unserved("goes")]).await;
    let mut agent = Agent::new(&mesh).await;
    assert_eq!(agent.add(&mesh, 1).await, "");
    assert_eq!(agent.add(&mesh, 2).await, "");
    let listener = mesh.host(1).listen(PORT);
    let mut agent = agent.reconnect().await;
    let dialled = mesh.host(0).dial(mesh.host(1).at(PORT));
    let (client, accepted) = tokio::join!(dialled, listener.accept());
    client.expect("a connection");
    accepted.expect("a connection");

    assert_eq!(agent.add(&mesh, 1).await, "");
    assert!(mesh.served.get("sandbox-goes").is_some());
    assert_eq!(
        agent.ask(Message::SnapshotSent(SnapshotSent {}), &[]).await,
        ""
    );
    assert!(mesh.served.get("sandbox-goes").is_none());
    assert!(mesh.served.get("sandbox-stays").is_some());
    until("the pod is accepted for again", || {
        mesh.served.all().iter().all(|pod| pod.is_accepting())
    })
    .await;
    let dialled = mesh.host(0).dial(mesh.host(1).at(PORT));
    let (client, accepted) = tokio::join!(dialled, listener.accept());
    client.expect("a connection");
    accepted.expect("a connection");
}
