//! The agent's local socket, `RUN_DIR/agent.sock`: one JSON request, one JSON answer, each one line.
//!
//! The plugin asks about sandboxes; `weft` and people ask for the status:
//! `echo '{"status":{}}' | socat - UNIX-CONNECT:RUN_DIR/agent.sock`.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::sandbox::Sandbox;

/// Longest request and answer that are read.
pub const MAX_LINE: u64 = 4 * 1024 * 1024;

/// Path of the agent's socket in a run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Path of the socket that proxies connect to.
pub fn handover_path(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

/// What can be asked of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A sandbox was made: capture it if its pod belongs into the mesh.
    Add(Sandbox),
    /// A sandbox is going.
    Del {
        /// Its id.
        container_id: String,
    },
    /// Is a sandbox as it should be?
    Check {
        /// Its id.
        container_id: String,
    },
    /// Forget all other sandboxes.
    Gc {
        /// Ids of the sandboxes that exist.
        keep: Vec<String>,
    },
    /// How is the agent?
    Status {},
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done.
    Done {
        /// Whether the sandbox is captured.
        captured: bool,
    },
    /// Not done.
    Failed {
        /// Whether to try again later can help.
        retry: bool,
        /// Why, and what to check.
        message: String,
    },
    /// The answer to [`Request::Status`].
    Status(Status),
}

/// The agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Whether the objects of the API have been read.
    pub synced: bool,
    /// The proxies that are connected.
    pub proxies: Vec<ProxyStatus>,
    /// All sandboxes, by pod.
    pub sandboxes: Vec<SandboxStatus>,
    /// What is not as it should be on the node itself.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A connected proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its version.
    pub version: String,
    /// Names this run of the program.
    pub incarnation: String,
    /// Sandboxes that it has acknowledged.
    pub pods: usize,
}

/// A sandbox's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub container_id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// `out`, `joining: …`, `in`, `leaving: …`, `gone`.
    pub state: String,
    /// Whether new connections are redirected.
    pub captured: bool,
    /// Whether it belongs into the mesh; `null` while the API does not know the pod.
    pub wanted: Option<bool>,
    /// Whether plaintext is refused.
    pub strict: bool,
    /// What the last attempt failed with.
    pub error: Option<String>,
}

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("the agent does not answer at {path} ({source}); is weft-agent running on this node?")]
    Away {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time, or broke off.
    #[error("the agent at {path} gave no answer: {source}; see the log of weft-agent")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Asks the agent, and waits for `patience` at the most for each step.
pub fn call(run_dir: &Path, request: &Request, patience: Duration) -> Result<Response, CallError> {
    let path = socket_path(run_dir);
    let mut stream = UnixStream::connect(&path).map_err(|source| CallError::Away {
        path: path.clone(),
        source,
    })?;
    let exchange = move || -> io::Result<Response> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    };
    exchange().map_err(|source| CallError::Broken { path, source })
}
