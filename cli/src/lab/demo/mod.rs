//! `weft lab demo`: brings a shop up and shows what the mesh does to it. In: nothing. Out: each
//! step with what was seen; exit code 0 only if every one was. Everything is taken down again,
//! unless it is to be kept.

mod stage;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{capture::Capture, family::IpFamily, paths::Paths, preflight, sweep, up};
use stage::Stage;

/// `weft lab demo`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Leave the lab up at the end.
    #[arg(long)]
    keep: bool,
    /// Addresses of nodes, pods and Services.
    #[arg(long, value_name = "FAMILY", value_enum, default_value_t)]
    ip_family: IpFamily,
}

/// The lab's name if none is given: a lab of yours stays as it is.
pub(crate) const NAME: &str = "demo";

const MANIFESTS: [(&str, &str); 2] = [
    ("shop.yaml", include_str!("../../../demo/shop.yaml")),
    ("plain.yaml", include_str!("../../../demo/plain.yaml")),
];
const ROUTES: [(&str, &str); 3] = [
    (
        "canary-90-10.yaml",
        include_str!("../../../demo/canary-90-10.yaml"),
    ),
    (
        "canary-50-50.yaml",
        include_str!("../../../demo/canary-50-50.yaml"),
    ),
    (
        "canary-header.yaml",
        include_str!("../../../demo/canary-header.yaml"),
    ),
];

/// A demo that hangs is a failed demo.
const LIMIT: Duration = Duration::from_secs(180);
/// Requests by which a split is judged.
const REQUESTS: u64 = 400;
/// How far a split may be from its weights, in standard deviations: more is no chance.
const DEVIATIONS: f64 = 5.0;
/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs the demo.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    if let Err(why) = preflight::check(true, args.ip_family) {
        return Ok(up::cannot(&why));
    }
    let folder = tempfile::Builder::new().prefix("weft-demo-").tempdir()?;
    let stage = Stage::new(lab, folder.path(), args.ip_family);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let play = tokio::task::spawn_blocking({
            let stage = stage.clone();
            move || play(&stage)
        });
        tokio::select! {
            done = play => done.context("the demo").and_then(|result| result).map(|()| ExitCode::SUCCESS),
            () = tokio::time::sleep(LIMIT) => bail!("the demo is not over after {LIMIT:?}"),
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
        }
    });
    // A step that hangs is not waited for: what it waits for goes away below.
    runtime.shutdown_background();
    if result.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS) && args.keep {
        print_next(lab, &folder.keep());
        return result;
    }
    if let Err(error) = &result {
        stage.failed(error);
        eprintln!("{}", stage.diagnose());
    }
    sweep::stop_daemon(&Paths::of(lab));
    sweep::sweep(lab)?;
    println!("\nlab {lab} is down");
    Ok(result.unwrap_or(ExitCode::FAILURE))
}

fn play(stage: &Stage) -> anyhow::Result<()> {
    stage.write(&MANIFESTS)?;
    stage.title("Two nodes, a shop in the mesh, a namespace outside it");
    let folder = stage.folder();
    let manifests = folder.join("manifests");
    let manifests = manifests.to_string_lossy();
    let family = stage.family().to_string();
    let mut up = vec!["up", "-f", &manifests, "--detach", "--timeout", "60"];
    // A newcomer's first command is not longer than it needs to be.
    if stage.family() != IpFamily::default() {
        up.extend(["--ip-family", &family]);
    }
    stage.weft(&up)?;
    stage.write_routes(&ROUTES)?;
    let pods = stage.pods("shop")?;
    ensure!(
        !pods.is_empty() && pods.iter().all(|pod| pod.captured),
        "pods of shop are not captured"
    );
    stage.seen(&format!(
        "{} pods of shop are in the mesh, those of plain are not",
        pods.len()
    ));

    stage.title("A canary: 90/10, then 50/50, then by header");
    stage.apply("canary-90-10.yaml")?;
    split(stage, 0.1)?;
    stage.apply("canary-50-50.yaml")?;
    split(stage, 0.5)?;
    stage.apply("canary-header.yaml")?;
    by_header(stage)?;

    stage.title("Who talks to whom: the SPIFFE identities of a connection");
    identities(stage)?;

    stage.title("On the wire between the nodes");
    on_the_wire(stage, "plain", true)?;
    on_the_wire(stage, "shop", false)?;

    stage.title("Out of the mesh and back, without a restart");
    let before = stage.pods("shop")?;
    stage.weft(&["label", "namespace", "shop", "weft.dev/mesh-"])?;
    stage.wait_captured("shop", false)?;
    stage.seen("the running pods have left the mesh");
    on_the_wire(stage, "shop", true)?;
    stage.weft(&["label", "namespace", "shop", "weft.dev/mesh=enabled"])?;
    stage.wait_captured("shop", true)?;
    stage.seen("the running pods are in the mesh again");
    on_the_wire(stage, "shop", false)?;
    let same = |pods: &[super::view::PodRow]| -> Vec<(String, String, u64)> {
        pods.iter()
            .map(|p| (p.name.clone(), p.address.clone(), p.restarts))
            .collect()
    };
    ensure!(
        same(&before) == same(&stage.pods("shop")?),
        "a pod of shop was restarted"
    );
    stage.seen("no pod was restarted");
    Ok(())
}

