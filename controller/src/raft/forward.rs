//! Calls that end at the leader, wherever they begin: propose, read, change the members. They try again until a
//! deadline while leadership moves.

use std::time::Duration;

use prost::Message;
use proto::state::v1::command::Kind;
use proto::state::v1::{Command, CommandReply};
use rpc::v1::change_members_request::Change;
use rpc::v1::raft_client::RaftClient;
use rpc::v1::{
    ChangeMembersRequest, MemberAddress, ProgressReply, ProgressRequest, ProposeRequest, ReadIndexRequest,
    change_members_reply, propose_reply, read_index_reply,
};
use state::{State, level};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::log::ENTRY_BYTES_MAX;
use super::members::MemberChange;
use super::network::MESSAGE_BYTES_MAX;
use super::node::{At, LEADER_TIMEOUT, Node, Refusal};
use super::peers::Channel;
use super::types::{Member, MemberId};
use crate::store::Dir;

/// How long a call looks for a leader that carries it out.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A member that has not said how far it is within this time counts as unreachable.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// While the leader is not known, or says that it isn't.
const PAUSE: Duration = Duration::from_millis(10);
/// Largest command: what an entry may hold, less what the library puts around it.
pub const COMMAND_BYTES_MAX: usize = ENTRY_BYTES_MAX - 1024;

/// Why a proposal has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// More than one entry may hold.
    #[error("the write has {bytes} bytes, more than {COMMAND_BYTES_MAX}; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Nobody led in time; nothing was written.
    #[error("no controller leads: most of the members can't be reached")]
    NoLeader,
    /// More is proposed than the disks take; nothing was written.
    #[error("too many writes wait for the controllers' disks; try again later")]
    Overloaded,
    /// The leader's disk is nearly full, and so are those of the others; nothing was written.
    #[error("{cause}")]
    NearlyFull {
        /// Whose, and how much.
        cause: String,
    },
    /// It was handed over, and then no answer came. With a request id one may ask again.
    #[error("it is not known whether the write happened: {cause}")]
    Unknown {
        /// What came instead of an answer.
        cause: String,
    },
    /// Not every member can apply it; nothing was written.
    #[error(
        "it needs schema level {needed}, and not every controller knows more than {known}: upgrade those that `ctl cluster members` shows with less"
    )]
    Level {
        /// Of what was to be written.
        needed: u32,
        /// Of the cluster.
        known: u32,
    },
    /// This member is ending.
    #[error("this controller is stopping: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody could confirm that they lead; a stale read may do.
    #[error("no controller leads: most of the members can't be reached; `--stale` reads what this one has")]
    NoLeader,
    /// This member is ending.
    #[error("this controller is stopping: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

/// Why the members were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It can't be done.
    #[error("{0}")]
    Refused(String),
    /// Nobody carried it out in time; it may still happen.
    #[error("the change is not confirmed: {0}")]
    Unknown(String),
    /// This member is ending.
    #[error("this controller is stopping: {0}")]
    Stopped(String),
}

/// One try at one place.
pub(super) enum Try<T> {
    Done(T),
    /// Nothing happened; somebody else may lead.
    Elsewhere(Option<MemberId>),
    /// It may have happened.
    Unknown(String),
    Refused(String),
    Overloaded,
    NearlyFull(String),
    Stopped(String),
}

impl<T> Try<T> {
    /// The same failure, of another call that went with it.
    pub(super) fn without_answer<O>(&self) -> Try<O> {
        match self {
            Self::Done(_) => Try::Unknown("the answer was another call's".to_owned()),
            Self::Elsewhere(leader) => Try::Elsewhere(*leader),
            Self::Unknown(cause) => Try::Unknown(cause.clone()),
            Self::Refused(cause) => Try::Refused(cause.clone()),
            Self::Overloaded => Try::Overloaded,
            Self::NearlyFull(cause) => Try::NearlyFull(cause.clone()),
            Self::Stopped(cause) => Try::Stopped(cause.clone()),
        }
    }
}

/// After one try.
enum Pause {
    Again,
    TimeOver,
    Stopped(String),
}

impl<T> From<Result<At<T>, Refusal>> for Try<T> {
    fn from(result: Result<At<T>, Refusal>) -> Self {
        match result {
            Ok(At::Leader(done)) => Self::Done(done),
            Ok(At::Other(leader)) => Self::Elsewhere(leader),
            Err(Refusal::Unknown(cause)) => Self::Unknown(cause),
            Err(Refusal::Invalid(cause)) => Self::Refused(cause),
            Err(Refusal::Overloaded) => Self::Overloaded,
            Err(Refusal::NearlyFull(cause)) => Self::NearlyFull(cause),
            Err(Refusal::Stopped(cause)) => Self::Stopped(cause),
        }
    }
}

fn failed<T>(status: &Status) -> Try<T> {
    match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
            Try::Refused(status.message().to_owned())
        }
        Code::ResourceExhausted => Try::Overloaded,
        Code::FailedPrecondition => Try::NearlyFull(status.message().to_owned()),
        _ => Try::Unknown(status.message().to_owned()),
    }
}

