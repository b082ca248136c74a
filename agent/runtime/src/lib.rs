//! One container: namespaces, cgroups, seccomp, mounts, labels, lifecycle.
//!
//! The agent's pods and the `bulkhead-runtime` command line go through this library. It knows nothing of clusters: no
//! proto, no tokio. `spec` says what a pod and a container are to be; `monitor` owns a pod's containers.

pub mod monitor;
pub mod spec;
