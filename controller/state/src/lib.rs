//! The replicated state: what the cluster is to be and what was reported of it.
//!
//! Pure: no I/O, no clock, no randomness; whoever replays the same commands gets the same state, and one seed replays a
//! whole cluster. It does not replicate, store or send anything; `controller` does.
//!
//! Start at [`State::apply`]: one command of the log, carried out whole or refused. [`plan::commands`] says what the
//! leader is to propose next so that reality comes nearer to what is desired, [`schedule::commands`] where pods go.
//!
//! What always holds after every command, whatever its bytes, is written down as code: [`invariant::check`].

mod apply;
mod change;
mod cidr;
mod conditions;
mod history;
mod identity;
pub mod invariant;
mod key;
pub mod level;
pub mod plan;
mod qos;
mod quantity;
pub mod rbac;
mod record;
mod replies;
mod said;
pub mod schedule;
mod snapshot;
mod store;

pub use apply::Outcome;
pub use apply::restore::{RESTORE_BYTES_MAX, REVISION_JUMP};
pub use change::{Began, Change, Happened};
pub use history::{ALL_BYTES_MAX, ALL_FORMS_MAX, FORMS_MAX};
pub use said::{MANAGER_BYTES_MAX, MANAGERS_MAX};
pub use snapshot::{CHUNK_BYTES_MAX, DecodeError};
pub use store::{Revocations, State};

pub use proto::{SCHEMA_LEVEL, SCHEMA_LEVEL_MIN};
/// Largest object: etcd's, and so Kubernetes', order of magnitude; a watch sends each change whole.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;
/// Largest number of operations, and of preconditions, of one transaction: applying it stays well below an election time.
pub const OPERATIONS_MAX: usize = 10_000;
/// Largest status that is stored: a line for each container, not its output.
pub const STATUS_BYTES_MAX: usize = 64 << 10;
/// Longest request id: a UUID, with room for a client's own prefix.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest name of who acts, and of what they did: what a certificate can hold, with room.
pub const ACTOR_BYTES_MAX: usize = 256;
/// Conditions of a node that the leader decides from leases; an agent's report leaves them alone.
pub const NODE_OWN_CONDITIONS: [&str; 2] = ["Ready", "ReplacementPaused"];
/// Labels that every node gets when it joins; a manifest that does not name them leaves them alone.
pub const NODE_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];
/// Which revision of a Deployment a ReplicaSet is; on the Deployment, which one is current. As [`NODE_LABELS`], it stays.
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