impl<D: Dir> Node<D> {
    /// Commits a command, here or at the leader, and gives what applying it answered. A command with a request id is
    /// tried again until its fate is known; one without is not, once it may have happened.
    pub async fn propose(&self, mut command: Command) -> Result<CommandReply, ProposeError> {
        command.level = level::of(&command);
        let known = self.inner.published.applied.borrow().state.level();
        // Whoever raises the level has asked every member.
        if command.level > known && !matches!(command.kind, Some(Kind::RaiseLevel(_))) {
            return Err(ProposeError::Level {
                needed: command.level,
                known,
            });
        }
        let bytes = command.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        let repeatable = !command.request_id.is_empty();
        let began = Instant::now();
        let deadline = began + DEADLINE;
        let mut hint = None;
        let mut unknown = None;
        loop {
            match self.inner.gather.propose(command.encode_to_vec(), hint).await {
                Try::Done(reply) => {
                    let took = began.elapsed().as_secs_f64();
                    self.inner.timings.proposals.observe(took);
                    return Ok(reply);
                }
                Try::Elsewhere(leader) => hint = leader,
                Try::Unknown(cause) if repeatable => {
                    hint = None;
                    unknown = Some(cause);
                }
                Try::Unknown(cause) | Try::Refused(cause) => return Err(ProposeError::Unknown { cause }),
                Try::Overloaded => return Err(ProposeError::Overloaded),
                Try::NearlyFull(cause) => return Err(ProposeError::NearlyFull { cause }),
                Try::Stopped(cause) => return Err(ProposeError::Stopped { cause }),
            }
            match self.pause(deadline).await {
                Pause::Again => {}
                Pause::TimeOver => {
                    return Err(
                        unknown.map_or(ProposeError::NoLeader, |cause| ProposeError::Unknown { cause })
                    );
                }
                Pause::Stopped(stopped) => {
                    let stopped = ProposeError::Stopped { cause: stopped };
                    return Err(unknown.map_or(stopped, |cause| ProposeError::Unknown { cause }));
                }
            }
        }
    }

    /// The state, with everything that was acknowledged anywhere before this call.
    pub async fn read(&self) -> Result<State, ReadError> {
        let deadline = Instant::now() + DEADLINE;
        let mut hint = None;
        loop {
            match self.inner.gather.read_index(hint).await {
                Try::Done(index) => return self.wait_applied(index, deadline).await,
                Try::Elsewhere(leader) => hint = leader,
                Try::Unknown(_) | Try::Refused(_) | Try::Overloaded | Try::NearlyFull(_) => hint = None,
                Try::Stopped(cause) => return Err(ReadError::Stopped { cause }),
            }
            match self.pause(deadline).await {
                Pause::Again => {}
                Pause::TimeOver => return Err(ReadError::NoLeader),
                Pause::Stopped(cause) => return Err(ReadError::Stopped { cause }),
            }
        }
    }

    /// How far a member is; None: it did not say.
    pub(crate) async fn progress_of(&self, id: MemberId) -> Option<ProgressReply> {
        if id == self.id() {
            return Some(self.progress());
        }
        let channel = match self.peer_channel(id)? {
            Ok(channel) => channel,
            Err(cause) => {
                tracing::warn!(error = %cause, member = id, "a member's address can't be used");
                return None;
            }
        };
        let mut client = RaftClient::new(channel);
        match tokio::time::timeout(PROGRESS_TIMEOUT, client.progress(ProgressRequest {})).await {
            Ok(Ok(progress)) => Some(progress.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(member = id, %status, "a member did not say how far it is");
                None
            }
            Err(_) => None,
        }
    }

    /// Adds a member without a vote.
    pub async fn add_learner(&self, id: MemberId, member: Member) -> Result<(), ChangeError> {
        self.change_members(MemberChange::AddLearner(id, member)).await
    }

    /// Gives a member a vote.
    pub async fn promote(&self, id: MemberId) -> Result<(), ChangeError> {
        self.change_members(MemberChange::Promote(id)).await
    }

    /// Takes a member out.
    pub async fn remove(&self, id: MemberId) -> Result<(), ChangeError> {
        self.change_members(MemberChange::Remove(id)).await
    }

    /// Makes a voter the leader.
    pub async fn transfer_leadership(&self, to: MemberId) -> Result<(), ChangeError> {
        self.change_members(MemberChange::TransferTo(to)).await
    }

