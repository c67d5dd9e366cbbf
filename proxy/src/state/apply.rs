//! Applying a delta: resources flow in, indexes change in proportion to them, refusals flow out.
//! One writer at a time; readers see each resource whole, before or after.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;
use weft_api::config;

use super::{
    State,
    endpoints::Endpoint,
    held::{Delta, Held, Rejected},
    intern::Interner,
    resource::{self, Kind, Membership},
    service::{Known, ServiceEntry},
    tables::TableKey,
};
use crate::{
    balance::Load,
    model::{Locality, Service, ServiceName, Workload},
};

/// A workload with what is needed to take it out of the indexes again.
#[derive(Debug)]
pub(super) struct WorkloadEntry {
    pub(super) workload: Arc<Workload>,
    memberships: Vec<Membership>,
    /// By address: an endpoint of two Services has one load, and keeps it across updates.
    loads: Vec<(SocketAddr, Arc<Load>)>,
}

/// What only the writer needs.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) held: Held,
    texts: Interner,
    tables: std::collections::HashMap<Arc<str>, TableKey, foldhash::fast::RandomState>,
}

/// Under which a workload's load is known; one for both families, for it is one application that is
/// busy.
fn load_key(workload: &Workload, membership: &Membership) -> Option<SocketAddr> {
    let primary = workload.addresses.first()?;
    Some(SocketAddr::new(*primary, membership.targets.port()))
}

