//! The services that clients, agents and members call, generated from `../schema/{api,agent,raft,peer}.proto` for tonic, and
//! what every caller needs before its first call: a TLS channel and the text form of join tokens; and the words to the
//! service manager.

mod secret;
pub mod service;
pub mod tls;
pub mod token;

/// Calls and their messages; objects are `proto`'s.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/bulkhead.rpc.v1.rs"));
}

/// The compiled schema of the calls, an encoded `google.protobuf.FileDescriptorSet`: authorization and strict reading of
/// requests walk it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
