//! `weft lab up`: starts a lab, in the foreground or beside the terminal.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};

use super::{
    client, daemon,
    family::IpFamily,
    netns,
    paths::{Paths, ROOT, State},
    plan::Plan,
    preflight,
    programs::Extra,
    progress::{self, Outcome},
    sweep, table,
    view::Missing,
};

/// `weft lab up`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Manifests: files, or folders of which .yaml, .yml and .json are read; followed for changes.
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    pub(crate) nodes: u8,
    /// How many zones the nodes are spread over [default: one each].
    #[arg(long)]
    pub(crate) zones: Option<u8>,
    /// Addresses of nodes, pods and Services.
    #[arg(long, value_name = "FAMILY", value_enum, default_value_t)]
    pub(crate) ip_family: IpFamily,
    /// Go on in the background once everything is ready.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Seconds until a lab that is not whole is reported.
    #[arg(long, default_value_t = 120)]
    pub(crate) timeout: u64,
    /// Plain pods only: no controller, agents and proxies.
    #[arg(long)]
    pub(crate) no_mesh: bool,
    /// An argument for every proxy, such as --proxy-arg=--drain-timeout=5s; may be repeated, and
    /// goes before what the lab would set itself.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) proxy_arg: Vec<String>,
    /// An argument for every agent; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) agent_arg: Vec<String>,
    /// rp_filter of nodes and pods: 0 off, 1 strict, 2 loose.
    /// [default: strict on nodes; pods as new network namespaces have it]
    #[arg(long, value_name = "MODE", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) rp_filter: Option<u8>,
    /// This process is the lab; its folder has been claimed.
    #[arg(long, hide = true)]
    pub(crate) claimed: bool,
}

/// Exit code for "this machine can't".
const CANNOT: u8 = 2;

/// Runs the command.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let plan = match Plan::new(lab, args.nodes, args.zones, args.ip_family) {
        Ok(plan) => Plan {
            rp_filter: args.rp_filter,
            ..plan
        },
        Err(error) => return Ok(cannot(&error.to_string())),
    };
    let options = daemon::Options {
        plan,
        files: absolute(&args.files)?,
        mesh: !args.no_mesh,
        extra: Extra {
            proxy: args.proxy_arg.clone(),
            agent: args.agent_arg.clone(),
        },
    };
    if args.claimed {
        nix::unistd::setsid().context("setsid")?;
        return run_here(&options, None);
    }
    if let Err(why) = preflight::check(options.mesh, args.ip_family) {
        return Ok(cannot(&why));
    }
    for file in &options.files {
        if !file.exists() {
            return Ok(cannot(&format!("{} does not exist", file.display())));
        }
    }
    claim(&options)?;
    let timeout = Duration::from_secs(args.timeout);
    if args.detach {
        detach(lab, &options, timeout)
    } else {
        run_here(&options, Some(timeout))
    }
}

pub(crate) fn cannot(why: &str) -> ExitCode {
    eprintln!("weft: {why}");
    ExitCode::from(CANNOT)
}

/// Paths that mean the same after a change of folder.
fn absolute(files: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let absolute = files
        .iter()
        .map(|file| std::path::absolute(file).context("current folder"));
    absolute.collect()
}

/// Takes the lab's name: its folder and record exist from here on. What a killed lab left is
/// removed.
fn claim(options: &daemon::Options) -> anyhow::Result<()> {
    let lab = &options.plan.name;
    let _turn = sweep::turn()?;
    let paths = Paths::of(lab);
    if let Some(state) = State::read(&paths).unwrap_or_default() {
        if state.daemon.runs() {
            bail!("lab {lab} is up already: `weft lab apply`, `weft lab down`, or another --name");
        }
        println!("lab {lab} was killed: removing what it left");
    }
    sweep::remove(lab)?;
    // Tokens and keys are below.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(paths.root())
        .with_context(|| format!("can't make {}", paths.root().display()))?;
    fs::create_dir_all(paths.logs())?;
    netns::prepare(Path::new(ROOT))?;
    daemon::record(&paths, &options.plan, options.mesh)
}

