//! `weft enable` and `weft disable`: labels of a Namespace. In: its name. Out: the patch that was
//! made, and what follows from it.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};
use weft_api::names::{
    LABEL_MESH, LABEL_MTLS, MESH_ENABLED, MTLS_PERMISSIVE, MTLS_STRICT, SYSTEM_NAMESPACE,
};

use super::{
    api::{Cluster, Connection},
    object::label,
};

/// Whose pods start whatever happens to weft: without them a cluster can't mend itself.
const NEVER: [&str; 2] = [SYSTEM_NAMESPACE, "kube-system"];

#[derive(clap::Args, Debug)]
pub(crate) struct Enable {
    /// The namespace.
    namespace: String,
    /// Refuse plaintext from pods outside the mesh.
    #[arg(long, conflicts_with = "permissive")]
    strict: bool,
    /// Take plaintext too, as is the default; takes `--strict` back.
    #[arg(long)]
    permissive: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Disable {
    /// The namespace.
    namespace: String,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn enable(args: &Enable) -> anyhow::Result<ExitCode> {
    if NEVER.contains(&args.namespace.as_str()) {
        bail!(
            "namespace {} can't be in the mesh: its pods must start without it",
            args.namespace
        );
    }
    let mode = match (args.strict, args.permissive) {
        (true, _) => Some(MTLS_STRICT),
        (_, true) => Some(MTLS_PERMISSIVE),
        _ => None,
    };
    let mut labels = json!({LABEL_MESH: MESH_ENABLED});
    if let Some(mode) = mode {
        labels[LABEL_MTLS] = mode.into();
    }
    let cluster = Cluster::connect(&args.connection).await?;
    let after = change(&cluster, &args.namespace, &labels).await?;
    let mode = label(&after, LABEL_MTLS).unwrap_or(MTLS_PERMISSIVE);
    println!(
        "namespace/{} is in the mesh ({mode}); its pods join within seconds, and `weft status` shows them",
        args.namespace
    );
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn disable(args: &Disable) -> anyhow::Result<ExitCode> {
    let labels = json!({LABEL_MESH: null});
    let cluster = Cluster::connect(&args.connection).await?;
    change(&cluster, &args.namespace, &labels).await?;
    println!(
        "namespace/{} is out of the mesh; its pods leave when what is open has drained",
        args.namespace
    );
    Ok(ExitCode::SUCCESS)
}

/// Changes a namespace's labels; null takes one away.
pub(crate) async fn change(
    cluster: &Cluster,
    namespace: &str,
    labels: &Value,
) -> anyhow::Result<Value> {
    let path = format!("/api/v1/namespaces/{namespace}");
    if cluster.get(&path).await?.is_none() {
        bail!("namespace {namespace} does not exist; kubectl create namespace {namespace}");
    }
    cluster
        .merge(&path, &json!({"metadata": {"labels": labels}}))
        .await
}