    /// Each of these changes can be repeated without harm, so it is, until it is done.
    async fn change_members(&self, change: MemberChange) -> Result<(), ChangeError> {
        let deadline = Instant::now() + DEADLINE;
        let mut hint = None;
        let mut last = "no controller leads".to_owned();
        loop {
            let tried = match self.target(hint) {
                None => Try::Elsewhere(None),
                Some(id) if id == self.id() => self.change_here(&change).await.into(),
                Some(id) => self.change_at(id, &change).await,
            };
            match tried {
                Try::Done(()) => return Ok(()),
                Try::Elsewhere(leader) => hint = leader,
                Try::Unknown(cause) => {
                    hint = None;
                    last = cause;
                }
                Try::Overloaded | Try::NearlyFull(_) => hint = None,
                Try::Refused(cause) => return Err(ChangeError::Refused(cause)),
                Try::Stopped(cause) => return Err(ChangeError::Stopped(cause)),
            }
            match self.pause(deadline).await {
                Pause::Again => {}
                Pause::TimeOver => return Err(ChangeError::Unknown(last)),
                Pause::Stopped(cause) => return Err(ChangeError::Stopped(cause)),
            }
        }
    }

    /// Whom to ask: who was named by the one asked before, else whom we know.
    pub(super) fn target(&self, hint: Option<MemberId>) -> Option<MemberId> {
        hint.or(self.inner.leadership.borrow().leader)
    }

    /// Waits until it may be worth trying again.
    async fn pause(&self, deadline: Instant) -> Pause {
        if Instant::now() + PAUSE >= deadline {
            return Pause::TimeOver;
        }
        let mut leadership = self.leadership();
        leadership.mark_unchanged(); // a clone has seen what the one it came from has: nothing
        tokio::select! {
            biased;
            // Its other end goes with consensus: from then on nobody is ever known to lead.
            changed = leadership.changed() => match changed {
                Ok(()) => Pause::Again,
                Err(_) => Pause::Stopped("consensus has ended".to_owned()),
            },
            () = tokio::time::sleep(PAUSE) => Pause::Again,
        }
    }

    async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<State, ReadError> {
        let mut applied = self.applied();
        let reached = applied.wait_for(|applied| applied.next_index() > index);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(applied)) => Ok(applied.state.clone()),
            Ok(Err(_)) => Err(ReadError::Stopped {
                cause: "nothing is applied any more".to_owned(),
            }),
            Err(_) => Err(ReadError::NoLeader),
        }
    }

    fn client(&self, id: MemberId) -> Option<RaftClient<Channel>> {
        match self.peer_channel(id)? {
            Ok(channel) => Some(
                RaftClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            ),
            Err(cause) => {
                tracing::warn!(error = %cause, member = id, "a member's address can't be used");
                None
            }
        }
    }

    /// Commits encoded commands at another member.
    pub(super) async fn propose_at(&self, id: MemberId, commands: Vec<Vec<u8>>) -> Try<Vec<CommandReply>> {
        let Some(mut client) = self.client(id) else {
            return Try::Elsewhere(None);
        };
        match timed(client.propose(ProposeRequest { commands })).await {
            Ok(reply) => match reply.reply {
                Some(propose_reply::Reply::Done(done)) => Try::Done(done.replies),
                Some(propose_reply::Reply::NotLeader(other)) => elsewhere(other),
                None => Try::Unknown("the leader's answer is empty".to_owned()),
            },
            Err(status) => failed(&status),
        }
    }

    pub(super) async fn read_index_at(&self, id: MemberId) -> Try<u64> {
        let Some(mut client) = self.client(id) else {
            return Try::Elsewhere(None);
        };
        match timed(client.read_index(ReadIndexRequest {})).await {
            Ok(reply) => match reply.reply {
                Some(read_index_reply::Reply::Index(index)) => Try::Done(index),
                Some(read_index_reply::Reply::NotLeader(other)) => elsewhere(other),
                None => Try::Unknown("the leader's answer is empty".to_owned()),
            },
            Err(status) => failed(&status),
        }
    }

    async fn change_at(&self, id: MemberId, change: &MemberChange) -> Try<()> {
        let Some(mut client) = self.client(id) else {
            return Try::Elsewhere(None);
        };
        let change = match change.clone() {
            MemberChange::AddLearner(id, member) => Change::AddLearner(MemberAddress {
                id,
                name: member.name,
                address: member.address,
                peer_address: member.peer_address,
            }),
            MemberChange::Promote(id) => Change::Promote(id),
            MemberChange::Remove(id) => Change::Remove(id),
            MemberChange::TransferTo(id) => Change::TransferTo(id),
        };
        match timed(client.change_members(ChangeMembersRequest { change: Some(change) })).await {
            Ok(reply) => match reply.reply {
                Some(change_members_reply::Reply::Done(_)) => Try::Done(()),
                Some(change_members_reply::Reply::NotLeader(other)) => elsewhere(other),
                Some(change_members_reply::Reply::Refused(cause)) => Try::Refused(cause),
                None => Try::Unknown("the leader's answer is empty".to_owned()),
            },
            Err(status) => failed(&status),
        }
    }
}

fn elsewhere<T>(other: rpc::v1::NotLeader) -> Try<T> {
    Try::Elsewhere((other.leader != 0).then_some(other.leader))
}

/// A little longer than the leader itself waits.
async fn timed<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(LEADER_TIMEOUT + Duration::from_secs(1), call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the leader did not answer in time")),
    }
}
