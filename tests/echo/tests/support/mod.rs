//! A running server on loopback ports of its own.

#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft_echo::answer::Identity;
use weft_echo::server::{Listen, Protocol, Server};

pub struct Started {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub tcp: SocketAddr,
    pub speak_first: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<usize>,
}

pub async fn start() -> Started {
    let identity = Identity {
        pod: "test-pod".into(),
        namespace: "shop".into(),
        version: "v1".into(),
    };
    let loopback = Listen::At("127.0.0.1:0".parse().unwrap());
    let protocols = [
        Protocol::Http,
        Protocol::Grpc,
        Protocol::Tcp,
        Protocol::SpeakFirst,
    ];
    let server = Server::bind(identity, protocols.map(|protocol| (protocol, loopback))).unwrap();
    let addresses: Vec<_> = server
        .addresses()
        .unwrap()
        .into_iter()
        .map(|(_, at)| at)
        .collect();
    let [http, grpc, tcp, speak_first] = addresses[..] else {
        panic!("four ports were bound")
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(server.run(shutdown.clone(), Duration::from_secs(5)));
    Started {
        http,
        grpc,
        tcp,
        speak_first,
        shutdown,
        task,
    }
}

pub async fn until_end(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .expect("the stream should end")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
