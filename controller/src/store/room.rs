//! Room on a member's disk. With too little of it a leader takes nothing new, so that votes, a snapshot and what is under
//! way still find a place; with a quarter of that a follower takes nothing either. Both go on as soon as there is more:
//! nothing has to be repaired.

use std::sync::atomic::{AtomicU64, Ordering};

/// With less than this free, or less than a tenth of a small disk, nothing new is taken.
const RESERVE_BYTES: u64 = 64 << 20;

/// What is free of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// For this process.
    pub free: u64,
    /// The whole disk.
    pub total: u64,
}

impl Room {
    fn reserve(self) -> u64 {
        RESERVE_BYTES.min(self.total / 10)
    }
}

/// A disk that is nearly full.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of member {member} has {} MiB left: nothing is written before it has {} MiB",
    free >> 20,
    wanted.div_ceil(1 << 20)
)]
pub struct NearlyFull {
    /// Whose.
    pub member: u64,
    /// What is left, in bytes.
    pub free: u64,
    /// From here on it is enough, in bytes.
    pub wanted: u64,
}

/// The last look at a disk.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    free: AtomicU64,
    /// From how much on there is enough again, a quarter more than the reserve; 0 while there is enough.
    wanted: AtomicU64,
}

impl Watched {
    /// Takes a look; whether the disk has become nearly full or is no longer.
    pub(crate) fn saw(&self, room: Room) -> bool {
        let was = self.wanted.load(Ordering::Relaxed);
        // A quarter more, or it would change with each write.
        let enough = room.reserve() + room.reserve() / 4;
        let wanted = match room.free {
            free if free < room.reserve() => enough,
            free if free < enough && was > 0 => enough,
            _ => 0,
        };
        self.free.store(room.free, Ordering::Relaxed);
        self.wanted.store(wanted, Ordering::Relaxed);
        (was == 0) != (wanted == 0)
    }

    /// Bytes that were free.
    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// The disk of this member, when it takes not even what others have taken: with a quarter of the reserve, or less.
    pub(crate) fn exhausted(&self, member: u64) -> Option<NearlyFull> {
        self.nearly_full(member)
            .filter(|full| full.free < full.wanted / 5)
    }

    /// The disk of this member, when it is nearly full.
    pub(crate) fn nearly_full(&self, member: u64) -> Option<NearlyFull> {
        let wanted = self.wanted.load(Ordering::Relaxed);
        (wanted > 0).then(|| NearlyFull {
            member,
            free: self.free(),
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_nearly_full_until_a_good_deal_more_is_free() {
        let watched = Watched::default();
        let saw = |free_mib: u64, total_mib: u64| {
            let changed = watched.saw(Room {
                free: free_mib << 20,
                total: total_mib << 20,
            });
            (changed, watched.nearly_full(1).is_some())
        };
        assert_eq!(saw(5000, 10_000), (false, false));
        assert_eq!(saw(64, 10_000), (false, false));
        assert_eq!(saw(63, 10_000), (true, true));
        assert_eq!(saw(70, 10_000), (false, true));
        assert_eq!(saw(80, 10_000), (true, false));
        assert_eq!(saw(70, 10_000), (false, false));
        // Of a small disk a tenth.
        assert_eq!(saw(10, 100), (false, false));
        assert_eq!(saw(9, 100), (true, true));
        assert_eq!(watched.exhausted(3), None);
        let full = watched.nearly_full(3).unwrap().to_string();
        assert_eq!(
            full,
            "the disk of member 3 has 9 MiB left: nothing is written before it has 13 MiB"
        );
        assert_eq!(saw(2, 100), (false, true));
        assert!(watched.exhausted(3).is_some());
    }
}
