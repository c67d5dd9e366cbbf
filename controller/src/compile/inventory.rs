//! Pods, nodes, namespaces, Services and EndpointSlices as they are now, and what of the Workload
//! and Service resources must be built anew after a change.
//!
//! Flows in: objects. Flows out: entries of [`Compiled`], only those that a change reaches: an
//! EndpointSlice is resolved to workloads anew when it, its Service or the addresses of a pod in it
//! change; a Workload is built anew when its pod, place, namespace or a membership changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_api::config::{MtlsMode, Workload};

use super::{
    Compiled, Work,
    endpoints::{self, Member, Resolved, Slice, SliceEndpoint, WorkloadKey},
    objects::{Index, NamespacedName},
    services::Service,
    workloads::{Locality, Pod},
};

#[derive(Debug, Default)]
pub(super) struct Inventory {
    pods: BTreeMap<NamespacedName, Pod>,
    nodes: BTreeMap<String, Locality>,
    /// Of the namespaces that say something about plaintext.
    namespaces: BTreeMap<String, MtlsMode>,
    services: BTreeMap<NamespacedName, Service>,
    slices: BTreeMap<NamespacedName, Slice>,

    pods_on_node: Index<String, NamespacedName>,
    pods_by_address: Index<IpAddr, NamespacedName>,
    slices_of_service: Index<NamespacedName, NamespacedName>,
    slices_naming_pod: Index<NamespacedName, NamespacedName>,
    slices_naming_address: Index<IpAddr, NamespacedName>,

    members: BTreeMap<NamespacedName, BTreeMap<WorkloadKey, Member>>,
    slices_of_workload: Index<WorkloadKey, NamespacedName>,
    built: BTreeMap<WorkloadKey, String>,

    dirty_slices: BTreeSet<NamespacedName>,
    dirty_workloads: BTreeSet<WorkloadKey>,
    dirty_services: BTreeSet<NamespacedName>,
}

impl Inventory {
    pub(super) fn services(&self) -> &BTreeMap<NamespacedName, Service> {
        &self.services
    }

    /// The pods that run on a node.
    pub(super) fn running_on(&self, node: &str) -> impl Iterator<Item = (&NamespacedName, &Pod)> {
        self.pods_on_node
            .of(node)
            .filter_map(|key| self.pods.get_key_value(key))
            .filter(|(_, pod)| !pod.finished)
    }

    pub(super) fn set_pod(&mut self, key: NamespacedName, pod: Option<Pod>) {
        let old = self.pods.get(&key);
        if old == pod.as_ref() {
            return;
        }
        let same = matches!((old, &pod), (Some(old), Some(new)) if old.resolves_like(new));
        if let Some(old) = self.pods.remove(&key) {
            self.pods_on_node.remove(&old.node, &key);
            for address in &old.addresses {
                self.pods_by_address.remove(address, &key);
                if !same {
                    self.dirty_slices
                        .extend(self.slices_naming_address.of(address).cloned());
                }
            }
        }
        if !same {
            self.dirty_slices
                .extend(self.slices_naming_pod.of(&key).cloned());
        }
        if let Some(pod) = pod {
            self.pods_on_node.insert(pod.node.clone(), key.clone());
            for address in &pod.addresses {
                // An address of the node's own tells no pod.
                if pod.is_addressable() && !pod.host_network {
                    self.pods_by_address.insert(*address, key.clone());
                }
                if !same {
                    self.dirty_slices
                        .extend(self.slices_naming_address.of(address).cloned());
                }
            }
            self.pods.insert(key.clone(), pod);
        }
        self.dirty_workloads.insert(WorkloadKey::Pod(key));
    }

    pub(super) fn set_node(&mut self, name: String, locality: Option<Locality>) {
        if self.nodes.get(&name) == locality.as_ref() {
            return;
        }
        self.dirty_workloads
            .extend(self.pods_on_node.of(&*name).cloned().map(WorkloadKey::Pod));
        match locality {
            Some(locality) => self.nodes.insert(name, locality),
            None => self.nodes.remove(&name),
        };
    }

    pub(super) fn set_namespace(&mut self, name: String, mtls: Option<MtlsMode>) {
        if self.namespaces.get(&name).copied() == mtls {
            return;
        }
        let first = NamespacedName::new(&name, "");
        let pods = self
            .pods
            .range(first..)
            .take_while(|(key, _)| key.namespace == name);
        self.dirty_workloads
            .extend(pods.map(|(key, _)| WorkloadKey::Pod(key.clone())));
        match mtls {
            Some(mtls) => self.namespaces.insert(name, mtls),
            None => self.namespaces.remove(&name),
        };
    }

    /// Says whether anything changed that routes could see.
    pub(super) fn set_service(&mut self, key: &NamespacedName, service: Option<Service>) -> bool {
        if self.services.get(key) == service.as_ref() {
            return false;
        }
        match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
        self.dirty_services.insert(key.clone());
        self.dirty_slices
            .extend(self.slices_of_service.of(key).cloned());
        true
    }

