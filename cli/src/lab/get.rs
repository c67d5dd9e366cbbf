//! `weft lab get` and `weft lab status`: what there is.

use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{client, table};

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Json,
    Yaml,
    /// A table.
    Wide,
}

/// `weft lab get`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GetArgs {
    /// KIND (pods, svc, httproutes, …) or KIND/NAME.
    pub(crate) kind: String,
    /// One object's name.
    #[arg(value_name = "OBJECT")]
    pub(crate) object: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "wide")]
    pub(crate) output: Output,
}

/// `weft lab status`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "wide")]
    pub(crate) output: Output,
}

/// Prints objects.
pub(crate) fn get(lab: &str, args: &GetArgs) -> anyhow::Result<ExitCode> {
    let (kind, name) = match args.kind.split_once('/') {
        Some((kind, name)) => (kind, Some(name)),
        None => (args.kind.as_str(), args.object.as_deref()),
    };
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let mut objects = client::objects(lab, kind, namespace, name)?;
    if args.output == Output::Wide {
        let mesh = client::status(lab)?.mesh;
        print!("{}", table::objects(&objects, mesh));
        return Ok(ExitCode::SUCCESS);
    }
    let value = if name.is_some() && objects.len() == 1 {
        objects.remove(0)
    } else {
        json!({"apiVersion": "v1", "kind": "List", "items": objects})
    };
    print_value(&value, args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the lab's state.
pub(crate) fn status(lab: &str, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = client::status(lab)?;
    match args.output {
        Output::Wide => print!("{}", table::status(&status)),
        output => print_value(&serde_json::to_value(&status)?, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_value(value: &Value, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Yaml => print!("{}", serde_yaml_ng::to_string(value)?),
        Output::Json | Output::Wide => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}
