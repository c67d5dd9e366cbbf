//! What is printed: each failure that nothing explains, with what the proxies logged of it and what
//! was going on; at the end a table.

use std::{collections::BTreeMap, fs};

use weft_chaos::{
    inventory::Leak,
    judge::{Incident, Places, explanation},
    load::Book,
    record::{Failure, clock},
};
use weft_lab_tests::Lab;

/// Something that was done, from when to when.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) what: String,
    pub(crate) kind: &'static str,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// How far back an event may lie to be shown beside a failure, in milliseconds.
const RECENT_MS: u64 = 5_000;
/// Access-log lines shown for a failure.
const LINES: usize = 2;
/// A log's end that is looked through.
const LOG_TAIL: usize = 64 << 20;

/// Failures, sorted.
#[derive(Default)]
pub(crate) struct Verdict {
    /// Nothing explains them.
    pub(crate) unexplained: Vec<(String, Failure)>,
    /// By what explains them.
    pub(crate) explained: BTreeMap<&'static str, u64>,
}

/// Sorts failures by whether an incident explains them.
pub(crate) fn judge(book: &Book, incidents: &[Incident], places: &Places) -> Verdict {
    let mut verdict = Verdict::default();
    for (client, failure) in &book.failures {
        match explanation(client, failure, incidents, places) {
            Some(incident) => *verdict.explained.entry(incident.as_str()).or_default() += 1,
            None => verdict.unexplained.push((client.clone(), failure.clone())),
        }
    }
    verdict
}

/// Prints a failure as a line of JSON, then what was going on and what proxies logged of it.
pub(crate) fn failure(lab: &Lab, client: &str, failure: &Failure, steps: &[Step]) {
    let mut line = serde_json::to_value(failure).unwrap_or_default();
    line["client"] = client.into();
    line["time"] = clock(failure.conn.at).into();
    line["age_ms"] = failure.conn.at.saturating_sub(failure.conn.opened).into();
    println!("FAILED {line}");
    let begins = failure.began.saturating_sub(RECENT_MS);
    for step in steps
        .iter()
        .filter(|step| step.until >= begins && step.from <= failure.conn.at)
    {
        println!(
            "  while: {} .. {} {}",
            clock(step.from),
            clock(step.until),
            step.what
        );
    }
    for (node, line) in access_lines(lab, failure) {
        println!("  {node} logged: {line}");
    }
}

/// Lines of the access logs that speak of the failure's connection.
fn access_lines(lab: &Lab, failure: &Failure) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if failure.conn.local.is_empty() {
        return found;
    }
    let logs = fs::read_dir(lab.state_dir().join("logs"));
    for entry in logs.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(node) = name.strip_prefix("access-") else {
            continue;
        };
        let bytes = fs::read(entry.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]);
        let own = format!("\"{}\"", failure.conn.local);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(&own)).collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            found.push((node.trim_end_matches(".log").to_owned(), (*line).to_owned()));
        }
    }
    found
}

/// The table at the end.
pub(crate) fn table(book: &Book, steps: &[Step], toggles: u32, verdict: &Verdict, leaks: &[Leak]) {
    println!(
        "\n{:<26}{:>9}{:>8}{:>12}{:>9}{:>7}{:>11}",
        "REQUESTS", "OK", "FAILED", "CONNECTIONS", "CLOSED", ">1 s", "SLOWEST"
    );
    let mut total = 0;
    for (lane, tally) in book.sums() {
        println!(
            "{lane:<26}{:>9}{:>8}{:>12}{:>9}{:>7}{:>8} ms",
            tally.ok, tally.failed, tally.opened, tally.ended, tally.slow, tally.slowest_ms
        );
        total += tally.ok;
    }
    println!("\n{:<26}{:>9}", "EVENTS", "COUNT");
    let mut events: BTreeMap<&str, u32> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.kind != "toggle") {
        *events.entry(step.kind).or_default() += 1;
    }
    println!("{:<26}{toggles:>9}", "joins and leaves");
    for (kind, count) in events {
        println!("{kind:<26}{count:>9}");
    }
    println!("\n{:<50}{:>9}", "FAILURES", "COUNT");
    for (why, count) in &verdict.explained {
        println!("{:<50}{count:>9}", format!("expected: {why}"));
    }
    println!("{:<50}{:>9}", "not expected", verdict.unexplained.len());
    if leaks.is_empty() {
        println!("\nLEAKS: none");
    } else {
        println!("\nLEAKS");
        for leak in leaks {
            println!("{leak}");
        }
    }
    println!("\n{total} requests and streams answered");
}
