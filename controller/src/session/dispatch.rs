//! Tells sessions what changed: each looks only when something of its own may have.

use std::sync::Arc;
use std::time::Duration;

use model::{Kind, object};
use proto::v1::Node as NodeObject;
use state::{Change, Happened, State};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tonic::Status;

use super::desired::{Peers, peer};
use super::registry::Sessions;
use crate::raft::{Changed, Node};

/// How often this member looks whether it still is one.
const MEMBER_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the state until it is dropped.
pub(crate) async fn dispatch(node: Node, sessions: Sessions, peers: watch::Sender<Arc<Peers>>) {
    let mut changes = node.changes();
    let mut known = all_peers(&node.stale());
    peers.send_replace(Arc::new(known.clone()));
    let mut tick = tokio::time::interval(MEMBER_INTERVAL);
    let mut member = false;
    loop {
        tokio::select! {
            biased;
            changed = changes.recv() => match changed {
                Ok(Changed::By(changes)) => {
                    if tell(&changes, &sessions, &mut known) {
                        peers.send_replace(Arc::new(known.clone()));
                    }
                }
                Ok(Changed::All) | Err(RecvError::Lagged(_)) => {
                    known = all_peers(&node.stale());
                    peers.send_replace(Arc::new(known.clone()));
                    sessions.mark_all();
                }
                Err(RecvError::Closed) => return,
            },
            _ = tick.tick() => {
                let now = node.members().iter().any(|info| info.id == node.id());
                if member && !now {
                    tracing::info!("this controller was removed from the cluster; agents have to go to another one");
                    sessions.close_all(Status::unavailable("this controller was removed from the cluster"));
                }
                member |= now;
            }
        }
    }
}

fn all_peers(state: &State) -> Peers {
    let peers = state.nodes().filter_map(peer);
    peers.map(|peer| (peer.name.clone(), peer)).collect()
}

/// Marks the sessions that one transaction concerns; whether the peers have changed.
fn tell(changes: &[Change], sessions: &Sessions, peers: &mut Peers) -> bool {
    let (mut peers_changed, mut used_changed) = (false, false);
    for change in changes {
        match change.kind() {
            Some(Kind::Pod) => {
                let node = change.node_of_pod();
                if !node.is_empty() {
                    sessions.mark_pods(node);
                }
            }
            Some(Kind::ConfigMap | Kind::Secret) => used_changed = true,
            Some(Kind::Node) => {
                let Some(node) = object::of::<NodeObject>(change.object()) else {
                    continue;
                };
                if change.happened == Happened::Deleted {
                    let name = name_of(node);
                    peers_changed |= peers.remove(name).is_some();
                    sessions.close(name, deleted(name));
                } else {
                    peers_changed |= update(peers, node);
                }
            }
            _ => {}
        }
    }
    if used_changed {
        sessions.mark_used();
    }
    peers_changed
}

fn update(peers: &mut Peers, node: &NodeObject) -> bool {
    let name = name_of(node);
    match peer(node) {
        Some(peer) if peers.get(name) == Some(&peer) => false,
        Some(peer) => {
            peers.insert(name.to_owned(), peer);
            true
        }
        None => peers.remove(name).is_some(),
    }
}

fn name_of(node: &NodeObject) -> &str {
    node.metadata.as_ref().map_or("", |meta| meta.name.as_str())
}

/// What the agent of a node that is gone hears.
pub(super) fn deleted(name: &str) -> Status {
    Status::failed_precondition(format!("there is no node {name} in this cluster; join it again"))
}
