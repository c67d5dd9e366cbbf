//! Rules of TCPRoutes and TLSRoutes: backends by weight, and for TLS the server names that they are for.

use serde_json::Value;

use super::{
    backends::BackendRef,
    patterns,
    routes::RouteKind,
    status::{Effect, RuleProblem, RuleReason},
};

/// What a TCPRoute or TLSRoute does with connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct L4 {
    /// Exact names, or `*.` and one; none means any. Always empty for a TCPRoute.
    pub(super) server_names: Vec<String>,
    pub(super) rule_name: String,
    /// Without any the connection is refused.
    pub(super) backends: Vec<BackendRef>,
}

/// Reads the rules of a route in `namespace`. They have no matches, so only the first can be reached.
pub(super) fn read(
    kind: RouteKind,
    namespace: &str,
    hostnames: &[Value],
    entries: &[Value],
) -> Result<(L4, Vec<RuleProblem>), String> {
    let mut l4 = L4::default();
    if kind == RouteKind::Tls {
        for name in hostnames {
            let name = name
                .as_str()
                .ok_or("spec.hostnames: an entry is no string")?;
            let name = patterns::server_name(name).map_err(|e| format!("spec.hostnames: {e}"))?;
            if !l4.server_names.contains(&name) {
                l4.server_names.push(name);
            }
        }
    }
    let mut problems = Vec::new();
    let Some(first) = entries.first() else {
        return Ok((l4, problems));
    };
    let fields = first.as_object().ok_or("rules[0] is no object")?;
    for (field, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match (field.as_str(), value) {
            ("name", Value::String(name)) => l4.rule_name.clone_from(name),
            ("backendRefs", Value::Array(backends)) => {
                for (index, backend) in backends.iter().enumerate() {
                    let backend = BackendRef::read(kind, namespace, backend)
                        .map_err(|error| format!("rules[0].backendRefs[{index}]: {error}"))?;
                    l4.backends.push(backend);
                }
            }
            ("backendRefs", _) => return Err("rules[0].backendRefs is no list".into()),
            _ => problems.push(RuleProblem::setting(Some(0), field, "is not supported")),
        }
    }
    problems.extend((1..entries.len()).map(|index| RuleProblem {
        rule: Some(index),
        effect: Effect::LeftOut,
        reason: RuleReason::UnsupportedValue,
        message: "only the first rule of such a route can be reached".into(),
    }));
    Ok((l4, problems))
}
