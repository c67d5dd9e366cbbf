//! Tables for people. In: rows. Out: text. Pure.

use std::fmt::Write as _;

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value;

use super::{
    kinds,
    supervise::PartStatus,
    view::{self, Condition, LabStatus, PodRow, RouteRow},
};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

/// Trailing blanks would only make output hard to compare.
fn text(table: &Table) -> String {
    let mut out = String::new();
    for line in table.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim().replace('\u{a0}', " "));
    }
    out
}

/// Pods: node, address, readiness, mesh, identity.
pub(crate) fn pods(rows: &[PodRow], mesh: bool) -> String {
    let mut header = vec!["NAMESPACE", "POD", "NODE", "ADDRESS", "READY", "RESTARTS"];
    if mesh {
        header.extend(["MESH", "IDENTITY"]);
    }
    let mut table = table(&header);
    for pod in rows {
        let ready = match (pod.terminating, pod.ready, pod.reason.as_str()) {
            (true, ..) => "terminating".to_owned(),
            (_, true, _) => "yes".to_owned(),
            (_, _, "") if pod.phase == "Running" => "no".to_owned(),
            (_, _, "") => pod.phase.clone(),
            (_, _, reason) => reason.to_owned(),
        };
        let restarts = pod.restarts.to_string();
        let mut row: Vec<&str> = vec![
            &pod.namespace,
            &pod.name,
            &pod.node,
            &pod.address,
            &ready,
            &restarts,
        ];
        if mesh {
            row.push(if pod.captured { "in" } else { "-" });
            row.push(if pod.identity.is_empty() {
                "-"
            } else {
                &pod.identity
            });
        }
        table.add_row(row);
    }
    text(&table)
}

/// Routes: where they apply and what became of them.
pub(crate) fn routes(rows: &[RouteRow]) -> String {
    let mut table = table(&[
        "ROUTE",
        "NAMESPACE",
        "SERVICE",
        "ACCEPTED",
        "RESOLVED",
        "PROGRAMMED",
    ]);
    let show = |condition: &Condition| match condition.status.as_str() {
        "" => "-".to_owned(),
        "True" => "True".to_owned(),
        status => format!("{status} ({})", condition.reason),
    };
    for route in rows {
        table.add_row([
            format!("{}/{}", route.kind.to_lowercase(), route.name),
            route.namespace.clone(),
            route.parent.clone(),
            show(&route.accepted),
            show(&route.resolved),
            show(&route.programmed),
        ]);
    }
    let mut out = text(&table);
    for route in rows {
        let bad = [&route.accepted, &route.resolved, &route.programmed];
        let bad = bad
            .into_iter()
            .filter(|condition| condition.status == "False");
        let partly = Some(&route.partially_invalid).filter(|condition| condition.status == "True");
        for condition in bad.chain(partly) {
            let _ = writeln!(
                out,
                "  {}/{}: {}: {}",
                route.kind.to_lowercase(),
                route.name,
                condition.reason,
                condition.message
            );
        }
    }
    out
}

/// Pods and routes, as after `up`.
pub(crate) fn overview(status: &LabStatus) -> String {
    let mut out = pods(&status.pods, status.mesh);
    if !status.routes.is_empty() {
        let _ = write!(out, "\n{}", routes(&status.routes));
    }
    out
}

/// All of `weft lab status`.
pub(crate) fn status(status: &LabStatus) -> String {
    let mut out = String::new();
    if status.mesh {
        let mut parts = table(&["PART", "READY", "RESTARTS", "PID", ""]);
        for (name, part) in &status.parts {
            parts.add_row([
                name.clone(),
                match (part.stopped, part.ready) {
                    (true, _) => "stopped".into(),
                    (_, true) => "yes".into(),
                    (_, false) => "no".into(),
                },
                part.restarts.to_string(),
                part.pid
                    .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                part_note(part),
            ]);
        }
        let _ = writeln!(out, "{}", text(&parts));
    }
    out += &overview(status);
    let missing = view::missing(status);
    let controller = invalid_lines(status.controller_invalid.as_ref());
    let own = status.invalid.iter().map(|invalid| invalid.message.clone());
    let notes: Vec<String> = missing
        .failed
        .into_iter()
        .chain(missing.waiting)
        .chain(status.away.iter().cloned())
        .chain(own)
        .chain(controller)
        .collect();
    if !notes.is_empty() {
        out.push('\n');
    }
    for note in notes {
        let _ = writeln!(out, "! {note}");
    }
    out
}

