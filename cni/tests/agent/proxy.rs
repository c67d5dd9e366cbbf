//! A proxy that only answers with its name and the kind of the listener that it was reached by.

use std::{
    collections::HashMap,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};
use weft_api::handover::{
    Ack, AddPod, Drained, FromAgent, FromProxy, Held, Hello, from_agent::Message, from_proxy,
};
use weft_handover::Connection;

use crate::harness::{PATIENCE, answer_with};

/// What the proxy shall say to an AddPod: an error, or nothing at all.
pub type Answer = Box<dyn FnMut(&AddPod) -> Option<String> + Send>;

/// Descriptors of pods, by sandbox: what they are for, the network namespace, the sockets.
pub type Pods = HashMap<String, (Vec<i32>, Vec<OwnedFd>)>;

pub struct Proxy {
    /// What the agent sent, in order.
    pub received: mpsc::UnboundedReceiver<Message>,
    /// What it holds.
    pub holds: Arc<Mutex<Pods>>,
    drains: Arc<AtomicBool>,
    serving: Arc<Mutex<HashMap<String, Vec<JoinHandle<()>>>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        for task in self.serving.lock().values().flatten() {
            task.abort();
        }
    }
}

impl Proxy {
    pub async fn start(path: &Path, name: &'static str) -> Self {
        Self::start_with(path, name, Box::new(|_| Some(String::new()))).await
    }

    pub async fn start_with(path: &Path, name: &'static str, answer: Answer) -> Self {
        Self::holding(path, name, answer, Pods::new()).await
    }

    /// One that gives back what it holds.
    pub async fn holding(path: &Path, name: &'static str, mut answer: Answer, held: Pods) -> Self {
        let connection = Connection::connect(path).await.unwrap();
        let hello = Hello {
            protocol: 1,
            version: name.into(),
            incarnation: name.into(),
            held: held.len() as u32,
        };
        say(&connection, from_proxy::Message::Hello(hello), &[]).await;
        for (sandbox, (listeners, descriptors)) in held {
            let held = Held { sandbox, listeners };
            say(&connection, from_proxy::Message::Held(held), &descriptors).await;
        }
        let holds: Arc<Mutex<Pods>> = Arc::default();
        let held = holds.clone();
        let drains = Arc::new(AtomicBool::new(true));
        let may_drain = drains.clone();
        let (sender, received) = mpsc::unbounded_channel();
        let serving: Arc<Mutex<HashMap<String, Vec<JoinHandle<()>>>>> = Arc::default();
        let pods = serving.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some((message, fds))) = connection.recv::<FromAgent>().await {
                let FromAgent {
                    seq,
                    message: Some(message),
                } = message
                else {
                    continue;
                };
                let mut error = Some(String::new());
                match &message {
                    Message::Add(add) => {
                        assert_eq!(fds.len(), 1 + add.listeners.len());
                        error = answer(add);
                        if error.as_deref() == Some("") {
                            let copies = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
                            let sandbox = add.pod.clone().unwrap().sandbox;
                            held.lock().insert(sandbox, (add.listeners.clone(), copies));
                            let accept = |(fd, kind)| {
                                let listener =
                                    tokio::net::TcpListener::from_std(TcpListener::from(fd))
                                        .unwrap();
                                answer_with(listener, format!("{name} {kind}"))
                            };
                            let listeners = fds.into_iter().skip(1);
                            let tasks = listeners.zip(add.listeners.clone()).map(accept).collect();
                            pods.lock().insert(add.pod.clone().unwrap().sandbox, tasks);
                        }
                    }
                    Message::Remove(remove) => {
                        for task in pods.lock().remove(&remove.sandbox).unwrap_or_default() {
                            task.abort();
                        }
                    }
                    _ => {}
                }
                let drained = match &message {
                    Message::Drain(drain) => may_drain
                        .load(Ordering::Relaxed)
                        .then(|| drain.sandbox.clone()),
                    _ => None,
                };
                let _ = sender.send(message);
                if let Some(error) = error {
                    say(
                        &connection,
                        from_proxy::Message::Ack(Ack { seq, error }),
                        &[],
                    )
                    .await;
                }
                if let Some(sandbox) = drained {
                    say(
                        &connection,
                        from_proxy::Message::Drained(Drained { sandbox }),
                        &[],
                    )
                    .await;
                }
            }
        });
        Self {
            received,
            holds,
            drains,
            serving,
            task,
        }
    }

    /// From now on a pod never has drained.
    pub fn never_drains(&self) {
        self.drains.store(false, Ordering::Relaxed);
    }

    /// Ends it, and waits until its sockets are closed.
    pub async fn stop(mut self) {
        self.holds.lock().clear();
        self.task.abort();
        let _ = (&mut self.task).await;
        let serving = std::mem::take(&mut *self.serving.lock());
        for task in serving.into_values().flatten() {
            task.abort();
            let _ = task.await;
        }
    }

    pub async fn next(&mut self) -> Message {
        tokio::time::timeout(PATIENCE, self.received.recv())
            .await
            .unwrap()
            .unwrap()
    }
}

async fn say(connection: &Connection, message: from_proxy::Message, descriptors: &[OwnedFd]) {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let _ = connection
        .send(
            &FromProxy {
                message: Some(message),
            },
            &descriptors,
        )
        .await;
}
