//! What all parts of the agent share.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::watch;

use crate::account::Accounts;
use crate::events::Events;
use crate::image;
use crate::ledger::Ledger;
use crate::network::Network;
use crate::settings::Settings;

/// One for the process, in an `Arc`.
#[derive(Debug)]
pub struct Node {
    /// The node's name, that of its certificate.
    pub name: String,
    /// Directories, addresses, names.
    pub settings: Settings,
    /// The machine's cgroup hierarchies.
    pub layout: runtime::cgroup::Layout,
    /// Whether image layers can be idmapped: the kernel and the store's file system, probed once.
    pub idmapped_mounts: bool,
    /// Images on this node.
    pub images: Arc<image::Store>,
    /// Credentials and certificates of registries; read anew for each pull.
    pub registries: image::Registries,
    /// What outlives the process.
    pub ledger: Ledger,
    /// What happens to pods, for people to see.
    pub events: Events,
    /// What the controller last said of the cluster; known from the ledger before it answers.
    pub cluster: watch::Receiver<Option<ClusterFacts>>,
    /// Until when what must not run twice may run here, in milliseconds since the machine started: the last lease that a
    /// controller granted. 0 before the first of this agent.
    pub(crate) lease: watch::Receiver<u64>,
    /// Where pods ask for tokens of their service accounts.
    pub(crate) accounts: Accounts,
    /// The node's network, once its range is known and it was set up.
    pub(crate) network: watch::Receiver<Option<Arc<Network>>>,
}

impl Node {
    /// The node's network; none until a range is known and the bridge stands.
    pub async fn network(&self) -> Option<Arc<Network>> {
        self.network.borrow().clone()
    }

    /// Tells when the network comes or is replaced.
    pub fn network_changes(&self) -> watch::Receiver<Option<Arc<Network>>> {
        self.network.clone()
    }

    /// The node's own address.
    pub fn address(&self) -> Ipv4Addr {
        self.settings.node_address
    }
}

/// What a node must know of its cluster to run pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Addresses of this node's pods.
    pub pod_range: Ipv4Net,
    /// Addresses of all pods.
    pub cluster_range: Ipv4Net,
    /// DNS domain of services and pods.
    pub domain: String,
}
