//! `weft route`: what the mesh makes of routes, told from files alone. In: arguments and manifests.
//! Out: text or JSON on stdout, and an exit code. What is decided is pure, and in [`lint`].

mod lint;
mod services;
#[cfg(test)]
mod tests;
mod text;

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use crate::{Output, manifests};

/// Exit code if the arguments or something in the files can't be read: what is said may not be whole.
const UNREADABLE: u8 = 2;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what the controller would say in the status of each route, without a cluster.
    Lint(LintArgs),
}

const LINT_HELP: &str = "\
Each route has the conditions that weft's controller would write for each Service that it names as a
parent, by the same code. Services that routes name are looked for in the files: give them too, or
--assume-services. An object of a later file takes the place of one of an earlier file.

Examples:
  weft route lint routes.yaml services.yaml
  weft route lint manifests/                       # every .yaml, .yml and .json in it
  weft route lint --assume-services routes.yaml    # the Services are in the cluster
  kubectl kustomize overlays/prod | weft route lint -
  kubectl get services,httproutes,grpcroutes -A -o yaml | weft route lint - changed.yaml

Exit code:
  0  all is as it should be
  1  a route, or another object, has a problem
  2  wrong usage, or a file or an object in it can't be read";

#[derive(clap::Args, Debug)]
#[command(after_help = LINT_HELP)]
struct LintArgs {
    /// Manifests: files, folders, or - for standard input; all of them together are the cluster.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Take Services that routes name, and that the files lack, to exist: with the ports that are
    /// named, or 80. What these ports are declared to speak can't be checked then.
    #[arg(long)]
    assume_services: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs a command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Lint(args) => lint(args),
    }
}

fn lint(args: &LintArgs) -> anyhow::Result<ExitCode> {
    let texts = match manifests::read(&args.files) {
        Ok(texts) => texts,
        Err(error) => {
            eprintln!("weft: {error}; give manifests: files, folders, or - for standard input");
            return Ok(UNREADABLE.into());
        }
    };
    let report = lint::lint(&texts, args.assume_services);
    match args.output {
        Output::Text => print!("{}", text::of(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if !report.unread.is_empty() {
        UNREADABLE.into()
    } else if report.has_problems() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
