//! HTTP/1.1 connections to one endpoint: idle ones wait in a stack, so the one that was used last
//! (the least likely to be closed by the backend just now) is used next, and surplus ones age.

use std::sync::{Arc, Weak};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;

use super::Destination;
use crate::{
    http::body::RequestBody,
    io::{ConnectError, Leaving},
    share,
};

/// Idle connections.
pub(super) struct Http1Pool {
    idle: Mutex<Vec<Idle>>,
    limit: usize,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    leaving: Leaving,
    since: Instant,
}

/// A connection that carries one request at a time. Dropped: it is closed.
pub(crate) struct Http1Lease {
    pub(crate) sender: SendRequest<RequestBody>,
    /// It has carried requests before.
    pub(crate) reused: bool,
    leaving: Leaving,
    pool: Weak<Http1Pool>,
}

impl Http1Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            idle: Mutex::default(),
            limit,
        }
    }

    /// An idle connection that is open as far as is known here.
    pub(super) fn idle(self: &Arc<Self>) -> Option<Http1Lease> {
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].sender.is_closed() || idle[at].leaving.is_leaving() {
                idle.remove(at);
            } else if idle[at].sender.is_ready() {
                let found = idle.remove(at);
                return Some(self.leased(found.sender, found.leaving, true));
            }
            // Else its last exchange is being wound up: it will be ready in a moment.
        }
        None
    }

    pub(super) async fn connect(
        self: &Arc<Self>,
        to: &Destination,
    ) -> Result<Http1Lease, ConnectError> {
        let link = to.connector.connect(&to.workload, to.address).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(to.limits.header_bytes)
            .handshake(TokioIo::new(link.stream))
            .await
            .map_err(|error| ConnectError::Io(to.address, error.to_string()))?;
        let address = to.address;
        share::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%address, %error, "HTTP/1.1 connection to a backend ended");
            }
        });
        Ok(self.leased(sender, link.leaving, false))
    }

    fn leased(
        self: &Arc<Self>,
        sender: SendRequest<RequestBody>,
        leaving: Leaving,
        reused: bool,
    ) -> Http1Lease {
        Http1Lease {
            sender,
            reused,
            leaving,
            pool: Arc::downgrade(self),
        }
    }

    /// Drops what is closed or idle since `before`; returns how many stay.
    pub(super) fn sweep(&self, before: Option<Instant>) -> usize {
        let mut idle = self.idle.lock();
        idle.retain(|it| {
            let rested = before.is_some_and(|before| it.since <= before);
            !rested && !it.sender.is_closed() && !it.leaving.is_leaving()
        });
        idle.len()
    }
}

impl Http1Lease {
    /// The exchange is complete: another may follow.
    pub(crate) fn give_back(self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        if self.sender.is_closed() || self.leaving.is_leaving() {
            return;
        }
        let mut idle = pool.idle.lock();
        if idle.len() < pool.limit {
            idle.push(Idle {
                sender: self.sender,
                leaving: self.leaving,
                since: Instant::now(),
            });
        }
    }
}
