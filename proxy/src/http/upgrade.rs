//! After a 101: the connection is no longer HTTP. Bytes flow both ways between the client's and the
//! backend's connection, each direction until its own end.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    time::timeout,
};
use tracing::debug;

use super::exchange::{Exchange, Outcome};
use crate::{
    drain::{Drain, LINGER},
    io::Io,
};

/// Joins two connections as soon as both are free of HTTP; `exchange` ends with them.
/// What is left when `drain` orders to close gets its end in both directions.
pub(super) async fn join(
    client: OnUpgrade,
    backend: OnUpgrade,
    mut exchange: Box<Exchange>,
    drain: Drain,
) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            debug!(%error, "a change of protocols was not completed");
            return exchange.finish(Outcome::ClientGone);
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    let copied = tokio::select! {
        biased;
        copied = copy_bidirectional(&mut client, &mut backend) => copied,
        () = drain.closing() => {
            tokio::join!(close(&mut client), close(&mut backend));
            return exchange.finish(Outcome::Drained);
        }
    };
    match copied {
        Ok((_, to_client)) => {
            exchange.add_sent(to_client);
            exchange.finish(Outcome::Complete);
        }
        Err(error) => {
            debug!(%error, "a connection broke after a change of protocols");
            exchange.finish(Outcome::BackendBroke);
        }
    }
}

/// Sends an end, and waits a while for the peer's.
async fn close(io: &mut impl Io) {
    let ended = async {
        io.shutdown().await?;
        let mut late = [0; 4096];
        while io.read(&mut late).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A peer that does not end, or is gone, has been told.
    let _ = timeout(LINGER, ended).await;
}
