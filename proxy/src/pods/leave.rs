//! How a pod of this proxy leaves: in flow the order and a time; out flow the orders to its
//! connections, and word when nothing is open any more.
//!
//! A pod that joins again while it leaves is a new [`Pod`] with the same sockets. What the earlier one
//! has open goes on beside it, and is part of it when it leaves in its turn: the redirect rules are
//! needed for as long as any of it is open.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::Pod;
use crate::drain::LINGER;

/// What closing may take beyond the time for which peers are waited for: a loaded machine must
/// get round to all of them.
const CLOSING: Duration = LINGER.saturating_mul(2);

impl Pod {
    /// Tells everything to end in order (GOAWAY, `connection: close`); byte streams go on.
    pub fn start_draining(&self) {
        self.drain.start();
        self.http().drain();
    }

    /// Lets what is open end by itself for `limit`, then closes it in order. Returns when
    /// nothing is open any more. Not to be called for a pod that [joined again](Pod::join_again).
    pub async fn leave(&self, limit: Duration) {
        self.start_draining();
        let ended = async {
            self.drained().await;
            // What was accepted at the last moment counts too.
            self.stop_accepting();
            self.acceptors.close();
            self.acceptors.wait().await;
            self.drained().await;
        };
        if timeout(limit, ended).await.is_err() {
            self.stop_accepting();
            tracing::info!(pod = %self.name(), open = self.open(), "connections are closed at the end of the drain time");
            for pod in self.earlier_ones() {
                pod.drain.close();
            }
            self.drain.close();
            // What its peers do not let end is reset.
            let _ = timeout(CLOSING, self.drained()).await;
        }
        for pod in self.earlier_ones() {
            pod.connector().pool().close().await;
        }
        self.connector().pool().close().await;
        self.stop();
    }

    /// Ready once nothing of the pod is open any more.
    pub async fn drained(&self) {
        for pod in self.earlier_ones() {
            pod.tasks.close();
            pod.tasks.wait().await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The pod, which was leaving, is in the mesh again as `next`: what is open here goes on there.
    pub(super) fn join_again(self: &Arc<Self>, next: &Pod) {
        self.stop_accepting();
        let mut earlier = self.earlier_ones();
        earlier.push(Arc::clone(self));
        earlier.retain(|pod| !pod.tasks.is_empty());
        *next.earlier.lock() = earlier;
        if !self.drain.is_closing() {
            self.joined_again.cancel();
        }
    }

    /// Ready when the pod, which was leaving, is in the mesh again.
    pub async fn joined_again(&self) {
        self.joined_again.cancelled().await;
    }

    /// Closes everything at once; byte streams are reset.
    pub fn stop(&self) {
        for pod in self.earlier_ones() {
            pod.kill();
        }
        self.kill();
    }

    fn kill(&self) {
        self.stop_accepting();
        self.drain.start();
        self.kill.cancel();
        self.share.close();
    }

    /// Connections and CONNECTs that are open.
    pub fn open(&self) -> usize {
        let earlier = self.earlier_ones();
        self.tasks.len() + earlier.iter().map(|pod| pod.tasks.len()).sum::<usize>()
    }

    fn earlier_ones(&self) -> Vec<Arc<Pod>> {
        self.earlier.lock().clone()
    }
}
