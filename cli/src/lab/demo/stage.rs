//! What the demo's steps are made of: weft's own commands, run as a person would run them, with
//! bounded waiting. In: commands. Out: what they printed, and lines for the audience.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use owo_colors::{OwoColorize, Stream};
use serde_json::Value;

use crate::lab::{
    client,
    family::IpFamily,
    paths::Paths,
    plan::Plan,
    view::{self, PodRow},
};

/// How long pods may take to join or leave, and an access-log line to be written.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Requests under way at once.
const CONCURRENCY: &str = "8";

/// Where the demo is played.
#[derive(Clone)]
pub(super) struct Stage {
    lab: String,
    folder: PathBuf,
    family: IpFamily,
    start: Instant,
}

impl Stage {
    pub(super) fn new(lab: &str, folder: &Path, family: IpFamily) -> Self {
        Self {
            lab: lab.to_owned(),
            folder: folder.to_owned(),
            family,
            start: Instant::now(),
        }
    }

    pub(super) fn family(&self) -> IpFamily {
        self.family
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    // === for the audience ===

    pub(super) fn title(&self, text: &str) {
        println!(
            "\n{}",
            text.if_supports_color(Stream::Stdout, |text| text.bold())
        );
    }

    pub(super) fn say(&self, text: &str) {
        println!("    {text}");
    }

    pub(super) fn seen(&self, text: &str) {
        let mark = "✓"
            .if_supports_color(Stream::Stdout, |mark| mark.green())
            .to_string();
        println!(
            "  {mark} {text} ({:.1} s)",
            self.start.elapsed().as_secs_f64()
        );
        let _ = std::io::stdout().flush();
    }

    pub(super) fn failed(&self, error: &anyhow::Error) {
        let mark = "✗"
            .if_supports_color(Stream::Stderr, |mark| mark.red())
            .to_string();
        eprintln!("  {mark} {error:#}");
    }

    /// What helps to see why a step failed, before it is taken down.
    pub(super) fn diagnose(&self) -> String {
        self.weft_quietly(&["status"])
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    // === files ===

    /// Writes the manifests that the lab follows.
    pub(super) fn write(&self, files: &[(&str, &str)]) -> anyhow::Result<()> {
        write_all(&self.folder.join("manifests"), files)
    }

    /// Writes manifests to be applied one after the other.
    pub(super) fn write_routes(&self, files: &[(&str, &str)]) -> anyhow::Result<()> {
        write_all(&self.folder, files)
    }

    // === commands ===

    /// Runs `weft lab …`, shows the command and what it prints.
    pub(super) fn weft(&self, args: &[&str]) -> anyhow::Result<()> {
        let shown = format!("$ weft lab {}", args.join(" "));
        println!(
            "  {}",
            shown.if_supports_color(Stream::Stdout, |text| text.dimmed())
        );
        let out = self.weft_quietly(args)?;
        for line in out.lines().filter(|line| !line.is_empty()) {
            self.say(line);
        }
        Ok(())
    }

    pub(super) fn apply(&self, file: &str) -> anyhow::Result<()> {
        self.weft(&["apply", "-f", &self.folder.join(file).to_string_lossy()])
    }

    fn weft_quietly(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["lab", "--name", &self.lab]).args(args);
        let output = command.output()?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!(
                "weft lab {}: {}\n{out}{error}",
                args.join(" "),
                output.status
            );
        }
        Ok(out)
    }

    // === traffic ===

    /// Sends requests from a pod; gives weft-echo's summary.
    pub(super) fn load(
        &self,
        pod: &str,
        url: &str,
        requests: u64,
        more: &[&str],
    ) -> anyhow::Result<Value> {
        let requests = requests.to_string();
        let mut args = vec!["exec", pod, "--", "weft-echo", "client", url];
        args.extend([
            "-n",
            &requests,
            "-c",
            CONCURRENCY,
            "--summary",
            "-o",
            "json",
        ]);
        args.extend(more);
        let out = self.weft_quietly(&args)?;
        serde_json::from_str(&out).context("weft-echo's summary")
    }

    /// Posts a body from a pod; gives the body that arrived.
    pub(super) fn post(&self, pod: &str, url: &str, body: &str) -> anyhow::Result<String> {
        let args = [
            "exec",
            pod,
            "--",
            "weft-echo",
            "client",
            url,
            "-d",
            body,
            "-o",
            "json",
        ];
        let out = self.weft_quietly(&args)?;
        let outcome: Value = serde_json::from_str(&out).context("weft-echo's answer")?;
        let body = outcome["answer"]["body"].as_str();
        Ok(body
            .with_context(|| format!("no body came back: {outcome}"))?
            .to_owned())
    }

    // === state ===

    /// Pods of a namespace.
    pub(super) fn pods(&self, namespace: &str) -> anyhow::Result<Vec<PodRow>> {
        let pods = client::objects(&self.lab, "pods", Some(namespace), None)?;
        Ok(pods.iter().map(view::pod_row).collect())
    }

    /// Waits until all pods of a namespace are in the mesh, and every proxy knows, or out of it.
    pub(super) fn wait_captured(&self, namespace: &str, captured: bool) -> anyhow::Result<()> {
        let what = if captured { "join" } else { "leave" };
        self.eventually(
            &format!("the pods of {namespace} did not {what} the mesh"),
            || {
                let pods = self.pods(namespace)?;
                let done = |pod: &PodRow| pod.captured == captured && pod.acknowledged == captured;
                Ok((!pods.is_empty() && pods.iter().all(done)).then_some(()))
            },
        )
    }

    /// A line of a node's access log.
    pub(super) fn access_line(
        &self,
        node: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let log = Paths::of(&self.lab).access_log(node);
        self.eventually(&format!("no such line in {}", log.display()), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text
                .lines()
                .rev()
                .filter_map(|line| serde_json::from_str(line).ok());
            Ok(lines.into_iter().find(|line| fits(line)))
        })
    }

    /// The namespace of the bridge between the nodes.
    pub(super) fn fabric(&self) -> anyhow::Result<String> {
        Ok(Plan::new(&self.lab, 2, None, self.family)?.fabric.netns)
    }

    fn eventually<T>(
        &self,
        complaint: &str,
        mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = probe()? {
                return Ok(value);
            }
            if start.elapsed() > PATIENCE {
                bail!("{complaint} within {PATIENCE:?}");
            }
            std::thread::sleep(POLL);
        }
    }
}

fn write_all(folder: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
