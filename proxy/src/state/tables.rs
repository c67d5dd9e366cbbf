//! Compiled route tables of one Service port: what L4 needs of them is here, L7's part is
//! [`HttpRoutes`].

use std::{fmt, sync::Arc};

use weft_api::config::{self, backend, route_table::Table};

use super::resource;
use crate::{
    balance::Weighted,
    http::table::HttpRoutes,
    model::{RouteRef, ServiceName},
};

/// Which table: its text is the resource's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableKey {
    pub(super) service: ServiceName,
    pub(super) port: u16,
    /// Empty: the producer's.
    pub(super) client_namespace: Arc<str>,
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.port)?;
        if !self.client_namespace.is_empty() {
            write!(f, "@{}", self.client_namespace)?;
        }
        Ok(())
    }
}

/// The routes of a Service port.
#[derive(Debug)]
pub enum RouteTable {
    /// HTTPRoutes or GRPCRoutes.
    Http {
        /// The rules.
        routes: HttpRoutes,
        /// The port is undeclared: sniff, and count each fall-back to TCP.
        sniff: bool,
    },
    /// TCPRoutes.
    Tcp(TcpRoutes),
    /// TLSRoutes.
    Tls(TlsRoutes),
}

/// What a TCPRoute says.
#[derive(Debug)]
pub struct TcpRoutes {
    /// The only rule.
    pub rule: L4Rule,
}

/// What TLSRoutes say.
#[derive(Debug)]
pub struct TlsRoutes {
    rules: Vec<(Vec<SniMatch>, L4Rule)>,
}

/// Where the connections of a rule go.
#[derive(Debug)]
pub struct L4Rule {
    /// Where it came from.
    pub route: RouteRef,
    /// The backends.
    pub backends: Vec<Backend>,
    weights: Weighted,
}

/// A backendRef.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its share.
    pub weight: u32,
    /// Where it leads.
    pub target: BackendTarget,
}

/// Where a backendRef leads.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendTarget {
    /// To a Service's endpoints (its routes do not apply again).
    Service {
        /// `<namespace>/<name>`.
        service: ServiceName,
        /// Port of the Service.
        port: u16,
    },
    /// Nowhere: its share fails.
    Invalid {
        /// The status' reason.
        reason: Arc<str>,
        /// For people.
        message: Arc<str>,
    },
}

#[derive(Debug)]
enum SniMatch {
    Exact(Box<str>),
    /// `.suffix` of `*.suffix`.
    Suffix(Box<str>),
}

impl RouteTable {
    pub(super) fn parse(from: &config::RouteTable) -> Result<Self, String> {
        match &from.table {
            Some(Table::Http(http)) => Ok(Self::Http {
                routes: HttpRoutes::compile(http)?,
                sniff: from.sniff,
            }),
            _ if from.sniff => Err("sniffing is for http tables only".into()),
            Some(Table::Tcp(tcp)) => {
                let rule = tcp.rule.as_ref().ok_or("tcp table without a rule")?;
                Ok(Self::Tcp(TcpRoutes {
                    rule: L4Rule::parse(rule.route.as_ref(), &rule.backends)?,
                }))
            }
            Some(Table::Tls(tls)) => Ok(Self::Tls(TlsRoutes::parse(tls)?)),
            None => Err("no table in it: is the controller newer than this proxy?".into()),
        }
    }

    /// For logs and the admin's dump.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Tcp(_) => "tcp",
            Self::Tls(_) => "tls",
        }
    }
}

impl L4Rule {
    fn parse(route: Option<&config::RouteRef>, from: &[config::Backend]) -> Result<Self, String> {
        let backends = from
            .iter()
            .map(Backend::parse)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            route: route.ok_or("rule without its route")?.into(),
            weights: Weighted::new(backends.iter().map(|b| b.weight)),
            backends,
        })
    }

    /// The backend of the next connection; `None`: refuse, for no backend has weight.
    pub fn choose(&self) -> Option<&Backend> {
        self.weights.choose().map(|i| &self.backends[i])
    }
}

impl Backend {
    /// Checks and takes over a backend. Its filters and protocol are L7's matter.
    pub fn parse(from: &config::Backend) -> Result<Self, String> {
        let target = match &from.target {
            Some(backend::Target::Service(to)) => BackendTarget::Service {
                service: resource::service_name(&to.service)?.into(),
                port: resource::port(to.port)?,
            },
            Some(backend::Target::Invalid(why)) => BackendTarget::Invalid {
                reason: why.reason.as_str().into(),
                message: why.message.as_str().into(),
            },
            None => return Err("backend without a target".into()),
        };
        Ok(Self {
            weight: from.weight,
            target,
        })
    }
}

impl TlsRoutes {
    fn parse(from: &config::TlsTable) -> Result<Self, String> {
        let rules = from
            .rules
            .iter()
            .map(|rule| {
                let snis = rule
                    .snis
                    .iter()
                    .map(|sni| SniMatch::parse(sni))
                    .collect::<Result<_, _>>()?;
                Ok((snis, L4Rule::parse(rule.route.as_ref(), &rule.backends)?))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { rules })
    }

    /// The first rule for this server name (`None`: the client sent none).
    pub fn select(&self, sni: Option<&str>) -> Option<&L4Rule> {
        self.rules
            .iter()
            .find(|(snis, _)| {
                snis.is_empty() || sni.is_some_and(|sni| snis.iter().any(|m| m.matches(sni)))
            })
            .map(|(_, rule)| rule)
    }
}

impl SniMatch {
    fn parse(from: &str) -> Result<Self, String> {
        let name = from.to_ascii_lowercase();
        let rest = name.strip_prefix('*');
        match rest {
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => {
                Ok(Self::Suffix(suffix.into()))
            }
            None if !name.is_empty() => Ok(Self::Exact(name.into())),
            _ => Err(format!(
                "server name {from:?} is neither a name nor *.suffix"
            )),
        }
    }

    fn matches(&self, sni: &str) -> bool {
        let sni = sni.strip_suffix('.').unwrap_or(sni).as_bytes();
        match self {
            Self::Exact(name) => sni.eq_ignore_ascii_case(name.as_bytes()),
            // One label or more stand for the star.
            Self::Suffix(suffix) => {
                sni.len() > suffix.len()
                    && sni[sni.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
            }
        }
    }
}
