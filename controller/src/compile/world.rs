//! The world as the compiler knows it: takes objects, and keeps [`Compiled`] up to date.
//!
//! Each object is read when it is applied; what follows from it is computed at the next
//! [`World::compile`], once, however many objects came in between.

use std::collections::BTreeSet;

use weft_api::config::MtlsMode;
use weft_source::{Object, ObjectKey};

use super::{
    Changes, Compiled, Settings, Work,
    endpoints::Slice,
    inventory::Inventory,
    objects::NamespacedName,
    routes::RouteKind,
    routing::Routing,
    services::Service,
    workloads::{self, Locality, Pod},
};

/// All objects that weft reads, and what follows from them.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    inventory: Inventory,
    routing: Routing,
    compiled: Compiled,
    work: Work,
}

impl World {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            inventory: Inventory::default(),
            routing: Routing::default(),
            compiled: Compiled::default(),
            work: Work::default(),
        }
    }

    /// Takes in an object that is new or has changed. Kinds that weft does not read are ignored. One
    /// that can't be read leaves its last good version in force, and is named in
    /// [`Compiled::invalid`].
    pub fn apply(&mut self, object: &Object) {
        match self.try_apply(object) {
            Ok(caution) => self.note(&object.key, caution),
            Err(error) => self.note(
                &object.key,
                Some(format!(
                    "{} can't be read, its last good version stays in force if there was one: {error}",
                    object.key
                )),
            ),
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &ObjectKey) {
        let name = NamespacedName::new(&key.namespace, &key.name);
        self.note(key, None);
        match (key.group.as_str(), key.kind.as_str()) {
            ("", "Pod") => self.inventory.set_pod(name, None),
            ("", "Node") => self.inventory.set_node(name.name, None),
            ("", "Namespace") => self.inventory.set_namespace(name.name, None),
            ("", "Service") => self.set_service(&name, None),
            ("discovery.k8s.io", "EndpointSlice") => self.inventory.set_slice(name, None),
            _ => self.routing.delete(key),
        }
    }

    /// Brings everything up to date with the objects.
    pub fn compile(&mut self) -> &Compiled {
        self.compiled.changes = Changes::default();
        self.work = Work::default();
        self.inventory.compile(
            &self.settings.trust_domain,
            &mut self.compiled,
            &mut self.work,
        );
        self.routing.compile(
            self.inventory.services(),
            &mut self.compiled,
            &mut self.work,
        );
        &self.compiled
    }

    /// How much the last [`World::compile`] computed anew.
    pub fn last_work(&self) -> Work {
        self.work
    }

    /// Namespace and name of the service accounts of the pods that run on a node.
    pub fn service_accounts_on(&self, node: &str) -> BTreeSet<(String, String)> {
        self.inventory
            .running_on(node)
            .map(|(key, pod)| (key.namespace.clone(), pod.service_account.clone()))
            .collect()
    }

    /// Whether a pod of that service account runs on the node.
    pub fn is_running_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.inventory
            .running_on(node)
            .any(|(key, pod)| key.namespace == namespace && pod.service_account == service_account)
    }

    /// Reads the object and takes it in; says what had to be read with caution.
    fn try_apply(&mut self, object: &Object) -> Result<Option<String>, String> {
        let Object { key, value } = object;
        let name = NamespacedName::new(&key.namespace, &key.name);
        match (key.group.as_str(), key.kind.as_str()) {
            ("", "Pod") => {
                let pod = Pod::read(&name.name, value)?;
                self.inventory.set_pod(name, Some(pod));
                return Ok(workloads::mtls_caution(value));
            }
            ("", "Node") => self
                .inventory
                .set_node(name.name, Some(Locality::read(value)?)),
            ("", "Namespace") => {
                let mtls: Option<MtlsMode> = workloads::namespace_mtls(value)?;
                self.inventory.set_namespace(name.name, mtls);
                return Ok(workloads::mtls_caution(value));
            }
            ("", "Service") => self.set_service(&name, Some(Service::read(value)?)),
            ("discovery.k8s.io", "EndpointSlice") => {
                let slice = Slice::read(&name, value)?;
                self.inventory.set_slice(name, slice);
            }
            _ => {
                if let Some(kind) = RouteKind::of(key) {
                    self.routing.apply(kind, key, value)?;
                }
            }
        }
        Ok(None)
    }

    fn set_service(&mut self, name: &NamespacedName, service: Option<Service>) {
        if self.inventory.set_service(name, service) {
            self.routing.service_changed(name);
        }
    }

    fn note(&mut self, key: &ObjectKey, what: Option<String>) {
        match what {
            Some(what) => self.compiled.invalid.insert(key.clone(), what),
            None => self.compiled.invalid.remove(key),
        };
    }
}
