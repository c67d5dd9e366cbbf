//! Attaching: all routes of one Service in, its RouteTables and each route's fate out.
//!
//! Each port has a set of routes for all clients (of the Service's own namespace) and one for the
//! clients of each other namespace that has routes of its own. In a set the most specific kind of
//! route wins the port; the winners are merged into one table.

use std::collections::BTreeMap;

use weft_api::config::{
    AppProtocol, Backend, HttpRule, HttpTable, RouteRef, RouteTable, TcpRule, TcpTable, TlsRule,
    TlsTable, route_table::Table,
};
use weft_source::ObjectKey;

use super::{
    http,
    objects::NamespacedName,
    parents::{self, Reach},
    precedence::Position,
    resolve::Resolved,
    routes::{Route, RouteKind, Rules},
    services::Service,
    status::{Fate, Unattached},
};

/// A route that names the Service as a parent.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) route: &'a Route,
    pub(super) resolved: &'a Resolved,
}

/// What the routes of a Service come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Attachment {
    /// By name.
    pub(super) tables: BTreeMap<String, RouteTable>,
    /// By route and the place of the parentRef in it.
    pub(super) fates: BTreeMap<(ObjectKey, usize), Fate>,
}

/// A route's claim to a port.
struct Claim<'a> {
    candidate: Candidate<'a>,
    /// Some parentRef names the port.
    explicit: bool,
    parents: Vec<usize>,
}

