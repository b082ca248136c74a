//! Recent changes, for watches: a bounded ring by revision. A reader that is behind the oldest of them lists again; nothing
//! is kept for it, so that a slow one costs nobody anything.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::object;
use prost::Message;
use proto::state::v1::{Change, Key};
use proto::v1::Object;
use state::State;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::raft::{Applied, Changed};

/// Changes kept: more than the largest transaction has, so that one alone drives no reader out.
const CHANGES_MAX: usize = 16_384;
/// Bytes of objects kept, as they are encoded: a reader may be seconds behind a busy cluster. In memory they take three times that.
const BYTES_MAX: usize = 8 << 20;
const _: () = assert!(CHANGES_MAX > state::OPERATIONS_MAX);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    Added,
    Modified,
    Deleted,
}

impl Happened {
    /// As in the schema.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "ADDED" => Self::Added,
            "DELETED" => Self::Deleted,
            _ => Self::Modified,
        }
    }
}

/// An object of the ring, shared with whatever it came in.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// One of a set of changes.
    Of(Arc<[Change]>, usize),
    /// On its own.
    Own(Arc<Object>),
}

impl Held {
    /// The object; None only for a change without one, which nobody makes.
    pub(crate) fn get(&self) -> Option<&Object> {
        match self {
            Self::Of(changes, index) => changes.get(*index)?.object.as_ref(),
            Self::Own(object) => Some(object),
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) revision: u64,
    pub(crate) happened: Happened,
    /// After the change; for a deletion before it.
    pub(crate) object: Held,
    /// Before it; none where it was added or deleted.
    pub(crate) before: Option<Held>,
}

impl Entry {
    fn bytes(&self) -> usize {
        let size = |held: &Held| held.get().map_or(0, Message::encoded_len);
        size(&self.object) + self.before.as_ref().map_or(0, size)
    }

    /// What a reader who is shown the objects that `matches` accepts is shown of this change: what happened to its set
    /// of objects, and the object.
    pub(crate) fn shown(&self, matches: impl Fn(&Object) -> bool) -> Option<(Happened, Object)> {
        let object = self.object.get()?;
        let before = self.before.as_ref().and_then(Held::get);
        match self.happened {
            Happened::Added | Happened::Deleted => matches(object).then(|| (self.happened, object.clone())),
            Happened::Modified => match (before, matches(object)) {
                (Some(before), true) if !matches(before) => Some((Happened::Added, object.clone())),
                (_, true) => Some((Happened::Modified, object.clone())),
                (Some(before), false) if matches(before) => {
                    // As it was when it last belonged, with the revision at which it left.
                    let mut left = before.clone();
                    object::meta_mut(&mut left).resource_version = self.revision.to_string();
                    Some((Happened::Deleted, left))
                }
                (_, false) => None,
            },
        }
    }
}

/// The changes after this revision are no longer all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came after revision {after} is no longer kept (the oldest is {oldest}): list again")]
pub(crate) struct TooOld {
    after: u64,
    oldest: u64,
}

/// The ring; clones are the same one.
#[derive(Clone)]
pub(crate) struct Ring {
    kept: Arc<Mutex<Kept>>,
    head: watch::Sender<u64>,
}

struct Kept {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
    /// Every change after this revision is in here.
    floor: u64,
}

impl Ring {
    /// Empty, at this revision.
    pub(crate) fn new(revision: u64) -> Self {
        let kept = Kept {
            entries: VecDeque::new(),
            bytes: 0,
            floor: revision,
        };
        let (head, _) = watch::channel(revision);
        Self {
            kept: Arc::new(Mutex::new(kept)),
            head,
        }
    }

    /// Adds changes, in the order of their revisions; the oldest go.
    pub(crate) fn push(&self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.revision) else {
            return;
        };
        let mut kept = self.lock();
        for entry in entries {
            let bytes = entry.bytes();
            kept.bytes += bytes;
            kept.entries.push_back((Arc::new(entry), bytes));
        }
        while kept.entries.len() > CHANGES_MAX || kept.bytes > BYTES_MAX {
            let Some((oldest, bytes)) = kept.entries.pop_front() else {
                break;
            };
            kept.bytes -= bytes;
            kept.floor = oldest.revision;
        }
        drop(kept);
        self.head.send_replace(last);
    }

