//! What the delta protocol asks of a client, without a stream: responses flow in, requests flow
//! out, the state changes.

use std::sync::Arc;

use weft_api::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail, Node};

use crate::{
    state::{Delta, Kind, Rejected, Resource, State},
    telemetry::Telemetry,
};

/// google.rpc.Code.INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;
/// A NACK's message is for people, and goes into a status: not without bound.
const MAX_MESSAGE: usize = 8 * 1024;

/// What lasts from stream to stream.
pub(super) struct Session {
    state: Arc<State>,
    telemetry: Arc<Telemetry>,
    answered: [bool; Kind::ALL.len()],
}

impl Session {
    pub(super) fn new(state: Arc<State>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            state,
            telemetry,
            answered: [false; Kind::ALL.len()],
        }
    }

    /// A snapshot stands for a first answer of each type.
    pub(super) fn loaded(&mut self) {
        self.answered = [true; Kind::ALL.len()];
        for kind in Kind::ALL {
            self.telemetry.resources(kind, self.state.count(kind));
        }
    }

    /// Whether there was an answer for each type.
    pub(super) fn is_synced(&self) -> bool {
        self.answered.iter().all(|answered| *answered)
    }

    /// What is waited for.
    pub(super) fn missing(&self) -> String {
        let missing = Kind::ALL
            .into_iter()
            .filter(|k| !self.answered[*k as usize]);
        let missing: Vec<_> = missing.map(Kind::label).collect();
        format!("the controller has not yet sent: {}", missing.join(", "))
    }

    /// The first request of a type on a stream.
    pub(super) fn subscribe(&self, kind: Kind, node: Option<Node>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node,
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: self.state.versions(kind),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Applies a response. What comes back acknowledges it, or names what was refused of it; the
    /// rest of it is in force all the same.
    pub(super) fn handle(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let rejected = match Kind::from_type_url(&response.type_url) {
            Some(kind) => self.apply(kind, response.resources, response.removed_resources),
            None => vec![Rejected {
                name: "*".to_owned(),
                reason: format!("type {:?} was not asked for", response.type_url),
            }],
        };
        DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: nack(&rejected),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn apply(
        &mut self,
        kind: Kind,
        resources: Vec<discovery::Resource>,
        removed: Vec<String>,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let updated = resources
            .into_iter()
            .filter_map(|resource| match body(kind, resource) {
                Ok(resource) => Some(resource),
                Err(refused) => {
                    rejected.push(refused);
                    None
                }
            })
            .collect();
        rejected.extend(self.state.apply(Delta {
            kind,
            updated,
            removed,
        }));
        for refused in &rejected {
            tracing::warn!(
                "the {} {} is refused, the last good one stays in force: {}",
                kind.label(),
                refused.name,
                refused.reason
            );
        }
        self.answered[kind as usize] = true;
        self.telemetry.resources(kind, self.state.count(kind));
        if !rejected.is_empty() {
            self.telemetry.xds_rejected(kind, rejected.len());
        }
        rejected
    }
}

fn body(kind: Kind, resource: discovery::Resource) -> Result<Resource, Rejected> {
    let refuse = |name: &str, reason: String| Rejected {
        name: name.to_owned(),
        reason,
    };
    match resource.resource {
        Some(any) if any.type_url == kind.type_url() => Ok(Resource {
            name: resource.name,
            version: resource.version,
            body: any.value.into(),
        }),
        Some(any) => Err(refuse(
            &resource.name,
            format!(
                "it is of type {:?}, not {:?}",
                any.type_url,
                kind.type_url()
            ),
        )),
        None => Err(refuse(&resource.name, "it has no body".to_owned())),
    }
}

/// One line `name: reason` per refused resource.
fn nack(rejected: &[Rejected]) -> Option<ErrorDetail> {
    if rejected.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (i, refused) in rejected.iter().enumerate() {
        // A reason may quote what it refuses: it must not look like another resource's line.
        let line = refused.to_string().replace(['\n', '\r'], " ");
        if message.len() + line.len() > MAX_MESSAGE && i > 0 {
            message.push_str(&format!("\n...: and {} more", rejected.len() - i));
            break;
        }
        if i > 0 {
            message.push('\n');
        }
        message.push_str(&line);
    }
    Some(ErrorDetail {
        code: INVALID_ARGUMENT,
        message,
    })
}
