//! What the other members call: the consensus library's messages, and calls that only the leader can carry out.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use futures_util::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use openraft::storage::Snapshot;
use prost::Message;
use proto::state::v1::CommandReply;
use rpc::v1::change_members_request::Change;
use rpc::v1::raft_server::Raft as RaftService;
use rpc::v1::{
    ChangeMembersReply, ChangeMembersRequest, CommandReplies, Envelope, NotLeader, ProgressReply,
    ProgressRequest, ProposeReply, ProposeRequest, ReadIndexReply, ReadIndexRequest, SnapshotChunk,
    change_members_reply, propose_reply, read_index_reply, snapshot_chunk,
};
use serde::Serialize;
use tonic::{Request, Response, Status, Streaming};

use super::codec;
use super::machine::blocking;
use super::members::MemberChange;
use super::network::SnapshotHeader;
use super::node::{At, Node, Refusal};
use super::types::{Member, MemberId};
use crate::security::identity::Identity;
use crate::security::listen::identity_of;
use crate::store::{Dir, NearlyFull};

/// Of answers that are sent together, the first not counted.
const REPLIES_BYTES_MAX: usize = 1 << 20;

/// The service, over a member's node.
pub(super) struct PeerService<D: Dir> {
    pub(super) node: Node<D>,
}

/// Only members, and which one.
fn member<T>(request: &Request<T>) -> Result<MemberId, Status> {
    match identity_of(request)? {
        Identity::Member(id) => Ok(id),
        other => Err(Status::permission_denied(format!("{other} is no member"))),
    }
}

fn fatal(cause: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member is stopping: {cause}"))
}

/// The leader backs off.
fn no_room(full: &NearlyFull) -> Status {
    Status::failed_precondition(full.to_string())
}

fn answer<T: Serialize>(message: &T) -> Result<Response<Envelope>, Status> {
    codec::envelope(message).map(Response::new)
}

fn not_leader(leader: Option<MemberId>) -> NotLeader {
    NotLeader {
        leader: leader.unwrap_or(0),
    }
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Unknown(cause) => Status::deadline_exceeded(cause),
        Refusal::Invalid(cause) => Status::invalid_argument(cause),
        Refusal::Overloaded => Status::resource_exhausted("too many writes wait for the disks"),
        Refusal::NearlyFull(cause) => Status::failed_precondition(cause),
        Refusal::Stopped(cause) => fatal(cause),
    }
}

impl<D: Dir> PeerService<D> {
    /// A member that was removed keeps its certificate for a while, but may not act for the cluster any more.
    fn current_member<T>(&self, request: &Request<T>) -> Result<MemberId, Status> {
        let id = member(request)?;
        if self.node.members().iter().any(|found| found.id == id) {
            Ok(id)
        } else {
            Err(Status::permission_denied(format!(
                "member {id} is not in this cluster any more"
            )))
        }
    }
}

/// Small commands may have large answers: those that don't fit into one message are asked for again.
fn fitting(mut replies: Vec<CommandReply>) -> CommandReplies {
    let mut room = REPLIES_BYTES_MAX;
    // The first always fits: a single one is what a command may answer.
    for reply in replies.iter_mut().skip(1) {
        match room.checked_sub(reply.encoded_len()) {
            Some(left) => room = left,
            None => *reply = CommandReply::default(),
        }
    }
    CommandReplies { replies }
}

