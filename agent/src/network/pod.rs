//! One pod's side: the veth pair, its address and its only route.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::link::{InfoData, InfoVeth};
use nix::sched::CloneFlags;
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::node::{mac, sysctl};
use super::{NetworkConfig, NetworkError, PodNet, gateway, link, short};

/// How the node's ends of pods' pairs are called.
pub(super) const HOST_PREFIX: &str = "bh-";

/// Name of the node's end of a pod's pair.
pub(super) fn host_name(uid: &str) -> String {
    format!("{HOST_PREFIX}{}", short(uid))
}

/// Makes the pair, or takes over the one that is there. Whether it was made now.
pub(super) async fn add_veth(
    handle: &Handle,
    config: &NetworkConfig,
    mtu: u32,
    pod: &PodNet,
) -> Result<bool, NetworkError> {
    let host = host_name(&pod.uid);
    let inside = Inside {
        mac: mac(pod.address),
        address: pod.address,
        gateway: gateway(config.range),
    };
    let netns = pod
        .netns
        .try_clone()
        .map_err(NetworkError::io("copy a descriptor"))?;
    if in_netns(netns, move || inside.is_complete()).await?? && link::find(handle, &host).await?.is_some() {
        return Ok(false);
    }
    // Half of an earlier attempt, or of a namespace that has gone and whose pair is still being taken down.
    link::remove(handle, &host).await?;
    let what = || format!("link pod {} to the bridge", pod.uid);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name("eth0")
        .address(inside.mac.to_vec())
        .mtu(mtu)
        // Made in the pod's namespace from the first; brought up there afterwards (with IFF_UP here: ENOTCONN).
        .setns_by_fd(pod.netns.as_raw_fd())
        .build();
    let pair = LinkVeth::new(&host, "eth0")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(mtu)
        .build();
    handle
        .link()
        .add(pair)
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    let index = link::index(handle, &host).await?;
    let bridge = link::index(handle, &config.bridge).await?;
    let set = LinkUnspec::new_with_index(index).controller(bridge).up().build();
    handle
        .link()
        .set(set)
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    // Isolated: two pods of one node reach each other by routing alone, where policy sees them.
    let port = LinkBridgePort::new(index).isolated(true).learning(false).build();
    handle
        .link()
        .set_port(port)
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    let netns = pod
        .netns
        .try_clone()
        .map_err(NetworkError::io("copy a descriptor"))?;
    in_netns(netns, move || inside.set_up()).await??;
    let entry = IpAddr::V4(pod.address);
    let neighbour = handle
        .neighbours()
        .add(bridge, entry)
        .link_layer_address(&inside.mac)
        .replace();
    neighbour.execute().await.map_err(NetworkError::netlink(what()))?;
    // With learning off the bridge must be told where the pod's address is.
    let forward = handle.neighbours().add_bridge(index, &inside.mac);
    let forward = forward
        .flags(netlink_packet_route::neighbour::NeighbourFlags::Controller)
        .replace();
    forward.execute().await.map_err(NetworkError::netlink(what()))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(pod.address, 32)
        .output_interface(bridge);
    let route = route.scope(netlink_packet_route::route::RouteScope::Link).build();
    handle
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(NetworkError::netlink(what()))?;
    Ok(true)
}

/// What stands inside the pod's namespace.
#[derive(Clone, Copy)]
struct Inside {
    mac: [u8; 6],
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Inside {
    /// Whether the last step of `set_up` was done: the route stands only on an `eth0` that is up and has its address.
    fn is_complete(self) -> Result<bool, NetworkError> {
        let routes = std::fs::read_to_string("/proc/thread-self/net/route")
            .map_err(NetworkError::io("read routes"))?;
        // Destination and gateway in network byte order, read as a native number, in hexadecimal (proc(5)).
        let gateway = format!("{:08X}", u32::from_ne_bytes(self.gateway.octets()));
        Ok(routes.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            fields.next() == Some("eth0")
                && fields.next() == Some("00000000")
                && fields.next() == Some(&gateway)
        }))
    }

    fn set_up(self) -> Result<(), NetworkError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(NetworkError::io("start a runtime"))?;
        runtime.block_on(async {
            let handle = link::connect()?;
            let what = || NetworkError::netlink("set up eth0 in the pod");
            let lo = link::index(&handle, "lo").await?;
            handle
                .link()
                .set(LinkUnspec::new_with_index(lo).up().build())
                .execute()
                .await
                .map_err(what())?;
            let index = link::index(&handle, "eth0").await?;
            let address = IpAddr::V4(self.address);
            handle
                .address()
                .add(index, address, 32)
                .replace()
                .execute()
                .await
                .map_err(what())?;
            handle
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await
                .map_err(what())?;
            sysctl("net/ipv4/conf/eth0/accept_redirects", "0")?;
            let far = mac(self.gateway);
            let neighbour = handle
                .neighbours()
                .add(index, IpAddr::V4(self.gateway))
                .link_layer_address(&far)
                .replace();
            neighbour.execute().await.map_err(what())?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(self.gateway)
                .output_interface(index)
                .onlink();
            handle
                .route()
                .add(route.build())
                .replace()
                .execute()
                .await
                .map_err(what())
        })
    }
}

/// Runs `work` on a thread of its own inside a network namespace.
async fn in_netns<T: Send + 'static>(
    netns: OwnedFd,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetworkError> {
    let what = "enter the pod's network namespace";
    let (done, result) = tokio::sync::oneshot::channel();
    // Never a pooled thread: it would stay in the pod's namespace.
    let thread = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let result = match nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET) {
                Ok(()) => Ok(work()),
                Err(error) => Err(std::io::Error::from(error)),
            };
            // The receiver is gone only when the pod's task was cancelled: nobody asks any more.
            drop(done.send(result));
        });
    thread.map_err(NetworkError::io(what))?;
    match result.await {
        Ok(result) => result.map_err(NetworkError::io(what)),
        Err(_) => Err(NetworkError::io(what)(std::io::Error::other("its thread died"))),
    }
}
