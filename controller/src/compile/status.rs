//! The truth about a route, as the standard's conditions.
//!
//! Flows in: what could not be read, resolved or attached. Flows out: the conditions `Accepted`,
//! `ResolvedRefs` and, where it applies, `PartiallyInvalid`, for each parent.

use std::fmt;

use super::{
    Condition, ParentStatus, RouteStatus,
    backends::RefProblem,
    parents::ParentRef,
    resolve::Resolved,
    routes::{Refusal, Route},
};

/// Something in a rule that can't be executed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleProblem {
    /// The rule's place; `None` for the route itself.
    pub(super) rule: Option<usize>,
    pub(super) effect: Effect,
    pub(super) reason: RuleReason,
    pub(super) message: String,
}

/// What comes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The rule is not in the table.
    LeftOut,
    /// The requests that the rule matches are answered with 500.
    Answers500,
    /// The share of one backend is answered with 500.
    BackendAnswers500,
    /// The rule is in force without this.
    SettingLeftOut,
}

/// The standard's reasons for what is wrong with a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleReason {
    UnsupportedValue,
    IncompatibleFilters,
}

/// What became of a route at one parent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fate {
    /// Where it is in force.
    pub(super) ports: Vec<u16>,
    pub(super) tables: Vec<String>,
    /// Ports that are declared to be something else.
    pub(super) left_out: Vec<u16>,
    /// Ports where the route named here takes precedence.
    pub(super) lost: Vec<(u16, String)>,
    /// Why it is in force nowhere.
    pub(super) unattached: Option<Unattached>,
}

/// Why a route does not attach.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unattached {
    reason: &'static str,
    message: String,
}

impl Unattached {
    pub(super) fn no_parent(message: String) -> Self {
        Self {
            reason: "NoMatchingParent",
            message,
        }
    }

    pub(super) fn unsupported(message: String) -> Self {
        Self {
            reason: "UnsupportedValue",
            message,
        }
    }

    pub(super) fn conflicted(lost: &[(u16, String)]) -> Self {
        Self {
            reason: "Conflicted",
            message: lost_to(lost),
        }
    }
}

impl RuleProblem {
    /// A field of the rule (or route) that is left out.
    pub(super) fn setting(rule: Option<usize>, field: &str, what: &str) -> Self {
        Self {
            rule,
            effect: Effect::SettingLeftOut,
            reason: RuleReason::UnsupportedValue,
            message: format!("{field} {what}"),
        }
    }
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "rules[{rule}]")?,
            None => write!(f, "spec")?,
        }
        let effect = match self.effect {
            Effect::LeftOut => "the rule is left out",
            Effect::Answers500 => "requests that it matches get 500",
            Effect::BackendAnswers500 => "the backend's share gets 500",
            Effect::SettingLeftOut => "in force without it",
        };
        write!(f, " ({effect}): {}", self.message)
    }
}

impl From<RuleReason> for String {
    fn from(reason: RuleReason) -> Self {
        match reason {
            RuleReason::UnsupportedValue => "UnsupportedValue".into(),
            RuleReason::IncompatibleFilters => "IncompatibleFilters".into(),
        }
    }
}

/// The status of a version that can be used.
pub(super) fn of_route<'a>(
    route: &Route,
    resolved: &Resolved,
    fate: impl Fn(usize) -> Option<&'a Fate>,
) -> RouteStatus {
    let parents = route.parents.iter().enumerate().map(|(index, parent)| {
        let fate = fate(index);
        let mut conditions = vec![accepted(route, parent, fate), resolved_refs(resolved)];
        if conditions[0].status && !route.problems.is_empty() {
            conditions.push(condition(
                "PartiallyInvalid",
                true,
                "UnsupportedValue",
                format!("Dropped Rule {}", joined(&route.problems)),
            ));
        }
        let tables = fate.map(|fate| fate.tables.clone()).unwrap_or_default();
        ParentStatus {
            parent_ref: parent.raw.clone(),
            conditions,
            tables,
        }
    });
    RouteStatus {
        generation: route.generation,
        parents: parents.collect(),
    }
}

