//! What becomes of connections that wait in a pod's listening sockets.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use common::Pair;
use weft_cni::listeners::Listeners;

const CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn what_waits_in_the_sockets_of_a_former_agent_moves_to_those_of_the_next() {
    let pair = Pair::new();
    let netns = pair.pod.open();
    let former = Listeners::make(&netns).unwrap();
    let next = Listeners::make(&netns).unwrap();
    let to: SocketAddr = "10.9.0.2:15008".parse().unwrap();
    // The kernel spreads them over both.
    let clients: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            pair.node
                .run(|| TcpStream::connect_timeout(&to, PATIENCE))
                .unwrap()
        })
        .collect();
    drop(former);

    let hbone: OwnedFd = next.fds().nth(2).unwrap().try_clone_to_owned().unwrap();
    let listener = TcpListener::from(hbone);
    let begin = Instant::now();
    let mut accepted = 0;
    while accepted < CONNECTIONS {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.write_all(b"!").unwrap();
                accepted += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(begin.elapsed() < PATIENCE, "only {accepted} came");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}
