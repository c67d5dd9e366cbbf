//! The table of HTTP cases in `tests/cases`, run in a lab: what the client sends, what the backend
//! saw, what came back, and what the routes' status says.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use weft_lab_tests::{Answer, Family, Lab, Request, eventually, in_families};

const SHOP: &str = include_str!("../manifests/shop.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    manifests: Vec<Value>,
    #[serde(default)]
    statuses: Vec<Status>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    kind: String,
    namespace: String,
    name: String,
    r#type: String,
    status: String,
    reason: Option<String>,
    mentions: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default = "shop_client")]
    from: String,
    #[serde(default)]
    h2: bool,
    #[serde(default)]
    method: String,
    url: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Sent so often: it must hold each time.
    #[serde(default = "once")]
    times: usize,
    /// The URL's host POD stands for this pod's address and port.
    to_pod: Option<PodRef>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodRef {
    namespace: String,
    prefix: String,
    #[serde(default)]
    port: u16,
}

/// What must be so: of the answer (`status`, `response`), and of the request as the backend saw it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    status: u16,
    version: Option<String>,
    method: Option<String>,
    path: Option<String>,
    query: Option<String>,
    host: Option<String>,
    /// Headers that the backend saw; null: absent. Several of one name are joined by commas.
    #[serde(default)]
    seen: BTreeMap<String, Option<String>>,
    /// Headers of the answer, likewise.
    #[serde(default)]
    response: BTreeMap<String, Option<String>>,
    within_ms: Option<u64>,
    peer_is: Option<PodRef>,
}

fn shop_client() -> String {
    "shop/client".into()
}

fn once() -> usize {
    1
}

in_families!(every_http_case_holds_at_both_ends: ipv4, ipv6, dual);

fn every_http_case_holds_at_both_ends(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("tests/cases")
        .map(|e| e.expect("an entry").path())
        .collect();
    files.sort();
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in files {
        let text = fs::read_to_string(&path).expect("a readable file");
        let file: File =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        count += file.cases.len() + file.statuses.len();
        wrong.extend(run(&lab, &file).into_iter().map(|w| format!("{stem}: {w}")));
    }
    assert!(count > 90, "only {count} cases were found");
    assert!(
        wrong.is_empty(),
        "{} of {count} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{count} cases");
}

fn run(lab: &Lab, file: &File) -> Vec<String> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": file.manifests});
    lab.apply(&list.to_string()).ok();
    let mut wrong = Vec::new();
    for status in &file.statuses {
        wrong.extend(check_status(lab, status));
    }
    let mut by_client: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in &file.cases {
        let all = by_client.entry(&case.from).or_default();
        all.extend(std::iter::repeat_n(case, case.times));
    }
    for (client, cases) in by_client {
        let requests: Vec<_> = cases.iter().map(|c| request(lab, c)).collect();
        for (case, answer) in cases.iter().zip(lab.http(client, &requests)) {
            let complaints = check(lab, &case.expect, &answer);
            if !complaints.is_empty() {
                wrong.push(format!("{}: {}", case.name, complaints.join("; ")));
            }
        }
    }
    wrong
}

