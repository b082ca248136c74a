//! One container: namespaces, cgroups, seccomp, mounts, labels, lifecycle.
//!
//! The agent's pods and the `bulkhead-runtime` command line go through this library. It knows nothing of clusters: no
//! proto, no tokio. `spec` says what a pod and a container are to be; `monitor` owns a pod's containers.

pub mod spec;
pub mod monitor {
    //! The pod monitor: one small single-threaded process that is the parent of its pod's containers.
    pub mod protocol;
}
