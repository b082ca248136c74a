//! What clients were told and what members applied, in the order in which it happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::object;
use proto::v1::object::Object as Any;
use proto::v1::{ConfigMap, Node as NodeObject, Object};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::network::{Host, Network};
use crate::leases::LEASE;
use crate::raft::{Changed, MemberId, Node};

/// Longest from the leader's decision that a node is lost until members apply it: heartbeats that it granted meanwhile came
/// too late for the decision.
const DECIDED_MAX: Duration = Duration::from_secs(4);

/// One change of one object, as every member has to have applied it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) kind: String,
    pub(super) object: Object,
    /// The last one of its transaction.
    pub(super) last: bool,
}

/// What a client was told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// These values were written, the last of them at this revision.
    Wrote {
        values: Vec<(String, String)>,
        revision: u64,
    },
    /// It was deleted, at this revision or before.
    Deleted { name: String, revision: u64 },
    /// Something else was changed: this is what came of it.
    Changed { revision: u64 },
    /// The write was refused: it is never carried out.
    Refused { values: Vec<(String, String)> },
    /// What was read of one ConfigMap: its version and value.
    Read {
        name: String,
        found: Option<(u64, String)>,
    },
    /// All ConfigMaps, at a revision.
    Listed {
        revision: u64,
        found: BTreeMap<String, String>,
        /// None: as new as anything acknowledged; else what this member has, in this life of it.
        stale: Option<(Host, u64)>,
    },
}

/// An answered call of a client, with when it was begun and answered in the order of all such moments.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) client: Host,
    pub(super) began: u64,
    pub(super) ended: u64,
    pub(super) told: Told,
}

/// What one watch was shown: everything between two revisions.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    /// The list that it began with.
    pub(super) from: u64,
    pub(super) shown: Vec<(u64, String, Object)>,
    /// Everything up to here was shown.
    pub(super) upto: u64,
}

#[derive(Default)]
struct Inner {
    moments: u64,
    changes: BTreeMap<u64, Change>,
    calls: Vec<Call>,
    watches: Vec<Watched>,
    tried: BTreeMap<(String, String), u64>,
    /// The node that was told to run a pod, by the pod's uid.
    runs: BTreeMap<String, String>,
    /// Who led, by term.
    leaders: BTreeMap<u64, MemberId>,
    /// When agents sent the heartbeats that were granted and when they were told so, by node.
    granted: BTreeMap<String, Vec<(Instant, Instant)>>,
    /// Nodes that are called lost.
    lost: BTreeSet<String>,
    violations: Vec<String>,
}

impl Inner {
    /// A node is called lost no earlier than a lease after a heartbeat that was granted, whoever granted it.
    fn node_changed(&mut self, node: &NodeObject) {
        let name = node.metadata.clone().unwrap_or_default().name;
        let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
        let lost = conditions.any(|it| it.r#type == "Ready" && it.status == "Unknown");
        if !lost {
            self.lost.remove(&name);
        } else if self.lost.insert(name.clone()) {
            let now = Instant::now();
            let granted = self.granted.get(&name).into_iter().flatten();
            // One that was long on its way may have been granted after it was decided.
            let late = granted.filter(|(sent, told)| *sent + LEASE > now && *told + DECIDED_MAX < now);
            if let Some((sent, _)) = late.max() {
                let ago = now - *sent;
                self.violations.push(format!(
                    "node {name} is called lost, and a heartbeat that it sent {ago:?} ago was granted"
                ));
            }
        }
    }
}

/// Clones are the same history.
#[derive(Clone, Default)]
pub(super) struct History {
    inner: Arc<Mutex<Inner>>,
}

/// Everything, for the checks.
pub(super) struct Whole {
    pub(super) changes: BTreeMap<u64, Change>,
    pub(super) calls: Vec<Call>,
    pub(super) watches: Vec<Watched>,
    /// Every write of a value that was ever tried.
    pub(super) tried: BTreeMap<(String, String), u64>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// A moment before all later ones.
    pub(super) fn moment(&self) -> u64 {
        let mut inner = self.lock();
        inner.moments += 1;
        inner.moments
    }

    /// Somebody begins to write this.
    pub(super) fn tries(&self, values: &[(String, String)]) {
        let mut inner = self.lock();
        let now = inner.moments;
        for value in values {
            inner.tried.insert(value.clone(), now);
        }
    }

    pub(super) fn told(&self, client: Host, began: u64, told: Told) {
        let ended = self.moment();
        self.lock().calls.push(Call {
            client,
            began,
            ended,
            told,
        });
    }

