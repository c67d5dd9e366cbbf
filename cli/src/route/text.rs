//! A report for people. In: a [`Report`]. Out: text. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use super::lint::{Parent, Problem, Report, Route, Verdict};

/// Columns of a condition, wide enough for the standard's words.
const TYPE: usize = 16;
const STATUS: usize = 5;
const REASON: usize = 19;

/// The text.
pub(super) fn of(report: &Report) -> String {
    let mut out = String::new();
    for route in &report.routes {
        write_route(&mut out, route);
    }
    for Problem { origin, message } in &report.objects {
        let _ = writeln!(out, "✗ {origin}: {}", indented(message, 2));
    }
    for message in &report.unread {
        let _ = writeln!(out, "✗ {}", indented(message, 2));
    }
    for note in &report.notes {
        let _ = writeln!(out, "- {note}");
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let fine = report.count(Verdict::Fine);
    let problems = report.count(Verdict::Problem);
    let others = report.count(Verdict::NotOurs);
    let _ = write!(out, "routes: {fine} fine, {problems} with problems");
    if others > 0 {
        let _ = write!(out, ", {others} not of a Service");
    }
    if !report.objects.is_empty() {
        let _ = write!(
            out,
            "; other objects with problems: {}",
            report.objects.len()
        );
    }
    if !report.unread.is_empty() {
        let _ = write!(out, "; not read: {}", report.unread.len());
    }
    out.push('\n');
    out
}

fn write_route(out: &mut String, route: &Route) {
    let name = format!("{} {}/{}", route.kind, route.namespace, route.name);
    let origin = &route.origin;
    if route.parents.is_empty() {
        let sign = match route.verdict {
            Verdict::Problem => '✗',
            Verdict::Fine | Verdict::NotOurs => '-',
        };
        let _ = writeln!(
            out,
            "{sign} {name}  ({origin})\n    no parentRef names a Service: nothing for the mesh, and no status from weft"
        );
    }
    for parent in &route.parents {
        write_parent(out, &name, &route.namespace, origin, parent);
    }
    for hint in &route.hints {
        let _ = writeln!(out, "    → {}", indented(hint, 6));
    }
}

fn write_parent(out: &mut String, name: &str, namespace: &str, origin: &str, parent: &Parent) {
    let bad = parent.conditions.iter().any(|condition| condition.is_bad());
    let sign = if bad { '✗' } else { '✓' };
    let service = service(&parent.parent_ref, namespace);
    let _ = writeln!(out, "{sign} {name} at Service {service}  ({origin})");
    for condition in &parent.conditions {
        let sign = if condition.is_bad() { '✗' } else { ' ' };
        let start = format!(
            "  {sign} {:TYPE$}  {:STATUS$}  {:REASON$}  ",
            condition.type_, condition.status, condition.reason
        );
        let message = indented(&condition.message, start.chars().count());
        let _ = writeln!(out, "{start}{message}");
    }
}

/// `namespace/name`, and the port as the parentRef names it.
fn service(parent: &Value, namespace: &str) -> String {
    let text = |field: &str| parent.get(field).and_then(Value::as_str);
    let namespace = text("namespace").unwrap_or(namespace);
    let mut out = format!("{namespace}/{}", text("name").unwrap_or("?"));
    if let Some(port) = parent.get("port").filter(|port| !port.is_null()) {
        let _ = write!(out, ":{port}");
    }
    if let Some(section) = text("sectionName") {
        let _ = write!(out, ":{section}");
    }
    out
}

/// A message of several lines, so that all of them stand below the first.
fn indented(message: &str, by: usize) -> String {
    message.replace('\n', &format!("\n{:by$}", ""))
}
