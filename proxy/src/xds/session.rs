//! What the delta protocol asks of a client, without a stream: responses flow in, requests flow
//! out, the state changes.

use std::sync::Arc;

use weft_api::{
    discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail, Node},
    names::XDS_PARTIAL,
};

use crate::{
    state::{Delta, Kind, Rejected, Resource, State},
    telemetry::Telemetry,
};

/// google.rpc.Code.INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;
/// All reasons of a NACK together, in bytes. Every refused name is said, for what is not named
/// passes for accepted; so if there are many, it is the reasons that are cut, each to..
const MAX_REASONS: usize = 1024 * 1024;
/// ..this at the most, since it goes into a status,
const LONGEST_REASON: usize = 1024;
/// and this at the least.
const SHORTEST_REASON: usize = 32;

/// What lasts from stream to stream.
pub(super) struct Session {
    state: Arc<State>,
    telemetry: Arc<Telemetry>,
    answered: [bool; Kind::ALL.len()],
    loaded: bool,
}

impl Session {
    pub(super) fn new(state: Arc<State>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            state,
            telemetry,
            answered: [false; Kind::ALL.len()],
            loaded: false,
        }
    }

    /// A snapshot stands for a first answer of each type.
    pub(super) fn loaded(&mut self) {
        self.loaded = true;
        for kind in Kind::ALL {
            self.telemetry.resources(kind, self.state.count(kind));
        }
    }

    /// Whether there is something of each type, be it a snapshot's.
    pub(super) fn is_synced(&self) -> bool {
        self.loaded || self.is_fresh()
    }

    /// Whether there was a whole answer for each type.
    pub(super) fn is_fresh(&self) -> bool {
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
            Some(kind) => {
                let rejected = self.apply(kind, response.resources, response.removed_resources);
                self.answered[kind as usize] |= response.system_version_info != XDS_PARTIAL;
                rejected
            }
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

/// One line `name: reason` for each refused resource.
fn nack(rejected: &[Rejected]) -> Option<ErrorDetail> {
    if rejected.is_empty() {
        return None;
    }
    let longest = (MAX_REASONS / rejected.len()).clamp(SHORTEST_REASON, LONGEST_REASON);
    let lines: Vec<_> = rejected
        .iter()
        .map(|Rejected { name, reason }| {
            let end = reason.floor_char_boundary(longest);
            // A reason may quote what it refuses: it must not look like another resource's line.
            format!("{name}: {}", reason[..end].replace(['\n', '\r'], " "))
        })
        .collect();
    Some(ErrorDetail {
        code: INVALID_ARGUMENT,
        message: lines.join("\n"),
    })
}