    /// Forgets everything: who is not at this revision lists again.
    pub(crate) fn reset(&self, revision: u64) {
        let mut kept = self.lock();
        kept.entries.clear();
        kept.bytes = 0;
        kept.floor = revision;
        drop(kept);
        self.head.send_replace(revision);
    }

    /// Up to `count` changes after a revision; none yet when it is the newest or is still to come.
    pub(crate) fn after(&self, revision: u64, count: usize) -> Result<Vec<Arc<Entry>>, TooOld> {
        let kept = self.lock();
        if revision < kept.floor {
            return Err(TooOld {
                after: revision,
                oldest: kept.floor,
            });
        }
        let start = kept
            .entries
            .partition_point(|(entry, _)| entry.revision <= revision);
        let next = kept.entries.range(start..).take(count);
        Ok(next.map(|(entry, _)| entry.clone()).collect())
    }

    /// The newest revision, as it moves.
    pub(crate) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a ring up to date with what this member applies, until it applies no more.
pub(crate) async fn feed(
    ring: Ring,
    applied: watch::Receiver<Applied>,
    mut changes: broadcast::Receiver<Changed>,
) {
    let latest = || applied.borrow().state.clone();
    let mut follow = Follow::new(latest());
    ring.reset(follow.head);
    loop {
        match changes.recv().await {
            Ok(Changed::By(set)) => ring.push(follow.take(set, latest)),
            Ok(Changed::All) | Err(RecvError::Lagged(_)) => {
                follow = Follow::new(latest());
                ring.reset(follow.head);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Finds what each changed object was before: in a state that is a little older, or in the changes since.
struct Follow {
    /// Up to here changes were taken.
    head: u64,
    /// A state at or before `head`.
    base: State,
    /// A state that `head` comes to.
    target: State,
    /// The last word on objects that changed since `base`; None: it is gone.
    since: HashMap<(String, String, String), Option<Held>>,
}

impl Follow {
    fn new(state: State) -> Self {
        Self {
            head: state.revision(),
            base: state.clone(),
            target: state,
            since: HashMap::new(),
        }
    }

    fn take(&mut self, set: Arc<[Change]>, latest: impl Fn() -> State) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(set.len());
        for (index, change) in set.iter().enumerate() {
            let Some(object) = &change.object else { continue };
            // What was in the state that this began with.
            if change.revision <= self.head {
                continue;
            }
            let happened = Happened::parse(&change.r#type);
            let key = object::key(object);
            let before = match happened {
                Happened::Modified => self.before(&key),
                Happened::Added | Happened::Deleted => None,
            };
            let held = Held::Of(set.clone(), index);
            let last = (happened != Happened::Deleted).then(|| held.clone());
            self.since.insert((key.kind, key.namespace, key.name), last);
            self.head = change.revision;
            entries.push(Entry {
                revision: change.revision,
                happened,
                object: held,
                before,
            });
        }
        self.catch_up();
        if self.head >= self.target.revision() {
            self.target = latest();
            self.catch_up();
        }
        entries
    }

    /// Where the newer state is reached, it takes the place of the older one and of the changes between.
    fn catch_up(&mut self) {
        if self.head == self.target.revision() {
            self.base = self.target.clone();
            self.since.clear();
        }
    }

    fn before(&self, key: &Key) -> Option<Held> {
        let place = (key.kind.clone(), key.namespace.clone(), key.name.clone());
        match self.since.get(&place) {
            Some(last) => last.clone(),
            None => self.base.get(key).map(|object| Held::Own(Arc::new(object))),
        }
    }
}

#[cfg(test)]
#[path = "watch_test.rs"]
mod tests;
