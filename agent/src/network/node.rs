//! The node's side: the bridge with its address, forwarding, and the way to other nodes.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVxlan, RouteMessageBuilder};

use super::{Backend, NetworkConfig, NetworkError, Peer, gateway, link};

/// What VXLAN adds to a packet: outer IPv4, UDP and VXLAN headers and the inner Ethernet header (RFC 7348, section 5).
const VXLAN_OVERHEAD: u32 = 50;
/// The tunnel's network identifier; one cluster's nodes agree on it.
const VXLAN_ID: u32 = 4244;
/// IANA's port for VXLAN.
const VXLAN_PORT: u16 = 4789;
/// Marks our routes, so that those of nodes that left are found (rtnetlink(7), rtm_protocol; above RTPROT_STATIC).
const ROUTE_PROTOCOL: u8 = 84;

/// Name of the tunnel that goes with a bridge.
pub(super) fn tunnel_name(bridge: &str) -> String {
    // Interface names have at most fifteen characters.
    format!("{}-vx", bridge.chars().take(12).collect::<String>())
}

/// Bridge, addresses, forwarding and, for VXLAN, the tunnel. Returns the MTU of the pods.
pub(super) async fn set_up(handle: &Handle, config: &NetworkConfig) -> Result<u32, NetworkError> {
    let underlay = underlay_mtu(handle, config.node_address).await?;
    let mtu = match config.backend {
        Backend::Vxlan => underlay.saturating_sub(VXLAN_OVERHEAD),
        Backend::HostGateway => underlay,
    };
    let bridge = &config.bridge;
    let what = || format!("set up bridge {bridge}");
    let made = handle.link().add(
        LinkBridge::new(bridge)
            .address(mac(gateway(config.range)).to_vec())
            .build(),
    );
    match made.execute().await {
        Err(error) if !link::exists(&error) => return Err(NetworkError::netlink(what())(error)),
        _ => {}
    }
    let index = link::index(handle, bridge).await?;
    let set = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    handle
        .link()
        .set(set)
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    // /32: every pod has a route of its own, so no other address of the range is taken to be on the bridge.
    let address = IpAddr::V4(gateway(config.range));
    let added = handle.address().add(index, address, 32).replace().execute().await;
    added.map_err(NetworkError::netlink(what()))?;
    sysctl("net/ipv4/ip_forward", "1")?;
    // The interface's own and `all` are or-ed (kernel, ip-sysctl, send_redirects): packets between two pods come in and
    // go out by the bridge, and a redirect would tell a pod to reach the other directly, which isolated ports refuse.
    sysctl("net/ipv4/conf/all/send_redirects", "0")?;
    sysctl(&format!("net/ipv4/conf/{bridge}/send_redirects"), "0")?;
    // Host ports by way of 127.0.0.1: without it the reply from the pod is a martian.
    sysctl(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?;
    if config.backend == Backend::Vxlan {
        add_tunnel(handle, config, mtu).await?;
    }
    Ok(mtu)
}

async fn add_tunnel(handle: &Handle, config: &NetworkConfig, mtu: u32) -> Result<(), NetworkError> {
    let name = tunnel_name(&config.bridge);
    let what = || format!("set up tunnel {name}");
    // Its parts cannot be changed later; a tunnel of another address is made anew.
    link::remove(handle, &name).await?;
    let tunnel = LinkVxlan::new(&name, VXLAN_ID)
        .local(config.node_address)
        .port(VXLAN_PORT)
        .learning(false)
        .address(mac(config.range.network()).to_vec())
        .mtu(mtu)
        .up()
        .build();
    handle
        .link()
        .add(tunnel)
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    let index = link::index(handle, &name).await?;
    let own = IpAddr::V4(config.range.network());
    handle
        .address()
        .add(index, own, 32)
        .replace()
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))
}

/// MTU of the interface that has the node's address.
async fn underlay_mtu(handle: &Handle, address: Ipv4Addr) -> Result<u32, NetworkError> {
    let what = "list the node's addresses";
    let found: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(NetworkError::netlink(what))?;
    let own = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Local(IpAddr::V4(local)) if *local == address);
    let with_it = found.iter().find(|message| message.attributes.iter().any(own));
    let index = with_it
        .ok_or(NetworkError::NoSuchAddress { address })?
        .header
        .index;
    let mut links = handle.link().get().match_index(index).execute();
    let found = links
        .try_next()
        .await
        .map_err(NetworkError::netlink("read an interface"))?;
    found
        .as_ref()
        .and_then(link::mtu)
        .ok_or(NetworkError::NoSuchAddress { address })
}