/// Drives traffic and holds the share of v2 against its weight.
fn split(stage: &Stage, share: f64) -> anyhow::Result<()> {
    let summary = stage.load("shop/client", "http://checkout/", REQUESTS, &[])?;
    let (v1, v2) = (version(&summary, "v1"), version(&summary, "v2"));
    stage.say(&format!("{REQUESTS} requests: v1 {v1}, v2 {v2}"));
    ensure!(
        summary["failed"] == 0 && v1 + v2 == REQUESTS,
        "requests failed: {summary}"
    );
    ensure!(
        is_plausible(v2, REQUESTS, share),
        "{v2} of {REQUESTS} went to v2, which is not {:.0} %",
        share * 100.0
    );
    stage.seen(&format!(
        "{:.0} % of the requests reached v2",
        percent(v2, REQUESTS)
    ));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of as f64
}

/// Whether a count can come from independent choices with this share.
#[expect(clippy::cast_precision_loss, reason = "counts of a demo are small")]
fn is_plausible(count: u64, of: u64, share: f64) -> bool {
    let of = of as f64;
    let deviation = (of * share * (1.0 - share)).sqrt();
    (count as f64 - of * share).abs() <= DEVIATIONS * deviation
}

fn version(summary: &Value, version: &str) -> u64 {
    summary["versions"][version].as_u64().unwrap_or(0)
}

fn by_header(stage: &Stage) -> anyhow::Result<()> {
    const FEW: u64 = 40;
    let with = stage.load(
        "shop/client",
        "http://checkout/",
        FEW,
        &["-H", "x-canary:yes"],
    )?;
    let without = stage.load("shop/client", "http://checkout/", FEW, &[])?;
    stage.say(&format!(
        "with x-canary: yes: v2 {}; without: v1 {}",
        version(&with, "v2"),
        version(&without, "v1")
    ));
    ensure!(version(&with, "v2") == FEW, "not all went to v2: {with}");
    ensure!(
        version(&without, "v1") == FEW,
        "not all went to v1: {without}"
    );
    stage.seen("only requests with the header reach v2");
    Ok(())
}

fn identities(stage: &Stage) -> anyhow::Result<()> {
    // Without a route the port is forwarded as it is: a connection ends, and is logged, with its
    // request. Those of routes are kept for the next ones.
    stage.load("shop/client", "http://checkout-v1/", 1, &[])?;
    let (client, server) = (
        "spiffe://cluster.local/ns/shop/sa/client",
        "spiffe://cluster.local/ns/shop/sa/checkout",
    );
    for (node, side) in [("n1", "the client's"), ("n2", "the server's")] {
        let line = stage.access_line(node, |line| {
            line["src_identity"] == client && line["dst_identity"] == server
        })?;
        stage.say(&format!(
            "{side} node: {} -> {}",
            line["src_identity"], line["dst_identity"]
        ));
    }
    stage.seen("both ends proved who they are, and both nodes' proxies agree");
    Ok(())
}

/// Sends a marker from one node to the other, and looks for it on the wire.
fn on_the_wire(stage: &Stage, namespace: &str, expected: bool) -> anyhow::Result<()> {
    let marker = format!("weft-demo-{}", super::api::new_uid());
    let capture = Capture::start(&stage.fabric()?, vec![marker.clone()])?;
    let sent = stage.post(&format!("{namespace}/client"), "http://checkout/", &marker);
    let seen = capture.stop()?;
    let body = sent?;
    ensure!(
        body == marker,
        "checkout got {body:?} instead of the marker"
    );
    let in_clear = seen.texts[0] > 0;
    stage.say(&format!(
        "{namespace}: {} frames, {} of them of tunnels, the body's marker in {}",
        seen.frames, seen.tunnel, seen.texts[0]
    ));
    ensure!(seen.frames > 0, "nothing was captured between the nodes");
    ensure!(
        in_clear == expected,
        "the body of {namespace} was {} on the wire",
        if in_clear {
            "in clear text"
        } else {
            "not in clear text"
        }
    );
    ensure!(
        expected || seen.tunnel > 0,
        "no tunnel was seen between the nodes"
    );
    stage.seen(&format!(
        "{namespace}: the body is {} on the wire",
        if expected {
            "in clear text"
        } else {
            "encrypted"
        }
    ));
    Ok(())
}

fn print_next(lab: &str, folder: &Path) {
    let folder = folder.display();
    println!(
        "\nlab {lab} stays up. Try:\n\
         \n  weft lab status --name {lab}\
         \n  weft lab exec --name {lab} shop/client -- weft-echo client http://checkout/ -n 20\
         \n  weft lab apply --name {lab} -f {folder}/canary-50-50.yaml\
         \n  weft lab logs --name {lab} access/n1 -f\
         \n  weft lab get --name {lab} httproutes -A -o yaml\
         \n  edit {folder}/manifests/shop.yaml: the lab follows it\
         \n  weft lab down --name {lab}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{Text, parse};

    #[test]
    fn a_split_is_judged_by_its_standard_deviation() {
        let cases = [
            (40, 0.1, true),
            (69, 0.1, true),
            (80, 0.1, false),
            (9, 0.1, false),
            (200, 0.5, true),
            (100, 0.5, false),
        ];
        for (count, share, expected) in cases {
            assert_eq!(
                is_plausible(count, 400, share),
                expected,
                "{count} at {share}"
            );
        }
    }

    #[test]
    fn the_demos_manifests_are_ones_that_the_lab_takes() {
        for (name, text) in MANIFESTS.iter().chain(&ROUTES) {
            let text = Text {
                origin: (*name).into(),
                text: (*text).into(),
            };
            let parsed = parse(&[text]);
            assert_eq!(parsed.errors, [], "{name}");
            assert!(!parsed.documents.is_empty(), "{name}");
        }
    }
}
