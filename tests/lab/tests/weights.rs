//! Weighted routes under load: exact in the long run, nothing lost, changed within a second.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use weft_lab_tests::{Family, Lab, eventually, in_families};

const SHOP: &str = include_str!("../manifests/shop.yaml");

fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: checkout, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: checkout}}]
  rules:
  - backendRefs:
    - {{name: checkout-v1, port: 80, weight: {v1}}}
    - {{name: checkout-v2, port: 80, weight: {v2}}}
"
    )
}

fn replicas(version: &str, n: u32) -> String {
    let documents = SHOP.split("\n---\n");
    let name = format!("name: checkout-{version}, namespace: shop}}\nspec:\n  replicas:");
    let found = documents
        .into_iter()
        .find(|d| d.contains(&name))
        .expect("the deployment");
    let (head, tail) = found.split_once("replicas: ").expect("its replicas");
    let (_, rest) = tail.split_once('\n').expect("more lines");
    format!("{head}replicas: {n}\n{rest}")
}

/// Until so many pods of a version are ready, and no more are there.
fn wait_for_ready(lab: &Lab, version: &str, n: u32) {
    eventually(Duration::from_secs(30), || {
        let pods = lab.objects("pods", "shop");
        let pods = pods
            .iter()
            .filter(|p| p["metadata"]["labels"]["version"] == version);
        let (ready, all) = pods.fold((0, 0), |(ready, all), pod| {
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready = conditions
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            (ready + u32::from(is_ready), all + 1)
        });
        if (ready, all) == (n, n) {
            Ok(())
        } else {
            Err(format!("{ready} of {all} pods of {version} are ready"))
        }
    });
}

/// Five standard deviations of a binomial share.
fn assert_share(what: &str, hits: u64, of: u64, share: f64) {
    let n = of as f64;
    let deviation = (n * share * (1.0 - share)).sqrt();
    let expected = n * share;
    assert!(
        (hits as f64 - expected).abs() <= 5.0 * deviation,
        "{what}: {hits} of {of}, expected {expected} ± {}",
        5.0 * deviation
    );
}

in_families!(
    requests_split_as_the_weights_say_while_endpoints_come_and_go: ipv4, ipv6, dual;
    a_changed_weight_is_in_force_within_a_second_on_open_connections: ipv4;
);

fn requests_split_as_the_weights_say_while_endpoints_come_and_go(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    let (count, rate) = if family.is_in_full() {
        (10_000, "400")
    } else {
        (1_500, "200")
    };
    lab.apply(&split(90, 10)).ok();
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| {
            // Paced, so that it lasts longer than the scaling beside it.
            let more = ["--rate", rate, "--brief"];
            lab.load("shop/client", "http://checkout/", count, 16, &more)
        });
        let steps = [
            ("v1", 4),
            ("v2", 2),
            ("v1", 1),
            ("v2", 1),
            ("v1", 3),
            ("v1", 2),
        ];
        let steps = if family.is_in_full() {
            &steps[..]
        } else {
            &steps[..3]
        };
        for &(version, n) in steps {
            lab.apply(&replicas(version, n)).ok();
            wait_for_ready(&lab, version, n);
        }
        load.join().expect("the load ends")
    });
    assert_eq!(report.failed, 0, "lost: {:?}", report.causes);
    assert_eq!(report.ok, count);
    assert_share(
        "v2",
        report.versions.get("v2").copied().unwrap_or(0),
        count,
        0.1,
    );
    let pods = report
        .pods
        .keys()
        .filter(|p| p.starts_with("checkout-v1"))
        .count();
    assert!(pods > 2, "endpoints came and went: {:?}", report.pods);
}

fn a_changed_weight_is_in_force_within_a_second_on_open_connections(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    lab.apply(&split(1, 0)).ok();
    let (report, changed) = thread::scope(|scope| {
        let load = scope.spawn(|| {
            lab.load(
                "shop/client",
                "http://checkout/",
                3_000,
                4,
                &["--rate", "300"],
            )
        });
        thread::sleep(Duration::from_secs(3));
        // Written straight into the folder that stands for the API: the moment of the change.
        let changed = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock")
            .as_millis();
        lab.apply(&split(0, 1)).ok();
        (
            load.join().expect("the load ends"),
            u64::try_from(changed).expect("this century"),
        )
    });
    assert_eq!(report.failed, 0, "lost: {:?}", report.causes);
    let early: Vec<_> = report
        .timeline
        .iter()
        .filter(|(at, _)| *at < changed)
        .collect();
    let late: Vec<_> = report
        .timeline
        .iter()
        .filter(|(at, _)| *at > changed + 1_000)
        .collect();
    assert!(
        early.len() > 100 && late.len() > 100,
        "{} and {}",
        early.len(),
        late.len()
    );
    assert!(early.iter().all(|(_, v)| v == "v1"), "v2 before the change");
    let stale = late.iter().filter(|(_, v)| v == "v1").count();
    assert_eq!(
        stale,
        0,
        "{stale} of {} answers a second later were still v1",
        late.len()
    );
}
