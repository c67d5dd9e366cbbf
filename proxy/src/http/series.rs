//! The metrics' handles of one pod's requests, so that no request hashes labels.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use crate::{
    model::{Client, RouteRef, Service, Workload},
    telemetry::{Direction, Labels, Peer, Requests, Telemetry, Tunnel},
};

/// Above this many, handles are forgotten and looked up again: tables and workloads come and go.
const MOST: usize = 1024;

/// Handles by the addresses of what their labels were made of. Each entry keeps those alive, so an
/// address never comes to mean another thing.
#[derive(Debug, Default)]
pub(super) struct SeriesCache {
    handles: RwLock<HashMap<(usize, usize), Entry, RandomState>>,
}

#[derive(Debug)]
struct Entry {
    requests: Arc<Requests>,
    _route: Option<Arc<RouteRef>>,
    _service: Arc<Service>,
    _workload: Option<Arc<Workload>>,
}

impl SeriesCache {
    /// The series of requests from a client, to a Service, by a route, to a workload.
    pub(super) fn get(
        &self,
        telemetry: &Telemetry,
        client: &Client,
        service: &Arc<Service>,
        route: Option<&Arc<RouteRef>>,
        workload: Option<&Arc<Workload>>,
    ) -> Arc<Requests> {
        // A table's routes are its own, so a route stands for the Service too.
        let about = route.map_or_else(
            || Arc::as_ptr(service).cast::<()>() as usize,
            |it| Arc::as_ptr(it).cast::<()>() as usize,
        );
        let to = workload.map_or(0, |it| Arc::as_ptr(it) as usize);
        if let Some(entry) = self.handles.read().get(&(about, to)) {
            return Arc::clone(&entry.requests);
        }
        let tunnel = Tunnel::to(workload.map(|it| &**it));
        let destination = workload.map_or_else(Peer::unknown, |it| Peer::from(&**it));
        let mut labels = Labels::new(Direction::Outbound, tunnel, client.into(), destination)
            .service(&service.name);
        if let Some(route) = route {
            labels = labels.route(route);
        }
        let requests = telemetry.requests(&labels);
        let mut handles = self.handles.write();
        if handles.len() >= MOST {
            handles.clear();
        }
        let entry = Entry {
            requests: Arc::clone(&requests),
            _route: route.cloned(),
            _service: Arc::clone(service),
            _workload: workload.cloned(),
        };
        handles.insert((about, to), entry);
        requests
    }

    /// Forgets all handles, and with them what they keep alive.
    pub(super) fn clear(&self) {
        self.handles.write().clear();
    }
}
