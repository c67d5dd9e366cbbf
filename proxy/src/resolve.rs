//! Names of the controller. In flows a host; out flow the addresses to try, in an order that differs
//! from time to time, so that all proxies together spread over all controllers.
//!
//! Not by the C library: a static program has no name service switch. `/etc/resolv.conf` is read anew
//! each time, and nothing is remembered: whoever asks has just lost its connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    system_conf::read_system_conf,
};
use rand::seq::SliceRandom;

/// For an answer of one name server, and how often it is asked: less in all than one attempt to connect.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// The addresses of a host, which may be an address itself.
pub(crate) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let failed = |error| io::Error::other(format!("can't read /etc/resolv.conf: {error}"));
    let (config, options) = read_system_conf().map_err(failed)?;
    let mut addresses: Vec<_> = lookup(config, options, host)
        .await?
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect();
    addresses.shuffle(&mut rand::rng());
    Ok(addresses)
}

async fn lookup(
    config: ResolverConfig,
    mut options: ResolverOpts,
    host: &str,
) -> io::Result<Vec<IpAddr>> {
    let failed = |error| io::Error::other(format!("can't resolve {host}: {error}"));
    options.timeout = PATIENCE;
    options.attempts = ATTEMPTS;
    options.cache_size = 0;
    // What answers at all may be of one family only.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let mut resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *resolver.options_mut() = options;
    let resolver = resolver.build().map_err(failed)?;
    let found = resolver.lookup_ip(host).await.map_err(failed)?;
    Ok(found.iter().collect())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig},
        proto::{
            op::{Message, MessageType},
            rr::{RData, Record, RecordType},
        },
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server that knows one name, with an address of each family.
    async fn name_server(name: &'static str) -> ResolverConfig {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let mut message = Message::from_vec(&buffer[..length]).expect("a query");
                message.metadata.message_type = MessageType::Response;
                let query = message.queries.first().expect("a question").clone();
                let data = match query.query_type() {
                    RecordType::A => RData::A(Ipv4Addr::new(10, 0, 0, 1).into()),
                    _ => RData::AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into()),
                };
                if query.name().to_ascii() == name {
                    let record = Record::from_rdata(query.name().clone(), 60, data);
                    message.add_answer(record);
                }
                let answer = message.to_vec().expect("an answer");
                socket.send_to(&answer, peer).await.expect("sent");
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        ResolverConfig::from_name_servers(vec![server])
    }

    #[tokio::test]
    async fn an_address_is_itself_and_asks_nobody() {
        for (host, address) in [
            ("10.0.0.9", "10.0.0.9:15010"),
            ("fd00::9", "[fd00::9]:15010"),
        ] {
            let found = addresses(host, 15010).await.expect("an address");
            assert_eq!(found, [address.parse().expect("an address")]);
        }
    }

    #[tokio::test]
    async fn a_name_has_addresses_of_both_families_and_search_domains_are_tried() {
        let mut config = name_server("controller.mesh.svc.cluster.local.").await;
        let domain = "svc.cluster.local".parse().expect("a domain");
        config.add_search(domain);
        let options = ResolverOpts::default();
        let both: [IpAddr; 2] = [
            Ipv4Addr::new(10, 0, 0, 1).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
        ];
        for host in ["controller.mesh.svc.cluster.local", "controller.mesh"] {
            let found = lookup(config.clone(), options.clone(), host).await;
            assert_eq!(found.expect("addresses"), both, "{host}");
        }
        let error = lookup(config, options, "nobody.mesh")
            .await
            .expect_err("no such name");
        assert!(
            error.to_string().contains("can't resolve nobody.mesh"),
            "{error}"
        );
    }
}
