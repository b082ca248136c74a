//! Looks at a member's disk, and gives the lead away when it is nearly full.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;

use super::node::{Inner, Node};
use super::types::MemberId;
use crate::store::{Dir, Watched};

/// How often a disk with room is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// Likewise one that a busy log could fill meanwhile.
const INTERVAL_NEAR: Duration = Duration::from_millis(200);
const NEAR_BYTES: u64 = 1 << 30;

/// Looks again and again, as long as there is the member: before a write finds the disk full.
pub(super) async fn watch<D: Dir>(member: Weak<Inner<D>>) {
    let mut pause = INTERVAL_NEAR;
    loop {
        tokio::time::sleep(pause).await;
        let Some(inner) = member.upgrade() else { return };
        look(&inner.room, &inner.directory, inner.id);
        let near = inner.room.free() < NEAR_BYTES;
        pause = if near { INTERVAL_NEAR } else { INTERVAL };
        let node = Node { inner };
        let leads = node.leadership().borrow().is_me;
        let full = match leads {
            true => lead(&node).await,
            false => None,
        };
        node.inner.full_majority.store(full.map(Arc::new));
    }
}

/// Gives the lead to a voter with room, if this member has none. Why nothing can be written, when most have none.
async fn lead<D: Dir>(node: &Node<D>) -> Option<String> {
    let voters: Vec<_> = node.members().into_iter().filter(|info| info.voter).collect();
    let asked = voters.iter().map(|voter| async move {
        let progress = node.progress_of(voter.id).await;
        (voter, progress.map(|there| there.nearly_full))
    });
    let told = join_all(asked).await;
    let full: Vec<&str> = told
        .iter()
        .filter(|(_, full)| *full == Some(true))
        .map(|(voter, _)| voter.member.name.as_str())
        .collect();
    if node.nearly_full().is_some() {
        let with_room = told.iter().filter(|(_, full)| *full == Some(false));
        for (voter, _) in with_room {
            match node.transfer_leadership(voter.id).await {
                Ok(()) => {
                    tracing::info!(to = voter.id, "gave the lead to a member whose disk has room");
                    break;
                }
                Err(cause) => tracing::warn!(to = voter.id, error = %cause, "failed to give the lead away"),
            }
        }
    }
    (full.len() * 2 >= voters.len()).then(|| {
        let names = full.join(", ");
        format!("the disks of most controllers are nearly full ({names}): nothing is written before they have room")
    })
}

/// One look; what it finds is said when it is news.
pub(super) fn look(watched: &Watched, log: &impl Dir, member: MemberId) {
    let directory = log.display();
    let room = match log.room() {
        Ok(room) => room,
        Err(cause) => {
            tracing::warn!(directory, error = %cause, "failed to see what is free of the disk");
            return;
        }
    };
    if watched.saw(room) {
        match watched.nearly_full(member) {
            Some(full) => tracing::error!(directory, "{full}"),
            None => tracing::info!(directory, "the disk has room again: this member takes writes"),
        }
    }
}
