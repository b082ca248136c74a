//! The pod monitor: one small single-threaded process that is the parent of its pod's containers.
//!
//! It holds the pod's namespaces and its containers' standard streams, writes their logs, collects their ends, and
//! answers on `monitor.sock` in its directory (`protocol`). Agents come and go; it stays. It restarts nothing on its own.

pub mod frame;
pub mod log;
pub mod protocol;
pub mod tail;
