#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn entry() -> Entry {
    Entry::new("/run/weft".into(), "kubernetes:/k".into(), "n1".into())
}

const OURS: &str =
    r#"{"type":"weft-cni","runDir":"/run/weft","source":"kubernetes:/k","node":"n1"}"#;

/// As kind, Calico and flannel write theirs: order of keys, numbers and spacing of their own.
const POINT_TO_POINT: &str = r#"{
  "cniVersion": "0.3.1",
  "name": "kindnet",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "mtu": 1.5e3
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ],
  "extra": {"z": 1, "a": 2}
}
"#;

#[test]
fn our_entry_is_appended_and_nothing_else_changes() {
    let made = chained(POINT_TO_POINT, &entry()).unwrap().unwrap();
    let expected = POINT_TO_POINT.replace(
        "{\"portMappings\": true}}\n",
        &format!("{{\"portMappings\": true}}}},\n    {OURS}\n"),
    );
    assert_eq!(made, expected);
    assert_eq!(chained(&made, &entry()).unwrap(), None, "twice is once");
    assert_eq!(unchained(&made).unwrap().unwrap(), POINT_TO_POINT);
    assert_eq!(unchained(POINT_TO_POINT).unwrap(), None);
}

#[test]
fn wherever_and_however_often_it_stands_it_ends_up_once_and_last() {
    let a = r#"{"type":"a"}"#;
    let b = r#"{"type":"b","x":[{"type":"weft-cni"}]}"#;
    let old = r#"{"type":"weft-cni","runDir":"/old"}"#;
    for plugins in [
        vec![a, b],
        vec![OURS, a, b],
        vec![a, OURS, b],
        vec![a, b, old],
        vec![old, a, OURS, b, OURS],
        vec![a, b, OURS, OURS],
    ] {
        for (gap, close) in [("", ""), ("\n\t\t", "\n\t"), (" ", " ")] {
            let list = |plugins: &[&str]| {
                let plugins = plugins.join(&format!(",{gap}"));
                format!(r#"{{"plugins":[{gap}{plugins}{close}],"name":"n","cniVersion":"1.0.0"}}"#)
            };
            let made = chained(&list(&plugins), &entry()).unwrap().unwrap();
            assert_eq!(made, list(&[a, b, OURS]), "{plugins:?}");
            assert_eq!(unchained(&made).unwrap().unwrap(), list(&[a, b]));
        }
    }
    let other_order =
        r#"{"node":"n1","source":"kubernetes:/k","runDir":"/run/weft","type":"weft-cni"}"#;
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{a},{other_order}]}}"#);
    assert_eq!(chained(&text, &entry()).unwrap(), None);
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let single = "{\"cniVersion\":\"0.3.1\",\"name\":\"br\\\"1\",\"type\":\"bridge\",\"mtu\":9}\n";
    let made = listed(single, &entry()).unwrap();
    let value: Value = serde_json::from_str(&made).unwrap();
    let expected = json!({
        "cniVersion": "0.3.1", "name": "br\"1",
        "plugins": [
            {"cniVersion": "0.3.1", "name": "br\"1", "type": "bridge", "mtu": 9},
            serde_json::from_str::<Value>(OURS).unwrap(),
        ],
    });
    assert_eq!(value, expected);
    assert_eq!(chained(&made, &entry()).unwrap(), None);
    assert!(is_made_of(&made, single));
    assert!(!is_made_of(&made, &single.replace('9', "8")));
    assert!(!is_made_of(POINT_TO_POINT, single));
}

#[test]
fn what_the_runtime_or_the_plugin_could_not_use_is_refused() {
    let cases = [
        ("", "no network configuration"),
        ("[]", "no network configuration"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "plugins"),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            "no plugin",
        ),
        (
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#,
            "no name",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"x":1}]}"#,
            "no type",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"weft-cni"}]}"#,
            "no plugin",
        ),
        (
            r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"a"}]}"#,
            "0.2.0",
        ),
        (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "cniVersion"),
    ];
    for (text, word) in cases {
        let error = chained(text, &entry()).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    for text in [
        "{",
        r#"{"cniVersion":"1.0.0","name":"n"}"#,
        r#"{"cniVersion":"1.0.0","type":"a"}"#,
    ] {
        assert!(listed(text, &entry()).is_err(), "{text}");
    }
}

#[test]
fn files_are_taken_in_the_runtimes_order() {
    let names = [
        "99-loopback.conf",
        "10-calico.conflist",
        "calico-kubeconfig",
        "10-calico.conf",
        "05-x.json",
        "README.md",
        "weft.kubeconfig",
        "10-a.conf.weft-saved",
        ".10-pods.conflist.weft-new",
        "Z.conflist",
    ];
    let order = in_order(names.map(str::to_owned));
    assert_eq!(
        order,
        [
            "05-x.json",
            "10-calico.conf",
            "10-calico.conflist",
            "99-loopback.conf",
            "Z.conflist"
        ]
    );
}
