//! What an agent has to hear: the difference between what it was told and what the state wants of its node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::uses::{self, Used};
use model::{Kind, object};
use prost::Message;
use proto::v1::object::Object as Any;
use proto::v1::{Node, Object, Pod};
use rpc::v1::{Desired, HeldPod, Peer};
use state::State;

use super::account;

/// A part takes objects until it has this many bytes: with one more of the largest it stays below the 4 MiB that a message
/// may have.
const PART_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(PART_BYTES_MAX + state::OBJECT_BYTES_MAX < 4 << 20);

/// The nodes that other nodes have routes to, by name.
pub(super) type Peers = BTreeMap<String, Peer>;

/// A node as the others have to know it; None while it has no address.
pub(super) fn peer(node: &Node) -> Option<Peer> {
    let pod_cidr = node.spec.as_ref()?.pod_cidr.clone();
    let addresses = &node.status.as_ref()?.addresses;
    let address = addresses.iter().find(|address| address.r#type == INTERNAL_IP)?;
    (!pod_cidr.is_empty()).then(|| Peer {
        name: node
            .metadata
            .as_ref()
            .map(|meta| meta.name.clone())
            .unwrap_or_default(),
        address: address.address.clone(),
        pod_cidr,
    })
}

/// The type of the address by which nodes reach each other.
pub(super) const INTERNAL_IP: &str = "InternalIP";

/// What an agent was told, or said itself that it has.
#[derive(Debug)]
pub(super) struct Known {
    /// Everything up to here.
    revision: u64,
    pods: BTreeMap<String, KnownPod>,
    /// ConfigMaps and Secrets, with their resourceVersions; None: told that there is none.
    used: BTreeMap<Used, Option<String>>,
    /// None before the first difference.
    peers: Option<Arc<Peers>>,
}

#[derive(Debug)]
struct KnownPod {
    version: u64,
    /// ConfigMaps and Secrets that it uses; None before the first look at it.
    uses: Option<BTreeSet<Used>>,
}

impl Known {
    /// As the agent says in its Hello.
    pub(super) fn new(revision: u64, held: Vec<HeldPod>) -> Self {
        let pods = held.into_iter().map(|pod| {
            let known = KnownPod {
                version: pod.resource_version.parse().unwrap_or(0), // not of ours: it is sent again
                uses: None,
            };
            (pod.uid, known)
        });
        Self {
            revision,
            pods: pods.collect(),
            used: BTreeMap::new(),
            peers: None,
        }
    }

    /// Whether the agent may speak of this pod: it was told that it is to be on its node.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.peers.is_some() && self.pods.contains_key(uid)
    }

    /// What the agent has to hear so that it knows `state`, in parts; none when it knows all of it. The first difference is
    /// complete. Unless ConfigMaps or Secrets have changed, only those are looked at that the agent does not know yet.
    pub(super) fn difference(
        &mut self,
        state: &State,
        node: &str,
        peers: &Arc<Peers>,
        used_changed: bool,
    ) -> Vec<Desired> {
        let before = self.revision;
        let complete = self.peers.is_none();
        let versions: BTreeMap<&str, u64> = state.pod_versions_on(node).collect();
        let mut head = Desired {
            revision: state.revision(),
            complete,
            ..Default::default()
        };
        let mut gone = Vec::new();
        self.pods.retain(|uid, _| {
            let stays = versions.contains_key(uid.as_str());
            if !stays {
                gone.push(uid.clone());
            }
            stays
        });
        if complete {
            head.uids = versions.keys().map(|uid| (*uid).to_owned()).collect();
        } else {
            head.removed = gone;
        }
        let pods = self.pods_to_send(state, &versions);
        let (used, gone) = self.used_to_send(state, complete || used_changed);
        for (kind, key) in gone {
            match kind {
                Kind::Secret => head.removed_secrets.push(key),
                _ => head.removed_config_maps.push(key),
            }
        }
        if self
            .peers
            .as_ref()
            .is_none_or(|known| others(known, node).ne(others(peers, node)))
        {
            head.peers_changed = true;
            head.peers = others(peers, node).cloned().collect();
        }
        self.peers = Some(peers.clone());
        let news = complete
            || head.peers_changed
            || !(head.removed.is_empty() && head.removed_config_maps.is_empty())
            || !(head.removed_secrets.is_empty() && pods.is_empty() && used.is_empty());
        if !news {
            return Vec::new();
        }
        self.revision = state.revision();
        parts(head, used, pods, before)
    }

    fn pods_to_send(&mut self, state: &State, versions: &BTreeMap<&str, u64>) -> Vec<Pod> {
        let mut pods = Vec::new();
        for (uid, version) in versions {
            let known = self.pods.get(*uid);
            let current = known.is_some_and(|known| known.version >= *version);
            if current && known.is_some_and(|known| known.uses.is_some()) {
                continue;
            }
            let Some(pod) = state.by_uid(uid).and_then(object::into::<Pod>) else {
                continue;
            };
            let known = KnownPod {
                version: known.map_or(0, |known| known.version).max(*version),
                uses: Some(uses::of(&pod)),
            };
            self.pods.insert((*uid).to_owned(), known);
            if !current {
                pods.push(account::decided(state, pod));
            }
        }
        pods
    }

    /// ConfigMaps and Secrets to send, and those that are gone.
    fn used_to_send(&mut self, state: &State, all: bool) -> (Vec<Object>, Vec<Used>) {
        let used = self.pods.values().filter_map(|pod| pod.uses.as_ref()).flatten();
        let used: BTreeSet<&Used> = used.collect();
        self.used.retain(|one, _| used.contains(one));
        let (mut send, mut gone) = (Vec::new(), Vec::new());
        for one in used {
            let known = self.used.get(one);
            if known.is_some() && !all {
                continue;
            }
            let found = look_up(state, one);
            let version = found
                .as_ref()
                .map(|object| object::meta(object).resource_version.clone());
            if known == Some(&version) {
                continue;
            }
            self.used.insert(one.clone(), version);
            match found {
                Some(object) => send.push(object),
                None => gone.push(one.clone()),
            }
        }
        (send, gone)
    }
}

fn others<'a>(peers: &'a Peers, node: &'a str) -> impl Iterator<Item = &'a Peer> {
    peers.values().filter(move |peer| peer.name != node)
}

pub(super) fn look_up(state: &State, (kind, key): &Used) -> Option<Object> {
    let (namespace, name) = key.split_once('/')?;
    state.get(&object::key_of(*kind, namespace, name))
}

/// ConfigMaps and Secrets before the pods that use them; only the last part carries the new revision.
fn parts(head: Desired, used: Vec<Object>, pods: Vec<Pod>, before: u64) -> Vec<Desired> {
    let revision = head.revision;
    let mut parts = Vec::new();
    let mut bytes = head.encoded_len();
    let mut part = head;
    let mut room = |part: &mut Desired, next: usize| {
        if bytes + next > PART_BYTES_MAX && bytes > 0 {
            parts.push(std::mem::take(part));
            bytes = 0;
        }
        bytes += next;
    };
    for object in used {
        room(&mut part, object.encoded_len());
        match object.object {
            Some(Any::ConfigMap(map)) => part.config_maps.push(map),
            Some(Any::Secret(secret)) => part.secrets.push(secret),
            // `uses::of` names no other kind.
            _ => {}
        }
    }
    for pod in pods {
        room(&mut part, pod.encoded_len());
        part.pods.push(pod);
    }
    parts.push(part);
    for part in &mut parts {
        part.revision = before;
    }
    if let Some(last) = parts.last_mut() {
        last.revision = revision;
    }
    parts
}
