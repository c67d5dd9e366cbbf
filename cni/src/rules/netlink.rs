//! Requests to the kernel over netlink and their answers, on the calling thread.
//!
//! The kernel works on a request inside the `send` call, so the answers are there when it returns:
//! nothing here ever waits.

use std::{fmt::Debug, io, os::fd::OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};

use crate::netns::NetNsError;

/// Room for one datagram of answers.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// A transaction is one datagram: the rules of a node with thousands of probed ports, of which the
/// usual buffer takes some hundreds.
const SEND_BUFFER: usize = 16 * 1024 * 1024;

/// Why rules could not be read or changed. A transaction that fails leaves everything as it was.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The namespace can't be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// No netlink socket, or it broke.
    #[error("can't talk to the kernel over netlink ({what}): {source}; does weft run as root?")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error(
        "the kernel refused to {what}: {source}; are nf_tables and its NAT built in or loaded?"
    )]
    Refused {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer can't be understood.
    #[error("the kernel's answer to {what} can't be understood: {reason}")]
    Answer {
        /// What was being done.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl RulesError {
    /// Whether the kernel said that something is not there, or already there.
    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, RulesError::Refused { source, .. }
            if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// One message of a request, and what it does in words.
pub(super) struct Request<M> {
    pub(super) what: String,
    pub(super) message: M,
    pub(super) flags: u16,
}

impl<M> Request<M> {
    pub(super) fn new(what: impl Into<String>, message: M, flags: u16) -> Self {
        Self {
            what: what.into(),
            message,
            flags,
        }
    }
}

/// A netlink socket of the namespace that the thread was in when it was made.
pub(super) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(super) fn open(protocol: Option<Protocol>) -> Result<Self, RulesError> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|errno| RulesError::Socket {
            what: "open",
            source: errno.into(),
        })?;
        Ok(Self { socket })
    }

    /// Sends all requests in one datagram, between `begin` and `end` if they make a transaction,
    /// and waits until each is acknowledged; of a transaction, the last. (Refusals come unasked,
    /// and an answer to each of thousands of rules would overflow the socket.)
    pub(super) fn execute<M>(
        &self,
        begin: Option<M>,
        requests: Vec<Request<M>>,
        end: Option<M>,
    ) -> Result<(), RulesError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let mut words = Vec::new();
        let mut bytes = Vec::new();
        let is_transaction = begin.is_some();
        if let Some(begin) = begin {
            append(&mut bytes, begin, NLM_F_REQUEST, 0);
        }
        let count = requests.len();
        for request in requests {
            words.push(request.what);
            let sequence = u32::try_from(words.len()).expect("plans are short");
            let answered = !is_transaction || words.len() == count;
            let acknowledge = if answered { NLM_F_ACK } else { 0 };
            append(
                &mut bytes,
                request.message,
                NLM_F_REQUEST | acknowledge | request.flags,
                sequence,
            );
        }
        if let Some(end) = end {
            append(&mut bytes, end, NLM_F_REQUEST, 0);
        }
        self.send(&bytes)?;

        let mut outstanding = if is_transaction { 1 } else { count };
        while outstanding > 0 {
            self.receive::<M>(&words, |sequence, payload| {
                if let NetlinkPayload::Error(answer) = payload {
                    let what = what(&words, sequence);
                    if answer.code.is_some() {
                        return Err(RulesError::Refused {
                            what,
                            source: answer.to_io(),
                        });
                    }
                    outstanding = outstanding.saturating_sub(usize::from(sequence > 0));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sends one request and collects the messages that answer it, until the last.
    pub(super) fn query<M>(&self, request: Request<M>) -> Result<Vec<M>, RulesError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let words = vec![request.what];
        let mut bytes = Vec::new();
        append(
            &mut bytes,
            request.message,
            NLM_F_REQUEST | NLM_F_ACK | request.flags,
            1,
        );
        self.send(&bytes)?;
        let (mut answers, mut done) = (Vec::new(), false);
        while !done {
            self.receive::<M>(&words, |sequence, payload| {
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        let what = what(&words, sequence);
                        return Err(RulesError::Refused {
                            what,
                            source: answer.to_io(),
                        });
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => done = true,
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(answers)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), RulesError> {
        if bytes.len() > RECEIVE_BUFFER {
            // Where it is not allowed, the send says whether it was needed.
            let _ = sockopt::set_socket_send_buffer_size_force(&self.socket, SEND_BUFFER);
        }
        rustix::net::send(&self.socket, bytes, SendFlags::empty())
            .map(drop)
            .map_err(|errno| RulesError::Socket {
                what: "send",
                source: errno.into(),
            })
    }

    fn receive<M: NetlinkDeserializable + Debug>(
        &self,
        words: &[String],
        mut each: impl FnMut(usize, NetlinkPayload<M>) -> Result<(), RulesError>,
    ) -> Result<(), RulesError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT)
            .map_err(|errno| RulesError::Socket {
                what: "receive",
                source: errno.into(),
            })?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<M>::deserialize(rest).map_err(|error| RulesError::Answer {
                    what: what(words, 0),
                    reason: error.to_string(),
                })?;
            let length = aligned(message.header.length as usize).min(rest.len());
            rest = &rest[length.max(1)..];
            each(message.header.sequence_number as usize, message.payload)?;
        }
        Ok(())
    }
}

fn what(words: &[String], sequence: usize) -> String {
    match sequence.checked_sub(1).and_then(|index| words.get(index)) {
        Some(what) => what.clone(),
        None => words.first().cloned().unwrap_or_default(),
    }
}

fn append<M: NetlinkSerializable>(bytes: &mut Vec<u8>, message: M, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::new(
        netlink_packet_core::NetlinkHeader::default(),
        NetlinkPayload::InnerMessage(message),
    );
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + aligned(message.buffer_len()), 0);
    message.serialize(&mut bytes[start..]);
}

/// Netlink messages begin at multiples of four bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}