fn part_note(part: &PartStatus) -> String {
    let mut notes = Vec::new();
    if !part.stopped && !part.message.is_empty() {
        notes.push(part.message.clone());
    }
    if !part.draining.is_empty() {
        let pids: Vec<String> = part.draining.iter().map(ToString::to_string).collect();
        notes.push(format!("replaced, draining: {}", pids.join(", ")));
    }
    notes.join("; ")
}

/// The controller's list of what it could not use, whatever shape its entries have.
fn invalid_lines(value: Option<&Value>) -> Vec<String> {
    let line = |entry: &Value| match (entry["origin"].as_str(), entry["error"].as_str()) {
        (Some(origin), Some(error)) => format!("{origin}: {error}"),
        _ => entry
            .as_str()
            .map_or_else(|| entry.to_string(), ToOwned::to_owned),
    };
    match value {
        Some(Value::Array(entries)) => entries.iter().map(line).collect(),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(origin, error)| {
                format!(
                    "{origin}: {}",
                    error
                        .as_str()
                        .map_or_else(|| error.to_string(), str::to_owned)
                )
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Objects of any kind, a line each.
pub(crate) fn objects(objects: &[Value], mesh: bool) -> String {
    let Some(first) = objects.first() else {
        return "nothing found\n".into();
    };
    let field = |object: &Value, pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    match first["kind"].as_str() {
        Some("Pod") => pods(&objects.iter().map(view::pod_row).collect::<Vec<_>>(), mesh),
        Some(kind) if kind.ends_with("Route") => routes(
            &objects
                .iter()
                .flat_map(view::route_rows)
                .collect::<Vec<_>>(),
        ),
        Some("Service") => {
            let mut table = table(&["NAMESPACE", "NAME", "CLUSTER-IP", "PORTS"]);
            for object in objects {
                let ports = object["spec"]["ports"].as_array().into_iter().flatten();
                let ports: Vec<_> = ports.map(|p| p["port"].to_string()).collect();
                table.add_row([
                    field(object, "/metadata/namespace"),
                    field(object, "/metadata/name"),
                    field(object, "/spec/clusterIP"),
                    ports.join(","),
                ]);
            }
            text(&table)
        }
        Some("Deployment") => {
            let mut table = table(&["NAMESPACE", "NAME", "READY", "UPDATED"]);
            for object in objects {
                let count =
                    |pointer: &str| object.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
                table.add_row([
                    field(object, "/metadata/namespace"),
                    field(object, "/metadata/name"),
                    format!(
                        "{}/{}",
                        count("/status/readyReplicas"),
                        count("/spec/replicas")
                    ),
                    count("/status/updatedReplicas").to_string(),
                ]);
            }
            text(&table)
        }
        _ => {
            let mut table = table(&["NAMESPACE", "NAME", "LABELS"]);
            for object in objects {
                let labels = object["metadata"]["labels"]
                    .as_object()
                    .into_iter()
                    .flatten();
                let labels: Vec<_> = labels
                    .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                    .collect();
                table.add_row([
                    field(object, "/metadata/namespace"),
                    field(object, "/metadata/name"),
                    labels.join(","),
                ]);
            }
            text(&table)
        }
    }
}

/// What an apply printed: one line for each object.
pub(crate) fn outcome(key: &weft_source::ObjectKey, outcome: super::api::Outcome) -> String {
    format!("{} {outcome}", kinds::reference(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_outside_the_mesh_has_no_identity() {
        let pod = |name: &str, captured: bool| PodRow {
            namespace: "shop".into(),
            name: name.into(),
            ready: true,
            captured,
            identity: if captured {
                "spiffe://x".into()
            } else {
                String::new()
            },
            ..PodRow::default()
        };
        let text = pods(&[pod("a", true), pod("b", false)], true);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][lines[1].len() - 2..], ["in", "spiffe://x"]);
        assert_eq!(lines[2][lines[2].len() - 2..], ["-", "-"]);
        assert!(!pods(&[pod("a", true)], false).contains("spiffe"));
    }

    #[test]
    fn a_route_tells_what_of_it_is_not_in_force() {
        let condition = |status: &str, reason: &str, message: &str| Condition {
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
        };
        let row = RouteRow {
            accepted: condition("True", "Accepted", "attached"),
            partially_invalid: condition("True", "UnsupportedValue", "Dropped Rule rules[0]"),
            ..RouteRow::default()
        };
        let text = routes(&[row]);
        assert!(
            text.contains("UnsupportedValue: Dropped Rule rules[0]"),
            "{text}"
        );
        assert!(!text.contains("attached"), "{text}");
    }
}
