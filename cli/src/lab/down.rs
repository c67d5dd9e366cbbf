//! `weft lab down`: takes a lab down, alive or not.

use std::process::ExitCode;

use super::{
    netns,
    paths::{self, Paths},
    plan, preflight, sweep, up,
};

/// `weft lab down`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Every lab of this machine.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Runs the command.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    if let Err(why) = preflight::linux_and_root() {
        return Ok(up::cannot(&why));
    }
    let labs = if args.all {
        all()
    } else {
        vec![lab.to_owned()]
    };
    if labs.is_empty() {
        println!("no lab is up");
    }
    for lab in labs {
        plan::check_name(&lab)?;
        let known = Paths::of(&lab).state().exists();
        sweep::stop_daemon(&Paths::of(&lab));
        let left = sweep::sweep(&lab)?;
        println!(
            "lab {lab} {}",
            if known || left {
                "is down"
            } else {
                "was not up"
            }
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Labs with a folder, and those of which only a namespace is left.
fn all() -> Vec<String> {
    let mut labs = paths::labs();
    labs.extend(netns::list().iter().filter_map(|name| {
        let lab = name.strip_prefix("weft-")?.strip_suffix("-fabric")?;
        plan::check_name(lab).is_ok().then(|| lab.to_owned())
    }));
    labs.sort();
    labs.dedup();
    labs
}
