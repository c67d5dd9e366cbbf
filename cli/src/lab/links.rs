//! Links, addresses and routes of the fabric and the nodes, over rtnetlink.
//!
//! In: the [`Plan`]. Out: a bridge in the fabric's namespace, a veth to each node, static routes
//! to every node's pods; no masquerading anywhere, so that addresses mean what they say.

use std::{fs, future::Future, net::IpAddr, os::fd::AsRawFd};

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{
    family::Family,
    netns,
    plan::{Cidr, FABRIC_BRIDGE, NODE_LINK, NodePlan, Plan},
};

/// Runs netlink requests inside a namespace.
fn within<T, F>(name: &str, work: impl FnOnce(Handle) -> F + Send) -> anyhow::Result<T>
where
    T: Send,
    F: Future<Output = anyhow::Result<T>>,
{
    netns::run(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = work(handle).await;
            connection.abort();
            result
        })
    })?
}

async fn index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    let link = found
        .try_next()
        .await
        .with_context(|| format!("link {name}"))?
        .with_context(|| format!("link {name} does not exist"))?;
    Ok(link.header.index)
}

async fn up(handle: &Handle, index: u32) -> anyhow::Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    Ok(handle.link().set(message).execute().await?)
}

async fn route(handle: &Handle, to: Cidr, via: IpAddr) -> anyhow::Result<()> {
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.address, to.prefix)?
        .gateway(via)?
        .build();
    handle
        .route()
        .add(message)
        // A node that boots again finds those of its first time.
        .replace()
        .execute()
        .await
        .with_context(|| format!("route to {to} via {via}"))
}

/// Brings a namespace's loopback up.
pub(crate) fn loopback_up(name: &str) -> anyhow::Result<()> {
    within(name, |handle| async move {
        let lo = index(&handle, "lo").await?;
        up(&handle, lo).await
    })
}

/// Makes the fabric's bridge; its namespace exists.
pub(crate) fn fabric(plan: &Plan) -> anyhow::Result<()> {
    within(&plan.fabric.netns, |handle| async move {
        handle
            .link()
            .add(LinkBridge::new(FABRIC_BRIDGE).build())
            .execute()
            .await
            .context("the fabric's bridge")?;
        let bridge = index(&handle, FABRIC_BRIDGE).await?;
        for cidr in &plan.fabric.addresses {
            let address = handle.address().add(bridge, cidr.address, cidr.prefix);
            address.execute().await?;
        }
        up(&handle, bridge).await
    })
}

/// Takes a node's link to the fabric away, before its namespace goes.
pub(crate) fn unlink(plan: &Plan, node: &NodePlan) -> anyhow::Result<()> {
    within(&plan.fabric.netns, |handle| async move {
        let port = index(&handle, &node.name).await?;
        Ok(handle.link().del(port).execute().await?)
    })
    .with_context(|| format!("node {}: its link to the fabric", node.name))
}

/// Sets what the user wants `rp_filter` to be in a pod's namespace.
pub(crate) fn reverse_path_filter(plan: &Plan, netns: &str) -> anyhow::Result<()> {
    match plan.rp_filter {
        Some(value) => set_reverse_path_filter(netns, value),
        None => Ok(()),
    }
}

fn set_reverse_path_filter(netns: &str, value: u8) -> anyhow::Result<()> {
    let value = value.to_string();
    netns::sysctl(
        netns,
        &[
            ("net/ipv4/conf/all/rp_filter", &value),
            ("net/ipv4/conf/default/rp_filter", &value),
        ],
    )
}

/// Joins a node to the fabric, and sets what a router needs. Both namespaces exist.
pub(crate) fn node(plan: &Plan, node: &NodePlan) -> anyhow::Result<()> {
    let target = fs::File::open(netns::path(&node.netns))?;
    let peer = format!("{}-peer", node.name);
    within(&plan.fabric.netns, |handle| async move {
        handle
            .link()
            .add(LinkVeth::new(&node.name, &peer).build())
            .execute()
            .await?;
        let bridge = index(&handle, FABRIC_BRIDGE).await?;
        let port = index(&handle, &node.name).await?;
        let message = LinkUnspec::new_with_index(port).controller(bridge).up();
        handle.link().set(message.build()).execute().await?;
        let peer = index(&handle, &peer).await?;
        let message = LinkUnspec::new_with_index(peer)
            .name(NODE_LINK)
            .address(hardware_address(node).to_vec())
            .setns_by_fd(target.as_raw_fd());
        handle.link().set(message.build()).execute().await?;
        for (cidr, via) in node.pod_cidrs.iter().zip(&node.addresses) {
            route(&handle, *cidr, via.address).await?;
        }
        anyhow::Ok(())
    })
    .with_context(|| format!("node {}: its link to the fabric", node.name))?;

    within(&node.netns, |handle| async move {
        let link = index(&handle, NODE_LINK).await?;
        for cidr in &node.addresses {
            let address = handle.address().add(link, cidr.address, cidr.prefix);
            address.execute().await?;
        }
        up(&handle, link).await?;
        for other in plan.nodes.iter().filter(|other| other.name != node.name) {
            for (cidr, via) in other.pod_cidrs.iter().zip(&other.addresses) {
                route(&handle, *cidr, via.address).await?;
            }
        }
        // The node's own dials to a Service need a route before they are translated.
        for (cidr, via) in plan.service_cidrs().iter().zip(&plan.fabric.addresses) {
            route(&handle, *cidr, via.address).await?;
        }
        Ok(())
    })
    .with_context(|| format!("node {}: addresses and routes", node.name))?;

    if plan.families.list().contains(&Family::V6) {
        netns::sysctl(&node.netns, &[("net/ipv6/conf/all/forwarding", "1")])?;
    }
    netns::sysctl(&node.netns, &[("net/ipv4/ip_forward", "1")])?;
    // Strict: the mesh must hold where distributions set it.
    set_reverse_path_filter(&node.netns, plan.rp_filter.unwrap_or(1))
}

/// A node that boots again is the same machine: were its hardware address another one, its neighbours
/// would send to the old one for as long as they believe it to be there (15 to 45 s).
fn hardware_address(node: &NodePlan) -> [u8; 6] {
    /// Locally administered, one station.
    const LOCAL: u8 = 2;
    let tail = match node.addresses.first().map(|cidr| cidr.address) {
        Some(IpAddr::V4(address)) => u32::from(address),
        // Truncated: the low bits tell nodes apart.
        Some(IpAddr::V6(address)) => u128::from(address) as u32,
        None => 0,
    };
    let [a, b, c, d] = tail.to_be_bytes();
    [LOCAL, 0, a, b, c, d]
}

/// Lets replies between two pods of one node pass the node's address translation, as Kubernetes
/// asks of its nodes. False if this kernel can't.
pub(crate) fn bridge_netfilter(node: &NodePlan) -> bool {
    const BOTH: [(&str, &str); 2] = [
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ];
    netns::sysctl(&node.netns, &BOTH).is_ok()
}
