//! `weft check`. In: facts. Out: findings, each with what to do if it is not good. Pure: a check is a
//! function of the facts.

mod identity;
mod mesh;
mod network;
mod platform;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde::Serialize;

use super::facts::Facts;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it must be.
    Ok,
    /// Works, but someone should look.
    Warn,
    /// Does not work, or not safely.
    Fail,
}

/// What a check found.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Finding {
    check: &'static str,
    level: Level,
    message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

fn ok(check: &'static str, message: impl Into<String>) -> Finding {
    Finding {
        check,
        level: Level::Ok,
        message: message.into(),
        fix: None,
    }
}

fn warn(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        check,
        level: Level::Warn,
        message: message.into(),
        fix: Some(fix.into()),
    }
}

fn fail(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        level: Level::Fail,
        ..warn(check, message, fix)
    }
}

/// Up to three names, and how many more there are.
fn some(names: &[String]) -> String {
    match names {
        [first, second, _, _, ..] => format!("{first}, {second} and {} more", names.len() - 2),
        few => few.join(", "),
    }
}

type Check = fn(&Facts) -> Vec<Finding>;

/// What the cluster must be, with or without weft.
const BEFORE: [Check; 6] = [
    platform::kubernetes,
    platform::gateway_api,
    platform::kernels,
    platform::clocks,
    network::cilium,
    platform::pod_security,
];

/// What the mesh must be.
const AFTER: [Check; 9] = [
    mesh::controller,
    mesh::nodes,
    mesh::versions,
    identity::bundle,
    identity::certificates,
    mesh::labels,
    mesh::capture,
    network::policies,
    mesh::routes,
];

fn run(facts: &Facts, checks: &[Check]) -> (Vec<Finding>, bool) {
    let mut findings: Vec<_> = checks.iter().flat_map(|check| check(facts)).collect();
    findings.extend(facts.unread.iter().map(|what| {
        warn(
            "unread",
            format!("not looked at: {what}"),
            "if rights are missing, run this as someone who may get and list these, and create pods/portforward in weft-system",
        )
    }));
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    (findings, failed)
}

/// Before an installation; tells whether anything failed.
pub(crate) fn before(facts: &Facts) -> (Vec<Finding>, bool) {
    run(facts, &BEFORE)
}

/// With weft installed.
pub(crate) fn after(facts: &Facts) -> (Vec<Finding>, bool) {
    if facts.workload("weft-cni").is_none() && facts.workload("weft-controller").is_none() {
        let (mut findings, _) = before(facts);
        findings.push(fail(
            "controller",
            "weft is not installed in namespace weft-system",
            "weft install, or the Helm chart; `weft check --pre` looks at the cluster alone",
        ));
        return (findings, true);
    }
    run(facts, &[&BEFORE[..], &AFTER[..]].concat())
}

/// For people.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let sign = match finding.level {
            Level::Ok => '✓',
            Level::Warn => '!',
            Level::Fail => '✗',
        };
        let _ = writeln!(out, "{sign} {:<12} {}", finding.check, finding.message);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(out, "  {:<12} → {fix}", "");
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let _ = writeln!(
        out,
        "\n{} as they must be, {} to look at, {} failed",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    );
    out
}
