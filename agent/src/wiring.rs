//! Opens the node's network once its range is known, and keeps routes to the other nodes as they are told.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rpc::v1::Peer as Told;
use tokio::sync::watch;

use crate::network::{Network, NetworkConfig, NetworkError, Peer};
use crate::node::ClusterFacts;
use crate::pods::Pods;
use crate::settings::Settings;

/// Pauses after a failure: the first and the longest. The kernel refuses for a reason that somebody has to remove.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the wiring works with.
pub(crate) struct Wiring {
    pub(crate) settings: Settings,
    pub(crate) pods: Arc<Pods>,
    pub(crate) facts: watch::Receiver<Option<ClusterFacts>>,
    pub(crate) peers: watch::Receiver<Vec<Told>>,
    pub(crate) network: watch::Sender<Option<Arc<Network>>>,
}

impl Wiring {
    /// Follows what is known of the cluster until the task is dropped.
    pub(crate) async fn run(mut self, open: Option<ClusterFacts>) {
        let mut open = open;
        let mut pause = PAUSE_FIRST;
        loop {
            let facts = self.facts.borrow_and_update().clone();
            let peers = self.peers.borrow_and_update().clone();
            let done = match &facts {
                Some(facts) => self.pass(facts, open.as_ref() == Some(facts), &peers).await,
                None => Ok(()),
            };
            let failed = match done {
                Ok(()) => {
                    open = facts;
                    pause = PAUSE_FIRST;
                    false
                }
                Err(error) => {
                    let cause = runtime::monitor::chain(&error);
                    tracing::warn!(cause, "the node's network is not as it should be; trying again");
                    true
                }
            };
            tokio::select! {
                changed = self.facts.changed() => if changed.is_err() { return },
                changed = self.peers.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause), if failed => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    async fn pass(&self, facts: &ClusterFacts, is_open: bool, peers: &[Told]) -> Result<(), NetworkError> {
        let current = self.network.borrow().clone().filter(|_| is_open);
        let network = match current {
            Some(network) => network,
            None => {
                let network = open(&self.settings, facts, &self.pods.uids(), peers).await?;
                self.network.send_replace(Some(Arc::new(network)));
                return Ok(());
            }
        };
        network.set_peers(&routes(peers)).await
    }
}

/// Sets the network up, or takes over what stands; the interfaces of pods that are not in `uids` go.
pub(crate) async fn open(
    settings: &Settings,
    facts: &ClusterFacts,
    uids: &[String],
    peers: &[Told],
) -> Result<Network, NetworkError> {
    let config = NetworkConfig {
        bridge: settings.bridge.clone(),
        backend: settings.backend,
        range: facts.pod_range,
        cluster: facts.cluster_range,
        node_address: settings.node_address,
    };
    let network = Network::open(config).await?;
    network.retain(uids).await?;
    network.set_peers(&routes(peers)).await?;
    tracing::info!(range = %facts.pod_range, "the node's network is up");
    Ok(network)
}

/// The nodes that have an address and a range; the others have no pods that could be reached.
fn routes(peers: &[Told]) -> Vec<Peer> {
    let route = |peer: &Told| {
        let address: Result<Ipv4Addr, _> = peer.address.parse();
        let range = peer.pod_cidr.parse();
        if let (Ok(address), Ok(range)) = (address, range) {
            return Some(Peer { address, range });
        }
        tracing::warn!(
            peer = peer.name,
            address = peer.address,
            range = peer.pod_cidr,
            "no route to a node"
        );
        None
    };
    peers.iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_address_has_no_route() {
        let peer = |address: &str| Told {
            name: "n2".to_owned(),
            address: address.to_owned(),
            pod_cidr: "10.244.2.0/24".to_owned(),
        };
        let routes = routes(&[peer(""), peer("10.0.0.2"), peer("host")]);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].address, Ipv4Addr::new(10, 0, 0, 2));
    }
}
