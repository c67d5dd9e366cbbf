//! What the server says about a request, as JSON. Tests read it back with the same types.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Bodies up to this size come back in the answer.
pub const SMALL_BODY: usize = 4096;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Identity {
    /// The pod's name; by default the hostname.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The application's version, to tell the sides of a canary apart.
    pub version: String,
}

/// The answer to an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answers.
    #[serde(flatten)]
    pub identity: Identity,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub protocol: String,
    /// The method.
    pub method: String,
    /// The path, as received.
    pub path: String,
    /// The query, as received, without `?`; empty if there is none.
    pub query: String,
    /// `Host`, or `:authority` on HTTP/2.
    pub host: String,
    /// Name and value of each header, in the order received; HTTP/1 names in the case received.
    pub headers: Vec<(String, String)>,
    /// The other end of the TCP connection.
    pub peer: SocketAddr,
    /// The address of [`Answer::peer`].
    pub peer_ip: IpAddr,
    /// This end of the TCP connection: where the request was sent to.
    pub local: SocketAddr,
    /// Number of the TCP connection, counted by the server from 1.
    pub connection: u64,
    /// Number of the request on its connection, from 1: more than 1 shows that it was reused.
    pub request: u64,
    /// Length of the request's body.
    pub body_length: u64,
    /// The body, if it is at most [`SMALL_BODY`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// SHA-256 of the body in hex, if `digest` was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<String>,
    /// Trailers after the request's body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// The line that a `--speak-first` port sends before it reads anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banner {
    /// Who speaks.
    #[serde(flatten)]
    pub identity: Identity,
    /// The other end of the TCP connection.
    pub peer: SocketAddr,
    /// This end of the TCP connection.
    pub local: SocketAddr,
}

/// A v4-mapped v6 address as the v4 address that it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
