//! The replicated log: on disk, between the members, and applied to the state.
//!
//! The consensus library (openraft) is known in here only; [`Node`] is what the rest of the process uses.

mod codec;
mod disk;
pub mod forward;
mod gather;
pub mod log;
mod machine;
mod members;
mod network;
pub mod node;
pub mod peers;
mod serve;
mod service;
mod snapshot;
pub mod types;

pub use forward::{ChangeError, ProposeError, ReadError};
pub use machine::{Applied, Changed};
pub use members::MemberInfo;
pub use node::{Leadership, Node, NodeConfig, StartError, Timings};
pub use peers::{Channel, Peers};
pub use snapshot::SnapshotError;
pub use types::{Member, MemberId};

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod disk_test;
#[cfg(test)]
mod gather_test;
#[cfg(test)]
mod level_test;
#[cfg(test)]
mod seal_test;
#[cfg(test)]
mod stress_test;
#[cfg(test)]
mod suite_test;
