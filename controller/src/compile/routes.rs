//! A route object as the compiler reads it: parents, rules, and what of it can't be executed.
//!
//! Flows in: HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and UDPRoute objects. Flows out: a [`Route`] that
//! is ready to attach, or a [`Refusal`] if nothing of this version can be used.

use std::collections::BTreeSet;

use serde_json::Value;
use weft_source::ObjectKey;

use super::{
    http,
    l4::{self, L4},
    objects::NamespacedName,
    parents::{self, ParentRef},
    precedence::Seniority,
    status::{Effect, RuleProblem},
};

/// API group of all route kinds.
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Kinds of routes; on one port the first of them wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
    Udp,
}

/// A version of a route that can be used, at least in part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) kind: RouteKind,
    pub(super) name: NamespacedName,
    pub(super) generation: i64,
    pub(super) seniority: Seniority,
    pub(super) parents: Vec<ParentRef>,
    pub(super) rules: Rules,
    /// What of its rules is left out or fails.
    pub(super) problems: Vec<RuleProblem>,
}

/// What a route does with traffic.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rules {
    /// Of an HTTPRoute or GRPCRoute.
    Http(Vec<http::Rule>),
    /// Of a TLSRoute or TCPRoute.
    L4(L4),
}

/// A version of a route of which nothing can be used.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) generation: i64,
    /// Those of its parentRefs that could be read.
    pub(super) parents: Vec<ParentRef>,
    pub(super) error: String,
}

impl RouteKind {
    /// The kind of a route object; `None` for other objects.
    pub(super) fn of(key: &ObjectKey) -> Option<Self> {
        if key.group != GATEWAY_GROUP {
            return None;
        }
        [Self::Grpc, Self::Http, Self::Tls, Self::Tcp, Self::Udp]
            .into_iter()
            .find(|kind| kind.as_str() == key.kind)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::Udp => "UDPRoute",
        }
    }

    /// Whether it routes requests, not connections.
    pub(super) fn is_l7(self) -> bool {
        matches!(self, Self::Grpc | Self::Http)
    }
}

impl Route {
    /// Reads a route object.
    pub(super) fn read(kind: RouteKind, key: &ObjectKey, value: &Value) -> Result<Self, Refusal> {
        let metadata = |field: &str| value.get("metadata").and_then(|m| m.get(field));
        let generation = metadata("generation")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        let created = metadata("creationTimestamp").and_then(Value::as_str);
        let parents = value.pointer("/spec/parentRefs").and_then(Value::as_array);
        let parents = parents::read(&key.namespace, parents.map_or(&[], Vec::as_slice));
        let refuse = |error| Refusal {
            generation,
            parents: parents.clone(),
            error,
        };

        let (rules, problems) = read_spec(kind, key, value).map_err(refuse)?;
        Ok(Self {
            kind,
            name: NamespacedName::new(&key.namespace, &key.name),
            generation,
            seniority: Seniority::new(created, &key.namespace, &key.name),
            parents,
            rules,
            problems,
        })
    }

    /// The first problem, if no rule is left that does what it says.
    pub(super) fn broken(&self) -> Option<&RuleProblem> {
        let Rules::Http(rules) = &self.rules else {
            return None;
        };
        let breaks = |effect| matches!(effect, Effect::LeftOut | Effect::Answers500);
        let sound = |index| {
            !self
                .problems
                .iter()
                .any(|p| p.rule == Some(index) && breaks(p.effect))
        };
        if rules.iter().any(|rule| sound(rule.index)) {
            return None;
        }
        self.problems.iter().find(|problem| breaks(problem.effect))
    }

    /// The Services that its backendRefs name.
    pub(super) fn backends(&self) -> BTreeSet<&NamespacedName> {
        let refs: Box<dyn Iterator<Item = _>> = match &self.rules {
            Rules::Http(rules) => Box::new(rules.iter().flat_map(http::Rule::backends)),
            Rules::L4(l4) => Box::new(l4.backends.iter()),
        };
        refs.filter_map(|backend| backend.service.as_ref().ok())
            .collect()
    }

    /// The Services that its parentRefs name.
    pub(super) fn services(&self) -> BTreeSet<&NamespacedName> {
        let targets = self
            .parents
            .iter()
            .filter_map(|parent| parent.target.as_ref().ok());
        targets.map(|target| &target.service).collect()
    }
}

fn read_spec(
    kind: RouteKind,
    key: &ObjectKey,
    value: &Value,
) -> Result<(Rules, Vec<RuleProblem>), String> {
    if kind == RouteKind::Udp {
        return Err("UDPRoutes are not supported yet".into());
    }
    let spec = value
        .get("spec")
        .and_then(Value::as_object)
        .ok_or("spec is no object")?;
    let list = |field: &str| match spec.get(field) {
        None | Some(Value::Null) => Ok(&[] as &[Value]),
        Some(Value::Array(entries)) => Ok(entries.as_slice()),
        Some(_) => Err(format!("spec.{field} is no list")),
    };
    list("parentRefs")?;
    let entries = list("rules")?;
    let mut names = BTreeSet::new();
    for name in entries.iter().filter_map(|rule| rule.get("name")?.as_str()) {
        if !names.insert(name) {
            return Err(format!(
                "spec.rules: two rules have the name {name}; rename one"
            ));
        }
    }
    let (rules, mut problems) = if kind.is_l7() {
        let (rules, problems) = http::read_rules(kind, &key.namespace, entries);
        if let (true, Some(problem)) = (rules.is_empty(), problems.first()) {
            return Err(problem.to_string());
        }
        (Rules::Http(rules), problems)
    } else {
        let (l4, problems) = l4::read(kind, &key.namespace, list("hostnames")?, entries)?;
        (Rules::L4(l4), problems)
    };
    // Known, and without meaning towards a Service: hostnames of requests, and the choice of Gateways.
    let known = ["parentRefs", "rules", "hostnames", "useDefaultGateways"];
    problems.extend(
        spec.keys()
            .filter(|field| !known.contains(&field.as_str()))
            .map(|field| RuleProblem::setting(None, field, "is not supported")),
    );
    Ok((rules, problems))
}
