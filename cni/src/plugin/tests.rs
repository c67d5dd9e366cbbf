#![allow(clippy::unwrap_used)]

use super::*;

fn config(version: &str, run_dir: &str, source: &str, extra: Value) -> String {
    let mut config = json!({
        "cniVersion": version, "name": "net", "type": "weft-cni",
        "runDir": run_dir, "source": source, "node": "one",
    });
    config
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    config.to_string()
}

fn environment(command: &str, namespace: &str) -> Environment {
    let arguments =
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1");
    Environment::read(|name| {
        Some(match name {
            "CNI_COMMAND" => command.into(),
            "CNI_CONTAINERID" => "abc".into(),
            "CNI_NETNS" => "/var/run/netns/x".into(),
            "CNI_IFNAME" => "eth0".into(),
            "CNI_ARGS" => arguments.clone(),
            _ => return None,
        })
    })
}

fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/var/run/netns/x", "mtu": 9}],
        "ips": [
            {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
            {"address": "10.1.2.1/24", "interface": 0},
            {"address": "fd00::3/64", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.0.0.10"]},
        "extra": {"kept": true},
    })
}

/// A folder that stands for the API, with a namespace in the mesh and one outside.
fn api() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(
        manifests.join("all.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: enabled}}\n\
         ---\napiVersion: v1\nkind: Namespace\nmetadata: {name: plain}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {nodeName: one}\n",
    )
    .unwrap();
    dir
}

fn add(
    namespace: &str,
    run_dir: &std::path::Path,
    source: &str,
) -> Result<Option<Value>, CniError> {
    let input = config(
        "1.0.0",
        run_dir.to_str().unwrap(),
        source,
        json!({"prevResult": previous()}),
    );
    run(&environment("ADD", namespace), &input)
}

#[test]
fn version_tells_what_is_spoken() {
    for (asked, answered) in [("1.0.0", "1.0.0"), ("0.1.0", "1.1.0"), ("", "1.1.0")] {
        let input = json!({"cniVersion": asked}).to_string();
        let output = run(&environment("VERSION", ""), &input).unwrap().unwrap();
        assert_eq!(output["cniVersion"], answered);
        assert_eq!(output["supportedVersions"], json!(VERSIONS));
    }
}

#[test]
fn without_the_agent_only_pods_outside_the_mesh_start() {
    let (api, run_dir) = (api(), tempfile::tempdir().unwrap());
    let source = format!("folder:{}", api.path().display());
    assert!(add("plain", run_dir.path(), &source).unwrap().is_some());
    assert!(
        add("unheard-of", run_dir.path(), &source)
            .unwrap()
            .is_some()
    );
    let error = add("shop", run_dir.path(), &source).unwrap_err();
    assert_eq!(error.code, Code::TryAgainLater);
    assert!(error.message.contains("shop/web"), "{error}");
    assert!(error.message.contains("is weft-agent running"), "{error}");
    let json = error.to_json();
    assert_eq!(
        (&json["code"], &json["cniVersion"]),
        (&json!(11), &json!("1.0.0"))
    );
}

#[test]
fn without_agent_and_source_only_system_namespaces_start() {
    let run_dir = tempfile::tempdir().unwrap();
    for source in ["folder:/nonexistent/weft", "nonsense"] {
        for (namespace, starts) in [
            ("kube-system", true),
            ("weft-system", true),
            ("plain", false),
        ] {
            let result = add(namespace, run_dir.path(), source);
            assert_eq!(result.is_ok(), starts, "{namespace} {source} {result:?}");
            if let Err(error) = result {
                assert_eq!(error.code, Code::TryAgainLater);
            }
        }
    }
}

#[test]
fn add_records_the_sandbox_and_a_refused_add_leaves_none() {
    let (api, run_dir) = (api(), tempfile::tempdir().unwrap());
    let source = format!("folder:{}", api.path().display());
    let store = Store::new(run_dir.path());
    add("plain", run_dir.path(), &source).unwrap();
    let sandbox = store.read("abc").unwrap().unwrap();
    assert_eq!(sandbox.pod_name(), "plain/web");
    let expected: Vec<IpAddr> = vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
    assert_eq!(sandbox.addresses, expected);
    add("shop", run_dir.path(), &source).unwrap_err();
    assert_eq!(store.read("abc").unwrap(), None);
}

