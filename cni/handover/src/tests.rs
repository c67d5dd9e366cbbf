#![allow(clippy::unwrap_used)]

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::PathBuf,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use weft_api::handover::{Ack, AddPod, FromAgent, FromProxy, Hello, Pod, from_agent, from_proxy};

use super::*;

async fn pair(path: &std::path::Path) -> (Connection, Connection) {
    let listener = Listener::bind(path).unwrap();
    let (accepted, connected) = tokio::join!(listener.accept(), Connection::connect(path));
    (accepted.unwrap(), connected.unwrap())
}

fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    (dir, path)
}

fn add_pod(seq: u64) -> FromAgent {
    let pod = Pod {
        sandbox: "abc".into(),
        name: "web".into(),
        ..Pod::default()
    };
    let add = AddPod {
        pod: Some(pod),
        listeners: vec![1],
    };
    FromAgent {
        seq,
        message: Some(from_agent::Message::Add(add)),
    }
}

#[tokio::test]
async fn descriptors_arrive_and_work_after_the_sender_closed_its_own() {
    let (_dir, path) = socket_path();
    let (agent, proxy) = pair(&path).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    agent.send(&add_pod(7), &[listener.as_fd()]).await.unwrap();
    drop(listener);

    let (message, mut fds) = proxy.recv::<FromAgent>().await.unwrap().unwrap();
    assert_eq!(message, add_pod(7));
    assert_eq!(fds.len(), 1);
    let received = fds.remove(0);
    assert!(
        rustix::io::fcntl_getfd(&received)
            .unwrap()
            .contains(rustix::io::FdFlags::CLOEXEC)
    );
    let listener = TcpListener::from(received);
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hi").unwrap();
    let mut seen = [0; 2];
    listener.accept().unwrap().0.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hi");
}

#[tokio::test]
async fn both_ends_send_and_receive_at_once_and_keep_order_past_a_full_queue() {
    let (_dir, path) = socket_path();
    let (agent, proxy) = pair(&path).await;
    const COUNT: u64 = 500;
    let ack = |seq| FromProxy {
        message: Some(from_proxy::Message::Ack(Ack {
            seq,
            error: String::new(),
        })),
    };
    let sending = async {
        for seq in 1..=COUNT {
            agent.send(&add_pod(seq), &[]).await.unwrap();
        }
    };
    let answering = async {
        for seq in 1..=COUNT {
            let (message, _) = proxy.recv::<FromAgent>().await.unwrap().unwrap();
            assert_eq!(message.seq, seq);
            proxy.send(&ack(seq), &[]).await.unwrap();
        }
    };
    let reading = async {
        for seq in 1..=COUNT {
            assert_eq!(
                agent.recv::<FromProxy>().await.unwrap().unwrap().0,
                ack(seq)
            );
        }
    };
    tokio::join!(sending, answering, reading);
}

#[tokio::test]
async fn a_peer_that_closed_ends_the_stream_after_what_it_sent() {
    let (_dir, path) = socket_path();
    let (agent, proxy) = pair(&path).await;
    agent.send(&add_pod(1), &[]).await.unwrap();
    drop(agent);
    assert!(proxy.recv::<FromAgent>().await.unwrap().is_some());
    assert!(proxy.recv::<FromAgent>().await.unwrap().is_none());
    assert!(matches!(
        proxy.send(&add_pod(1), &[]).await,
        Err(HandoverError::Io { .. })
    ));
}

#[tokio::test]
async fn what_is_too_long_or_empty_or_has_too_many_descriptors_is_refused_unsent() {
    let (_dir, path) = socket_path();
    let (agent, proxy) = pair(&path).await;
    let mut long = add_pod(1);
    if let Some(from_agent::Message::Add(add)) = &mut long.message {
        add.pod.as_mut().unwrap().uid = "x".repeat(MAX_MESSAGE);
    }
    assert!(matches!(
        agent.send(&long, &[]).await,
        Err(HandoverError::Size(_))
    ));
    assert!(matches!(
        agent.send(&FromAgent::default(), &[]).await,
        Err(HandoverError::Size(0))
    ));
    let file = std::fs::File::open("/dev/null").unwrap();
    let many = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(
        agent.send(&add_pod(1), &many).await,
        Err(HandoverError::TooManyDescriptors(_))
    ));
    agent
        .send(&add_pod(2), &many[..MAX_DESCRIPTORS])
        .await
        .unwrap();
    let (message, fds) = proxy.recv::<FromAgent>().await.unwrap().unwrap();
    assert_eq!((message.seq, fds.len()), (2, MAX_DESCRIPTORS));
}

/// Sends past this crate's own limits, as a foreign peer might.
fn send_raw(peer: std::os::fd::BorrowedFd<'_>, bytes: usize, fds: &[std::os::fd::BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(fds));
    let bytes = vec![0; bytes];
    rustix::net::sendmsg(
        peer,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
}

/// The peer's write ends all closed is what a reader of the pipe sees as its end.
fn all_copies_are_closed(mut read: std::io::PipeReader) -> bool {
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).is_ok()
}

#[tokio::test]
async fn a_truncated_message_is_an_error_and_leaks_no_descriptor() {
    let (_dir, path) = socket_path();
    for (bytes, copies) in [(MAX_MESSAGE + 1, 2), (8, MAX_DESCRIPTORS + 8)] {
        let listener = Listener::bind(&path).unwrap();
        let peer = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            None,
        )
        .unwrap();
        rustix::net::connect(&peer, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
        let connection = listener.accept().await.unwrap();
        let (read, write) = std::io::pipe().unwrap();
        send_raw(peer.as_fd(), bytes, &vec![write.as_fd(); copies]);
        drop(write);
        assert!(matches!(
            connection.recv::<FromAgent>().await,
            Err(HandoverError::Truncated)
        ));
        assert!(all_copies_are_closed(read));
    }
}

#[tokio::test]
async fn a_message_that_is_no_protobuf_is_an_error() {
    let (_dir, path) = socket_path();
    let listener = Listener::bind(&path).unwrap();
    let peer = connection::seqpacket().unwrap();
    rustix::net::connect(&peer, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    let connection = listener.accept().await.unwrap();
    send_raw(peer.as_fd(), 3, &[peer.as_fd()]);
    assert!(matches!(
        connection.recv::<Hello>().await,
        Err(HandoverError::Decode(_))
    ));
}

#[tokio::test]
async fn only_a_stale_socket_file_is_replaced_and_only_the_owner_may_connect() {
    let (_dir, path) = socket_path();
    let first = Listener::bind(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(matches!(
        Listener::bind(&path),
        Err(HandoverError::InUse { .. })
    ));
    drop(first);
    let _second = Listener::bind(&path).unwrap();

    let (_dir, path) = socket_path();
    std::fs::write(&path, "kept").unwrap();
    assert!(matches!(
        Listener::bind(&path),
        Err(HandoverError::Socket { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"kept");
}
