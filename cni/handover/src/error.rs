//! What can go wrong on the socket.

use std::{io, path::PathBuf};

use crate::{MAX_DESCRIPTORS, MAX_MESSAGE};

/// Why a message could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket's file can't be used.
    #[error("{what} {path}: {source}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process listens there already.
    #[error("{path} has a listener already: stop the other agent of this node first")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The message to send is longer than [`MAX_MESSAGE`], or empty (an empty packet can't be told
    /// from the peer's close).
    #[error("a message of {0} bytes can't be sent: between 1 and {MAX_MESSAGE} can")]
    Size(usize),
    /// More descriptors than [`MAX_DESCRIPTORS`].
    #[error("{0} descriptors can't be sent beside one message: at most {MAX_DESCRIPTORS} can")]
    TooManyDescriptors(usize),
    /// The peer's message did not fit; what came of it was dropped, its descriptors closed.
    #[error(
        "the peer sent more than {MAX_MESSAGE} bytes or {MAX_DESCRIPTORS} descriptors in one message: is it of another version?"
    )]
    Truncated,
    /// The peer's message is not what was expected.
    #[error("the peer's message can't be decoded: {0}; is it of another version?")]
    Decode(#[from] prost::DecodeError),
}
