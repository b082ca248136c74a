//! What the consensus library is told about us: ids, members, entries and answers.

use std::fmt;

use bytes::Bytes;
use prost::Message;
use proto::state::v1::{Command, CommandBatch, CommandReply, command};
use serde::{Deserialize, Serialize};

/// A member's number: never used again after it was removed.
pub type MemberId = u64;

openraft::declare_raft_types!(
    /// The library's type parameters. One leader a term, as in the Raft paper.
    pub Types:
        D = Proposal,
        R = Answer,
        NodeId = MemberId,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, MemberId>,
        AsyncRuntime = Runtime,
);

#[cfg(not(feature = "simulation"))]
#[allow(deprecated)] // the other name is in a crate of its own
type Runtime = openraft::impls::TokioRuntime;
/// Whose randomness comes from a seed.
#[cfg(feature = "simulation")]
#[allow(deprecated)]
pub(crate) type Runtime = openraft::rt::deterministic_rng::DeterministicRng<openraft::impls::TokioRuntime>;

/// Log id: term and index.
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
/// Whom this member voted for.
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
/// One log entry.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// Members with the log id that made them so.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// A controller, as the membership in the log has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// HOST:PORT of its API.
    pub address: String,
    /// HOST:PORT where other members reach it.
    pub peer_address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.peer_address)
    }
}

/// Least schema level that knows batches.
const BATCH_LEVEL: u32 = 3;

/// An encoded `Command`, possibly a batch of them: kept encoded, so that caches, log and network share one copy of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl Proposal {
    /// Of encoded commands, in order.
    pub fn of(mut commands: Vec<Vec<u8>>) -> Self {
        if let [command] = commands.as_mut_slice() {
            return Self(std::mem::take(command).into());
        }
        let batch = Command {
            level: BATCH_LEVEL,
            kind: Some(command::Kind::Batch(CommandBatch { commands })),
            ..Default::default()
        };
        Self(batch.encode_to_vec().into())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len()) // its content may be secret
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Serialize for Proposal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Proposal;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Proposal, E> {
                Ok(Proposal(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Proposal, E> {
                Ok(Proposal(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What applying an entry answers: one reply for each command in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer(pub Vec<CommandReply>);
