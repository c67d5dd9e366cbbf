//! Whether a pod belongs into the mesh, asked of the source itself while the agent is away.

use std::time::Duration;

use weft_source::{Scope, SourceError};

use super::NetworkConfig;
use crate::{
    objects::{Objects, desired, namespace_key, pod_key},
    sandbox::Sandbox,
};

/// How long the source may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// `None` if the pod's namespace is in the mesh and the pod itself is not known.
pub(super) fn belongs_into_mesh(
    config: &NetworkConfig,
    sandbox: &Sandbox,
) -> Result<Option<bool>, SourceError> {
    let io = |source| SourceError::Io {
        what: format!("can't ask source {}", config.source),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io)?;
    runtime.block_on(async {
        let (source, _) =
            weft_source::open(&config.source, Scope::Node(config.node.clone())).await?;
        let mut objects = Objects::default();
        for key in [
            namespace_key(&sandbox.namespace),
            pod_key(&sandbox.namespace, &sandbox.pod),
        ] {
            let found = tokio::time::timeout(PATIENCE, source.get(&key))
                .await
                .map_err(|elapsed| io(elapsed.into()))??;
            if let Some(object) = found {
                objects.apply(&config.node, &object);
            }
        }
        let pod = objects.pod(&sandbox.namespace, &sandbox.pod, &sandbox.uid);
        let desired = desired(
            &sandbox.namespace,
            objects.namespace(&sandbox.namespace),
            pod,
        );
        Ok(desired.map(|desired| desired.captured))
    })
}