/// Attaches routes to a Service.
pub(super) fn attach(
    name: &NamespacedName,
    service: Option<&Service>,
    candidates: &[Candidate<'_>],
) -> Attachment {
    let mut attachment = Attachment::default();
    let mut sets = BTreeMap::<(u16, &str), BTreeMap<&ObjectKey, Claim<'_>>>::new();
    for candidate in candidates {
        let Candidate { key, route, .. } = candidate;
        let producer = route.name.namespace == name.namespace;
        let clients = if producer {
            ""
        } else {
            route.name.namespace.as_str()
        };
        for (index, parent) in route.parents.iter().enumerate() {
            let Ok(target) = &parent.target else { continue };
            if target.service != *name {
                continue;
            }
            let fate = match parents::reach(target, route.kind, service) {
                Ok(Reach {
                    ports,
                    explicit,
                    left_out,
                }) => {
                    for port in ports {
                        let set = sets.entry((port, clients)).or_default();
                        let claim = set.entry(key).or_insert_with(|| Claim {
                            candidate: *candidate,
                            explicit: false,
                            parents: Vec::new(),
                        });
                        claim.explicit |= explicit;
                        claim.parents.push(index);
                    }
                    Fate {
                        left_out,
                        ..Fate::default()
                    }
                }
                Err(unattached) => Fate {
                    unattached: Some(unattached),
                    ..Fate::default()
                },
            };
            attachment.fates.insert(((*key).clone(), index), fate);
        }
    }
    for ((port, clients), claims) in sets {
        let mut claims: Vec<Claim<'_>> = claims.into_values().collect();
        claims.sort_by_key(|claim| (claim.candidate.route.kind, &claim.candidate.route.seniority));
        let Some(first) = claims.first().map(|claim| claim.candidate) else {
            continue;
        };
        let suffix = if clients.is_empty() {
            String::new()
        } else {
            format!("@{clients}")
        };
        let table = format!("{name}/{port}{suffix}");
        let wins = |route: &Route| {
            route.kind == first.route.kind
                && (route.kind != RouteKind::Tcp || route.name == first.route.name)
        };
        let (winners, losers): (Vec<_>, Vec<_>) = claims
            .into_iter()
            .partition(|claim| wins(claim.candidate.route));
        for (claims, won) in [(&winners, true), (&losers, false)] {
            for claim in claims {
                for parent in &claim.parents {
                    let fate = (claim.candidate.key.clone(), *parent);
                    let fate = attachment.fates.entry(fate).or_default();
                    if won {
                        fate.ports.push(port);
                        fate.tables.push(table.clone());
                    } else {
                        fate.lost.push((port, first.key.to_string()));
                    }
                }
            }
        }
        let protocol = service
            .and_then(|service| service.tcp_ports().find(|p| p.number == port))
            .map_or(AppProtocol::Undeclared, |port| port.protocol);
        let sniff = first.route.kind == RouteKind::Http
            && protocol == AppProtocol::Undeclared
            && !winners.iter().any(|claim| claim.explicit);
        let resource = RouteTable {
            service: name.to_string(),
            port: port.into(),
            client_namespace: clients.into(),
            table: Some(merge(first.route.kind, &winners)),
            sniff,
        };
        attachment.tables.insert(table, resource);
    }
    for fate in attachment.fates.values_mut() {
        if fate.ports.is_empty() && fate.unattached.is_none() {
            fate.unattached = Some(Unattached::conflicted(&fate.lost));
        }
    }
    attachment
}

/// Merges the routes that won a port, which are sorted by seniority.
fn merge(kind: RouteKind, winners: &[Claim<'_>]) -> Table {
    match kind {
        RouteKind::Grpc | RouteKind::Http => Table::Http(merge_http(winners)),
        RouteKind::Tls => Table::Tls(merge_tls(winners)),
        RouteKind::Tcp | RouteKind::Udp => Table::Tcp(TcpTable {
            rule: winners.first().map(|Claim { candidate, .. }| TcpRule {
                route: Some(candidate.route.reference(0, candidate.route.rule_name())),
                backends: candidate.resolved.backends().to_vec(),
            }),
        }),
    }
}

fn merge_http(winners: &[Claim<'_>]) -> HttpTable {
    let mut table = HttpTable::default();
    let mut matches = Vec::new();
    for Claim {
        candidate: Candidate {
            route, resolved, ..
        },
        ..
    } in winners
    {
        for (rule, compiled) in route.http_rules().iter().zip(resolved.rules()) {
            let index = u32::try_from(table.rules.len()).unwrap_or(u32::MAX);
            for (entry, found) in rule.matches.iter().enumerate() {
                let http::Match {
                    specificity,
                    conditions,
                } = found;
                let position = Position::new(*specificity, &route.seniority, rule.index, entry);
                let mut conditions = conditions.clone();
                conditions.rule = index;
                matches.push((position, conditions));
            }
            table.rules.push(HttpRule::clone(compiled));
        }
    }
    matches.sort_by(|(a, _), (b, _)| a.cmp(b));
    table.matches = matches
        .into_iter()
        .map(|(_, conditions)| conditions)
        .collect();
    table
}

/// One rule per server name, so that order alone decides: exact names, then wildcards by length, then any.
fn merge_tls(winners: &[Claim<'_>]) -> TlsTable {
    let mut rules = Vec::new();
    for Claim {
        candidate: Candidate {
            route, resolved, ..
        },
        ..
    } in winners
    {
        let Rules::L4(l4) = &route.rules else {
            continue;
        };
        let names: Vec<Option<&String>> = match l4.server_names.as_slice() {
            [] => vec![None],
            names => names.iter().map(Some).collect(),
        };
        for name in names {
            let rank = match name {
                Some(name) if !name.starts_with('*') => (0, 0),
                Some(name) => (1, usize::MAX - name.chars().count()),
                None => (2, 0),
            };
            let rule = TlsRule {
                route: Some(route.reference(0, route.rule_name())),
                snis: name.into_iter().cloned().collect(),
                backends: resolved.backends().to_vec(),
            };
            rules.push((rank, rule));
        }
    }
    // Stable: the winners are sorted by seniority.
    rules.sort_by_key(|(rank, _)| *rank);
    TlsTable {
        rules: rules.into_iter().map(|(_, rule)| rule).collect(),
    }
}

impl Route {
    /// Names one of its rules.
    pub(super) fn reference(&self, rule_index: usize, rule_name: &str) -> RouteRef {
        RouteRef {
            kind: self.kind.as_str().into(),
            namespace: self.name.namespace.clone(),
            name: self.name.name.clone(),
            rule_index: u32::try_from(rule_index).unwrap_or(u32::MAX),
            rule_name: rule_name.into(),
        }
    }

    fn rule_name(&self) -> &str {
        match &self.rules {
            Rules::L4(l4) => &l4.rule_name,
            Rules::Http(_) => "",
        }
    }

    fn http_rules(&self) -> &[http::Rule] {
        match &self.rules {
            Rules::Http(rules) => rules,
            Rules::L4(_) => &[],
        }
    }
}

impl Resolved {
    fn rules(&self) -> &[HttpRule] {
        &self.rules
    }

    fn backends(&self) -> &[Backend] {
        &self.backends
    }
}