/// The lab in this process, with progress if it is somebody's foreground.
fn run_here(options: &daemon::Options, foreground: Option<Duration>) -> anyhow::Result<ExitCode> {
    let lab = options.plan.name.clone();
    crate::logging(foreground.is_some());
    daemon::record(&Paths::of(&lab), &options.plan, options.mesh)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let waiter = foreground.map(|timeout| {
        let lab = lab.clone();
        std::thread::spawn(move || {
            let ask = || Ok(client::status(&lab).ok());
            if let Ok(outcome) = progress::wait(timeout, ask) {
                report(&outcome);
                println!("\nlab {lab} is up; Ctrl-C takes it down");
            }
        })
    });
    let result = runtime.block_on(daemon::run(options.clone()));
    // Every task stops before anything is taken down, so that nothing is started again.
    runtime.shutdown_timeout(Duration::from_secs(2));
    if foreground.is_some() {
        println!("taking lab {lab} down");
    }
    let swept = sweep::sweep(&lab);
    drop(waiter);
    result?;
    swept?;
    Ok(ExitCode::SUCCESS)
}

/// The lab in a process of its own; waits until it is whole.
fn detach(lab: &str, options: &daemon::Options, timeout: Duration) -> anyhow::Result<ExitCode> {
    let paths = Paths::of(lab);
    let log = fs::File::create(paths.daemon_log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["lab", "--name", lab, "up", "--claimed"]);
    command.args(["--nodes", &options.plan.nodes.len().to_string()]);
    let zones: std::collections::BTreeSet<_> =
        options.plan.nodes.iter().map(|node| &node.zone).collect();
    command.args(["--zones", &zones.len().to_string()]);
    command.args(["--ip-family", &options.plan.families.to_string()]);
    if !options.mesh {
        command.arg("--no-mesh");
    }
    for word in &options.extra.proxy {
        command.arg(format!("--proxy-arg={word}"));
    }
    for word in &options.extra.agent {
        command.arg(format!("--agent-arg={word}"));
    }
    if let Some(mode) = options.plan.rp_filter {
        command.args(["--rp-filter", &mode.to_string()]);
    }
    for file in &options.files {
        command.arg("-f").arg(file);
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log);
    let mut child = command.spawn().context("can't start the lab's process")?;
    let ask = || {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(paths.daemon_log()).unwrap_or_default();
            bail!("the lab's process ended ({status}):\n{}", log.trim());
        }
        Ok(client::status(lab).ok())
    };
    let outcome = match progress::wait(timeout, ask) {
        Ok(outcome) => outcome,
        Err(error) => {
            sweep::sweep(lab)?;
            return Err(error);
        }
    };
    report(&outcome);
    let whole = match &outcome {
        Outcome::Whole(status) => status.invalid.is_empty(),
        Outcome::Missing(..) => false,
    };
    if whole {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "lab {lab} stays up: see `weft lab status`, `weft lab logs`; `weft lab down` ends it"
    );
    Ok(ExitCode::FAILURE)
}

/// Says how waiting for a lab ended.
pub(crate) fn report(outcome: &Outcome) {
    let (status, missing) = match outcome {
        Outcome::Whole(status) => (Some(status), None),
        Outcome::Missing(status, missing) => (status.as_ref(), Some(missing)),
    };
    if let Some(status) = status {
        print!("\n{}", table::overview(status));
        for invalid in &status.invalid {
            eprintln!("error: {}", invalid.message);
        }
    }
    if let Some(Missing { waiting, failed }) = missing {
        for what in failed {
            eprintln!("error: {what}");
        }
        for what in waiting {
            eprintln!("error: time-out: {what}");
        }
    }
}