#[tonic::async_trait]
impl<D: Dir> RaftService for PeerService<D> {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        member(&request)?;
        // The first message that can't be read ends the stream: the leader starts over. So does one with entries for which
        // the disk has no room; heartbeats have none.
        let (node, refused) = (self.node.clone(), Arc::new(OnceLock::new()));
        let why = refused.clone();
        let requests = tokio_stream::StreamExt::map_while(request.into_inner(), move |envelope| {
            let decoded =
                envelope.and_then(|envelope| codec::decode::<AppendEntriesRequest<_>>(&envelope.payload));
            let decoded = decoded
                .map_err(|status| tracing::debug!(%status, "an append stream ended"))
                .ok()?;
            match node.exhausted().filter(|_| !decoded.entries.is_empty()) {
                None => Some(decoded),
                Some(full) => {
                    why.get_or_init(|| full);
                    None
                }
            }
        });
        let answers = self
            .node
            .raft()
            .stream_append(requests)
            .map(|result| match result {
                Ok(result) => codec::envelope(&result),
                Err(cause) => Err(fatal(cause)),
            });
        let last = stream::once(async move { refused.get().map(|full| Err(no_room(full))) });
        let answers = answers.chain(last.filter_map(std::future::ready));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        member(&request)?;
        let request = codec::decode(&request.into_inner().payload)?;
        answer(&self.node.raft().vote(request).await.map_err(fatal)?)
    }

    async fn pre_vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        member(&request)?;
        let request = codec::decode(&request.into_inner().payload)?;
        answer(&self.node.raft().pre_vote(request).await.map_err(fatal)?)
    }

    async fn transfer(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        member(&request)?;
        let request = codec::decode(&request.into_inner().payload)?;
        answer(
            &self
                .node
                .raft()
                .handle_transfer_leader(request)
                .await
                .map_err(fatal)?,
        )
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<Envelope>, Status> {
        member(&request)?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|chunk| chunk.chunk);
        let Some(snapshot_chunk::Chunk::Header(header)) = first else {
            return Err(Status::invalid_argument("a snapshot begins with its header"));
        };
        let header: SnapshotHeader = codec::decode(&header)?;
        let storage =
            |cause: &dyn std::fmt::Display| Status::internal(format!("failed to take the snapshot: {cause}"));
        if let Some(full) = self.node.exhausted() {
            return Err(no_room(&full));
        }
        let mut incoming = self.node.snapshots().receive().map_err(|cause| storage(&cause))?;
        let mut received = 0;
        while let Some(chunk) = chunks.message().await? {
            let Some(snapshot_chunk::Chunk::Data(data)) = chunk.chunk else {
                return Err(Status::invalid_argument("a snapshot has one header"));
            };
            received += data.len() as u64;
            if received > header.len {
                return Err(Status::invalid_argument("the snapshot is longer than announced"));
            }
            let written = blocking(self.node.write_by(), move || {
                incoming.write(&data)?;
                Ok(incoming)
            });
            incoming = written.await.map_err(|cause| storage(&cause))?;
        }
        if received != header.len {
            return Err(Status::data_loss("the snapshot ended early"));
        }
        let snapshots = self.node.snapshots().clone();
        let meta = header.meta.clone();
        let file = blocking(self.node.write_by(), move || {
            let file = incoming.finish()?;
            // Checked before the library hears of it: once it installs, a failure stops this member.
            if snapshots.verify(&file)? != meta {
                return Err(std::io::Error::other("it is not the announced one"));
            }
            Ok(file)
        });
        let file = file.await.map_err(|cause| storage(&cause))?;
        let snapshot = Snapshot {
            meta: header.meta,
            snapshot: file,
        };
        let installed = self
            .node
            .raft()
            .install_full_snapshot(header.vote, snapshot)
            .await;
        answer(&installed.map_err(fatal)?)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        self.current_member(&request)?;
        let commands = request.into_inner().commands;
        let reply = match self.node.propose_here(commands).await.map_err(refused)? {
            At::Leader(replies) => propose_reply::Reply::Done(fitting(replies)),
            At::Other(leader) => propose_reply::Reply::NotLeader(not_leader(leader)),
        };
        Ok(Response::new(ProposeReply { reply: Some(reply) }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        self.current_member(&request)?;
        let reply = match self.node.read_index_here().await.map_err(refused)? {
            At::Leader(index) => read_index_reply::Reply::Index(index),
            At::Other(leader) => read_index_reply::Reply::NotLeader(not_leader(leader)),
        };
        Ok(Response::new(ReadIndexReply { reply: Some(reply) }))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersReply>, Status> {
        self.current_member(&request)?;
        let change = match request.into_inner().change {
            Some(Change::AddLearner(added)) => {
                let member = Member {
                    name: added.name,
                    address: added.address,
                    peer_address: added.peer_address,
                };
                MemberChange::AddLearner(added.id, member)
            }
            Some(Change::Promote(id)) => MemberChange::Promote(id),
            Some(Change::Remove(id)) => MemberChange::Remove(id),
            Some(Change::TransferTo(id)) => MemberChange::TransferTo(id),
            None => return Err(Status::invalid_argument("no change")),
        };
        let reply = match self.node.change_here(&change).await {
            Ok(At::Leader(())) => change_members_reply::Reply::Done(true),
            Ok(At::Other(leader)) => change_members_reply::Reply::NotLeader(not_leader(leader)),
            Err(Refusal::Invalid(cause)) => change_members_reply::Reply::Refused(cause),
            Err(other) => return Err(refused(other)),
        };
        Ok(Response::new(ChangeMembersReply { reply: Some(reply) }))
    }

    async fn progress(&self, request: Request<ProgressRequest>) -> Result<Response<ProgressReply>, Status> {
        member(&request)?;
        Ok(Response::new(self.node.progress()))
    }
}

#[cfg(test)]
mod tests {
    use proto::state::v1::{Refused, command_reply};

    use super::*;

    #[test]
    fn answers_that_have_no_room_are_left_empty_but_the_first() {
        let reply = |bytes: usize| {
            let refused = Refused {
                message: "x".repeat(bytes),
                ..Refused::default()
            };
            CommandReply {
                reply: Some(command_reply::Reply::Refused(refused)),
            }
        };
        let large = 2 * REPLIES_BYTES_MAX;
        let replies = fitting(vec![reply(large), reply(10), reply(large), reply(10)]).replies;
        let there: Vec<bool> = replies.iter().map(|reply| reply.reply.is_some()).collect();
        assert_eq!(there, [true, true, false, true]);
    }
}
