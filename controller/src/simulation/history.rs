//! What clients were told and what members applied, in the order in which it happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use model::object;
use proto::v1::object::Object as Any;
use proto::v1::{ConfigMap, Object};
use tokio::sync::broadcast::error::RecvError;

use super::network::{Host, Network};
use crate::raft::{Changed, MemberId, Node};

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
    violations: Vec<String>,
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
