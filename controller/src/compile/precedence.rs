//! Which of several matches that fit a request wins: the standard's precedence, as an order.
//!
//! Flows in: how specific each match is, and the age and name of its route. Flows out: the order in
//! which a table lists the matches, so that a proxy takes the first that fits.

use std::cmp::Reverse;

use k8s_openapi::jiff::Timestamp;

/// How specific a match is; greater wins. The fields are compared in order. A table holds only one
/// of the variants, for routes of different kinds never share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Specificity {
    /// Of an HTTPRoute's match.
    Http {
        path: PathRank,
        method: bool,
        headers: usize,
        query_params: usize,
    },
    /// Of a GRPCRoute's match.
    Grpc {
        service: NameRank,
        method: NameRank,
        headers: usize,
    },
}

/// Exact beats regular expression beats prefix; of prefixes the one with more characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathRank {
    Prefix(usize),
    Regex,
    Exact,
}

/// Exact beats regular expression beats any; of exact names the one with more characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NameRank {
    Any,
    Regex,
    Exact(usize),
}

/// Orders routes: the oldest first, then by `namespace/name`. A route without a time of creation
/// is younger than any that has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seniority {
    undated: bool,
    created: Option<Timestamp>,
    name: String,
}

impl Seniority {
    pub(super) fn new(created: Option<&str>, namespace: &str, name: &str) -> Self {
        let created = created.and_then(|text| text.parse().ok());
        Self {
            undated: created.is_none(),
            created,
            name: format!("{namespace}/{name}"),
        }
    }
}

/// Where a match comes from: sorts into the order in which a table lists the matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position<'a> {
    specificity: Reverse<Specificity>,
    seniority: &'a Seniority,
    rule: usize,
    entry: usize,
}

impl<'a> Position<'a> {
    /// Of the match `entry` in the rule `rule` of a route.
    pub(super) fn new(
        specificity: Specificity,
        seniority: &'a Seniority,
        rule: usize,
        entry: usize,
    ) -> Self {
        Self {
            specificity: Reverse(specificity),
            seniority,
            rule,
            entry,
        }
    }
}
