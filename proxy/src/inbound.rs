//! Plaintext that reaches a pod. In flow connections that its redirects caught; out they flow to
//! the application from the client's own address, or are reset where mutual TLS is demanded.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use crate::{
    copy::{TcpSide, copy},
    pods::Pod,
    report::{Failure, Record},
    settings::is_own_port,
    socket::{self, Source},
    telemetry::Tunnel,
};

/// Serves one captured connection until it ends.
pub async fn serve(pod: Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let peer = socket::canonical(peer);
    let mut record = Record::inbound(peer, Tunnel::Plaintext);
    let end = pod.end_of_plaintext();
    match open(&pod, &stream, peer, &mut record).await {
        Ok(application) => {
            pod.report().opened(&mut record);
            let budget = pod.limits().budget();
            let (client, server) = (
                TcpSide::new(stream, budget),
                TcpSide::new(application, budget),
            );
            tokio::select! {
                copied = copy(client, server, pod.drain()) => record.copied(copied),
                () = end.cancelled() => {
                    let reason = format!("{} demands mutual TLS since", pod.name());
                    record.failed(Failure::refused("became_strict", reason));
                }
            }
        }
        Err(failure) => {
            socket::reset_on_close(&stream);
            record.failed(failure);
        }
    }
    pod.report().finished(record);
}

async fn open(
    pod: &Pod,
    stream: &TcpStream,
    peer: SocketAddr,
    record: &mut Record,
) -> Result<TcpStream, Failure> {
    let destination = socket::original_destination(stream).map_err(|error| {
        Failure::new(
            "not_redirected",
            format!("no original destination: {error}"),
        )
    })?;
    record.destination = destination;
    pod.describe_inbound(record);
    if !pod.has_address(destination.ip()) || is_own_port(destination.port()) {
        let reason = format!("{destination} is not an application of {}", pod.name());
        return Err(Failure::refused("not_served", reason));
    }
    if pod.is_strict() {
        let reason = format!(
            "{} demands mutual TLS for {destination}: put the client into the mesh, or set weft.dev/mtls: permissive",
            pod.name()
        );
        return Err(Failure::refused("strict_plaintext", reason));
    }
    let settings = pod.settings();
    socket::connect(
        pod.netns(),
        Source::Transparent(peer.ip()),
        destination,
        settings.connect,
        settings.liveness(),
    )
    .await
    .map_err(Failure::from)
}
