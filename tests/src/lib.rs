//! Real processes, real containers: the harness of the scenarios.
//!
//! A [`Cluster`] is a whole cluster of the built binaries, brought up by `ctl dev up` inside a network namespace of the
//! test's own and taken down on drop, also after a panic; what it leaves behind fails the test. Clusters have different
//! names, so that several tests run at once on one machine.

pub mod access;
pub mod cluster;
pub mod disk;
pub mod kernel;
pub mod leaks;
pub mod machine;

pub use access::Access;
pub use cluster::{Cluster, Output, Process};
pub use disk::SmallDisk;
pub use machine::{can_run, wait_for};
