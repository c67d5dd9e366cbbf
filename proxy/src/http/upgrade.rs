//! After a 101: the connection is no longer HTTP. Bytes flow both ways between the client's and the
//! backend's connection, each direction until its own end.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tracing::debug;

use super::exchange::{Exchange, Outcome};

/// Joins two connections as soon as both are free of HTTP; `exchange` ends with them.
pub(super) async fn join(client: OnUpgrade, backend: OnUpgrade, mut exchange: Box<Exchange>) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            debug!(%error, "a change of protocols was not completed");
            return exchange.finish(Outcome::ClientGone);
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    match copy_bidirectional(&mut client, &mut backend).await {
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
