//! The orchestrator process: API, Raft, leader loop, watches, leases, security.

mod admission;
mod api;
mod audit;
mod calls;
mod clock;
mod drive;
mod events;
mod figures;
mod leases;
pub mod metrics;
pub mod raft;
mod relay;
pub mod run;
pub mod security;
mod session;
pub mod setup;
#[cfg(feature = "simulation")]
mod simulated;
mod status;
pub mod storage_keys;
pub mod store;
mod watch;
mod why;

/// Off the threads that serve connections: work that takes the processor for a while.
#[cfg(not(feature = "simulation"))]
fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

#[cfg(feature = "simulation")]
use simulated::blocking;

#[cfg(test)]
mod setup_test;
#[cfg(all(test, feature = "simulation"))]
mod simulation;
#[cfg(test)]
mod storage_keys_test;
