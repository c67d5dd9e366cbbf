//! SPIFFE ids of workloads: text in, the checked `spiffe://<trust domain>/ns/<ns>/sa/<sa>` out.
//!
//! The general grammar (SPIFFE-ID section 2) is the `spiffe` crate's; the shape is ours and strict,
//! so that one identity has one spelling and comparing ids is comparing text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's identity. Cloning is a reference count; equality and hashing are over the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
}

/// Why a text is not the SPIFFE id of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Not a SPIFFE id by the general grammar.
    #[error("{uri:?} is not a SPIFFE id: {reason}")]
    Grammar {
        /// What was read.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A SPIFFE id, but not one of a workload.
    #[error(
        "SPIFFE id {uri:?} names no workload: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    Shape {
        /// What was read.
        uri: String,
    },
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Puts an id together; each part must fit the grammar and hold no `/`.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.parts().1
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.parts().2
    }

    fn parts(&self) -> (&str, &str, &str) {
        split(&self.uri).expect("checked when it was parsed")
    }
}

/// Checks that `name` can be a trust domain.
pub fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    let uri = format!("{SCHEME}{name}");
    match ::spiffe::SpiffeId::new(&uri) {
        Ok(id) if id.trust_domain_name() == name => Ok(()),
        Ok(_) => Err(SpiffeIdError::Grammar {
            uri,
            reason: "the trust domain holds a path".into(),
        }),
        Err(error) => Err(SpiffeIdError::Grammar {
            uri,
            reason: error.to_string(),
        }),
    }
}

fn split(uri: &str) -> Option<(&str, &str, &str)> {
    let mut parts = uri.strip_prefix(SCHEME)?.split('/');
    let found = match (
        parts.next()?,
        parts.next()?,
        parts.next()?,
        parts.next()?,
        parts.next()?,
    ) {
        (trust_domain, "ns", namespace, "sa", account) => (trust_domain, namespace, account),
        _ => return None,
    };
    parts.next().is_none().then_some(found)
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let grammar = |reason: String| SpiffeIdError::Grammar {
            uri: uri.to_owned(),
            reason,
        };
        let canonical = ::spiffe::SpiffeId::new(uri).map_err(|error| grammar(error.to_string()))?;
        // Another spelling of the same id would be another identity to all that compares text.
        if canonical.to_string() != uri {
            return Err(grammar(format!("not in its canonical form, {canonical}")));
        }
        split(uri).ok_or_else(|| SpiffeIdError::Shape {
            uri: uri.to_owned(),
        })?;
        Ok(Self { uri: uri.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_workloads_id_is_taken_apart() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/check.out"
            .parse()
            .unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "check.out");
    }

    #[test]
    fn what_is_no_workloads_id_is_refused() {
        for uri in [
            "",
            "cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe://cluster.local/NS/a/SA/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x=y",
            "spiffe://cluster.local/ns/a/sa/b#c",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b%20",
            "spiffe://cluster.local/ns/a/sa/b\0",
            " spiffe://cluster.local/ns/a/sa/b",
        ] {
            assert!(uri.parse::<SpiffeId>().is_err(), "{uri:?} was accepted");
        }
    }

    #[test]
    fn parts_cannot_smuggle_a_separator() {
        assert!(SpiffeId::new("cluster.local", "a/sa/b", "c").is_err());
        assert!(SpiffeId::new("cluster.local/ns/x", "a", "c").is_err());
        assert!(check_trust_domain("cluster.local").is_ok());
        assert!(check_trust_domain("cluster.local/x").is_err());
        assert!(check_trust_domain("").is_err());
    }

    proptest! {
        #[test]
        fn parsing_what_was_printed_gives_the_same_id(
            trust_domain in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?",
            namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?",
        ) {
            let id = SpiffeId::new(&trust_domain, &namespace, &account).unwrap();
            let again: SpiffeId = id.to_string().parse().unwrap();
            prop_assert_eq!(&again, &id);
            prop_assert_eq!(again.trust_domain(), trust_domain);
            prop_assert_eq!(again.namespace(), namespace);
            prop_assert_eq!(again.service_account(), account);
        }

        #[test]
        fn whatever_parses_prints_as_it_was_read(uri in "(spiffe://)?[ -~]{0,40}(/ns/[ -~]{0,9}/sa/[ -~]{0,9})?") {
            if let Ok(id) = uri.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), uri);
            }
        }
    }
}