/// The status of a version that can't be used, beside the one that stays in force.
pub(super) fn of_refusal<'a>(
    refusal: &Refusal,
    in_force: Option<&Route>,
    fate: impl Fn(usize) -> Option<&'a Fate>,
) -> RouteStatus {
    let last = in_force.map_or_else(
        || "no earlier version is known, so the route has no effect".to_owned(),
        |route| {
            format!(
                "the version of generation {} stays in force",
                route.generation
            )
        },
    );
    let message = format!("this version can't be used: {}; {last}", refusal.error);
    let old = in_force
        .map(|route| route.parents.as_slice())
        .unwrap_or_default();
    let new = refusal
        .parents
        .iter()
        .filter(|new| !old.iter().any(|old| old.raw == new.raw));
    let entry = |parent: &ParentRef, tables| {
        // Whether the references of this version resolve can't be told: no `ResolvedRefs`.
        ParentStatus {
            parent_ref: parent.raw.clone(),
            conditions: vec![condition(
                "Accepted",
                false,
                "UnsupportedValue",
                message.clone(),
            )],
            tables,
        }
    };
    let old = old.iter().enumerate().map(|(index, parent)| {
        entry(
            parent,
            fate(index)
                .map(|fate| fate.tables.clone())
                .unwrap_or_default(),
        )
    });
    let parents = old
        .chain(new.map(|parent| entry(parent, Vec::new())))
        .collect();
    RouteStatus {
        generation: refusal.generation,
        parents,
    }
}

fn accepted(route: &Route, parent: &ParentRef, fate: Option<&Fate>) -> Condition {
    let no = |reason: &str, message| condition("Accepted", false, reason, message);
    if let Err(error) = &parent.target {
        return no(
            "UnsupportedValue",
            format!("the parentRef can't be read: {error}"),
        );
    }
    let Some(fate) = fate else {
        return no("NoMatchingParent", "the parentRef names no Service".into());
    };
    if let Some(Unattached { reason, message }) = &fate.unattached {
        return no(reason, message.clone());
    }
    if let Some(problem) = route.broken() {
        let reason = String::from(problem.reason);
        return no(
            &reason,
            format!("no rule can be used: {}", joined(&route.problems)),
        );
    }
    let mut message = format!("attached to {}", ports(&fate.ports));
    if !fate.left_out.is_empty() {
        message += &format!(
            "; not to {}, declared to be another protocol",
            ports(&fate.left_out)
        );
    }
    if !fate.lost.is_empty() {
        message += &format!("; {}", lost_to(&fate.lost));
    }
    condition("Accepted", true, "Accepted", message)
}

fn resolved_refs(resolved: &Resolved) -> Condition {
    match resolved.problems.as_slice() {
        [] => condition(
            "ResolvedRefs",
            true,
            "ResolvedRefs",
            "all backendRefs resolve".into(),
        ),
        problems @ [RefProblem { reason, .. }, ..] => {
            let messages: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
            condition("ResolvedRefs", false, reason, messages.join("; "))
        }
    }
}

fn condition(type_: &str, status: bool, reason: &str, message: String) -> Condition {
    Condition {
        type_: type_.into(),
        status,
        reason: reason.into(),
        message,
    }
}

fn joined(problems: &[RuleProblem]) -> String {
    problems
        .iter()
        .map(RuleProblem::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

fn ports(numbers: &[u16]) -> String {
    let list = numbers
        .iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    format!("port{} {list}", if numbers.len() == 1 { "" } else { "s" })
}

fn lost_to(lost: &[(u16, String)]) -> String {
    let one = |(port, winner): &(u16, String)| format!("{winner} takes precedence on port {port}");
    lost.iter().map(one).collect::<Vec<_>>().join("; ")
}
