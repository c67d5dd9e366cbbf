//! What commands ask of a running lab: one JSON line each way over the lab's socket.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_source::ObjectKey;

use super::{api::Outcome, view::LabStatus};
use crate::manifests::Text;

/// A command's question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    Apply(Vec<Text>),
    Delete(Vec<Text>),
    Status,
    /// Objects of a kind (by any of its names), with status and annotations laid over.
    Get {
        kind: String,
        namespace: Option<String>,
        name: Option<String>,
    },
    /// Deletes one object.
    DeleteObject {
        kind: String,
        namespace: String,
        name: String,
    },
    /// Sets labels, or removes those without a value.
    Label {
        kind: String,
        namespace: String,
        name: String,
        labels: BTreeMap<String, Option<String>>,
    },
    /// Ends a part until it is started.
    Stop {
        part: String,
        kill: bool,
    },
    /// Starts a part that was stopped.
    Start {
        part: String,
        wait: bool,
    },
    /// Kills a part; it is started again.
    Kill {
        part: String,
    },
    /// Replaces a proxy by one beside it.
    Upgrade {
        part: String,
        wait: bool,
    },
    /// Kills everything on a node and starts it anew.
    Reboot {
        node: String,
        /// Milliseconds without power.
        away: u64,
        /// Of the order in which things start.
        seed: u64,
    },
}

/// The lab's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Applied(Applied),
    Status(Box<LabStatus>),
    Objects(Vec<Value>),
    /// What was done, for people.
    Done(String),
    Error(String),
}

/// What became of each document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub(crate) done: Vec<(ObjectKey, Outcome)>,
    pub(crate) errors: Vec<String>,
}
