//! What commands ask of a running lab: one JSON line each way over the lab's socket.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_source::ObjectKey;

use super::{api::Outcome, manifests::Text, view::LabStatus};

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
}

/// The lab's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Applied(Applied),
    Status(Box<LabStatus>),
    Objects(Vec<Value>),
    Error(String),
}

/// What became of each document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub(crate) done: Vec<(ObjectKey, Outcome)>,
    pub(crate) errors: Vec<String>,
}
