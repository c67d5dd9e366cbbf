//! Waits for a lab to be whole and shows how far it is. In: its status, asked over and over. Out:
//! a spinner on a terminal, plain lines elsewhere, and what is missing when the time is over.

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::view::{self, LabStatus, Missing};

/// Between looks.
const POLL: Duration = Duration::from_millis(100);

/// How waiting ended.
pub(crate) enum Outcome {
    /// Everything is there.
    Whole(LabStatus),
    /// The rest is there, or the time is over.
    Missing(Option<LabStatus>, Missing),
}

/// Waits. `ask` gives the state, or none while the lab can't answer yet, or an error when it ended.
pub(crate) fn wait(
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<LabStatus>>,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let mut shown = Shown::new();
    let mut last = None;
    loop {
        if let Some(status) = ask()? {
            let missing = view::missing(&status);
            shown.update(&status, &missing);
            if missing.waiting.is_empty() {
                return Ok(if missing.failed.is_empty() {
                    Outcome::Whole(status)
                } else {
                    Outcome::Missing(Some(status), missing)
                });
            }
            last = Some((status, missing));
        }
        if start.elapsed() > limit {
            let (status, mut missing) = last.map_or_else(
                || (None, Missing::default()),
                |(status, missing)| (Some(status), missing),
            );
            if status.is_none() {
                missing.waiting.push("the lab does not answer".into());
            }
            return Ok(Outcome::Missing(status, missing));
        }
        std::thread::sleep(POLL);
    }
}

struct Shown {
    bar: Option<ProgressBar>,
    lines: BTreeSet<String>,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(POLL);
            bar
        });
        Self {
            bar,
            lines: BTreeSet::new(),
        }
    }

    fn update(&mut self, status: &LabStatus, missing: &Missing) {
        for (name, part) in status.parts.iter().filter(|(_, part)| part.ready) {
            let _ = part;
            self.line(format!("{name} is ready"));
        }
        for pod in status.pods.iter().filter(|pod| pod.ready) {
            self.line(format!(
                "pod {}/{} is ready on {} ({})",
                pod.namespace, pod.name, pod.node, pod.address
            ));
        }
        for invalid in &status.invalid {
            self.line(format!("! {}", invalid.message));
        }
        if let Some(bar) = &self.bar {
            let ready = status.pods.iter().filter(|pod| pod.ready).count();
            let next = missing.waiting.first().map_or("", String::as_str);
            bar.set_message(format!("{ready}/{} pods ready; {next}", status.pods.len()));
        }
    }

    fn line(&mut self, line: String) {
        if !self.lines.insert(line.clone()) {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
