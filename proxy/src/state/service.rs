//! What is known of one Service: itself, its endpoints and its tables, under one lock that is held
//! for the time of a look-up. The parts may arrive in any order, or some of them never.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::{
    endpoints::EndpointSet,
    tables::{RouteTable, TableKey},
};
use crate::model::{Service, ServiceName, ServicePort};

/// A Service's entry, found by name and by address.
#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) name: ServiceName,
    pub(super) known: RwLock<Known>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) service: Option<Arc<Service>>,
    /// Few, so a list. Ports that only endpoints or tables name are here too.
    ports: Vec<Port>,
}

/// What is known of a port.
#[derive(Debug, Default)]
pub(super) struct Port {
    number: u16,
    pub(super) endpoints: EndpointSet,
    producer: Option<Arc<RouteTable>>,
    consumers: HashMap<Arc<str>, Arc<RouteTable>, RandomState>,
}

impl ServiceEntry {
    pub(super) fn new(name: ServiceName) -> Self {
        Self {
            name,
            known: RwLock::default(),
        }
    }
}

impl Known {
    pub(super) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Changes a port (made if absent) and forgets it if nothing is left of it.
    pub(super) fn change_port(&mut self, number: u16, change: impl FnOnce(&mut Port)) {
        let at = match self.ports.iter().position(|port| port.number == number) {
            Some(at) => at,
            None => {
                self.ports.push(Port {
                    number,
                    ..Port::default()
                });
                self.ports.len() - 1
            }
        };
        change(&mut self.ports[at]);
        if self.ports[at].is_empty() {
            self.ports.swap_remove(at);
        }
    }

    pub(super) fn set_table(&mut self, key: &TableKey, table: Option<Arc<RouteTable>>) {
        self.change_port(key.port, |port| match (&*key.client_namespace, table) {
            ("", table) => port.producer = table,
            (_, Some(table)) => {
                port.consumers
                    .insert(Arc::clone(&key.client_namespace), table);
            }
            (namespace, None) => {
                port.consumers.remove(namespace);
            }
        });
    }

    /// The Service's own word on a port; `None` if it has no such port (or is not known).
    pub(super) fn declared(&self, number: u16) -> Option<(&Arc<Service>, &ServicePort)> {
        let service = self.service.as_ref()?;
        let port = service.ports.iter().find(|port| port.port == number)?;
        Some((service, port))
    }

    pub(super) fn table(&self, number: u16, client_namespace: &str) -> Option<&Arc<RouteTable>> {
        self.port(number)?.table(client_namespace)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = (u16, &Port)> {
        self.ports.iter().map(|port| (port.number, port))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.service.is_none() && self.ports.is_empty()
    }
}

impl Port {
    /// The consumer's table if there is one, else the producer's.
    pub(super) fn table(&self, client_namespace: &str) -> Option<&Arc<RouteTable>> {
        if self.consumers.is_empty() {
            return self.producer.as_ref();
        }
        self.consumers
            .get(client_namespace)
            .or(self.producer.as_ref())
    }

    fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.producer.is_none() && self.consumers.is_empty()
    }
}
