//! `weft install`: the chart's objects by server-side apply, in order; what a former version left is
//! deleted; then the wait until all runs. In: flags. Out: a line an object.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use weft_api::names::SYSTEM_NAMESPACE;

use super::{
    api::{Cluster, Connection, path, plural, root, short},
    check, facts,
    manifests::{self, Given, MANAGED_BY, MANAGER, NETWORK_POLICIES, OPTIONS},
    object::{annotation, label, text},
    rollout,
};

/// Where an older version may have left an object, as versions and kinds.
const KINDS: [(&str, &str); 12] = [
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "ConfigMap"),
    ("v1", "ResourceQuota"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
];

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    values: Values,
    /// How long the roll-out may take.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = rollout::duration)]
    timeout: Duration,
    /// Do not wait until everything runs.
    #[arg(long)]
    no_wait: bool,
    /// Install even if `weft check --pre` finds fault with the cluster.
    #[arg(long)]
    skip_check: bool,
    /// Print the objects instead; needs no cluster.
    #[arg(long)]
    print: bool,
}

/// What can be set; the chart has more. All but the tag are kept by later installs.
#[derive(clap::Args, Debug, Serialize)]
struct Values {
    /// Where the images are [default: weft.dev].
    #[arg(long)]
    #[serde(rename = "image.registry")]
    registry: Option<String>,
    /// The images' tag [default: this program's version].
    #[arg(long)]
    #[serde(rename = "image.tag")]
    tag: Option<String>,
    /// IfNotPresent, Always or Never [default: IfNotPresent].
    #[arg(long)]
    #[serde(rename = "image.pullPolicy")]
    pull_policy: Option<String>,
    /// Secret of weft-system with the registry's password.
    #[arg(long, value_name = "SECRET")]
    #[serde(rename = "image.pullSecrets")]
    pull_secret: Option<String>,
    /// Trust domain of SPIFFE ids [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    #[serde(rename = "trustDomain")]
    trust_domain: Option<String>,
    /// The cluster's DNS domain [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    #[serde(rename = "clusterDomain")]
    cluster_domain: Option<String>,
    /// Filter of the parts' logs [default: info].
    #[arg(long, value_name = "FILTER")]
    #[serde(rename = "log.level")]
    log_level: Option<String>,
    /// text or json [default: text].
    #[arg(long)]
    #[serde(rename = "log.format")]
    log_format: Option<String>,
    /// The nodes' folder of CNI plugins [default: /opt/cni/bin].
    #[arg(long, value_name = "DIR")]
    #[serde(rename = "cni.binDir")]
    cni_bin_dir: Option<String>,
    /// The nodes' folder of CNI configuration [default: /etc/cni/net.d].
    #[arg(long, value_name = "DIR")]
    #[serde(rename = "cni.confDir")]
    cni_conf_dir: Option<String>,
    /// NetworkPolicies for weft's own pods [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = ["true", "false"])]
    #[serde(rename = "networkPolicies.enabled")]
    network_policies: Option<String>,
}

impl Values {
    fn given(&self) -> anyhow::Result<Given> {
        let Value::Object(fields) = serde_json::to_value(self)? else {
            bail!("values are no object");
        };
        Ok(fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())))
            .collect())
    }
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let given = args.values.given()?;
    if args.print {
        for object in manifests::objects(&given)? {
            print!("---\n{}", serde_yaml_ng::to_string(&object)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(&args.connection).await?;
    if !args.skip_check {
        let facts = facts::gather(&cluster, facts::Depth::Cluster).await?;
        let (findings, failed) = check::before(&facts);
        if failed {
            print!("{}", check::text(&findings));
            bail!("the cluster is not ready for weft; mend what is above, or give --skip-check");
        }
    }
    let objects = install(&cluster, given).await?;
    if !args.no_wait {
        rollout::wait(&cluster, &objects, args.timeout).await?;
    }
    println!(
        "weft is installed; `weft check` looks closer, `weft enable NAMESPACE` puts a namespace into the mesh"
    );
    Ok(ExitCode::SUCCESS)
}

/// Brings the objects to these values, and deletes what a former version had besides.
pub(crate) async fn install(cluster: &Cluster, given: Given) -> anyhow::Result<Vec<Value>> {
    let given = keep(cluster, given).await?;
    let objects = manifests::objects(&given)?;
    apply(cluster, &objects).await?;
    prune(cluster, &objects).await?;
    Ok(objects)
}

/// What was given now, and what was given before and is not said anew: an upgrade changes no more than
/// it is told to. The tag is that of the program.
async fn keep(cluster: &Cluster, mut given: Given) -> anyhow::Result<Given> {
    let daemons = format!("/apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/daemonsets/weft-cni");
    if let Some(there) = cluster.get(&daemons).await?
        && label(&there, MANAGED_BY) != Some(MANAGER)
    {
        let owner = label(&there, MANAGED_BY).unwrap_or("another tool");
        bail!(
            "daemonset {SYSTEM_NAMESPACE}/weft-cni was installed by {owner}: go on with that (helm upgrade), or uninstall weft with it first"
        );
    }
    let namespace = cluster
        .get(&format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}"))
        .await?;
    let before = namespace
        .as_ref()
        .and_then(|namespace| annotation(namespace, OPTIONS))
        .and_then(|text| serde_json::from_str::<Given>(text).ok())
        .unwrap_or_default();
    for (name, value) in before {
        if name != "image.tag" && !given.contains_key(&name) {
            println!("keeping {name}={value}");
            given.insert(name, value);
        }
    }
    if given.get(NETWORK_POLICIES).is_some_and(|on| on == "false") {
        given.remove(NETWORK_POLICIES);
    }
    Ok(given)
}

/// Applies all, and says of each what became of it.
async fn apply(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let before = cluster.get(&path(object)).await?;
        let after = cluster.apply(object).await?;
        let version = |object: &Value| text(object, "/metadata/resourceVersion").to_owned();
        let what = match &before {
            None => "created",
            Some(before) if version(before) == version(&after) => "unchanged",
            Some(_) => "configured",
        };
        println!("{} {what}", short(object));
    }
    Ok(())
}

/// Ours by their labels, in the order in which they may be deleted.
pub(crate) async fn ours(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let selector = format!(
        "app.kubernetes.io%2Fpart-of%3Dweft%2C{}%3D{MANAGER}",
        MANAGED_BY.replace('/', "%2F")
    );
    let mut all = Vec::new();
    for (version, kind) in KINDS {
        let uri = format!(
            "{}/{}?labelSelector={selector}",
            root(version),
            plural(kind)
        );
        for mut object in cluster.list(&uri).await?.unwrap_or_default() {
            // Lists leave out what all of them have in common.
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            all.push(object);
        }
    }
    Ok(all)
}

/// Deletes what is ours and not among `objects`.
async fn prune(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    let kept: Vec<String> = objects.iter().map(path).collect();
    for object in ours(cluster).await? {
        let path = path(&object);
        if !kept.contains(&path) && cluster.delete(&path).await? {
            println!("{} deleted", short(&object));
        }
    }
    Ok(())
}
