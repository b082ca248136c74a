//! One container: namespaces, cgroups, seccomp, mounts, labels, lifecycle.
//!
//! The agent's pods and the `bulkhead-runtime` command line go through this library. It knows nothing of clusters: no
//! proto, no tokio. `spec` says what a pod and a container are to be; `sandbox` makes a pod's shared parts, `container`
//! one container, `exec` a further process in it; `cgroup` limits, counts and kills; `inspect` reads back from the kernel
//! what came of it; `monitor` owns a pod's containers.
//!
//! Always: a failed call leaves no process, mount, cgroup or descriptor behind; what was not asked for is not given; what
//! cannot be enforced is refused.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod binary;
pub mod capability;
pub mod cgroup;
pub mod container;
pub mod defaults;
pub mod exec;
pub mod inspect;
pub mod monitor;
pub mod name;
pub mod oci;
pub mod rdt;
pub mod sandbox;
pub mod seccomp;
pub mod spec;
pub mod systemd;

#[cfg(test)]
#[path = "../tests/skip/mod.rs"]
mod skip;
