//! The control plane, simulated: members with all that their process runs (API, sessions, the leader's loop, log, state),
//! agents and clients, in one thread, over a simulated network, simulated disks and a clock that goes only when nobody has
//! anything to do. A seed decides everything, so that a run can be had again.
//!
//! | file            | what                                                       |
//! |-----------------|------------------------------------------------------------|
//! | `network.rs`    | calls between hosts, delayed, broken off, repeated and cut |
//! | `member.rs`     | a controller's machine and its process                     |
//! | `agent.rs`      | a node's agent: session, lease, pods                       |
//! | `fence.rs`      | monitors of pods that must not run twice                   |
//! | `client.rs`     | who writes, reads and watches                              |
//! | `operator.rs`   | who runs Deployments, and who is in their way              |
//! | `members.rs`    | who adds, removes and replaces members                     |
//! | `story.rs`      | a cluster from its beginning to its end                    |
//! | `misfortune.rs` | what goes wrong meanwhile                                  |
//! | `history.rs`    | what clients and agents were told and members applied      |
//! | `check.rs`      | whether that can be                                        |
//!
//! What is real: everything of this crate but TLS, TCP and HTTP/2. What stands in: `store/sim.rs` for the disk, `network.rs`
//! here, `simulated.rs` for wall clock, ids and threads, the library's seeded generator for election times.
//! `cargo simulation` builds with `--cfg tokio_unstable`, so that tokio's own choices come from the seed too.

mod agent;
mod check;
mod client;
mod fence;
mod history;
mod member;
mod members;
mod misfortune;
mod network;
mod operator;
mod story;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, RngSeed}; // there with --cfg tokio_unstable: `cargo simulation`
use tokio::task::Id;

use crate::raft::types::Runtime;
use crate::security::ca::Authority;
use crate::simulated;

/// How many seeds the tests here run together, unless BULKHEAD_SEEDS says otherwise.
const SEEDS: u64 = 200;

thread_local! {
    /// Whose each task is: what a task spawns is its host's too.
    static TASKS: RefCell<HashMap<Id, u64>> = RefCell::default();
    /// What panicked in the world of this thread; None outside of one.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs it in a world of its own.
fn in_world<T>(seed: u64, work: impl Future<Output = T>) -> T {
    TASKS.take();
    simulated::set_host(0);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .on_task_spawn(|task| {
            TASKS.with_borrow_mut(|tasks| tasks.insert(task.id(), simulated::host()));
        })
        .on_before_task_poll(|task| {
            let host = TASKS.with_borrow(|tasks| tasks.get(&task.id()).copied());
            simulated::set_host(host.unwrap_or(0));
        })
        .on_task_terminate(|task| {
            TASKS.with_borrow_mut(|tasks| tasks.remove(&task.id()));
        })
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let _world = simulated::enter(seed);
        Runtime::scope(seed, work).await
    })
}

/// What came of a seed; panics of any task are violations.
fn run(seed: u64) -> story::Told {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let outside = PANICS.with_borrow_mut(|panics| match panics {
                Some(panics) => {
                    panics.push(panic.to_string());
                    false
                }
                None => true,
            });
            if outside {
                before(panic);
            }
        }));
    });
    PANICS.set(Some(Vec::new()));
    let world = AssertUnwindSafe(|| in_world(seed, story::tell(seed, authority())));
    let mut told = std::panic::catch_unwind(world).unwrap_or_default(); // the panic is noted below
    told.violations.extend(PANICS.take().unwrap_or_default());
    told
}

/// A CA is made of the machine's own randomness, so all seeds have the same one.
fn authority() -> Arc<Authority> {
    static AUTHORITY: OnceLock<Arc<Authority>> = OnceLock::new();
    let made = || Arc::new(Authority::generate("simulated", 0).expect("a CA"));
    AUTHORITY.get_or_init(made).clone()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Every fourth seed from `part` on, or the one that BULKHEAD_SEED names.
fn part(part: u64) {
    if let Some(level) = std::env::var_os("RUST_LOG") {
        let level = tracing_subscriber::EnvFilter::new(level.to_string_lossy());
        if tracing_subscriber::fmt()
            .with_env_filter(level)
            .with_writer(std::io::stderr)
            .try_init()
            .is_err()
        {
            eprintln!("something else takes the logs");
        }
    }
    let seeds = number("BULKHEAD_SEEDS").unwrap_or(SEEDS);
    let seeds = match number("BULKHEAD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..seeds,
    };
    let mut failed = Vec::new();
    let (mut calls, mut changes, mut ended, mut led) = (0, 0, 0, 0);
    for seed in seeds.filter(|seed| seed % 4 == part) {
        let told = run(seed);
        (calls, changes) = (calls + told.calls, changes + told.changes);
        (ended, led) = (ended + told.ended, led + told.led);
        if std::env::var_os("BULKHEAD_TRACE").is_some() {
            eprint!("{}", told.trace);
        }
        if !told.violations.is_empty() {
            eprintln!("seed {seed}: alone with BULKHEAD_SEED={seed} cargo simulation (and BULKHEAD_TRACE=1)");
            for violation in &told.violations {
                eprintln!("seed {seed}: {violation}");
            }
            failed.push(seed);
        }
    }
    eprintln!(
        "{calls} calls were answered, {changes} changes applied, {ended} processes ended, {led} terms had a leader"
    );
    assert!(failed.is_empty(), "seeds {failed:?} show what should never be");
}

#[test]
fn clusters_keep_their_promises_through_trouble_part_1() {
    part(0);
}

#[test]
fn clusters_keep_their_promises_through_trouble_part_2() {
    part(1);
}

#[test]
fn clusters_keep_their_promises_through_trouble_part_3() {
    part(2);
}

#[test]
fn clusters_keep_their_promises_through_trouble_part_4() {
    part(3);
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    for seed in 0..20 {
        let took = in_world(seed, story::deafen_the_leader(seed, authority()));
        let took = took.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert!(took < Duration::from_secs(4), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [3, 8, 1_000_003] {
        let (first, second) = (run(seed).trace, run(seed).trace);
        let differs = first
            .lines()
            .zip(second.lines())
            .position(|(one, other)| one != other);
        if let Some(line) = differs {
            let at = |trace: &str| trace.lines().nth(line).unwrap_or_default().to_owned();
            panic!("seed {seed}: line {line} is {}, then {}", at(&first), at(&second));
        }
        assert!(first == second, "seed {seed}: one run is longer than the other");
        assert!(first.lines().count() > 1000, "seed {seed} ran");
    }
}
