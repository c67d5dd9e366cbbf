//! Errors as CNI wants them.

use serde_json::{Value, json};

use super::VERSIONS;

/// Error codes: those of the specification, and from 100 on the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not spoken.
    Version = 1,
    /// An environment variable is missing or wrong.
    Environment = 4,
    /// A file can't be read or written.
    Io = 5,
    /// Something can't be decoded.
    Decode = 6,
    /// The configuration is wrong.
    Config = 7,
    /// It may go better later; the runtime tries again.
    TryAgainLater = 11,
    /// The pod can't be captured, and that won't change by itself.
    Capture = 100,
}

/// A failure of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// What kind of failure it is.
    pub code: Code,
    /// What failed, and what to check.
    pub message: String,
    version: String,
}

impl CniError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        let version = VERSIONS[VERSIONS.len() - 1].to_owned();
        Self {
            code,
            message: message.into(),
            version,
        }
    }

    /// Sets the version that the error is written in.
    pub(super) fn in_version(mut self, version: &str) -> Self {
        self.version = version.to_owned();
        self
    }

    /// What goes to stdout.
    pub fn to_json(&self) -> Value {
        json!({
            "cniVersion": self.version,
            "code": self.code as u32,
            "msg": format!("weft: {}", self.message),
        })
    }
}
