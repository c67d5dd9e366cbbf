//! Words for kinds, as kubectl understands them. Pure.

use weft_source::ObjectKey;

/// A kind that the lab knows by more than its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
}

const GATEWAY: &str = "gateway.networking.k8s.io";

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
) -> Kind {
    Kind {
        group,
        kind,
        plural,
        short,
    }
}

/// Known kinds.
const KINDS: &[Kind] = &[
    kind("", "Namespace", "namespaces", &["ns"]),
    kind("", "Node", "nodes", &["no"]),
    kind("", "Pod", "pods", &["po"]),
    kind("", "Service", "services", &["svc"]),
    kind("", "ServiceAccount", "serviceaccounts", &["sa"]),
    kind("apps", "Deployment", "deployments", &["deploy"]),
    kind(
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        &["eps"],
    ),
    kind(GATEWAY, "HTTPRoute", "httproutes", &[]),
    kind(GATEWAY, "GRPCRoute", "grpcroutes", &[]),
    kind(GATEWAY, "TCPRoute", "tcproutes", &[]),
    kind(GATEWAY, "TLSRoute", "tlsroutes", &[]),
    kind(GATEWAY, "ReferenceGrant", "referencegrants", &["refgrant"]),
];

/// Group and kind that a word stands for: `po`, `pods`, `Pod`, `httproute.gateway.networking.k8s.io`;
/// of kinds that are not known, any that the API holds.
pub(crate) fn resolve(word: &str, held: &[ObjectKey]) -> Option<(String, String)> {
    let word = word.to_lowercase();
    let (name, group) = word
        .split_once('.')
        .map_or((word.as_str(), None), |(n, g)| (n, Some(g)));
    let fits = |of: &str| group.is_none_or(|group| group == of);
    let known = KINDS.iter().find(|kind| {
        fits(kind.group)
            && (kind.kind.to_lowercase() == name
                || kind.plural == name
                || kind.short.contains(&name))
    });
    if let Some(kind) = known {
        return Some((kind.group.into(), kind.kind.into()));
    }
    let held = held.iter().find(|key| {
        let kind = key.kind.to_lowercase();
        fits(&key.group) && (kind == name || format!("{kind}s") == name)
    });
    held.map(|key| (key.group.clone(), key.kind.clone()))
}

/// `httproute.gateway.networking.k8s.io/checkout`, `service/checkout`.
pub(crate) fn reference(key: &ObjectKey) -> String {
    let kind = key.kind.to_lowercase();
    if key.group.is_empty() {
        format!("{kind}/{}", key.name)
    } else {
        format!("{kind}.{}/{}", key.group, key.name)
    }
}

/// Whether a kind is one of the routes.
pub(crate) fn is_route(key: &ObjectKey) -> bool {
    key.group == GATEWAY && key.kind.ends_with("Route")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::api::{core, key};

    #[test]
    fn words_stand_for_kinds_as_in_kubectl() {
        let held = [key("example.org", "Widget", "a", "b")];
        let cases = [
            ("po", Some(("", "Pod"))),
            ("Pods", Some(("", "Pod"))),
            ("svc", Some(("", "Service"))),
            ("deploy", Some(("apps", "Deployment"))),
            ("deployments.apps", Some(("apps", "Deployment"))),
            (
                "httproute.gateway.networking.k8s.io",
                Some((GATEWAY, "HTTPRoute")),
            ),
            ("httproute.example.org", None),
            ("widgets", Some(("example.org", "Widget"))),
            ("nothing", None),
        ];
        for (word, expected) in cases {
            let expected = expected.map(|(g, k)| (g.to_owned(), k.to_owned()));
            assert_eq!(resolve(word, &held), expected, "{word}");
        }
    }

    #[test]
    fn an_object_is_named_as_kubectl_names_it() {
        assert_eq!(reference(&core("Service", "a", "x")), "service/x");
        let route = key(GATEWAY, "HTTPRoute", "a", "x");
        assert_eq!(reference(&route), "httproute.gateway.networking.k8s.io/x");
        assert!(is_route(&route));
    }
}
