//! What does not go on while a part is away. In: the parts' states. Out: a line for each consequence
//! that a person would otherwise have to find out. Pure.

use std::collections::BTreeMap;

use super::supervise::PartStatus;

/// The consequences, of all parts that were ready once and are not.
pub(crate) fn lines(parts: &BTreeMap<String, PartStatus>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, part) in parts {
        let Some(seconds) = part.away else { continue };
        let (kind, node) = name.split_once('/').unwrap_or((name, ""));
        let effects: &[&str] = match kind {
            "controller" => &[
                "the proxies serve the configuration of that time: changes of routes, Services \
                 and endpoints reach nobody",
                "routes are not compiled and no status is written: conditions such as Programmed \
                 are as of that time",
                "no certificate is signed: those that the proxies hold are not renewed, and a new \
                 pod starts only if its service account has one on its node",
            ],
            "agent" => &[
                "no pod of this node joins or leaves the mesh; new pods of the mesh wait, \
                          others start",
            ],
            "proxy" => &[
                "connections of this node's pods in the mesh wait; new pods of the mesh \
                          wait, others start",
            ],
            _ => continue,
        };
        let who = if node.is_empty() {
            format!("the controller has been away for {seconds} s")
        } else {
            format!("the {kind} of {node} has been away for {seconds} s")
        };
        lines.extend(effects.iter().map(|effect| format!("{who}: {effect}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_away_is_named_with_what_does_not_go_on() {
        let part = |away| PartStatus {
            away,
            ..PartStatus::default()
        };
        let parts = |list: &[(&str, Option<u64>)]| -> BTreeMap<_, _> {
            list.iter()
                .map(|(name, away)| ((*name).to_owned(), part(*away)))
                .collect()
        };
        assert_eq!(
            lines(&parts(&[("controller", None), ("agent/n1", None)])),
            [""; 0]
        );
        let controller = lines(&parts(&[("controller", Some(7))])).join("\n");
        for expected in [
            "away for 7 s",
            "Programmed",
            "certificate",
            "service account",
        ] {
            assert!(controller.contains(expected), "{controller}");
        }
        let agent = lines(&parts(&[("agent/n1", Some(1)), ("proxy/n2", Some(2))]));
        assert!(agent[0].starts_with("the agent of n1"), "{agent:?}");
        assert!(agent[1].starts_with("the proxy of n2"), "{agent:?}");
    }
}
