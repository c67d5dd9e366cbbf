//! Who calls, on Kubernetes: a projected token in, what TokenReview says of it out.
//!
//! A token must be for our audience, of the service account of proxies (or of other replicas of the
//! controller), and say on which node its pod runs: the API server puts that into tokens; where it is
//! too old for that, the pod that the token names is looked up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use weft_source::{BoxFuture, ObjectKey, Source};

use super::Place;
use crate::publish::auth::{Authenticator, Caller, Denied};

/// How long an answer holds: the token of a pod that is gone is good for no longer. A token's own end
/// comes first.
const KEPT: Duration = Duration::from_secs(30);

/// The most answers that are kept.
const MOST_KEPT: usize = 4096;

/// Reviews under way at once; others wait.
const REVIEWS: usize = 32;

/// How long one review may take.
const PATIENCE: Duration = Duration::from_secs(5);

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The audience that a token must be for.
    pub audience: String,
    /// The service account of proxies.
    pub proxies: Place,
    /// The service account of the controller's replicas.
    pub controllers: Place,
}

/// Asks the API about tokens.
pub struct TokenReviews {
    client: Client,
    source: Arc<dyn Source>,
    accounts: Accounts,
    /// By the token's hash: tokens themselves are not kept.
    kept: Mutex<HashMap<[u8; 32], (Caller, Instant)>>,
    reviews: Semaphore,
}

impl TokenReviews {
    /// Asks through `client`; pods are looked up in `source`.
    pub fn new(client: Client, source: Arc<dyn Source>, accounts: Accounts) -> Self {
        Self {
            client,
            source,
            accounts,
            kept: Mutex::default(),
            reviews: Semaphore::new(REVIEWS),
        }
    }

    async fn authenticate(&self, token: &str) -> Result<Caller, Denied> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(caller) = self.known(&digest) {
            return Ok(caller);
        }
        let _turn = self.reviews.acquire().await;
        // While this waited for its turn, another call of the same proxy may have been answered.
        if let Some(caller) = self.known(&digest) {
            return Ok(caller);
        }
        let reviewed = timeout(PATIENCE, self.review(token)).await;
        let caller = reviewed.unwrap_or_else(|_| {
            Err(Denied::Unavailable(
                "the API server does not answer a TokenReview".to_owned(),
            ))
        })?;
        self.keep(digest, &caller, remaining(token, SystemTime::now()));
        Ok(caller)
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Caller> {
        let kept = self.kept.lock();
        let (caller, until) = kept.get(digest)?;
        (Instant::now() < *until).then(|| caller.clone())
    }

    fn keep(&self, digest: [u8; 32], caller: &Caller, remaining: Option<Duration>) {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (_, until)| now < *until);
        }
        if kept.len() < MOST_KEPT {
            let until = now + remaining.unwrap_or(KEPT).min(KEPT);
            kept.insert(digest, (caller.clone(), until));
        }
    }

    async fn review(&self, token: &str) -> Result<Caller, Denied> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.accounts.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await;
        let review = review.map_err(|error| {
            Denied::Unavailable(format!("the API can't be asked about the token: {error}"))
        })?;
        match judge(&review.status.unwrap_or_default(), &self.accounts).map_err(Denied::Refused)? {
            Judged::Known(caller) => Ok(caller),
            Judged::InPod(pod) => self.node_of(pod).await.map(|node| Caller::Proxy { node }),
        }
    }

    async fn node_of(&self, pod: Pod) -> Result<String, Denied> {
        let refused = |what: &str| {
            Err(Denied::Refused(format!(
                "the token's pod {} {what}",
                pod.key
            )))
        };
        let found = self.source.get(&pod.key).await;
        let found = found.map_err(|error| Denied::Unavailable(error.to_string()))?;
        let Some(found) = found else {
            return refused("is gone");
        };
        let text = |path: &str| found.value.pointer(path).and_then(Value::as_str);
        if text("/metadata/uid") != Some(&pod.uid) {
            return refused("is another one now");
        }
        match text("/spec/nodeName") {
            Some(node) if !node.is_empty() => Ok(node.to_owned()),
            _ => refused("is on no node"),
        }
    }
}

impl Authenticator for TokenReviews {
    fn caller<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, Denied>> {
        Box::pin(self.authenticate(token))
    }
}

/// What a review says.
#[derive(Debug, PartialEq)]
enum Judged {
    Known(Caller),
    /// A proxy; this pod's node is to be looked up.
    InPod(Pod),
}

#[derive(Debug, PartialEq)]
struct Pod {
    key: ObjectKey,
    uid: String,
}

/// Reads a review: who calls, or why the token is refused.
fn judge(status: &TokenReviewStatus, accounts: &Accounts) -> Result<Judged, String> {
    if status.authenticated != Some(true) {
        let error = status.error.as_deref().unwrap_or("no reason is given");
        return Err(format!("the API server does not accept the token: {error}"));
    }
    // A server that knows no audiences would say nothing of them.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.contains(&accounts.audience) {
        return Err(format!(
            "the token is not for the audience {:?}",
            accounts.audience
        ));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account =
        |place: &Place| format!("system:serviceaccount:{}:{}", place.namespace, place.name);
    let extra = user.extra.unwrap_or_default();
    let extra = |field: &str| first(&extra, field);
    if name == account(&accounts.controllers) {
        let replica = extra(POD_NAME).unwrap_or_default();
        return Ok(Judged::Known(Caller::Controller { replica }));
    }
    if name != account(&accounts.proxies) {
        return Err(format!(
            "the token is of {name:?}; it must be of {:?}",
            account(&accounts.proxies)
        ));
    }
    if let Some(node) = extra(NODE_NAME) {
        return Ok(Judged::Known(Caller::Proxy { node }));
    }
    let (Some(name), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err("the token names neither node nor pod; it must be a projected one".to_owned());
    };
    let key = ObjectKey {
        group: String::new(),
        kind: "Pod".into(),
        namespace: accounts.proxies.namespace.clone(),
        name,
    };
    Ok(Judged::InPod(Pod { key, uid }))
}

fn first(extra: &BTreeMap<String, Vec<String>>, field: &str) -> Option<String> {
    let values = extra.get(field)?;
    values.first().filter(|value| !value.is_empty()).cloned()
}

/// How long a token (a JWT that has been verified) is still good for, if it tells.
fn remaining(token: &str, now: SystemTime) -> Option<Duration> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.get("exp")?.as_u64()?);
    Some(end.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
#[path = "token_review_tests.rs"]
mod tests;