    pub(super) fn set_slice(&mut self, key: NamespacedName, slice: Option<Slice>) {
        if self.slices.get(&key) == slice.as_ref() {
            return;
        }
        if let Some(old) = self.slices.remove(&key) {
            self.slices_of_service.remove(&old.service, &key);
            for endpoint in &old.endpoints {
                if let Some(pod) = &endpoint.pod {
                    self.slices_naming_pod.remove(pod, &key);
                }
                for address in &endpoint.addresses {
                    self.slices_naming_address.remove(address, &key);
                }
            }
        }
        if let Some(slice) = slice {
            self.slices_of_service
                .insert(slice.service.clone(), key.clone());
            for endpoint in &slice.endpoints {
                match &endpoint.pod {
                    Some(pod) => self.slices_naming_pod.insert(pod.clone(), key.clone()),
                    None => {
                        for address in &endpoint.addresses {
                            self.slices_naming_address.insert(*address, key.clone());
                        }
                    }
                }
            }
            self.slices.insert(key.clone(), slice);
        }
        self.dirty_slices.insert(key);
    }

    /// Brings the Workload and Service resources up to date.
    pub(super) fn compile(&mut self, trust_domain: &str, out: &mut Compiled, work: &mut Work) {
        for key in std::mem::take(&mut self.dirty_services) {
            work.services += 1;
            let resource = self
                .services
                .get(&key)
                .and_then(|service| service.resource(&key));
            put(
                &mut out.services,
                &mut out.changes.services,
                key.to_string(),
                resource,
            );
        }
        for key in std::mem::take(&mut self.dirty_slices) {
            work.slices += 1;
            self.resolve_slice(key);
        }
        for key in std::mem::take(&mut self.dirty_workloads) {
            work.workloads += 1;
            let workload = self.workload(&key, trust_domain);
            let name = workload.as_ref().map(|workload| workload.uid.clone());
            let old = match &name {
                Some(name) => self.built.insert(key, name.clone()),
                None => self.built.remove(&key),
            };
            if let Some(old) = old.filter(|old| name.as_ref() != Some(old)) {
                put(&mut out.workloads, &mut out.changes.workloads, old, None);
            }
            if let Some(name) = name {
                put(
                    &mut out.workloads,
                    &mut out.changes.workloads,
                    name,
                    workload,
                );
            }
        }
    }

    fn resolve_slice(&mut self, key: NamespacedName) {
        let new = self.slices.get(&key).map_or_else(BTreeMap::new, |slice| {
            let service = self.services.get(&slice.service);
            slice.members(&key, service, |endpoint, address| {
                self.resolve(endpoint, address)
            })
        });
        let old = self.members.remove(&key).unwrap_or_default();
        for (workload, member) in &old {
            if new.get(workload) != Some(member) {
                self.slices_of_workload.remove(workload, &key);
                self.dirty_workloads.insert(workload.clone());
            }
        }
        for (workload, member) in &new {
            if old.get(workload) != Some(member) {
                self.slices_of_workload
                    .insert(workload.clone(), key.clone());
                self.dirty_workloads.insert(workload.clone());
            }
        }
        if !new.is_empty() {
            self.members.insert(key, new);
        }
    }

    /// A slice that names a pod means that pod while it has that address: after a restart under the
    /// same name, the old address says nothing of the new pod. A slice that names none, but has an
    /// address that is a pod's, means that pod too: it is reached the way that the pod is reached.
    fn resolve(&self, endpoint: &SliceEndpoint, address: IpAddr) -> Resolved {
        match &endpoint.pod {
            Some(key) => match self.pods.get(key) {
                Some(pod) if pod.is_addressable() && pod.addresses.contains(&address) => {
                    Resolved::Pod(key.clone())
                }
                _ => Resolved::Gone,
            },
            None => match self.pods_by_address.of(&address).next() {
                Some(key) => Resolved::Pod(key.clone()),
                None => Resolved::NoPod,
            },
        }
    }

    fn workload(&self, key: &WorkloadKey, trust_domain: &str) -> Option<Workload> {
        let mut members = self
            .slices_of_workload
            .of(key)
            .filter_map(|slice| self.members.get(slice)?.get(key))
            .peekable();
        let mut workload = match key {
            WorkloadKey::Pod(name) => {
                let pod = self.pods.get(name).filter(|pod| pod.is_addressable())?;
                let mtls = self.namespaces.get(&name.namespace).copied();
                pod.workload(name, self.nodes.get(&pod.node), mtls, trust_domain)
            }
            WorkloadKey::Address { slice, address } => members.peek()?.workload(slice, address),
        };
        for member in members {
            endpoints::add(&mut workload.endpoints, &member.endpoint);
        }
        endpoints::forget_families(&mut workload);
        workload.endpoints.sort_by(|a, b| a.service.cmp(&b.service));
        Some(workload)
    }
}

/// Replaces or removes one resource, and notes its name if that made a difference.
pub(super) fn put<T: PartialEq>(
    resources: &mut BTreeMap<String, Arc<T>>,
    changed: &mut BTreeSet<String>,
    name: String,
    resource: Option<T>,
) {
    if resources.get(&name).map(Arc::as_ref) == resource.as_ref() {
        return;
    }
    match resource {
        Some(resource) => resources.insert(name.clone(), Arc::new(resource)),
        None => resources.remove(&name),
    };
    changed.insert(name);
}
