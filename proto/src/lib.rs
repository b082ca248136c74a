//! The schema: every object, and the commands of the replicated log, generated from `schema/*.proto`.
//!
//! One definition serves gRPC, JSON and YAML. Field names are Kubernetes' (camelCase in the schema). What objects mean is
//! `model`'s business; the services are `rpc`'s.

mod scalar;
mod secret;

/// The newest schema level that this version can apply and read: commands, snapshots, members and agents say theirs. It rises
/// with what an older version would not understand; 2: Secrets; 3: batches, merging applies, history, restores, service
/// accounts, roles and bindings; 4: the cluster's own level, pods with tokens.
pub const SCHEMA_LEVEL: u32 = 5;
/// What members and agents know that do not say more, and what a cluster is at before its members agree on more. Versions
/// below it do not work together with this one.
pub const SCHEMA_LEVEL_MIN: u32 = 3;

/// A point in time, as objects and commands carry it.
pub use pbjson_types::Timestamp;

/// Objects: Namespace, Node, Pod, Deployment, ReplicaSet, ConfigMap, Secret, ServiceAccount, Event, and the kinds of RBAC.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/bulkhead.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/bulkhead.v1.serde.rs"));
}

/// Commands of the replicated log and their replies.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::unwrap_used)]
pub mod state {
    /// First schema of the log.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/bulkhead.state.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/bulkhead.state.v1.serde.rs"));
    }
}

/// The compiled schema, an encoded `google.protobuf.FileDescriptorSet`, for readers that walk it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
