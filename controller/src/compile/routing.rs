//! All routes as they are now, and what of the RouteTables and statuses must be built anew after a change.
//!
//! Flows in: route objects, and the names of Services that changed. Flows out: entries of [`Compiled`]. A
//! route's backendRefs are resolved anew when it or a Service that they name changes; the routes of a Service
//! are attached anew when one of them, what it resolves to, or the Service changes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weft_source::ObjectKey;

use super::{
    Compiled, RouteStatus, Work,
    inventory::put,
    objects::{Index, NamespacedName},
    resolve::{Resolved, resolve},
    routes::{Refusal, Route, RouteKind},
    services::Service,
    status::{self, Fate},
    tables::{Attachment, Candidate, attach},
};

#[derive(Debug, Default)]
pub(super) struct Routing {
    entries: BTreeMap<ObjectKey, Entry>,
    /// Of the versions in force.
    routes_of_service: Index<NamespacedName, ObjectKey>,
    routes_by_backend: Index<NamespacedName, ObjectKey>,
    resolved: BTreeMap<ObjectKey, Resolved>,
    attached: BTreeMap<NamespacedName, Attached>,

    dirty_routes: BTreeSet<ObjectKey>,
    dirty_services: BTreeSet<NamespacedName>,
    dirty_statuses: BTreeSet<ObjectKey>,
}

/// A route object.
#[derive(Debug, Default)]
struct Entry {
    /// The last version that could be used.
    in_force: Option<Route>,
    /// The present version, if it can't be.
    refusal: Option<Refusal>,
}

/// What the routes of a Service came to the last time.
#[derive(Debug, Default)]
struct Attached {
    tables: BTreeSet<String>,
    fates: BTreeMap<(ObjectKey, usize), Fate>,
}

impl Routing {
    /// Takes in a route object; says what is wrong if nothing of this version can be used.
    pub(super) fn apply(
        &mut self,
        kind: RouteKind,
        key: &ObjectKey,
        value: &Value,
    ) -> Result<(), String> {
        let read = Route::read(kind, key, value);
        let entry = self.entries.entry(key.clone()).or_default();
        match read {
            Err(refusal) => {
                let error = refusal.error.clone();
                if entry.refusal.as_ref() != Some(&refusal) {
                    entry.refusal = Some(refusal);
                    self.dirty_statuses.insert(key.clone());
                }
                Err(error)
            }
            Ok(route) => {
                let refused = entry.refusal.take().is_some();
                if entry.in_force.as_ref() != Some(&route) {
                    let old = entry.in_force.replace(route);
                    self.forget(key, old.as_ref());
                    self.learn(key);
                    self.dirty_routes.insert(key.clone());
                }
                if refused {
                    self.dirty_statuses.insert(key.clone());
                }
                Ok(())
            }
        }
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.forget(key, entry.in_force.as_ref());
            self.resolved.remove(key);
            self.dirty_statuses.insert(key.clone());
        }
    }

    /// Notes that a Service is new, gone or different.
    pub(super) fn service_changed(&mut self, service: &NamespacedName) {
        self.dirty_routes
            .extend(self.routes_by_backend.of(service).cloned());
        self.dirty_services.insert(service.clone());
    }

    /// Brings the RouteTables and statuses up to date.
    pub(super) fn compile(
        &mut self,
        services: &BTreeMap<NamespacedName, Service>,
        out: &mut Compiled,
        work: &mut Work,
    ) {
        for key in std::mem::take(&mut self.dirty_routes) {
            let Some(route) = self.entries.get(&key).and_then(|e| e.in_force.as_ref()) else {
                continue;
            };
            work.routes += 1;
            let resolved = resolve(route, services);
            if self.resolved.get(&key) != Some(&resolved) {
                self.dirty_services
                    .extend(route.services().into_iter().cloned());
                self.resolved.insert(key.clone(), resolved);
            }
            self.dirty_statuses.insert(key);
        }
        for name in std::mem::take(&mut self.dirty_services) {
            self.attach(&name, services.get(&name), out, work);
        }
        for key in std::mem::take(&mut self.dirty_statuses) {
            work.statuses += 1;
            let status = self.entries.get(&key).map(|entry| self.status(&key, entry));
            if out.routes.get(&key) == status.as_ref() {
                continue;
            }
            match status {
                Some(status) => out.routes.insert(key.clone(), status),
                None => out.routes.remove(&key),
            };
            out.changes.routes.insert(key);
        }
    }

    /// Attaches the routes of one Service anew.
    fn attach(
        &mut self,
        name: &NamespacedName,
        service: Option<&Service>,
        out: &mut Compiled,
        work: &mut Work,
    ) {
        let candidates: Vec<_> = self
            .routes_of_service
            .of(name)
            .filter_map(|key| {
                let route = self.entries.get(key)?.in_force.as_ref()?;
                Some(Candidate {
                    key,
                    route,
                    resolved: self.resolved.get(key)?,
                })
            })
            .collect();
        let old = self.attached.remove(name).unwrap_or_default();
        if candidates.is_empty() && old.fates.is_empty() {
            return;
        }
        work.attachments += 1;
        let Attachment { tables, fates } = attach(name, service, &candidates);
        for gone in old
            .tables
            .iter()
            .filter(|table| !tables.contains_key(*table))
        {
            put(
                &mut out.route_tables,
                &mut out.changes.route_tables,
                gone.clone(),
                None,
            );
        }
        let names = tables.keys().cloned().collect();
        for (table, resource) in tables {
            put(
                &mut out.route_tables,
                &mut out.changes.route_tables,
                table,
                Some(resource),
            );
        }
        let changed =
            |(entry, fate): &(&(ObjectKey, usize), &Fate)| old.fates.get(entry) != Some(fate);
        let changed = fates.iter().filter(changed);
        self.dirty_statuses
            .extend(changed.map(|((key, _), _)| key.clone()));
        if !fates.is_empty() {
            self.attached.insert(
                name.clone(),
                Attached {
                    tables: names,
                    fates,
                },
            );
        }
    }

    fn status(&self, key: &ObjectKey, entry: &Entry) -> RouteStatus {
        let in_force = entry.in_force.as_ref();
        let fate = |index: usize| {
            let target = in_force?.parents.get(index)?.target.as_ref().ok()?;
            self.attached
                .get(&target.service)?
                .fates
                .get(&(key.clone(), index))
        };
        let in_force = in_force.and_then(|route| Some((route, self.resolved.get(key)?)));
        match (&entry.refusal, in_force) {
            (Some(refusal), _) => {
                status::of_refusal(refusal, in_force.map(|(route, _)| route), fate)
            }
            (None, Some((route, resolved))) => status::of_route(route, resolved, fate),
            (None, None) => RouteStatus {
                generation: 0,
                parents: Vec::new(),
            },
        }
    }

    fn learn(&mut self, key: &ObjectKey) {
        let Some(route) = self
            .entries
            .get(key)
            .and_then(|entry| entry.in_force.as_ref())
        else {
            return;
        };
        for service in route.services() {
            self.routes_of_service.insert(service.clone(), key.clone());
            self.dirty_services.insert(service.clone());
        }
        for service in route.backends() {
            self.routes_by_backend.insert(service.clone(), key.clone());
        }
    }

    fn forget(&mut self, key: &ObjectKey, route: Option<&Route>) {
        let Some(route) = route else { return };
        for service in route.services() {
            self.routes_of_service.remove(service, key);
            self.dirty_services.insert(service.clone());
        }
        for service in route.backends() {
            self.routes_by_backend.remove(service, key);
        }
    }
}
