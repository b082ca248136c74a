//! The replicated log: on disk, between the members, and applied to the state.

pub mod log;
pub mod types;