impl State {
    /// Applies a change. What comes back was refused; all else is in force.
    pub fn apply(&self, delta: Delta) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut writer = self.writer.lock();
        for resource in delta.updated {
            let body = resource.body.clone();
            match self.upsert(&mut writer, delta.kind, &resource.name, body) {
                Ok(()) => writer.held.accept(delta.kind, resource),
                Err(reason) => {
                    rejected.push(Rejected {
                        name: resource.name.clone(),
                        reason: reason.clone(),
                    });
                    writer.held.reject(delta.kind, resource, &reason);
                }
            }
        }
        for name in delta.removed {
            self.remove(&mut writer, delta.kind, &name);
            writer.held.remove(delta.kind, &name);
        }
        drop(writer);
        self.generation.send_modify(|generation| *generation += 1);
        rejected
    }

    fn upsert(
        &self,
        writer: &mut Writer,
        kind: Kind,
        name: &str,
        body: Bytes,
    ) -> Result<(), String> {
        match kind {
            Kind::Workload => {
                let message: config::Workload = resource::decode(body)?;
                let (workload, memberships) =
                    resource::workload(name, &message, &mut writer.texts)?;
                self.set_workload(workload, memberships);
            }
            Kind::Service => {
                let message: config::Service = resource::decode(body)?;
                self.set_service(resource::service(name, &message)?);
            }
            Kind::RouteTable => {
                let message: config::RouteTable = resource::decode(body)?;
                let (key, table) = resource::route_table(name, &message)?;
                self.change_service(&key.service, |known| {
                    known.set_table(&key, Some(Arc::new(table)));
                });
                writer.tables.insert(name.into(), key);
            }
            Kind::MeshConfig => {
                let message: config::MeshConfig = resource::decode(body)?;
                self.mesh.store(Arc::new(resource::mesh(name, &message)?));
            }
        }
        Ok(())
    }

    fn remove(&self, writer: &mut Writer, kind: Kind, name: &str) {
        match kind {
            Kind::Workload => self.remove_workload(name),
            Kind::Service => self.remove_service(name),
            Kind::RouteTable => {
                if let Some(key) = writer.tables.remove(name) {
                    self.change_service(&key.service, |known| known.set_table(&key, None));
                }
            }
            // Without roots nobody could be trusted: what was last said of the mesh stays.
            Kind::MeshConfig => {
                tracing::warn!(
                    "the controller withdrew the mesh's configuration; the last one stays in force"
                );
            }
        }
    }

    fn set_workload(&self, mut workload: Workload, memberships: Vec<Membership>) {
        let old = self.workloads.with(&*workload.uid, Arc::clone);
        if let Some(old) = old.as_ref().map(|old| &old.workload) {
            let same = old.captured == workload.captured && old.sandbox == workload.sandbox;
            workload.capture_changes = old.capture_changes.wrapping_add(u32::from(!same));
        }
        let workload = Arc::new(workload);
        let mut loads: Vec<(SocketAddr, Arc<Load>)> = Vec::new();
        for at in memberships.iter().filter_map(|m| load_key(&workload, m)) {
            if !loads.iter().any(|(known, _)| *known == at) {
                let kept = old.as_ref().and_then(|old| {
                    let same = old.loads.iter().find(|(known, _)| *known == at);
                    same.map(|(_, load)| Arc::clone(load))
                });
                loads.push((at, kept.unwrap_or_default()));
            }
        }

        let entry = WorkloadEntry {
            workload: Arc::clone(&workload),
            memberships,
            loads,
        };
        self.place(&entry);
        for &address in &workload.addresses {
            self.addresses.change(address, |all| {
                all.set(Arc::clone(&workload));
                true
            });
            self.unclaimed.claim(address);
        }
        if let Some(old) = &old {
            let left = |was: &&Membership| {
                !entry
                    .memberships
                    .iter()
                    .any(|m| m.service == was.service && m.port == was.port)
            };
            self.leave(&workload.uid, old.memberships.iter().filter(left));
            let moved = old.workload.addresses.iter();
            for &address in moved.filter(|a| !workload.addresses.contains(a)) {
                self.lose(address, &old.workload);
            }
        }
        self.workloads
            .insert(Arc::clone(&workload.uid), Arc::new(entry));
        self.learn_zone(&workload);
    }

    /// Puts a workload's endpoints into its Services, as far away as they are.
    fn place(&self, entry: &WorkloadEntry) {
        let locality = self.locality.load();
        for m in &entry.memberships {
            let key = load_key(&entry.workload, m);
            let load = entry.loads.iter().find(|(at, _)| Some(*at) == key);
            let endpoint = Endpoint {
                workload: Arc::clone(&entry.workload),
                targets: m.targets,
                load: load.map(|(_, load)| Arc::clone(load)).unwrap_or_default(),
            };
            self.change_service(&m.service, |known| {
                known.change_port(m.port, |port| {
                    port.endpoints.set(endpoint, m.readiness, &locality);
                });
            });
        }
    }

    /// A proxy that was not told its zone is in that of its node's workloads: the zone is a label of
    /// the Node, which a pod can't be told. What is known already is placed anew, once as a rule.
    fn learn_zone(&self, workload: &Workload) {
        let known = self.locality.load_full();
        let from_here = !known.node.is_empty() && workload.node == known.node;
        if self.zone_is_set || !from_here || workload.zone.is_empty() || workload.zone == known.zone
        {
            return;
        }
        tracing::info!(zone = %workload.zone, "this node's zone, as its workloads' is");
        self.locality.store(Arc::new(Locality {
            node: Arc::clone(&known.node),
            zone: Arc::clone(&workload.zone),
        }));
        for entry in self.workloads.values() {
            self.place(&entry);
        }
    }

    fn remove_workload(&self, uid: &str) {
        let Some(old) = self.workloads.remove(uid) else {
            return;
        };
        self.leave(uid, old.memberships.iter());
        for &address in &old.workload.addresses {
            self.lose(address, &old.workload);
        }
    }

    /// A workload does not have an address any more.
    fn lose(&self, address: IpAddr, workload: &Workload) {
        let mut is_left = false;
        self.addresses.change(address, |all| {
            is_left = all.remove(&workload.uid);
            is_left
        });
        if workload.captured && !is_left {
            self.unclaimed.lose(address, Instant::now());
        }
    }

    fn leave<'a>(&self, uid: &str, memberships: impl Iterator<Item = &'a Membership>) {
        for m in memberships {
            self.change_service(&m.service, |known| {
                known.change_port(m.port, |port| port.endpoints.remove(uid));
            });
        }
    }

    fn set_service(&self, service: Service) {
        let service = Arc::new(service);
        let mut old = None;
        let entry = self.change_service(&service.name, |known| {
            old = known.service.replace(Arc::clone(&service));
        });
        for &vip in &service.vips {
            self.vips.change(vip, |all| {
                all.set(&entry);
                true
            });
        }
        let old = old.iter().flat_map(|old| &old.vips);
        for &vip in old.filter(|vip| !service.vips.contains(vip)) {
            self.vips.change(vip, |all| all.remove(&service.name));
        }
    }

    fn remove_service(&self, name: &str) {
        let mut old = None;
        self.change_service(name, |known| old = known.service.take());
        for &vip in old.iter().flat_map(|old| &old.vips) {
            self.vips.change(vip, |all| all.remove(name));
        }
    }

    /// Changes what is known of a Service, under its lock. An entry of which nothing is left goes.
    fn change_service(&self, name: &str, change: impl FnOnce(&mut Known)) -> Arc<ServiceEntry> {
        let known = self.services.with(name, Arc::clone);
        let is_new = known.is_none();
        let entry = known.unwrap_or_else(|| {
            let name: ServiceName = name.into();
            Arc::new(ServiceEntry::new(name))
        });
        let is_empty = {
            let mut known = entry.known.write();
            change(&mut known);
            known.is_empty()
        };
        if is_empty {
            self.services.remove(name);
        } else if is_new {
            self.services
                .insert(Arc::clone(&entry.name), Arc::clone(&entry));
        }
        entry
    }
}
