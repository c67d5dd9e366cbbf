//! One connection: whole messages with their descriptors, in both directions at once.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{HandoverError, MAX_DESCRIPTORS, MAX_MESSAGE};

/// Between attempts while the listener's backlog is full: the kernel gives nothing to wait for.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);
/// Attempts while the listener's backlog is full: 5 s together, then the agent hangs.
const BACKLOG_ATTEMPTS: u32 = 250;

const ANCILLARY_SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// A connection between agent and proxy. Sending and receiving may happen in two tasks at once.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the agent that listens at `path`.
    pub async fn connect(path: &Path) -> Result<Self, HandoverError> {
        let failed = |source: std::io::Error| HandoverError::Socket {
            what: "can't connect to the agent at",
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno.into()))?;
        let socket = seqpacket().map_err(|errno| failed(errno.into()))?;
        let mut attempts = 0;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Self::new(socket).map_err(failed),
                Err(Errno::AGAIN) if attempts < BACKLOG_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(BACKLOG_RETRY).await;
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    pub(crate) fn new(socket: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            socket: register(socket)?,
        })
    }

    /// Sends one message with its descriptors; the caller's stay open. Waits while the peer's
    /// queue is full.
    pub async fn send<M: prost::Message>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let bytes = message.encode_to_vec();
        if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
            return Err(HandoverError::Size(bytes.len()));
        }
        if fds.len() > MAX_DESCRIPTORS {
            return Err(HandoverError::TooManyDescriptors(fds.len()));
        }
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() {
                    ancillary.push(SendAncillaryMessage::ScmRights(fds));
                }
                // A packet is sent whole or not at all.
                rustix::net::sendmsg(
                    socket,
                    &[IoSlice::new(&bytes)],
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )?;
                Ok(())
            })
            .await
            .map_err(|source| HandoverError::Io {
                what: "can't send to the peer",
                source,
            })
    }

    /// Receives one message with its descriptors (close-on-exec); `None` once the peer closed.
    pub async fn recv<M: prost::Message + Default>(
        &self,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, HandoverError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let received = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                Ok(receive(socket, &mut bytes)?)
            })
            .await;
        let (length, flags, fds) = match received {
            Ok(received) => received,
            // The peer closed while something of ours was still unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(source) => {
                return Err(HandoverError::Io {
                    what: "can't receive from the peer",
                    source,
                });
            }
        };
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(HandoverError::Truncated);
        }
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((M::decode(&bytes[..length])?, fds)))
    }
}

fn receive(
    socket: &OwnedFd,
    bytes: &mut [u8],
) -> rustix::io::Result<(usize, ReturnFlags, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    // Taken into ownership before any check, so that whatever came is closed on an error.
    let mut fds = Vec::new();
    for entry in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = entry {
            fds.extend(rights);
        }
    }
    Ok((message.bytes, message.flags, fds))
}

pub(crate) fn seqpacket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Registers a socket with the runtime's poller.
// `new` is deprecated for types that may close or swap their descriptor while registered; an
// OwnedFd can't, and the replacement would need `unsafe`.
#[allow(deprecated)]
pub(crate) fn register(socket: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(socket)
}
