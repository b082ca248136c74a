//! The orchestrator process: API, Raft, leader loop, watches, leases, security.

mod admission;
mod api;
mod audit;
mod calls;
mod clock;
mod drive;
mod events;
mod leases;
pub mod metrics;
pub mod raft;
mod relay;
pub mod run;
pub mod security;
mod session;
pub mod setup;
mod status;
pub mod storage_keys;
pub mod store;
mod watch;
mod why;

#[cfg(test)]
mod setup_test;
#[cfg(test)]
mod storage_keys_test;
