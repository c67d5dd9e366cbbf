//! `weft lab logs`: what pods and parts wrote.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;

use super::{exec, paths::Paths};

/// `weft lab logs`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// NS/POD, NS/DEPLOYMENT, controller, agent/NODE, proxy/NODE, access/NODE (a proxy's access
    /// log) or lab; everything if absent.
    pub(crate) of: Option<String>,
    /// The container [default: all of the pod].
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Between looks at growing files.
const POLL: Duration = Duration::from_millis(200);

/// Runs the command.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::of(lab);
    if !paths.logs().exists() {
        bail!("no lab named {lab} is running: start one with `weft lab up -f PATH`");
    }
    let mut offsets = BTreeMap::new();
    loop {
        let files = files(lab, &paths, args)?;
        let prefixed = files.len() > 1;
        for (name, file) in files {
            let offset = offsets.entry(file.clone()).or_insert(0);
            let prefix = prefixed.then_some(name.as_str());
            match copy(&file, prefix, offset, &mut io::stdout().lock()) {
                // Whoever reads has had enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(ExitCode::SUCCESS);
                }
                result => result?,
            }
        }
        if !args.follow || !paths.logs().exists() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(POLL);
    }
}

fn files(lab: &str, paths: &Paths, args: &Args) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let Some(of) = &args.of else {
        return all(&paths.logs());
    };
    let part = match of.split_once('/') {
        Some(("access", node)) => paths.access_log(node),
        _ => paths.part_log(of),
    };
    if part.exists() {
        return Ok(vec![(of.clone(), part)]);
    }
    let pod = exec::find_pod(lab, of)?;
    let (namespace, name) = exec::identity(&pod);
    let containers = match &args.container {
        Some(container) => vec![exec::container(&pod, Some(container))?],
        None => ["initContainers", "containers"]
            .iter()
            .filter_map(|list| pod["spec"][list].as_array())
            .flatten()
            .filter_map(|container| Some(container["name"].as_str()?.to_owned()))
            .collect(),
    };
    let file = |container: String| {
        let file = paths.container_log(namespace, name, &container);
        (container, file)
    };
    Ok(containers.into_iter().map(file).collect())
}

fn all(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("pods")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let name = path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                found.push((name, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies whole lines from `offset` on, and moves it.
fn copy(
    file: &Path,
    prefix: Option<&str>,
    offset: &mut u64,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut open = match fs::File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        open => open?,
    };
    open.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes)?;
    *offset += bytes.len() as u64;
    let Some(prefix) = prefix else {
        return out.write_all(&bytes);
    };
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        write!(out, "[{prefix}] ")?;
        out.write_all(line)?;
    }
    if bytes.last().is_some_and(|last| *last != b'\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_copied_once_and_then_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.log");
        let mut offset = 0;
        let mut read = |prefix| {
            let mut out = Vec::new();
            copy(&file, prefix, &mut offset, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(read(None), "");
        fs::write(&file, "one\ntwo\n").unwrap();
        assert_eq!(read(Some("a")), "[a] one\n[a] two\n");
        fs::write(&file, "one\ntwo\nthree").unwrap();
        assert_eq!(read(None), "three");
    }
}
