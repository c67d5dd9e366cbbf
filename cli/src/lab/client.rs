//! Asks a running lab.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{
    paths::{self, Paths},
    protocol::{Answer, Applied, Request},
    view::LabStatus,
};

/// Asks the lab's process.
pub(crate) fn ask(lab: &str, request: &Request) -> anyhow::Result<Answer> {
    let socket = Paths::of(lab).socket();
    let mut stream = UnixStream::connect(socket).with_context(|| {
        let others = paths::labs();
        let hint = match others.as_slice() {
            [] => "start one with `weft lab up -f PATH`".to_owned(),
            others => format!("there is {} (--name)", others.join(", ")),
        };
        format!("no lab named {lab} is running; {hint}")
    })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        bail!("lab {lab} ended before it answered");
    }
    match serde_json::from_str(&answer)? {
        Answer::Error(why) => bail!(why),
        answer => Ok(answer),
    }
}

/// The lab's state.
pub(crate) fn status(lab: &str) -> anyhow::Result<LabStatus> {
    match ask(lab, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// What an apply, delete or label did.
pub(crate) fn applied(lab: &str, request: &Request) -> anyhow::Result<Applied> {
    match ask(lab, request)? {
        Answer::Applied(applied) => Ok(applied),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// Has something done, and gives what the lab says about it.
pub(crate) fn done(lab: &str, request: &Request) -> anyhow::Result<String> {
    match ask(lab, request)? {
        Answer::Done(said) => Ok(said),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// Objects as the API shows them.
pub(crate) fn objects(
    lab: &str,
    kind: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> anyhow::Result<Vec<Value>> {
    let request = Request::Get {
        kind: kind.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
        name: name.map(ToOwned::to_owned),
    };
    match ask(lab, &request)? {
        Answer::Objects(objects) => Ok(objects),
        other => bail!("unexpected answer {other:?}"),
    }
}
