//! Who is let in. An independent HBONE implementation (Go's HTTP/2 and TLS) proves that the wire
//! is the open protocol, in both directions, and presents everything that must be refused.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;
use weft_lab_tests::{Family, Lab, Output, at, eventually, in_families};

const SHOP: &str = include_str!("../manifests/shop.yaml");
const PEER_ID: &str = "spiffe://cluster.local/ns/plain/sa/default";
const CHECKOUT: &str = "spiffe://cluster.local/ns/shop/sa/checkout";

in_families!(
    an_independent_hbone_client_is_served_with_a_good_certificate_and_refused_with_any_other: ipv4, ipv6;
    an_independent_hbone_server_is_dialled_only_if_it_is_who_it_should_be: ipv4, ipv6;
    strict_mode_refuses_plaintext_and_permissive_takes_it: ipv4, ipv6, dual;
);

struct Peer<'a> {
    lab: &'a Lab,
    dial: String,
    authority: String,
}

impl Peer<'_> {
    fn client(&self, args: &[&str]) -> (Output, Value) {
        let ca = self.lab.state_dir().join("ca");
        let (cert, key) = (ca.join("root.pem"), ca.join("root.key"));
        let peer = Lab::peer();
        let mut command = vec![
            peer.to_str().expect("a path"),
            "client",
            "--dial",
            &self.dial,
            "--authority",
            &self.authority,
            "--ca-cert",
            cert.to_str().expect("a path"),
            "--get",
            "/through?x=1",
        ];
        if !args.contains(&"--stranger") {
            command.extend(["--ca-key", key.to_str().expect("a path")]);
        }
        command.extend(args.iter().filter(|a| **a != "--stranger"));
        let output = self.lab.exec("plain/client", &command);
        let value = serde_json::from_str(&output.out).unwrap_or_default();
        (output, value)
    }
}

fn an_independent_hbone_client_is_served_with_a_good_certificate_and_refused_with_any_other(
    family: Family,
) {
    let lab = Lab::up_in(family, SHOP);
    let ip = lab.pod_ip("shop", "checkout-v1");
    let node = lab.pod("shop", "checkout-v1")["spec"]["nodeName"]
        .as_str()
        .expect("a node")
        .to_owned();
    let peer = Peer {
        lab: &lab,
        dial: at(&ip, 15008),
        authority: at(&ip, 8080),
    };

    let (output, good) = peer.client(&["--id", PEER_ID, "--expect", CHECKOUT]);
    assert_eq!(output.code, 0, "{} {}", output.out, output.err);
    assert_eq!(good["stage"], "done", "{good}");
    assert_eq!(good["tls_version"], "TLS 1.3");
    let seen: Value = serde_json::from_str(good["answer"].as_str().expect("a body")).expect("JSON");
    assert_eq!(seen["path"], "/through");
    let own = lab.pod_ip("plain", "client");
    assert!(
        seen["peer"].to_string().contains(&own),
        "the application sees {own}: {}",
        seen["peer"]
    );

    let two = format!("{PEER_ID},spiffe://cluster.local/ns/shop/sa/checkout");
    // The certificate presented, and what the proxy must say of it.
    let cases: [(&str, &[&str], &str); 8] = [
        (
            "a wrong trust domain",
            &["--id", "spiffe://evil.example/ns/plain/sa/default"],
            "trust domain",
        ),
        (
            "an expired certificate",
            &["--id", PEER_ID, "--age", "2h", "--lifetime", "1h"],
            "expired",
        ),
        (
            "a certificate that is not valid yet",
            &["--id", PEER_ID, "--age=-1h"],
            "not",
        ),
        ("two URI SANs", &["--id", &two], "URI SAN"),
        ("no URI SAN", &["--id", ""], "URI SAN"),
        (
            "an unknown issuer of the same name",
            &["--id", PEER_ID, "--stranger"],
            "no root of the trust bundle",
        ),
        (
            "a CA certificate as leaf",
            &["--id", PEER_ID, "--is-ca"],
            "CA",
        ),
        ("no certificate", &["--no-certificate"], "certificate"),
    ];
    for (what, args, reason) in cases {
        let before = lab.logs(&format!("proxy/{node}")).len();
        let (output, value) = peer.client(args);
        assert_eq!(
            output.code, 3,
            "{what} was let in: {} {}",
            output.out, output.err
        );
        assert_ne!(value["stage"], "done", "{what}");
        assert_eq!(
            value["status"],
            Value::Null,
            "{what} came as far as an HTTP answer: {value}"
        );
        eventually(Duration::from_secs(5), || {
            let logs = lab.logs(&format!("proxy/{node}"));
            let new = &logs[before.min(logs.len())..];
            if new.to_lowercase().contains(&reason.to_lowercase()) {
                Ok(())
            } else {
                Err(format!("{what}: the proxy does not name {reason:?}: {new}"))
            }
        });
    }
    let (output, value) = peer.client(&["--id", PEER_ID, "--tls-max", "1.2"]);
    assert_eq!(output.code, 3, "TLS 1.2 was spoken: {value}");

    // A good certificate, but for another destination.
    let other = lab.pod_ip("shop", "checkout-v2");
    for authority in [
        at(&other, 8080),
        "127.0.0.1:8080".into(),
        "[::1]:8080".into(),
        at(&ip, 15001),
    ] {
        let peer = Peer {
            lab: &lab,
            dial: peer.dial.clone(),
            authority: authority.clone(),
        };
        let (output, value) = peer.client(&["--id", PEER_ID]);
        assert_eq!(output.code, 3, "a tunnel to {authority} was made: {value}");
        let status = value["status"].as_u64().unwrap_or(0);
        assert!((400..500).contains(&status), "{authority}: {value}");
    }
    let (output, value) = peer.client(&["--id", PEER_ID, "--method", "GET"]);
    assert_eq!(output.code, 3, "GET is no tunnel: {value}");
}

