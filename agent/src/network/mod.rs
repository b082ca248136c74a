//! The node's pod network: a bridge, a veth for each pod, routes or VXLAN to the other nodes, one nftables table.
//!
//! Every pod has a /32 address and reaches everything through the bridge's own address, by way of isolated bridge ports:
//! so all traffic is routed, also between two pods of one node, and nothing depends on the host's br_netfilter. All
//! calls are idempotent; what stands in the kernel survives the agent, and a new agent finds it by its names.

mod firewall;
mod link;
mod node;
mod pod;
mod shape;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use tokio::sync::Mutex;

pub use firewall::{HostPort, Protocol};

/// Where the node's pods are and how they reach those of other nodes.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Name of the bridge, `bulkhead0` unless several agents share a network namespace.
    pub bridge: String,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// Addresses of this node's pods; the first one is the bridge's.
    pub range: Ipv4Net,
    /// Addresses of all pods of the cluster: between these nothing is masqueraded.
    pub cluster: Ipv4Net,
    /// Address by which other nodes reach this one.
    pub node_address: Ipv4Addr,
}

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// UDP tunnels: works wherever nodes reach each other.
    Vxlan,
    /// Plain routes: faster; all nodes must be on one link.
    HostGateway,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address.
    pub address: Ipv4Addr,
    /// Addresses of its pods.
    pub range: Ipv4Net,
}

/// What one pod needs of the network.
#[derive(Debug)]
pub struct PodNet {
    /// The pod's uid; names its interfaces.
    pub uid: String,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Its address, out of the node's range.
    pub address: Ipv4Addr,
    /// What it may take of the network.
    pub bandwidth: Bandwidth,
    /// Ports of the node that lead to it.
    pub ports: Vec<HostPort>,
}

/// Limits of a pod's traffic, in bits a second; none for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what reaches the pod.
    pub ingress_bps: Option<u64>,
    /// Of what leaves it.
    pub egress_bps: Option<u64>,
}

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Netlink refused.
    #[error("failed to {what}")]
    Netlink {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A file, a thread or a namespace failed.
    #[error("failed to {what}")]
    Io {
        /// What was being done.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// `nft` or `tc` refused what it was given.
    #[error("{program} refused its rules: {message}")]
    Rules {
        /// Which program.
        program: &'static str,
        /// Its error output.
        message: String,
    },
    /// No interface has the node's address.
    #[error("no interface of this node has the address {address}; give the right one with --node-address")]
    NoSuchAddress {
        /// What was configured.
        address: Ipv4Addr,
    },
    /// Another pod holds the node's port.
    #[error("port {port}/{protocol} of the node is taken by pod {uid}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who has it.
        uid: String,
    },
}

impl NetworkError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }
}

/// The node's network. One owner; calls change the kernel one after the other.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// MTU of pods and bridge.
    mtu: u32,
    state: Mutex<Forwarded>,
}

/// What the nftables table is made from.
#[derive(Debug, Default)]
struct Forwarded {
    /// By pod uid.
    ports: BTreeMap<String, (Ipv4Addr, Vec<HostPort>)>,
}

impl Network {
    /// Makes the bridge, the tunnel and the table, or takes over those that are there.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let handle = link::connect()?;
        let mtu = node::set_up(&handle, &config).await?;
        let network = Self {
            config,
            mtu,
            state: Mutex::new(Forwarded::default()),
        };
        network.write_rules(&Forwarded::default()).await?;
        Ok(network)
    }

    /// Gives a pod its `eth0`, routes, bandwidth limits and host ports. Repeated for a pod that has them, it changes
    /// nothing but limits that are others now; after a failure nothing of it is left but what the end of its namespace removes.
    pub async fn attach(&self, pod: &PodNet) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if let Some((port, uid)) = firewall::conflict(&state.ports, &pod.uid, &pod.ports) {
            return Err(NetworkError::PortTaken {
                port: port.host_port,
                protocol: port.protocol,
                uid,
            });
        }
        let handle = link::connect()?;
        let fresh = pod::add_veth(&handle, &self.config, self.mtu, pod).await?;
        let before = match fresh {
            true => Bandwidth::default(),
            false => shape::read(&handle, &pod.uid).await?,
        };
        shape::apply(&handle, &pod.uid, before, pod.bandwidth).await?;
        let before = state.ports.remove(&pod.uid);
        if !pod.ports.is_empty() {
            state
                .ports
                .insert(pod.uid.clone(), (pod.address, pod.ports.clone()));
        }
        if before.as_ref() != state.ports.get(&pod.uid) {
            self.write_rules(&state).await?;
        }
        Ok(())
    }

    /// Takes away what does not end with the pod's network namespace: host ports and the limiter of its egress.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if state.ports.remove(uid).is_some() {
            self.write_rules(&state).await?;
        }
        let handle = link::connect()?;
        link::remove(&handle, &shape::limiter_name(uid)).await
    }

    /// The limits that the kernel enforces on a pod's traffic.
    pub async fn bandwidth(&self, uid: &str) -> Result<Bandwidth, NetworkError> {
        shape::read(&link::connect()?, uid).await
    }

    /// Routes to the other nodes: those of `peers`, and no more.
    pub async fn set_peers(&self, peers: &[Peer]) -> Result<(), NetworkError> {
        let _serial = self.state.lock().await;
        node::set_peers(&link::connect()?, &self.config, peers).await
    }

    /// Removes the interfaces of pods that are not in `uids`, left by an agent that was killed at the wrong moment.
    pub async fn retain(&self, uids: &[String]) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let known = state.ports.len();
        state.ports.retain(|uid, _| uids.contains(uid));
        if state.ports.len() < known {
            self.write_rules(&state).await?;
        }
        let handle = link::connect()?;
        let keep: Vec<String> = uids
            .iter()
            .flat_map(|uid| [pod::host_name(uid), shape::limiter_name(uid)])
            .collect();
        for name in link::names(&handle).await? {
            let ours = name.starts_with(pod::HOST_PREFIX) || name.starts_with(shape::LIMITER_PREFIX);
            if ours && !keep.contains(&name) {
                link::remove(&handle, &name).await?;
            }
        }
        Ok(())
    }

    /// Removes bridge, tunnel, routes and table: the node leaves the cluster.
    pub async fn close(self) -> Result<(), NetworkError> {
        self.retain(&[]).await?;
        let handle = link::connect()?;
        link::remove(&handle, &self.config.bridge).await?;
        link::remove(&handle, &node::tunnel_name(&self.config.bridge)).await?;
        firewall::run("nft", &firewall::removal()).await
    }

    /// The bridge's address, where the node's services for pods listen.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.config.range)
    }

    async fn write_rules(&self, state: &Forwarded) -> Result<(), NetworkError> {
        firewall::run("nft", &firewall::rules(&self.config, &state.ports)).await
    }
}

/// First address of a range.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(range.network().to_bits() | 1)
}

/// Eight hexadecimal digits that stand for a uid in interface names, which have at most fifteen characters.
fn short(uid: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(uid.as_bytes()).get(..4).unwrap_or_default())
}
