//! The orchestrator process: API, Raft, leader loop, watches, leases, security.

pub mod raft;
pub mod security;
pub mod store;
