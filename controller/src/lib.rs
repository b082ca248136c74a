//! The orchestrator process: API, Raft, leader loop, watches, leases, security.
