//! What status every route and pod should have, and which it has. Pure: how proxies stand and the
//! time are given.
//!
//! Flows in: objects as the source shows them, the compiler's results, and names whose standing may
//! have changed. Flows out: the writes that make the one equal to the other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use serde_json::Value;
use weft_api::{
    config::{Tunnel, Workload},
    names::{CONDITION_CAPTURED, CONDITION_PROGRAMMED, CONTROLLER_NAME},
};
use weft_source::{Object, ObjectKey};

use super::{Standing, conditions};
use crate::{
    compile::RouteStatus,
    publish::{ResourceType, hub::Dirty},
};

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// All entries of ours in a route's `status.parents`.
    Parents(ObjectKey, Vec<Value>),
    /// A pod's condition.
    Condition(ObjectKey, Value),
    /// What weft says in the status of an XMesh.
    Mesh(ObjectKey, Value),
}

/// Status that is wanted, and status that is there.
#[derive(Debug, Default)]
pub struct Book {
    routes: BTreeMap<ObjectKey, Route>,
    by_table: HashMap<String, BTreeSet<ObjectKey>>,
    pods: BTreeMap<ObjectKey, Pod>,
    by_workload: HashMap<String, ObjectKey>,
    dirty_routes: BTreeSet<ObjectKey>,
    dirty_pods: BTreeSet<ObjectKey>,
    /// XMeshes of our controllerName.
    meshes: BTreeMap<ObjectKey, Mesh>,
    dirty_meshes: BTreeSet<ObjectKey>,
    /// Routes that are gone, and had a status.
    orphans: BTreeSet<ObjectKey>,
    /// Another replica writes: what the source shows is what is there.
    following: bool,
}

#[derive(Debug, Default)]
struct Route {
    wanted: Option<RouteStatus>,
    there: Vec<Value>,
    /// `there` is what we wrote, not only what the source showed.
    written: bool,
    /// The source shows something else than `there`: write even if nothing changes.
    differs: bool,
}

#[derive(Debug, Default)]
struct Pod {
    /// Name of its Workload.
    workload: String,
    /// The sandbox while the Workload says that it is captured.
    sandbox: Option<String>,
    /// The last sandbox that was.
    last_sandbox: Option<String>,
    /// Status and message of the condition that is there.
    condition: Option<(String, String)>,
}

/// An XMesh of our controllerName.
#[derive(Debug)]
struct Mesh {
    generation: i64,
    /// It names parameters, of which weft has none.
    parameters: bool,
    /// Of its status, what is ours.
    there: Value,
}

