//! Which kinds weft reads, and in which of their versions this cluster serves them.

use std::collections::BTreeSet;

use kube::{Client, Error, core::ApiResource};

use crate::{ObjectKey, Scope};

/// A kind that weft reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    plural: &'static str,
    /// Versions that weft can read, the best first.
    versions: &'static [&'static str],
    /// From a CustomResourceDefinition, which may be absent.
    pub(super) custom: bool,
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const GATEWAY_EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";

/// Groups whose kinds come and go with their CustomResourceDefinitions.
pub(super) const CUSTOM_GROUPS: [&str; 2] = [GATEWAY, GATEWAY_EXPERIMENTAL];

const NAMESPACE: Kind = built_in("", "Namespace", "namespaces");
const POD: Kind = built_in("", "Pod", "pods");
const NODE_KINDS: &[Kind] = &[NAMESPACE, POD];
const MESH_KINDS: &[Kind] = &[
    NAMESPACE,
    POD,
    built_in("", "Node", "nodes"),
    built_in("", "Service", "services"),
    built_in("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    custom(GATEWAY, "HTTPRoute", "httproutes", &["v1", "v1beta1"]),
    custom(GATEWAY, "GRPCRoute", "grpcroutes", &["v1", "v1alpha2"]),
    custom(
        GATEWAY,
        "TLSRoute",
        "tlsroutes",
        &["v1", "v1alpha3", "v1alpha2"],
    ),
    custom(GATEWAY, "TCPRoute", "tcproutes", &["v1", "v1alpha2"]),
    custom(GATEWAY, "UDPRoute", "udproutes", &["v1", "v1alpha2"]),
    custom(GATEWAY_EXPERIMENTAL, "XMesh", "xmeshes", &["v1alpha1"]),
];

const fn built_in(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group,
        kind,
        plural,
        versions: &["v1"],
        custom: false,
    }
}

const fn custom(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    versions: &'static [&'static str],
) -> Kind {
    Kind {
        group,
        kind,
        plural,
        versions,
        custom: true,
    }
}

impl Kind {
    /// The kinds of a scope.
    pub(super) fn of(scope: &Scope) -> &'static [Self] {
        match scope {
            Scope::Mesh => MESH_KINDS,
            Scope::Node(_) => NODE_KINDS,
        }
    }

    /// The kind of an object, if weft reads it.
    pub(super) fn of_key(key: &ObjectKey) -> Option<&'static Self> {
        MESH_KINDS
            .iter()
            .find(|kind| kind.group == key.group && kind.kind == key.kind)
    }

    /// The kind in its best version.
    pub(super) fn best(&self) -> ApiResource {
        self.resource(self.versions.first().copied().unwrap_or("v1"))
    }

    fn resource(&self, version: &str) -> ApiResource {
        let api_version = match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// What of the custom kinds the cluster serves: for each kind its best version, or none.
pub(super) async fn discover(
    client: &Client,
    kinds: &'static [Kind],
) -> Result<Vec<(&'static Kind, Option<ApiResource>)>, Error> {
    let mut found = Vec::new();
    let groups = client.list_api_groups().await?.groups;
    for group in CUSTOM_GROUPS {
        let listed = groups.iter().find(|listed| listed.name == group);
        let listed = listed.map_or(&[][..], |listed| &listed.versions);
        let kinds = kinds.iter().filter(|kind| kind.group == group);
        let wanted: BTreeSet<_> = kinds.clone().flat_map(|kind| kind.versions).collect();
        let wanted = wanted
            .into_iter()
            .filter(|version| listed.iter().any(|listed| listed.version == **version));
        let mut served = BTreeSet::new();
        for version in wanted {
            match client
                .list_api_group_resources(&format!("{group}/{version}"))
                .await
            {
                Ok(list) => {
                    // Parts of a kind, as its status, are listed beside it.
                    let whole = list.resources.into_iter().filter(|r| !r.name.contains('/'));
                    served.extend(whole.map(|resource| (resource.kind, *version)));
                }
                // Gone since the groups were listed.
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        found.extend(kinds.map(|kind| {
            let mut versions = kind.versions.iter();
            let best = versions.find(|version| served.contains(&(kind.kind.to_owned(), **version)));
            (kind, best.map(|version| kind.resource(version)))
        }));
    }
    Ok(found)
}
