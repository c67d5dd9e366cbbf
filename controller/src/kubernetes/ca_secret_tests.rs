use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use weft_source::kubernetes::fake::FakeApi;

use super::*;

const DOMAIN: &str = "test.local";

fn place() -> Place {
    "weft-system/weft-ca".parse().unwrap()
}

fn secret(name: &str, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<_, _> = data
        .iter()
        .map(|(key, value)| (*key, STANDARD.encode(value)))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "namespace": "weft-system", "name": name },
        "data": data,
    })
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_together_have_one_root() {
    let api = FakeApi::new();
    let client = api.client();
    // All of them see that there is none.
    for _ in 0..3 {
        api.fail("GET /api/v1/namespaces/weft-system/secrets/weft-ca", 404);
    }
    let place = place();
    let open = || open(&client, &place, None, DOMAIN);
    let (a, b, c) = tokio::join!(open(), open(), open());
    let pems = [a, b, c].map(|opened| opened.unwrap().0.to_pem());
    assert!(pems.iter().all(|pem| *pem == pems[0]));
    assert_eq!(
        api.count("POST /api/v1/namespaces/weft-system/secrets"),
        3,
        "all of them tried"
    );
    let again = open().await.unwrap();
    assert_eq!(again.0.to_pem(), pems[0]);
    assert_eq!(again.1.to_pem(), pems[0].0);
}

#[tokio::test(start_paused = true)]
async fn the_api_is_waited_for_and_a_secret_that_lacks_its_key_is_named() {
    let api = FakeApi::new();
    api.fail("secrets", 503);
    api.fail("secrets", 403);
    let client = api.client();
    open(&client, &place(), None, DOMAIN).await.unwrap();
    api.put(secret("weft-ca", &[("root.pem", "x")]));
    let error = open(&client, &place(), None, DOMAIN).await.unwrap_err();
    assert!(
        error.to_string().contains("weft-system/weft-ca lacks"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_operators_own_ca_signs_below_its_root_in_either_form() {
    let now = SystemTime::now();
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let root = CertificateAuthority::generate(DOMAIN, now, year).unwrap();
    let below = root.intermediate(now, year).unwrap();
    let (chain, key) = below.to_pem();
    let (root_pem, root_key) = root.to_pem();
    let split = chain.len() - root_pem.len();
    let intermediate = &chain[..split];
    for (form, data) in [
        (
            "Istio, chain with its root",
            vec![
                ("ca-cert.pem", intermediate),
                ("ca-key.pem", &key),
                ("cert-chain.pem", &chain),
                ("root-cert.pem", &root_pem),
            ],
        ),
        (
            "Istio, a root alone",
            vec![
                ("ca-cert.pem", &root_pem),
                ("ca-key.pem", &root_key),
                ("cert-chain.pem", &root_pem),
                ("root-cert.pem", &root_pem),
            ],
        ),
        (
            "cert-manager",
            vec![
                ("tls.crt", intermediate),
                ("tls.key", &key),
                ("ca.crt", &root_pem),
            ],
        ),
    ] {
        let api = FakeApi::new();
        api.put(secret("cacerts", &data));
        let (ca, roots) = open(&api.client(), &place(), Some("cacerts"), DOMAIN)
            .await
            .unwrap();
        assert_eq!(roots.to_pem(), root_pem, "{form}");
        assert_eq!(ca.trust_bundle().unwrap().to_pem(), root_pem, "{form}");
        let expected = if form.contains("alone") {
            &root_pem
        } else {
            &chain
        };
        assert_eq!(&ca.to_pem().0, expected, "{form}");
        assert_eq!(
            api.object("secrets", "weft-system", "weft-ca"),
            None,
            "{form}: no other is made"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_operators_ca_without_its_root_is_refused_and_one_that_is_absent_is_not_needed() {
    let now = SystemTime::now();
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let root = CertificateAuthority::generate(DOMAIN, now, year).unwrap();
    let (chain, key) = root.intermediate(now, year).unwrap().to_pem();
    let intermediate = &chain[..chain.len() - root.to_pem().0.len()];
    let api = FakeApi::new();
    let client = api.client();

    let (made, _) = open(&client, &place(), Some("cacerts"), DOMAIN)
        .await
        .unwrap();
    api.put(secret(
        "cacerts",
        &[("tls.crt", intermediate), ("tls.key", &key)],
    ));
    let error = open(&client, &place(), Some("cacerts"), DOMAIN)
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("its issuer is missing"),
        "{error:#}"
    );
    api.put(secret("cacerts", &[("other", "x")]));
    let error = open(&client, &place(), Some("cacerts"), DOMAIN)
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("neither ca-cert.pem and ca-key.pem nor"),
        "{error:#}"
    );

    // Where weft's own was in use before, both are trusted.
    api.put(secret("cacerts", &[("tls.crt", &chain), ("tls.key", &key)]));
    let (_, roots) = open(&client, &place(), Some("cacerts"), DOMAIN)
        .await
        .unwrap();
    assert_eq!(roots.to_pem(), root.to_pem().0 + &made.to_pem().0);
}
