//! The orchestrator process: API, Raft, leader loop, watches, leases, security.

pub mod metrics;
pub mod raft;
pub mod run;
pub mod security;
pub mod setup;
pub mod store;

#[cfg(test)]
mod setup_test;
