//! All kinds of a scope together: which of them are there, and when all are listed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt,
    core::{ApiResource, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Shared,
    kinds::{CUSTOM_GROUPS, Kind, discover},
    reflect::Reflector,
};
use crate::{Event, Scope};

/// How often discovery is asked though nothing says that anything has changed.
const PERIOD: Duration = Duration::from_secs(60);

/// How often it is asked after a definition has changed: what is new is served a moment later.
const HURRY: Duration = Duration::from_millis(500);

/// How many times.
const HURRIES: u32 = 6;

/// A kind counts as gone once discovery has left it out so many times, one after the other: to let
/// go of routes by mistake is worse than to keep them for a moment.
const ABSENCES: u32 = 2;

/// How a custom kind is served: not known yet; not at all; or so.
type Served = Option<Option<ApiResource>>;

/// Kinds that are still to be listed for the first time.
type Pending = Arc<watch::Sender<BTreeSet<&'static str>>>;

/// Follows all kinds of a scope until nobody reads the events.
pub(super) async fn run(shared: Arc<Shared>, scope: Scope, events: mpsc::Sender<Event>) {
    let kinds = Kind::of(&scope);
    let fields = |kind: &Kind| match &scope {
        Scope::Node(node) if kind.kind == "Pod" => Some(format!("spec.nodeName={node}")),
        _ => None,
    };
    let pending: Pending = Arc::new(watch::Sender::new(
        kinds.iter().map(|kind| kind.kind).collect(),
    ));
    let mut tasks = JoinSet::new();
    let mut served = BTreeMap::new();
    for kind in kinds {
        let resource = kind.best();
        let reflector = Reflector {
            api: Api::all_with(shared.client.clone(), &resource),
            resource,
            fields: fields(kind),
            events: events.clone(),
            seen: Arc::clone(&shared.seen),
            told: HashMap::new(),
            paged: false,
        };
        let pending = Arc::clone(&pending);
        if kind.custom {
            let (sender, receiver) = watch::channel(None);
            served.insert(kind.kind, sender);
            let client = shared.client.clone();
            tasks.spawn(follow_custom(reflector, client, receiver, kind, pending));
        } else {
            tasks.spawn(follow(reflector, kind, pending));
        }
    }
    let synced = async {
        // The sender lives as long as the tasks.
        let _ = pending.subscribe().wait_for(BTreeSet::is_empty).await;
        let _ = events.send(Event::Synced).await;
        events.closed().await;
    };
    let changed = Notify::new();
    let discovery = async {
        if served.is_empty() {
            std::future::pending().await
        }
        tokio::join!(
            follow_discovery(&shared, kinds, &served, &changed),
            follow_definitions(&shared, &changed),
        );
    };
    tokio::select! {
        () = synced => {}
        () = discovery => {}
    }
}

async fn follow(mut reflector: Reflector, kind: &'static Kind, pending: Pending) {
    reflector.run(|| listed(&pending, kind)).await;
}

/// Follows a kind while it is served.
async fn follow_custom(
    mut reflector: Reflector,
    client: kube::Client,
    mut served: watch::Receiver<Served>,
    kind: &'static Kind,
    pending: Pending,
) {
    loop {
        let now = served.borrow_and_update().clone();
        let changed = match now {
            None => served.changed().await,
            Some(None) => {
                reflector.clear().await;
                listed(&pending, kind);
                served.changed().await
            }
            Some(Some(resource)) => {
                reflector.api = Api::all_with(client.clone(), &resource);
                reflector.resource = resource;
                tokio::select! {
                    () = reflector.run(|| listed(&pending, kind)) => return,
                    changed = served.changed() => changed,
                }
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

fn listed(pending: &watch::Sender<BTreeSet<&'static str>>, kind: &Kind) {
    pending.send_if_modified(|pending| pending.remove(kind.kind));
}

/// Keeps `served` as discovery says.
async fn follow_discovery(
    shared: &Shared,
    kinds: &'static [Kind],
    served: &BTreeMap<&'static str, watch::Sender<Served>>,
    changed: &Notify,
) {
    let mut hurries = 0;
    let mut absences: HashMap<&str, u32> = HashMap::new();
    loop {
        let mut unsure = false;
        match discover(&shared.client, kinds).await {
            Ok(found) => {
                for (kind, resource) in found {
                    let Some(sender) = served.get(kind.kind) else {
                        continue;
                    };
                    let absent = absences.entry(kind.kind).or_default();
                    *absent = if resource.is_none() { *absent + 1 } else { 0 };
                    let had = matches!(&*sender.borrow(), Some(Some(_)));
                    if had && (1..ABSENCES).contains(absent) {
                        unsure = true;
                        continue;
                    }
                    set(shared, sender, kind, resource);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the API can't be asked which kinds there are; trying again");
                unsure = true;
            }
        }
        let pause = if unsure || hurries > 0 { HURRY } else { PERIOD };
        hurries = match timeout(pause, changed.notified()).await {
            Ok(()) => HURRIES,
            Err(_) => hurries.saturating_sub(1),
        };
    }
}

fn set(
    shared: &Shared,
    sender: &watch::Sender<Served>,
    kind: &Kind,
    resource: Option<ApiResource>,
) {
    sender.send_if_modified(|served| {
        if served.as_ref() == Some(&resource) {
            return false;
        }
        let version = resource.as_ref().map(|resource| &resource.version);
        tracing::info!(kind = kind.kind, ?version, "kind of the Gateway API");
        match &resource {
            Some(resource) => shared.served.write().insert(kind.kind, resource.clone()),
            None => shared.served.write().remove(kind.kind),
        };
        *served = Some(resource);
        true
    });
}

/// Tells when a definition of our groups may have changed. Its metadata is all that is read: the
/// definitions themselves are large.
async fn follow_definitions(shared: &Shared, changed: &Notify) {
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> =
        Api::all(shared.client.clone());
    let events = watcher(definitions, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let definition = match event {
            Ok(
                watcher::Event::Apply(definition)
                | watcher::Event::InitApply(definition)
                | watcher::Event::Delete(definition),
            ) => definition,
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                tracing::debug!(%error, "definitions of kinds can't be watched");
                continue;
            }
        };
        let name = definition.name_any();
        let ours = |group: &str| name.split_once('.').is_some_and(|(_, of)| of == group);
        if CUSTOM_GROUPS.into_iter().any(ours) {
            changed.notify_one();
        }
    }
    // A watcher does not end.
    sleep(Duration::MAX).await;
}