/// Routes to exactly these nodes.
pub(super) async fn set_peers(
    handle: &Handle,
    config: &NetworkConfig,
    peers: &[Peer],
) -> Result<(), NetworkError> {
    let tunnel = match config.backend {
        Backend::Vxlan => Some(link::index(handle, &tunnel_name(&config.bridge)).await?),
        Backend::HostGateway => None,
    };
    for peer in peers.iter().filter(|peer| peer.range != config.range) {
        let what = format!("route {} to {}", peer.range, peer.address);
        if let Some(tunnel) = tunnel {
            let far = mac(peer.range.network());
            let outer = IpAddr::V4(peer.address);
            // Own (NTF_SELF): an entry of the tunnel itself, not of a bridge that it is a port of.
            let entry = handle.neighbours().add_bridge(tunnel, &far).destination(outer);
            let entry = entry.flags(NeighbourFlags::Own).replace();
            entry.execute().await.map_err(NetworkError::netlink(&*what))?;
            let inner = IpAddr::V4(peer.range.network());
            let entry = handle
                .neighbours()
                .add(tunnel, inner)
                .link_layer_address(&far)
                .replace();
            entry.execute().await.map_err(NetworkError::netlink(&*what))?;
        }
        let route = route_to(peer, tunnel);
        handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(NetworkError::netlink(&*what))?;
    }
    for route in routes(handle).await? {
        let gone = destination(&route).is_some_and(|range| peers.iter().all(|peer| peer.range != range));
        if gone {
            handle
                .route()
                .del(route)
                .execute()
                .await
                .map_err(NetworkError::netlink("remove a route"))?;
        }
    }
    if let Some(tunnel) = tunnel {
        forget_neighbours(handle, tunnel, peers).await?;
    }
    Ok(())
}

fn route_to(peer: &Peer, tunnel: Option<u32>) -> RouteMessage {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(peer.range.network(), peer.range.prefix_len())
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    match tunnel {
        Some(index) => route
            .gateway(peer.range.network())
            .output_interface(index)
            .onlink()
            .build(),
        None => route.gateway(peer.address).build(),
    }
}

/// Routes that this or an earlier agent has made to other nodes.
async fn routes(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let found: Vec<RouteMessage> = handle
        .route()
        .get(all)
        .execute()
        .try_collect()
        .await
        .map_err(NetworkError::netlink("list routes"))?;
    Ok(found
        .into_iter()
        .filter(|route| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL))
        .collect())
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}

/// Takes away the tunnel's entries for nodes that are gone.
async fn forget_neighbours(handle: &Handle, tunnel: u32, peers: &[Peer]) -> Result<(), NetworkError> {
    let keep: Vec<Vec<u8>> = peers
        .iter()
        .map(|peer| mac(peer.range.network()).to_vec())
        .collect();
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        let request = handle.neighbours().get().set_address_family(family);
        let found: Vec<NeighbourMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(NetworkError::netlink("list neighbours"))?;
        for entry in found.into_iter().filter(|entry| entry.header.ifindex == tunnel) {
            let lladdr = entry.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(address) => Some(address.clone()),
                _ => None,
            });
            let unicast = entry.attributes.iter().any(|attribute| {
                matches!(attribute, NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) if !address.is_multicast())
            });
            if unicast && lladdr.is_some_and(|address| !keep.contains(&address)) {
                handle
                    .neighbours()
                    .del(entry)
                    .execute()
                    .await
                    .map_err(NetworkError::netlink("remove a neighbour"))?;
            }
        }
    }
    Ok(())
}

/// A locally administered MAC address that follows from an IPv4 address, so that both ends know it without asking.
pub(super) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x62, a, b, c, d]
}

/// Writes a setting of the calling thread's network namespace, unless it is so already.
pub(super) fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/{name}");
    let what = || format!("set {path} to {value}");
    if std::fs::read_to_string(&path)
        .map_err(NetworkError::io(what()))?
        .trim()
        == value
    {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(NetworkError::io(what()))
}
