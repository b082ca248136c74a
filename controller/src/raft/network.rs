//! The consensus library's messages to other members.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use rpc::tls::TlsError;
use rpc::v1::raft_client::RaftClient;
use rpc::v1::{Envelope, SnapshotChunk, snapshot_chunk};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Code, Request, Status};

use super::codec;
use super::peers::{Channel, Lane, Peers};
use super::snapshot::SnapshotFile;
use super::types::{Member, MemberId, SnapshotMeta, Types, Vote};
use crate::store::Dir;

/// Largest message between members: one entry of the largest size, or many small ones, and what is around them.
pub(super) const MESSAGE_BYTES_MAX: usize = super::log::ENTRY_BYTES_MAX + (2 << 20);
/// A follower answers an append after its sync; a disk that takes longer is as good as gone.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries to reach a member that is away: it is missed no longer than this once it is back.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A snapshot may take long to send and to install, but something has to move.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes the connections.
pub(super) struct Network<D> {
    pub(super) peers: Peers,
    pub(super) disk: std::marker::PhantomData<fn() -> D>,
}

/// Messages to one member.
pub(super) struct Peer<D> {
    target: MemberId,
    channel: Result<Channel, Arc<TlsError>>,
    disk: std::marker::PhantomData<fn() -> D>,
}

impl<D: Dir> Network<D> {
    fn peer(&self, target: MemberId, member: &Member, lane: Lane) -> Peer<D> {
        let channel = self.peers.channel(target, member, lane).map_err(Arc::new);
        Peer {
            target,
            channel,
            disk: std::marker::PhantomData,
        }
    }
}

impl<D: Dir> RaftNetworkFactory<Types> for Network<D> {
    type Network = Peer<D>;

    async fn new_client(&mut self, target: MemberId, member: &Member) -> Peer<D> {
        self.peer(target, member, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, member: &Member) -> Peer<D> {
        self.peer(target, member, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: MemberId, member: &Member) -> Peer<D> {
        self.peer(target, member, Lane::Snapshot)
    }
}

type Failure = RPCError<Types>;

/// Back off from a member that can't be reached; try again at once after anything else.
fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::Unavailable | Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
            RPCError::Unreachable(Unreachable::new(status))
        }
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

impl<D: Dir> Peer<D> {
    fn client(&self) -> Result<RaftClient<Channel>, Failure> {
        match &self.channel {
            Ok(channel) => Ok(RaftClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)),
            Err(cause) => Err(RPCError::Unreachable(Unreachable::new(cause))),
        }
    }

    /// One message, one answer, within the library's time.
    async fn call<Q, A, F, R>(&self, message: &Q, option: &RPCOption, call: F) -> Result<A, Failure>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: FnOnce(RaftClient<Channel>, Envelope) -> R,
        R: Future<Output = Result<tonic::Response<Envelope>, Status>>,
    {
        let envelope = codec::envelope(message).map_err(|status| failure(&status))?;
        let answer = tokio::time::timeout(option.hard_ttl(), call(self.client()?, envelope)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|status| failure(&status))?,
            Err(_) => return Err(self.timeout("an answer", option.hard_ttl())),
        };
        codec::decode(&answer.into_inner().payload).map_err(|status| failure(&status))
    }

    fn timeout(&self, what: &str, after: Duration) -> Failure {
        RPCError::Network(NetworkError::from_string(format!(
            "member {} gave no {what} within {after:?}",
            self.target
        )))
    }
}

impl<D: Dir> NetBackoff<Types> for Peer<D> {
    fn backoff(&self) -> Option<Backoff> {
        None // the configured one
    }
}