    pub(super) fn watched(&self, watched: Watched) {
        self.lock().watches.push(watched);
    }

    /// Something that should never be.
    pub(super) fn violated(&self, what: String) {
        self.lock().violations.push(what);
    }

    /// An agent is told to run a pod: no other one ever is, whatever became of this one.
    pub(super) fn runs(&self, uid: &str, node: &str) {
        let mut inner = self.lock();
        let before = inner.runs.insert(uid.to_owned(), node.to_owned());
        if let Some(before) = before.filter(|before| before != node) {
            let what = format!("{node} is told to run pod {uid}, as {before} was");
            inner.violations.push(what);
        }
    }

    /// An agent is told that its lease was renewed by a heartbeat that it sent then.
    pub(super) fn granted(&self, node: &str, sent: Instant) {
        let told = Instant::now();
        let mut inner = self.lock();
        inner
            .granted
            .entry(node.to_owned())
            .or_default()
            .push((sent, told));
    }

    /// A member leads in a term.
    fn leads(&self, id: MemberId, term: u64) {
        let mut inner = self.lock();
        let first = *inner.leaders.entry(term).or_insert(id);
        if first != id {
            let what = format!("members {first} and {id} both lead in term {term}");
            inner.violations.push(what);
        }
    }

    /// How many terms had a leader.
    pub(super) fn terms(&self) -> usize {
        self.lock().leaders.len()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The last revision at which such an object has changed; 0 for never.
    pub(super) fn last_of(&self, such: impl Fn(&Object) -> bool) -> u64 {
        let inner = self.lock();
        let mut changes = inner.changes.iter().rev();
        changes
            .find(|(_, change)| such(&change.object))
            .map_or(0, |(revision, _)| *revision)
    }

    pub(super) fn whole(&self) -> Whole {
        let inner = self.lock();
        Whole {
            changes: inner.changes.clone(),
            calls: inner.calls.clone(),
            watches: inner.watches.clone(),
            tried: inner.tried.clone(),
        }
    }

    /// Notes what a member applies, in one life of it.
    pub(super) fn follow(&self, network: &Network, id: MemberId, life: u64, node: &Node) {
        let (history, mut leadership) = (self.clone(), node.leadership());
        drop(network.spawn(0, async move {
            while let Ok(now) = leadership.wait_for(|now| now.is_me).await.map(|now| *now) {
                history.leads(id, now.term);
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        }));
        let (history, log) = (self.clone(), network.clone());
        let mut changes = node.changes();
        let mut head = node.stale().revision();
        drop(network.spawn(0, async move {
            loop {
                match changes.recv().await {
                    Ok(Changed::By(set)) => {
                        let last = set.last().map_or(0, |change| change.revision);
                        for change in set.iter() {
                            if change.revision <= head && change.revision != 0 {
                                let what =
                                    format!("member {id} goes from revision {head} to {}", change.revision);
                                history.violated(what);
                            }
                            head = change.revision;
                            let applied = Change {
                                kind: change.happened.as_str().to_owned(),
                                object: change.object().clone(),
                                last: change.revision == last,
                            };
                            history.applied(id, change.revision, applied);
                        }
                        log.note(format_args!("{id}.{life} applied {last}"));
                    }
                    Ok(Changed::All) => head = 0,
                    Err(RecvError::Lagged(_)) => {
                        history.violated(format!("what member {id} applied was not followed"));
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        }));
    }

    fn applied(&self, id: MemberId, revision: u64, change: Change) {
        let mut inner = self.lock();
        match inner.changes.get(&revision) {
            Some(there) if *there == change => {}
            Some(there) => {
                let what =
                    format!("at revision {revision} member {id} applied {change:?}, another one {there:?}");
                inner.violations.push(what);
            }
            None => {
                if let Some(Any::Node(node)) = &change.object.object {
                    inner.node_changed(node);
                }
                inner.changes.insert(revision, change);
            }
        }
    }
}

/// The value that a ConfigMap of ours holds.
pub(super) fn value(map: &ConfigMap) -> String {
    map.data.get(VALUE).cloned().unwrap_or_default()
}

/// Under which key.
pub(super) const VALUE: &str = "value";

/// Name and value of a ConfigMap.
pub(super) fn named_value(of: &Object) -> Option<(String, String)> {
    match &of.object {
        Some(Any::ConfigMap(map)) => Some((object::meta(of).name.clone(), value(map))),
        _ => None,
    }
}

/// The revision at its last change.
pub(super) fn version(of: &Object) -> u64 {
    object::meta(of).resource_version.parse().unwrap_or(0)
}
