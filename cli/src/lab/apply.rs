//! `weft lab apply`, `delete` and `label`: change a running lab's objects, say what changed and
//! what became of it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use weft_source::ObjectKey;

use super::{
    api, client, kinds,
    protocol::{Applied, Request},
    table, view,
};
use crate::manifests;

/// How long an apply waits for the proxies to acknowledge a route; longer means that something
/// is wrong, which the status then says.
const PROGRAMMED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// `weft lab apply`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ApplyArgs {
    /// Manifests: files, folders, or - for standard input.
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// `weft lab delete`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DeleteArgs {
    /// Manifests whose objects are deleted.
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// KIND NAME, or KIND/NAME.
    #[arg(value_name = "KIND NAME", num_args = 0..=2)]
    pub(crate) object: Vec<String>,
    /// Namespace of the object.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// `weft lab label`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LabelArgs {
    /// KIND NAME (or KIND/NAME), then KEY=VALUE to set and KEY- to remove.
    #[arg(required = true, num_args = 2.., allow_hyphen_values = false)]
    pub(crate) words: Vec<String>,
    /// Namespace of the object.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// As kubectl's; the lab always overwrites.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Applies.
pub(crate) fn apply(lab: &str, args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let texts = manifests::read(&args.files).map_err(|why| anyhow!(why))?;
    let applied = client::applied(lab, &Request::Apply(texts))?;
    print(&applied);
    route_status(lab, &applied)?;
    Ok(exit(&applied))
}

/// Deletes.
pub(crate) fn delete(lab: &str, args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let request = if args.files.is_empty() {
        let (kind, name, rest) = object(&args.object)?;
        if !rest.is_empty() {
            bail!("one object at a time: KIND NAME");
        }
        Request::DeleteObject {
            kind,
            namespace: args.namespace.clone(),
            name,
        }
    } else {
        Request::Delete(manifests::read(&args.files).map_err(|why| anyhow!(why))?)
    };
    let applied = client::applied(lab, &request)?;
    print(&applied);
    wait_gone(lab, &applied)?;
    Ok(exit(&applied))
}

/// Labels.
pub(crate) fn label(lab: &str, args: &LabelArgs) -> anyhow::Result<ExitCode> {
    let (kind, name, rest) = object(&args.words)?;
    let labels = labels(rest)?;
    let namespace = args.namespace.clone();
    let applied = client::applied(
        lab,
        &Request::Label {
            kind,
            namespace,
            name,
            labels,
        },
    )?;
    print(&applied);
    Ok(exit(&applied))
}

/// Kind and name at the front of words, in either form.
fn object(words: &[String]) -> anyhow::Result<(String, String, &[String])> {
    let usage = || anyhow!("which object? KIND NAME, or KIND/NAME");
    let (first, rest) = words.split_first().ok_or_else(usage)?;
    if let Some((kind, name)) = first.split_once('/') {
        return Ok((kind.to_owned(), name.to_owned(), rest));
    }
    let (name, rest) = rest.split_first().ok_or_else(usage)?;
    Ok((first.clone(), name.clone(), rest))
}

fn labels(words: &[String]) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    if words.is_empty() {
        bail!("which label? KEY=VALUE sets, KEY- removes");
    }
    let one = |word: &String| match (word.split_once('='), word.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => bail!("{word:?} is neither KEY=VALUE nor KEY-"),
    };
    words.iter().map(one).collect()
}

fn print(applied: &Applied) {
    for (key, outcome) in &applied.done {
        println!("{}", table::outcome(key, *outcome));
    }
    for error in &applied.errors {
        eprintln!("error: {error}");
    }
}

fn exit(applied: &Applied) -> ExitCode {
    if applied.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Waits, bounded, until applied routes have a status, and prints it.
fn route_status(lab: &str, applied: &Applied) -> anyhow::Result<()> {
    let routes: Vec<&ObjectKey> = applied
        .done
        .iter()
        .map(|(key, _)| key)
        .filter(|key| kinds::is_route(key))
        .collect();
    if routes.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        let status = client::status(lab)?;
        let ours = |row: &&view::RouteRow| {
            routes.iter().any(|key| {
                key.kind == row.kind && key.namespace == row.namespace && key.name == row.name
            })
        };
        let rows: Vec<_> = status.routes.iter().filter(ours).cloned().collect();
        let settled = rows.iter().all(view::RouteRow::is_settled) || !status.mesh;
        if settled || start.elapsed() > PROGRAMMED {
            print!("{}", table::routes(&rows));
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Waits, bounded, until deleted pods are gone, as kubectl does.
fn wait_gone(lab: &str, applied: &Applied) -> anyhow::Result<()> {
    let uid = |key: &ObjectKey| -> anyhow::Result<Option<String>> {
        let found = client::objects(lab, &key.kind, Some(&key.namespace), None)?;
        let mut found = found
            .into_iter()
            .filter(|object| object["metadata"]["name"] == key.name);
        Ok(found
            .next()
            .and_then(|object| Some(object["metadata"]["uid"].as_str()?.to_owned())))
    };
    for (key, outcome) in &applied.done {
        if key.kind != "Pod" || *outcome != api::Outcome::Deleted {
            continue;
        }
        let first = uid(key)?;
        let start = Instant::now();
        while first.is_some() && uid(key)? == first && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn an_object_is_named_in_either_of_kubectls_forms() {
        for text in ["ns shop a=b", "ns/shop a=b"] {
            let words = words(text);
            let (kind, name, rest) = object(&words).unwrap();
            assert_eq!(
                (kind.as_str(), name.as_str(), rest.len()),
                ("ns", "shop", 1)
            );
        }
        assert!(object(&words("ns")).is_err());
    }

    #[test]
    fn labels_are_set_and_removed_in_kubectls_syntax() {
        let labels = labels(&words("weft.dev/mesh- a=b c=")).unwrap();
        assert_eq!(labels["weft.dev/mesh"], None);
        assert_eq!(labels["a"].as_deref(), Some("b"));
        assert_eq!(labels["c"].as_deref(), Some(""));
        assert!(super::labels(&words("word")).is_err());
    }
}
