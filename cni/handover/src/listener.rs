//! The agent's end: a socket file that only its owner may use.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Connection, HandoverError, connection};

/// Connections that may wait to be accepted: proxies of one node are one or two.
const BACKLOG: i32 = 16;

/// Listens for proxies.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Listens at `path` with mode 0600; a socket file that nobody listens on is replaced.
    pub fn bind(path: &Path) -> Result<Self, HandoverError> {
        let failed = |what: &'static str| {
            move |source: Errno| HandoverError::Socket {
                what,
                path: path.to_owned(),
                source: source.into(),
            }
        };
        let address = SocketAddrUnix::new(path).map_err(failed("can't listen on"))?;
        remove_stale(path, &address)?;
        let socket = connection::seqpacket().map_err(failed("can't make a socket for"))?;
        rustix::net::bind(&socket, &address).map_err(failed("can't bind"))?;
        // Nobody can connect before listen(), so the file is never open to others.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)
            .map_err(failed("can't set the mode of"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("can't listen on"))?;
        let socket = connection::register(socket).map_err(|source| HandoverError::Socket {
            what: "can't listen on",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { socket })
    }

    /// Waits for the next proxy.
    pub async fn accept(&self) -> Result<Connection, HandoverError> {
        let io = |source| HandoverError::Io {
            what: "can't accept a proxy's connection",
            source,
        };
        let fd = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                Ok(rustix::net::accept_with(
                    socket,
                    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                )?)
            })
            .await
            .map_err(io)?;
        Connection::new(fd).map_err(io)
    }
}

/// Removes a socket file whose listener is gone; anything else at `path` stays and is an error.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), HandoverError> {
    let failed = |source: io::Error| HandoverError::Socket {
        what: "can't replace",
        path: path.to_owned(),
        source,
    };
    let probe = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)
        .map_err(|errno| failed(errno.into()))?;
    match rustix::net::connect(&probe, address) {
        Ok(()) => Err(HandoverError::InUse {
            path: path.to_owned(),
        }),
        Err(Errno::NOENT) => Ok(()),
        // ECONNREFUSED is also the answer for a file that is no socket: never remove that.
        Err(Errno::CONNREFUSED) if is_socket(path).map_err(failed)? => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

fn is_socket(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(std::fs::symlink_metadata(path)?.file_type().is_socket())
}