fn check_status(lab: &Lab, want: &Status) -> Option<String> {
    let look = || {
        let (status, reason, message) =
            lab.route_condition(&want.kind, &want.namespace, &want.name, &want.r#type);
        let holds = status == want.status
            && want.reason.as_ref().is_none_or(|r| *r == reason)
            && want.mentions.as_ref().is_none_or(|m| message.contains(m));
        if holds {
            Ok(())
        } else {
            Err(format!("{status} {reason}: {message}"))
        }
    };
    // Status follows within moments; a wrong one stays wrong.
    for _ in 0..40 {
        if look().is_ok() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = look().err()?;
    Some(format!(
        "status of {}/{}: {} is {found}",
        want.namespace, want.name, want.r#type
    ))
}

fn request(lab: &Lab, case: &Case) -> Request {
    let url = match &case.to_pod {
        None => case.url.clone(),
        Some(pod) => {
            let at = lab.pod_at(&pod.namespace, &pod.prefix, pod.port);
            case.url.replace("POD", &at)
        }
    };
    Request {
        h2: case.h2,
        method: case.method.clone(),
        url,
        headers: case.headers.clone(),
        ..Request::default()
    }
}

fn check(lab: &Lab, expect: &Expect, answer: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if answer.status != expect.status {
        let why = answer.error.as_deref().unwrap_or(&answer.body);
        wrong.push(format!(
            "status {} instead of {} ({why})",
            answer.status, expect.status
        ));
        return wrong;
    }
    let seen = answer.seen();
    let fields = [
        ("version", &expect.version),
        ("method", &expect.method),
        ("path", &expect.path),
        ("query", &expect.query),
        ("host", &expect.host),
    ];
    for (field, want) in fields {
        let found = seen[field].as_str();
        if want.is_some() && found != want.as_deref() {
            wrong.push(format!(
                "the backend saw {field} {found:?} instead of {want:?}"
            ));
        }
    }
    let arrived = pairs(&seen["headers"]);
    for (name, want) in &expect.seen {
        let found = joined(&arrived, name);
        if found != *want {
            wrong.push(format!(
                "the backend saw {name}: {found:?} instead of {want:?}"
            ));
        }
    }
    for (name, want) in &expect.response {
        let found = joined(&answer.headers, name);
        if found != *want {
            wrong.push(format!(
                "the answer has {name}: {found:?} instead of {want:?}"
            ));
        }
    }
    if expect.within_ms.is_some_and(|limit| answer.millis > limit) {
        wrong.push(format!("it took {} ms", answer.millis));
    }
    if let Some(pod) = &expect.peer_is {
        // In the family of the address that the client dialled: which one, its resolver chose.
        let want = lab.pod_ips(&pod.namespace, &pod.prefix);
        let peer = seen["peer"].as_str().unwrap_or_default();
        let peer = peer.parse::<SocketAddr>().map(|peer| peer.ip().to_string());
        if !peer.as_ref().is_ok_and(|peer| want.contains(peer)) {
            wrong.push(format!(
                "the backend saw the peer {peer:?} instead of one of {want:?}"
            ));
        }
    }
    wrong
}

fn pairs(headers: &Value) -> Vec<(String, String)> {
    serde_json::from_value(headers.clone()).unwrap_or_default()
}

fn joined(headers: &[(String, String)], name: &str) -> Option<String> {
    let values = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let values: Vec<_> = values.map(|(_, v)| v.as_str()).collect();
    (!values.is_empty()).then(|| values.join(",").replace(", ", ","))
}

#[test]
fn a_malformed_manifest_and_a_malformed_route_affect_themselves_alone() {
    let lab = Lab::up(SHOP);
    let good = |backend: &str| {
        format!(
            r#"{{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {{"name": "good", "namespace": "shop"}},
                "spec": {{"parentRefs": [{{"group": "", "kind": "Service", "name": "checkout"}}],
                          "rules": [{{"backendRefs": [{{"name": "{backend}", "port": 80}}]}}]}}}}"#
        )
    };
    let bad = r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "bad", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "checkout-v2"}],
                 "rules": [{"filters": [{"type": "MakeCoffee"}], "backendRefs": [{"name": "checkout-v1", "port": 80}]}]}}"#;
    let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: [broken\n";
    let applied = lab.apply(&format!(
        "{}\n---\n{broken}---\n{bad}\n",
        good("checkout-v1")
    ));
    assert_ne!(applied.code, 0, "a malformed document must be reported");
    assert!(
        applied.err.contains("document"),
        "the error names the document: {}",
        applied.err
    );

    eventually(Duration::from_secs(5), || {
        match lab.get("shop/client", "http://checkout/") {
            a if a.seen()["version"] == "v1" => Ok(()),
            a => Err(format!("{} {:?}", a.status, a.body)),
        }
    });
    let answer = lab.get("shop/client", "http://checkout-v2/");
    assert_eq!(
        answer.status, 500,
        "a rule with an unknown filter must not be served without it"
    );
    let (_, _, message) = eventually(Duration::from_secs(5), || {
        for condition in ["PartiallyInvalid", "Accepted"] {
            let found = lab.route_condition("httproute", "shop", "bad", condition);
            if found.2.contains("MakeCoffee") {
                return Ok(found);
            }
        }
        Err("no condition names the filter".to_owned())
    });
    assert!(!message.is_empty());

    // The other routes go on being read after it.
    lab.apply(&good("checkout-v2")).ok();
    eventually(Duration::from_secs(5), || {
        match lab.get("shop/client", "http://checkout/") {
            a if a.seen()["version"] == "v2" => Ok(()),
            a => Err(format!("{} {:?}", a.status, a.body)),
        }
    });
}