impl<D: Dir> NetVote<Types> for Peer<D> {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, Failure> {
        self.call(&request, &option, |mut client, envelope| async move {
            client.vote(envelope).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, Failure> {
        self.call(&request, &option, |mut client, envelope| async move {
            client.pre_vote(envelope).await
        })
        .await
    }
}

impl<D: Dir> NetTransferLeader<Types> for Peer<D> {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Failure> {
        self.call(&request, &option, |mut client, envelope| async move {
            client.transfer(envelope).await
        })
        .await
    }
}

impl<D: Dir> NetStreamAppend<Types> for Peer<D> {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, Failure>>, Failure>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client()?;
            let sent = Arc::new(AtomicU64::new(0));
            let counter = sent.clone();
            let envelopes = input.filter_map(move |request| {
                counter.fetch_add(1, Ordering::Relaxed);
                let envelope = codec::envelope(&request).map_err(|status| {
                    tracing::error!(%status, "an append request can't be encoded");
                });
                std::future::ready(envelope.ok())
            });
            let answers = client.append(Request::new(envelopes));
            let answers = match tokio::time::timeout(APPEND_TIMEOUT, answers).await {
                Ok(Ok(answers)) => answers.into_inner(),
                Ok(Err(status)) => {
                    // The library pauses between the messages of a stream, not between streams that never began.
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                    return Err(failure(&status));
                }
                Err(_) => return Err(self.timeout("stream", APPEND_TIMEOUT)),
            };
            let waiting = Waiting {
                answers,
                sent,
                received: 0,
            };
            let results = stream::unfold(Some((waiting, &*self)), |state| async move {
                let (mut waiting, peer) = state?;
                let result = waiting.next(peer).await?;
                let next = result.is_ok().then_some((waiting, peer));
                Some((result, next))
            });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }
}

/// The answers of one append stream: the time runs only while one is owed.
struct Waiting {
    answers: tonic::Streaming<Envelope>,
    sent: Arc<AtomicU64>,
    received: u64,
}

impl Waiting {
    async fn next<D: Dir>(&mut self, peer: &Peer<D>) -> Option<Result<StreamAppendResult<Types>, Failure>> {
        loop {
            let sent = self.sent.load(Ordering::Relaxed);
            match tokio::time::timeout(APPEND_TIMEOUT, self.answers.message()).await {
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(envelope))) => {
                    self.received += 1;
                    return Some(codec::decode(&envelope.payload).map_err(|status| failure(&status)));
                }
                Ok(Err(status)) => return Some(Err(failure(&status))),
                Err(_) if sent > self.received => return Some(Err(peer.timeout("answer", APPEND_TIMEOUT))),
                Err(_) => {} // idle
            }
        }
    }
}

/// What the first chunk of a snapshot says.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct SnapshotHeader {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) len: u64,
}

impl<D: Dir> NetSnapshot<Types> for Peer<D> {
    type SnapshotData = SnapshotFile<D>;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotFile<D>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client()?;
        let file = snapshot.snapshot;
        let header = SnapshotHeader {
            vote,
            meta: snapshot.meta,
            len: file.len(),
        };
        let header = codec::envelope(&header)
            .map_err(|status| failure(&status))?
            .payload;
        let header = SnapshotChunk {
            chunk: Some(snapshot_chunk::Chunk::Header(header)),
        };
        let chunks = stream::unfold(0, move |offset| {
            let chunk = file.chunk(offset);
            std::future::ready(match chunk {
                Ok(data) if data.is_empty() => None,
                Ok(data) => {
                    let next = offset + data.len() as u64;
                    Some((
                        SnapshotChunk {
                            chunk: Some(snapshot_chunk::Chunk::Data(data)),
                        },
                        next,
                    ))
                }
                Err(cause) => {
                    tracing::error!(error = %cause, "failed to read the snapshot that is being sent");
                    None // the receiver sees that it is too short
                }
            })
        });
        let chunks = stream::once(std::future::ready(header)).chain(chunks);
        let sending = tokio::time::timeout(SNAPSHOT_TIMEOUT, client.snapshot(Request::new(chunks)));
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = sending => answer,
        };
        let answer = match answer {
            Ok(answer) => answer.map_err(|status| failure(&status))?,
            Err(_) => return Err(self.timeout("answer to a snapshot", SNAPSHOT_TIMEOUT).into()),
        };
        Ok(codec::decode(&answer.into_inner().payload).map_err(|status| failure(&status))?)
    }
}