fn an_independent_hbone_server_is_dialled_only_if_it_is_who_it_should_be(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    let web = lab.pod_ip("plain", "web");
    // The folder is the API: captured is what its annotation says, in its own sandbox, for a pod that
    // another implementation serves.
    let annotations = lab.state_dir().join("api/annotations/Pod./plain");
    std::fs::create_dir_all(&annotations).expect("a writable lab");
    let sandbox = lab.sandbox("plain", "web");
    let annotation = format!(r#"{{"weft.dev/captured": "{sandbox}"}}"#);
    std::fs::write(annotations.join("web.json"), annotation).expect("a writable lab");

    let ca = lab.state_dir().join("ca");
    let run = |id: &str| {
        let mut command = Command::new(Lab::bin("weft"));
        command
            .args(["lab", "--name", &lab.name, "exec", "plain/web", "--"])
            .arg(Lab::peer());
        command
            .args(["server", "--id", id, "--ca-cert"])
            .arg(ca.join("root.pem"));
        command.arg("--ca-key").arg(ca.join("root.key"));
        command.args(["--allow", "spiffe://cluster.local/ns/shop/sa/default"]);
        command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts")
    };

    let mut server = run("spiffe://cluster.local/ns/plain/sa/default");
    let tunnels = BufReader::new(server.stdout.take().expect("it is piped"));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tunnels
            .lines()
            .map_while(Result::ok)
            .try_for_each(|l| tell.send(l))
    });
    // In plaintext until the annotation is in force, then in vain until the peer listens.
    let tunnel: Value = eventually(Duration::from_secs(10), || {
        let answer = lab.get("shop/client", "http://web.plain/");
        let tunnels = told
            .try_iter()
            .filter_map(|l| serde_json::from_str::<Value>(&l).ok());
        let mut tunnels = tunnels.filter(|t| t["authority"] == at(&web, 8080));
        tunnels
            .next()
            .ok_or_else(|| format!("no tunnel to {web}:8080: {answer:?}"))
    });
    assert_eq!(
        tunnel["client_id"],
        "spiffe://cluster.local/ns/shop/sa/default"
    );
    assert!(tunnel["error"].is_null(), "{tunnel}");
    end(&mut server);

    let mut impostor = run("spiffe://cluster.local/ns/shop/sa/checkout");
    eventually(Duration::from_secs(10), || {
        let answer = lab.get("shop/client", "http://web.plain/");
        assert_ne!(
            answer.status, 200,
            "another workload's certificate was taken"
        );
        let logs = lab.logs("proxy/n1")
            + &lab.logs("access/n1")
            + &lab.logs("proxy/n2")
            + &lab.logs("access/n2");
        if logs.contains("spiffe://cluster.local/ns/plain/sa/default") && logs.contains("identity")
        {
            Ok(())
        } else {
            Err("no log names the identity that was expected".to_owned())
        }
    });
    end(&mut impostor);
}

/// Ends what this test started, in order.
fn end(child: &mut Child) {
    Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .expect("kill");
    child.wait().expect("it ends");
}

fn strict_mode_refuses_plaintext_and_permissive_takes_it(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    let from_outside = || lab.get("plain/client", "http://checkout.shop/");
    assert_eq!(from_outside().status, 200);
    lab.weft(&["label", "namespace", "shop", "weft.dev/mtls=strict"])
        .ok();
    eventually(Duration::from_secs(10), || match from_outside() {
        a if a.status == 0 => Ok(()),
        a => Err(format!("{} was answered", a.status)),
    });
    let inside = lab.get("shop/client", "http://checkout/");
    assert_eq!(inside.status, 200, "mTLS goes on: {:?}", inside.error);
    let logs = lab.logs("proxy/n1") + &lab.logs("proxy/n2");
    assert!(
        logs.contains("demands mutual TLS"),
        "the refusal is said with its reason: {logs}"
    );
    lab.weft(&["label", "namespace", "shop", "weft.dev/mtls-"])
        .ok();
    eventually(Duration::from_secs(10), || match from_outside() {
        a if a.status == 200 => Ok(()),
        a => Err(format!("{} {:?}", a.status, a.error)),
    });
}
