use serde_json::json;
use weft_source::{
    Scope,
    kubernetes::{KubernetesSource, fake::FakeApi},
};

use super::*;

fn accounts() -> Accounts {
    Accounts {
        audience: "weft.dev".into(),
        proxies: "weft-system/weft-proxy".parse().unwrap(),
        controllers: "weft-system/weft-controller".parse().unwrap(),
    }
}

fn answer(user: &str, audiences: &[&str], extra: Value) -> Value {
    json!({ "authenticated": true, "audiences": audiences, "user": {
        "username": format!("system:serviceaccount:{user}"), "extra": extra,
    }})
}

fn reviews(api: &Arc<FakeApi>) -> TokenReviews {
    let source = KubernetesSource::new(api.client(), Scope::Mesh);
    TokenReviews::new(api.client(), Arc::new(source), accounts())
}

/// A server that answers every review so.
fn server(status: Value) -> Arc<FakeApi> {
    let api = FakeApi::new();
    api.on_create("tokenreviews", move |review| {
        assert_eq!(review["spec"]["audiences"], json!(["weft.dev"]));
        let mut review = review.clone();
        review["status"] = status.clone();
        review
    });
    api
}

fn proxy(node: &str) -> Result<Caller, Denied> {
    Ok(Caller::Proxy { node: node.into() })
}

const REVIEW: &str = "POST /apis/authentication.k8s.io/v1/tokenreviews";

#[tokio::test(start_paused = true)]
async fn what_a_review_says_decides_who_is_let_in() {
    let on_node = || json!({ NODE_NAME: ["n1"] });
    for (status, expected) in [
        (
            answer("weft-system:weft-proxy", &["weft.dev"], on_node()),
            Ok("n1"),
        ),
        (
            answer("weft-system:weft-proxy", &["weft.dev", "x"], on_node()),
            Ok("n1"),
        ),
        (
            answer("weft-system:weft-proxy", &["other"], on_node()),
            Err("not for the audience"),
        ),
        (
            answer("weft-system:weft-proxy", &[], on_node()),
            Err("not for the audience"),
        ),
        (
            answer("weft-system:default", &["weft.dev"], on_node()),
            Err("it must be of"),
        ),
        (
            answer("other:weft-proxy", &["weft.dev"], on_node()),
            Err("it must be of"),
        ),
        (
            answer("weft-system:weft-proxy", &["weft.dev"], json!({})),
            Err("neither node nor pod"),
        ),
        (
            answer(
                "weft-system:weft-proxy",
                &["weft.dev"],
                json!({ NODE_NAME: [] }),
            ),
            Err("neither"),
        ),
        (
            json!({ "authenticated": false, "error": "expired" }),
            Err("expired"),
        ),
        (json!({}), Err("does not accept")),
    ] {
        let result = reviews(&server(status.clone())).caller("t").await;
        match (expected, result) {
            (Ok(node), result) => assert_eq!(result, proxy(node), "{status}"),
            (Err(part), Err(Denied::Refused(reason))) => assert!(reason.contains(part), "{reason}"),
            (_, result) => panic!("{status}: {result:?}"),
        }
    }
    let api = server(answer(
        "weft-system:weft-controller",
        &["weft.dev"],
        json!({ POD_NAME: ["weft-controller-a"] }),
    ));
    let replica = "weft-controller-a".to_owned();
    assert_eq!(
        reviews(&api).caller("t").await,
        Ok(Caller::Controller { replica })
    );
}

#[tokio::test(start_paused = true)]
async fn where_tokens_name_no_node_their_pod_tells_it() {
    let extra = json!({ POD_NAME: ["weft-proxy-x"], POD_UID: ["u1"] });
    let api = server(answer("weft-system:weft-proxy", &["weft.dev"], extra));
    let pod = |uid: &str, node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": { "nodeName": node },
            "metadata": { "namespace": "weft-system", "name": "weft-proxy-x", "uid": uid },
        })
    };
    for (there, expected) in [
        (None, Err("is gone")),
        (Some(pod("u2", "n1")), Err("is another one now")),
        (Some(pod("u1", "")), Err("is on no node")),
        (Some(pod("u1", "n7")), Ok("n7")),
    ] {
        if let Some(pod) = there {
            api.put(pod);
        }
        match (expected, reviews(&api).caller("t").await) {
            (Ok(node), result) => assert_eq!(result, proxy(node)),
            (Err(part), Err(Denied::Refused(reason))) => {
                assert!(reason.ends_with(part), "{reason}")
            }
            (_, result) => panic!("{result:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_a_while_but_not_beyond_the_tokens_end_and_a_no_is_not() {
    let api = server(answer(
        "weft-system:weft-proxy",
        &["weft.dev"],
        json!({ NODE_NAME: ["n1"] }),
    ));
    let reviews = reviews(&api);
    for _ in 0..5 {
        reviews.caller("t").await.unwrap();
    }
    assert_eq!(api.count(REVIEW), 1);
    reviews.caller("another").await.unwrap();
    assert_eq!(api.count(REVIEW), 2);
    tokio::time::advance(KEPT).await;
    reviews.caller("t").await.unwrap();
    assert_eq!(api.count(REVIEW), 3);

    let end = SystemTime::now() + Duration::from_secs(10);
    let end = end
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = URL_SAFE_NO_PAD.encode(json!({ "exp": end }).to_string());
    let short = format!("h.{claims}.s");
    reviews.caller(&short).await.unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    reviews.caller(&short).await.unwrap();
    assert_eq!(api.count(REVIEW), 5);

    let api = server(json!({ "authenticated": false }));
    let reviews = super::tests::reviews(&api);
    for _ in 0..2 {
        assert!(matches!(reviews.caller("t").await, Err(Denied::Refused(_))));
    }
    assert_eq!(api.count(REVIEW), 2);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_no_refusal() {
    let api = server(answer(
        "weft-system:weft-proxy",
        &["weft.dev"],
        json!({ NODE_NAME: ["n1"] }),
    ));
    api.fail(REVIEW, 503);
    let reviews = reviews(&api);
    assert!(matches!(
        reviews.caller("t").await,
        Err(Denied::Unavailable(_))
    ));
    assert_eq!(reviews.caller("t").await, proxy("n1"));
}

#[tokio::test(start_paused = true)]
async fn no_more_answers_are_kept_than_there_is_room_for() {
    let api = server(answer(
        "weft-system:weft-proxy",
        &["weft.dev"],
        json!({ NODE_NAME: ["n1"] }),
    ));
    let reviews = reviews(&api);
    for index in 0..MOST_KEPT + 10 {
        reviews.keep(
            Sha256::digest(index.to_string()).into(),
            &proxy("n").unwrap(),
            None,
        );
    }
    assert_eq!(reviews.kept.lock().len(), MOST_KEPT);
    tokio::time::advance(KEPT).await;
    reviews.caller("t").await.unwrap();
    assert_eq!(reviews.kept.lock().len(), 1, "what has run out makes room");
}
