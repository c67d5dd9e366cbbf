//! A network namespace of a pod. In flows its descriptor (from the agent); out flow sockets that
//! were made inside it and stay in it, wherever they are used afterwards.
//!
//! A thread enters, makes the socket, and comes back before anything else can run on it: there is
//! no await inside, and a thread that can't come back ends the process, since its next task would
//! act in the wrong pod.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sched::{CloneFlags, setns};
use weft_api::names::MARK_PROXY;

use crate::ports::SourcePorts;

/// The namespace that the process was started in.
static HOME: OnceLock<OwnedFd> = OnceLock::new();

/// Remembers the namespace that every thread returns to. Call before the first [`Netns::run`],
/// from a thread that has never left it; later calls change nothing.
pub fn remember_home() -> io::Result<()> {
    let home = File::open("/proc/thread-self/ns/net")?;
    let _ = HOME.set(home.into());
    Ok(())
}

/// A network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    descriptor: Arc<OwnedFd>,
    mark: Arc<AtomicU32>,
    ports: Arc<SourcePorts>,
}

impl Netns {
    /// From the descriptor that the agent sent.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor: Arc::new(descriptor),
            mark: Arc::new(AtomicU32::new(MARK_PROXY)),
            ports: Arc::new(SourcePorts::new()),
        }
    }

    /// The descriptor, for the agent that may have lost its own.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The agent has named the mark by which the pod's rules know the proxy's sockets; 0: the usual.
    pub fn set_mark(&self, mark: u32) {
        let mark = if mark == 0 { MARK_PROXY } else { mark };
        self.mark.store(mark, Ordering::Relaxed);
    }

    /// The mark of the proxy's sockets in it.
    pub fn mark(&self) -> u32 {
        self.mark.load(Ordering::Relaxed)
    }

    /// Where the proxy's connections in clients' names come from.
    pub(crate) fn ports(&self) -> &SourcePorts {
        &self.ports
    }

    /// Runs `make` inside the namespace, on this thread.
    pub fn run<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = HOME
            .get()
            .ok_or_else(|| io::Error::other("the proxy's own network namespace is unknown"))?;
        setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET)?;
        // Comes back when `make` panics too.
        let _back = Back(home);
        make()
    }
}

struct Back<'a>(&'a OwnedFd);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            // This thread would make the next pod's sockets in this pod.
            std::process::abort();
        }
    }
}