impl Book {
    /// Notes the status that an object shows.
    pub fn observe(&mut self, object: &Object) {
        let Object { key, value } = object;
        if key.group.is_empty() && key.kind == "Pod" {
            let conditions = value
                .pointer("/status/conditions")
                .and_then(Value::as_array);
            let ours = conditions
                .into_iter()
                .flatten()
                .find(|c| text(c, "type") == CONDITION_CAPTURED);
            // Before the first write, what an earlier controller wrote is all that is known.
            let follows =
                self.following || self.pods.get(key).is_none_or(|pod| pod.condition.is_none());
            if let Some(ours) = ours.filter(|_| follows) {
                let condition = (
                    text(ours, "status").to_owned(),
                    text(ours, "message").to_owned(),
                );
                let pod = self.pods.entry(key.clone()).or_default();
                pod.condition = Some(condition);
                if pod.workload.is_empty()
                    && let Some(uid) = value.pointer("/metadata/uid").and_then(Value::as_str)
                {
                    pod.workload = format!("{}/{}/{uid}", key.namespace, key.name);
                    self.by_workload.insert(pod.workload.clone(), key.clone());
                }
                self.dirty_pods.insert(key.clone());
            }
            return;
        }
        if key.kind == "XMesh" {
            match Mesh::of(value) {
                Some(mesh) => self.meshes.insert(key.clone(), mesh),
                None => self.meshes.remove(key),
            };
            self.dirty_meshes.insert(key.clone());
            return;
        }
        let parents = value.pointer("/status/parents").and_then(Value::as_array);
        if parents.is_none() && !self.routes.contains_key(key) {
            return;
        }
        let parents = parents.map_or(&[][..], Vec::as_slice);
        let ours = parents
            .iter()
            .filter(|entry| text(entry, "controllerName") == CONTROLLER_NAME);
        let ours: Vec<Value> = ours.cloned().collect();
        let route = self.routes.entry(key.clone()).or_default();
        if route.there != ours {
            if route.written {
                route.differs = true;
            } else {
                route.there = ours;
            }
            self.dirty_routes.insert(key.clone());
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.set_route(key, None);
        if let Some(route) = self.routes.remove(key)
            && !route.there.is_empty()
            && !self.following
        {
            self.orphans.insert(key.clone());
        }
        self.meshes.remove(key);
        self.dirty_routes.remove(key);
        self.dirty_pods.remove(key);
        if let Some(pod) = self.pods.remove(key) {
            self.by_workload.remove(&pod.workload);
        }
    }

    /// Takes over what the compiler says of a route; none if there is no such route.
    pub fn set_route(&mut self, key: &ObjectKey, wanted: Option<RouteStatus>) {
        if wanted.is_none() && !self.routes.contains_key(key) {
            return;
        }
        let route = self.routes.entry(key.clone()).or_default();
        for table in tables(route.wanted.as_ref()) {
            if let Some(routes) = self.by_table.get_mut(table) {
                routes.remove(key);
                if routes.is_empty() {
                    self.by_table.remove(table);
                }
            }
        }
        route.wanted = wanted;
        for table in tables(route.wanted.as_ref()) {
            self.by_table
                .entry(table.clone())
                .or_default()
                .insert(key.clone());
        }
        self.dirty_routes.insert(key.clone());
    }

    /// Takes over what the compiler says of a Workload; none if it is gone.
    pub fn set_workload(&mut self, name: &str, workload: Option<&Workload>) {
        let Some(key) = pod_of(name) else { return };
        let Some(workload) = workload else {
            if let Some(pod) = self.pods.get_mut(&key).filter(|pod| pod.workload == name) {
                pod.sandbox = None;
                self.dirty_pods.insert(key);
            }
            return;
        };
        let captured = workload.tunnel() == Tunnel::Hbone && !workload.sandbox.is_empty();
        if !captured && !self.pods.contains_key(&key) {
            return; // Most pods of a cluster, perhaps: nothing to say of them.
        }
        let pod = self.pods.entry(key.clone()).or_default();
        if pod.workload != name {
            self.by_workload
                .remove(&mem::replace(&mut pod.workload, name.to_owned()));
            self.by_workload.insert(name.to_owned(), key.clone());
        }
        pod.sandbox = captured.then(|| workload.sandbox.clone());
        if captured {
            pod.last_sandbox.clone_from(&pod.sandbox);
        }
        self.dirty_pods.insert(key);
    }

    /// Notes that proxies may stand differently.
    pub fn mark(&mut self, dirty: &Dirty) {
        if dirty.everything {
            self.mark_all();
            return;
        }
        for table in &dirty.tables {
            self.dirty_routes
                .extend(self.by_table.get(&**table).into_iter().flatten().cloned());
        }
        for workload in &dirty.workloads {
            self.dirty_pods
                .extend(self.by_workload.get(&**workload).cloned());
        }
    }

    /// Looks at everything anew.
    pub fn mark_all(&mut self) {
        self.dirty_routes.extend(self.routes.keys().cloned());
        self.dirty_pods.extend(self.pods.keys().cloned());
        self.dirty_meshes.extend(self.meshes.keys().cloned());
    }

    /// Whether there is an XMesh of our controllerName.
    pub fn has_mesh(&self) -> bool {
        !self.meshes.is_empty()
    }

    /// From now on another replica writes.
    pub fn follow(&mut self) {
        self.following = true;
        self.orphans.clear();
        for route in self.routes.values_mut() {
            route.written = false;
            route.differs = false;
        }
    }

    /// From now on this replica writes: everything is looked at anew.
    pub fn lead(&mut self) {
        self.following = false;
        self.mark_all();
    }

    /// The writes that are due. While `settling`, right after a start, proxies that have not come back
    /// yet don't take anything away that was said before, and no pod is said to have left.
    pub fn take_writes(
        &mut self,
        standing: impl Fn(ResourceType, &[String]) -> Standing,
        now: &str,
        settling: bool,
    ) -> Vec<Write> {
        let orphans = mem::take(&mut self.orphans).into_iter();
        let mut writes: Vec<Write> = orphans.map(|key| Write::Parents(key, Vec::new())).collect();
        for key in mem::take(&mut self.dirty_routes) {
            let Some(route) = self.routes.get_mut(&key) else {
                continue;
            };
            let Some(wanted) = route.wanted_parents(&standing, now) else {
                continue;
            };
            if wanted != route.there || mem::take(&mut route.differs) {
                if settling && is_programmed(&route.there) && !is_programmed(&wanted) {
                    self.dirty_routes.insert(key);
                } else {
                    writes.push(Write::Parents(key, wanted));
                }
            }
        }
        for key in mem::take(&mut self.dirty_pods) {
            let Some(pod) = self.pods.get(&key) else {
                continue;
            };
            match pod.wanted_condition(&standing) {
                Some(("False", _)) if settling => {
                    self.dirty_pods.insert(key);
                }
                Some((state, sandbox)) => {
                    let condition = conditions::captured(state, sandbox, now);
                    writes.push(Write::Condition(key, condition));
                }
                None => {}
            }
        }
        for key in mem::take(&mut self.dirty_meshes) {
            let Some(mesh) = self.meshes.get(&key) else {
                continue;
            };
            let wanted = conditions::mesh(mesh.generation, mesh.parameters, &mesh.there, now);
            if wanted != mesh.there {
                writes.push(Write::Mesh(key, wanted));
            }
        }
        writes
    }

    /// Notes that a status was written.
    pub fn written(&mut self, write: Write) {
        match write {
            Write::Parents(key, parents) => {
                if let Some(route) = self.routes.get_mut(&key) {
                    route.there = parents;
                    route.written = true;
                }
            }
            Write::Condition(key, condition) => {
                if let Some(pod) = self.pods.get_mut(&key) {
                    let field = |name| text(&condition, name).to_owned();
                    pod.condition = Some((field("status"), field("message")));
                    // What has changed while it was written is looked at again.
                    self.dirty_pods.insert(key);
                }
            }
            Write::Mesh(key, status) => {
                if let Some(mesh) = self.meshes.get_mut(&key) {
                    mesh.there = status;
                }
            }
        }
    }

    /// Notes that a status could not be written, and is to be tried again.
    pub fn retry(&mut self, write: Write) {
        match write {
            Write::Parents(key, _) if self.routes.contains_key(&key) => {
                self.dirty_routes.insert(key);
            }
            Write::Parents(key, _) => {
                self.orphans.insert(key);
            }
            Write::Condition(key, _) => {
                self.dirty_pods.insert(key);
            }
            Write::Mesh(key, _) => {
                self.dirty_meshes.insert(key);
            }
        }
    }
}

// === impl Route ===

impl Route {
    fn wanted_parents(
        &self,
        standing: impl Fn(ResourceType, &[String]) -> Standing,
        now: &str,
    ) -> Option<Vec<Value>> {
        let wanted = self.wanted.as_ref()?;
        let parents = wanted.parents.iter().map(|parent| {
            let carried = !parent.tables.is_empty();
            let standing = carried.then(|| standing(ResourceType::RouteTable, &parent.tables));
            conditions::parent(
                parent,
                wanted.generation,
                standing.as_ref(),
                &self.there,
                now,
            )
        });
        Some(parents.collect())
    }
}

// === impl Pod ===

impl Pod {
    /// Status and sandbox of the condition that should be there instead of the one that is.
    fn wanted_condition(
        &self,
        standing: impl Fn(ResourceType, &[String]) -> Standing,
    ) -> Option<(&'static str, &str)> {
        let there = self
            .condition
            .as_ref()
            .map(|(state, sandbox)| (state.as_str(), sandbox.as_str()));
        if let Some(sandbox) = self.sandbox.as_deref() {
            if there == Some(("True", sandbox)) {
                return None;
            }
            let standing = standing(ResourceType::Workload, std::slice::from_ref(&self.workload));
            if standing.proxies > 0 && standing.is_acknowledged() {
                return Some(("True", sandbox));
            }
            // It came back: that it had left must not be read as leaving the next time.
            return (there == Some(("False", sandbox))).then_some(("Unknown", sandbox));
        }
        let remembered = there
            .filter(|(state, _)| *state != "False")
            .map(|(_, sandbox)| sandbox);
        let sandbox = self.last_sandbox.as_deref().or(remembered)?;
        if there == Some(("False", sandbox)) || self.workload.is_empty() {
            return None;
        }
        let standing = standing(ResourceType::Workload, std::slice::from_ref(&self.workload));
        standing.is_acknowledged().then_some(("False", sandbox))
    }
}

// === impl Mesh ===

impl Mesh {
    /// None if it is another controller's.
    fn of(value: &Value) -> Option<Self> {
        let controller = value.pointer("/spec/controllerName")?.as_str()?;
        let generation = value
            .pointer("/metadata/generation")
            .and_then(Value::as_i64);
        (controller == CONTROLLER_NAME).then(|| Self {
            generation: generation.unwrap_or_default(),
            parameters: value.pointer("/spec/parametersRef").is_some(),
            there: conditions::mesh_there(value),
        })
    }
}

fn tables(wanted: Option<&RouteStatus>) -> impl Iterator<Item = &String> {
    wanted
        .into_iter()
        .flat_map(|status| &status.parents)
        .flat_map(|parent| &parent.tables)
}

fn is_programmed(parents: &[Value]) -> bool {
    let conditions = parents
        .iter()
        .filter_map(|parent| parent.get("conditions")?.as_array());
    let mut programmed = conditions
        .flatten()
        .filter(|c| text(c, "type") == CONDITION_PROGRAMMED);
    programmed.clone().count() > 0 && programmed.all(|c| text(c, "status") == "True")
}

/// The pod of a Workload's name, if it is one.
fn pod_of(workload: &str) -> Option<ObjectKey> {
    let mut parts = workload.split('/');
    let (namespace, name, _uid) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then(|| ObjectKey {
        group: String::new(),
        kind: "Pod".into(),
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
