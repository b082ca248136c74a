//! Recent changes, for watches: a bounded ring by revision. A reader that is behind the oldest of them lists again; nothing
//! is kept for it, so that a slow one costs nobody anything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::object;
use proto::v1::Object;
use state::{Change, Happened};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::raft::{Applied, Changed};

/// Changes kept: more than the largest transaction has, so that one alone drives no reader out.
const CHANGES_MAX: usize = 16_384;
/// Bytes of objects kept, as they are encoded, before and after each change: a reader may be seconds behind a busy cluster.
/// In memory the newest are shared with the state; the others take three times that.
const BYTES_MAX: usize = 8 << 20;
const _: () = assert!(CHANGES_MAX > state::OPERATIONS_MAX);

/// What a reader who is shown the objects that `matches` accepts is shown of a change: what happened to its set of objects,
/// and the object.
pub(crate) fn shown(change: &Change, matches: impl Fn(&Object) -> bool) -> Option<(Happened, Object)> {
    let object = change.object();
    match (change.happened, change.before()) {
        (Happened::Modified, Some(before)) => match (matches(before), matches(object)) {
            (true, true) => Some((Happened::Modified, object.clone())),
            (false, true) => Some((Happened::Added, object.clone())),
            (true, false) => {
                // As it was when it last belonged, with the revision at which it left.
                let mut left = before.clone();
                object::meta_mut(&mut left).resource_version = change.revision.to_string();
                Some((Happened::Deleted, left))
            }
            (false, false) => None,
        },
        (happened, _) => matches(object).then(|| (happened, object.clone())),
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
    changes: VecDeque<(Change, usize)>,
    bytes: usize,
    /// Every change after this revision is in here.
    floor: u64,
}

impl Ring {
    /// Empty, at this revision.
    pub(crate) fn new(revision: u64) -> Self {
        let kept = Kept {
            changes: VecDeque::new(),
            bytes: 0,
            floor: revision,
        };
        let (head, _) = watch::channel(revision);
        Self {
            kept: Arc::new(Mutex::new(kept)),
            head,
        }
    }

    /// Adds changes, in the order of their revisions; the oldest go. Readers are shown all of these or none.
    pub(crate) fn push(&self, changes: impl IntoIterator<Item = Change>) {
        let mut kept = self.lock();
        let mut last = None;
        for change in changes {
            let bytes = change.bytes();
            last = Some(change.revision);
            kept.bytes += bytes;
            kept.changes.push_back((change, bytes));
        }
        while kept.changes.len() > CHANGES_MAX || kept.bytes > BYTES_MAX {
            let Some((oldest, bytes)) = kept.changes.pop_front() else {
                break;
            };
            kept.bytes -= bytes;
            kept.floor = oldest.revision;
        }
        drop(kept);
        if let Some(last) = last {
            self.head.send_replace(last);
        }
    }

    /// Forgets everything: who is not at this revision lists again.
    pub(crate) fn reset(&self, revision: u64) {
        let mut kept = self.lock();
        kept.changes.clear();
        kept.bytes = 0;
        kept.floor = revision;
        drop(kept);
        self.head.send_replace(revision);
    }

    /// Up to `count` changes after a revision; none yet when it is the newest or is still to come.
    pub(crate) fn after(&self, revision: u64, count: usize) -> Result<Vec<Change>, TooOld> {
        let kept = self.lock();
        if revision < kept.floor {
            return Err(TooOld {
                after: revision,
                oldest: kept.floor,
            });
        }
        let start = kept
            .changes
            .partition_point(|(change, _)| change.revision <= revision);
        let next = kept.changes.range(start..).take(count);
        Ok(next.map(|(change, _)| change.clone()).collect())
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
    // What is told of changes up to here was in the state that the ring began with.
    let mut head = begin(&ring, &applied);
    loop {
        match changes.recv().await {
            Ok(Changed::By(set)) => {
                let news = set.iter().filter(|change| change.revision > head);
                ring.push(news.cloned());
            }
            Ok(Changed::All) | Err(RecvError::Lagged(_)) => head = begin(&ring, &applied),
            Err(RecvError::Closed) => return,
        }
    }
}

fn begin(ring: &Ring, applied: &watch::Receiver<Applied>) -> u64 {
    let head = applied.borrow().state.revision();
    ring.reset(head);
    head
}

#[cfg(test)]
#[path = "watch_test.rs"]
mod tests;
