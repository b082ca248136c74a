//! What stands in for the machine while a simulation runs on this thread: its clock, its randomness and its threads.
//! `simulation` is who uses it; outside of one the machine's own answer.

#![cfg_attr(not(test), allow(dead_code))] // the simulation is a test

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where every simulation begins: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    static HOST: Cell<u64> = const { Cell::new(0) };
}

struct World {
    began: Instant,
    random: Random,
    /// By how many milliseconds the wall clock of a host is wrong.
    wrong_ms: BTreeMap<u64, i64>,
    /// How long a thread of a host works at most.
    busy: BTreeMap<u64, Duration>,
}

/// A sequence that a seed decides: SplitMix64, as Steele, Lea and Flood describe it.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True so many times in a thousand.
    pub(crate) fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(1000 * from + self.below(1000 * (to - from).max(1)))
    }
}

/// Until it is dropped, this thread is a world of its own.
pub(crate) struct Entered(());

/// Begins one, in a runtime whose clock stands still.
pub(crate) fn enter(seed: u64) -> Entered {
    let world = World {
        began: Instant::now(),
        random: Random::new(seed),
        wrong_ms: BTreeMap::new(),
        busy: BTreeMap::new(),
    };
    WORLD.set(Some(world));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// Whose task runs.
pub(crate) fn host() -> u64 {
    HOST.get()
}

/// From now on a task of this host runs.
pub(crate) fn set_host(host: u64) {
    HOST.set(host);
}

/// Does this as that host: what it spawns is the host's.
pub(crate) fn as_host<T>(host: u64, work: impl FnOnce() -> T) -> T {
    let before = HOST.replace(host);
    let done = work();
    HOST.set(before);
    done
}

/// The wall clock of a host jumps by so much.
pub(crate) fn jump(host: u64, by_ms: i64) {
    WORLD.with_borrow_mut(|world| {
        if let Some(world) = world {
            *world.wrong_ms.entry(host).or_default() += by_ms;
        }
    });
}

/// Time since 1970, as the host whose task runs has it.
pub(crate) fn now() -> Duration {
    WORLD.with_borrow(|world| match world {
        None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        Some(world) => {
            let wrong = world.wrong_ms.get(&host()).copied().unwrap_or(0);
            let right = EPOCH + world.began.elapsed();
            match wrong {
                0.. => right + Duration::from_millis(wrong.unsigned_abs()),
                _ => right.saturating_sub(Duration::from_millis(wrong.unsigned_abs())),
            }
        }
    })
}

/// Of the world's own sequence.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    WORLD.with_borrow_mut(|world| {
        let mut bytes = [0; N];
        match world {
            None => getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has booted"),
            Some(world) => bytes
                .chunks_mut(8)
                .for_each(|piece| piece.copy_from_slice(&world.random.next().to_le_bytes()[..piece.len()])),
        }
        bytes
    })
}

/// From now on what a thread of this host does takes up to this long.
pub(crate) fn set_busy(host: u64, max: Duration) {
    WORLD.with_borrow_mut(|world| {
        if let Some(world) = world {
            world.busy.insert(host, max);
        }
    });
}

/// What else a thread would do: after as long as the host that asks for it takes.
pub(crate) async fn blocking<T>(work: impl FnOnce() -> T) -> Result<T, tokio::task::JoinError> {
    let takes = WORLD.with_borrow_mut(|world| {
        let world = world.as_mut()?;
        let max = world.busy.get(&host()).copied().unwrap_or_default();
        (!max.is_zero()).then(|| world.random.millis(0, max.as_millis() as u64))
    });
    match takes {
        Some(takes) => tokio::time::sleep(takes).await,
        None => tokio::task::yield_now().await,
    }
    Ok(work())
}
