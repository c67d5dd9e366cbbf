//! The connection to one proxy: hello, then messages out and acknowledgements in, at once.

use std::{collections::HashMap, os::fd::AsFd, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use tracing::{debug, info, warn};
use weft_api::handover::{FromAgent, FromProxy, from_proxy};
use weft_handover::{Connection, HandoverError, Listener};

use super::{Outgoing, Proxies, Regarding, Stand};

/// Version of the hand-over protocol.
const PROTOCOL: u32 = 1;
/// A proxy says hello at once; who doesn't is no proxy.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A proxy reads its socket at once whatever else it does; one that doesn't hangs.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a pod is offered again to a proxy that could not take it (often for want of a certificate).
const OFFER_AGAIN: Duration = Duration::from_secs(1);

impl Proxies {
    /// Accepts proxies for ever.
    pub(in crate::agent) async fn serve(self: Arc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(connection) => {
                    let proxies = self.clone();
                    tokio::spawn(async move { proxies.connected(connection).await });
                }
                Err(error) => {
                    warn!(%error, "a proxy could not connect");
                    // Out of descriptors, most likely: give them time to come free.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connected(self: Arc<Self>, connection: Connection) {
        let hello = match timeout(HELLO_TIMEOUT, connection.recv::<FromProxy>()).await {
            Ok(Ok(Some((
                FromProxy {
                    message: Some(from_proxy::Message::Hello(hello)),
                },
                _,
            )))) => hello,
            Ok(Ok(None)) => return,
            other => {
                warn!(
                    ?other,
                    "who connected to the hand-over socket did not say hello"
                );
                return;
            }
        };
        if hello.protocol != PROTOCOL {
            warn!(
                protocol = hello.protocol,
                version = hello.version,
                "a proxy speaks another version of the hand-over protocol (this agent: 1); upgrade the older of the two"
            );
            return;
        }
        info!(
            version = hello.version,
            incarnation = hello.incarnation,
            "proxy connected"
        );
        if let Err(error) = self.take_back(hello.held, &connection).await {
            warn!(%error, "a proxy did not give back what it holds");
            return;
        }
        // An error would mean that this agent ends.
        let mut complete = self.complete.subscribe();
        let _ = complete.wait_for(|complete| *complete).await;
        let (outbox, queue) = mpsc::unbounded_channel();
        let id = self.admit(hello, outbox);
        let pending = Mutex::new(HashMap::new());
        let ended = tokio::select! {
            ended = write(&connection, queue, &pending) => ended,
            ended = self.read(id, &connection, &pending) => ended,
        };
        match ended {
            Ok(()) => info!(proxy = id, "proxy disconnected"),
            Err(error) => warn!(proxy = id, %error, "the connection to a proxy broke"),
        }
        self.dismiss(id);
    }

    /// Receives what the proxy holds already.
    async fn take_back(&self, pods: u32, connection: &Connection) -> Result<(), HandoverError> {
        let receiving = async {
            for _ in 0..pods {
                match connection.recv::<FromProxy>().await? {
                    Some((message, descriptors)) => match message.message {
                        Some(from_proxy::Message::Held(held)) => {
                            self.returns.put(held, descriptors);
                        }
                        other => debug!(?other, "a message that is not expected here"),
                    },
                    None => break,
                }
            }
            Ok(())
        };
        timeout(HELLO_TIMEOUT, receiving)
            .await
            .unwrap_or_else(|elapsed| {
                Err(HandoverError::Io {
                    what: "the proxy announced more pods than it sent",
                    source: elapsed.into(),
                })
            })
    }

    async fn read(
        self: &Arc<Self>,
        id: u64,
        connection: &Connection,
        pending: &Mutex<HashMap<u64, Regarding>>,
    ) -> Result<(), HandoverError> {
        while let Some((message, _)) = connection.recv::<FromProxy>().await? {
            match message.message {
                Some(from_proxy::Message::Ack(ack)) => {
                    let regarding = pending.lock().remove(&ack.seq);
                    match regarding {
                        Some(regarding) => self.acknowledged(id, regarding, ack.error),
                        None => {
                            debug!(proxy = id, seq = ack.seq, "acknowledgement of nothing sent")
                        }
                    }
                }
                Some(from_proxy::Message::Drained(drained)) => {
                    self.stand(id, &drained.sandbox, Stand::Draining, Stand::Drained);
                }
                Some(from_proxy::Message::Hello(_) | from_proxy::Message::Held(_)) | None => {
                    debug!(proxy = id, "a message that is not expected here");
                }
            }
        }
        Ok(())
    }

    fn acknowledged(self: &Arc<Self>, id: u64, regarding: Regarding, error: String) {
        match regarding {
            Regarding::Add(sandbox) if error.is_empty() => {
                self.stand(id, &sandbox, Stand::Offered, Stand::Serving);
            }
            Regarding::Add(sandbox) => {
                warn!(
                    proxy = id,
                    sandbox, error, "a proxy can't serve a pod; offering it again"
                );
                self.stand(id, &sandbox, Stand::Offered, Stand::Refused(error));
                let proxies = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(OFFER_AGAIN).await;
                    proxies.offer_again(id, &sandbox);
                });
            }
            // A proxy that does not know the pod has nothing to drain.
            Regarding::Drain(sandbox) if !error.is_empty() => {
                self.stand(id, &sandbox, Stand::Draining, Stand::Drained);
            }
            _ if !error.is_empty() => warn!(proxy = id, error, "a proxy refused a message"),
            _ => {}
        }
    }
}

async fn write(
    connection: &Connection,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    pending: &Mutex<HashMap<u64, Regarding>>,
) -> Result<(), HandoverError> {
    let mut seq = 0;
    while let Some(Outgoing {
        message,
        offer,
        regarding,
    }) = queue.recv().await
    {
        seq += 1;
        pending.lock().insert(seq, regarding);
        let fds: Vec<_> = offer
            .iter()
            .flat_map(|offer| std::iter::once(offer.netns.as_fd()).chain(offer.listeners.fds()))
            .collect();
        let message = FromAgent {
            seq,
            message: Some(message),
        };
        match timeout(SEND_TIMEOUT, connection.send(&message, &fds)).await {
            Ok(sent) => sent?,
            Err(elapsed) => {
                return Err(HandoverError::Io {
                    what: "the proxy does not read its socket; is it hanging",
                    source: elapsed.into(),
                });
            }
        }
    }
    Ok(())
}