#[test]
fn the_previous_result_passes_through_in_the_version_asked() {
    for (version, ip_version) in [
        ("0.3.1", json!("4")),
        ("0.4.0", json!("4")),
        ("1.0.0", Value::Null),
        ("1.1.0", Value::Null),
    ] {
        let (api, run_dir) = (api(), tempfile::tempdir().unwrap());
        let input = config(
            version,
            run_dir.path().to_str().unwrap(),
            &format!("folder:{}", api.path().display()),
            json!({"prevResult": previous()}),
        );
        let mut output = run(&environment("ADD", "plain"), &input).unwrap().unwrap();
        assert_eq!(output["cniVersion"], version);
        assert_eq!(output["ips"][0]["version"], ip_version);
        for ip in output["ips"].as_array_mut().unwrap() {
            ip.as_object_mut().unwrap().remove("version");
        }
        output["cniVersion"] = previous()["cniVersion"].clone();
        assert_eq!(output, previous());
    }
}

#[test]
fn what_is_wrong_is_told_with_its_code() {
    let no_previous = json!({});
    let with =
        |version: &str, extra: &Value| config(version, "/nonexistent", "folder:/x", extra.clone());
    let cases = [
        (
            "ADD",
            with("1.0.0", &no_previous),
            Code::Config,
            "prevResult",
        ),
        (
            "ADD",
            with("1.0.0", &json!({"prevResult": "none"})),
            Code::Config,
            "prevResult",
        ),
        ("ADD", with("0.2.0", &no_previous), Code::Version, "0.2.0"),
        ("ADD", "{".into(), Code::Decode, "JSON"),
        (
            "ADD",
            json!({"cniVersion": "1.0.0"}).to_string(),
            Code::Config,
            "runDir",
        ),
        ("CHECK", with("0.3.1", &no_previous), Code::Version, "CHECK"),
        (
            "STATUS",
            with("1.0.0", &no_previous),
            Code::Version,
            "STATUS",
        ),
        (
            "GC",
            with("1.1.0", &no_previous),
            Code::Config,
            "valid-attachments",
        ),
        (
            "MAKE",
            with("1.1.0", &no_previous),
            Code::Environment,
            "MAKE",
        ),
    ];
    for (command, input, code, word) in cases {
        let error = run(&environment(command, "shop"), &input).unwrap_err();
        assert_eq!(error.code, code, "{command} {input}: {error}");
        assert!(error.message.contains(word), "{command}: {error}");
    }
    let mut lacking = environment("ADD", "shop");
    lacking.netns.clear();
    let input = with("1.0.0", &json!({"prevResult": previous()}));
    assert_eq!(run(&lacking, &input).unwrap_err().code, Code::Environment);
}

#[test]
fn a_node_stays_ready_while_the_agent_is_away() {
    let run_dir = tempfile::tempdir().unwrap();
    let input = config(
        "1.1.0",
        run_dir.path().to_str().unwrap(),
        "nonsense",
        json!({}),
    );
    assert_eq!(run(&environment("STATUS", ""), &input), Ok(None));
}

#[test]
fn del_succeeds_whatever_is_missing() {
    let run_dir = tempfile::tempdir().unwrap();
    let input = config(
        "1.0.0",
        run_dir.path().to_str().unwrap(),
        "nonsense",
        json!({}),
    );
    for input in [input.as_str(), "{", "{}"] {
        assert_eq!(run(&environment("DEL", "shop"), input), Ok(None));
        assert_eq!(
            run(
                &Environment {
                    command: "DEL".into(),
                    ..Environment::default()
                },
                input
            ),
            Ok(None)
        );
    }
}

#[test]
fn gc_keeps_the_records_that_are_listed() {
    let (api, run_dir) = (api(), tempfile::tempdir().unwrap());
    let source = format!("folder:{}", api.path().display());
    add("plain", run_dir.path(), &source).unwrap();
    let gc = |ids: Value| {
        let attachments = json!({"cni.dev/valid-attachments": ids});
        let input = config(
            "1.1.0",
            run_dir.path().to_str().unwrap(),
            &source,
            attachments,
        );
        run(&environment("GC", ""), &input)
    };
    let store = Store::new(run_dir.path());
    gc(json!([{"containerID": "abc", "ifname": "eth0"}])).unwrap();
    assert!(store.read("abc").unwrap().is_some());
    gc(json!([])).unwrap();
    assert!(store.read("abc").unwrap().is_none());
}
