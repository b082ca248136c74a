//! Committed entries applied to the state, snapshots of it, and what readers see of both.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use openraft::entry::RaftPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message;
use proto::state::v1::{Command, CommandReply, command};
use state::{Change, Revocations, State};
use tokio::sync::{broadcast, watch};

use super::log::WriteBy;
use super::snapshot::{SnapshotFile, Snapshots};
use super::types::{Answer, LogId, SnapshotMeta, StoredMembership, Types};
use crate::store::Dir;

/// Commands applied before readers see them together: bounds how long an answer waits for those behind it.
const PUBLISH_COMMANDS_MAX: usize = 256;
/// Change sets that a watch may lag behind; then it lists again.
const CHANGES_KEPT: usize = 4096;

/// What this member has applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The state: cheap to clone, never changes.
    pub state: State,
    /// The last applied entry; None before the first.
    pub log_id: Option<LogId>,
}

impl Applied {
    /// Index of the next entry to come.
    pub fn next_index(&self) -> u64 {
        self.log_id.map_or(0, |id| id.index + 1)
    }
}

/// What one entry changed, in order.
#[derive(Clone, Debug)]
pub enum Changed {
    /// All changes of one transaction: a watch shows all of them or none.
    By(Arc<[Change]>),
    /// A snapshot or a backup took the place of everything; watches list again.
    All,
}

/// The ends that readers hold.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) applied: watch::Sender<Applied>,
    /// Changes seldom, and many connections wait for that.
    pub(super) revocations: watch::Sender<Revocations>,
    pub(super) changes: broadcast::Sender<Changed>,
}

impl Published {
    pub(super) fn new() -> Self {
        let (applied, _) = watch::channel(Applied {
            state: State::new(),
            log_id: None,
        });
        let (revocations, _) = watch::channel(Revocations::default());
        let (changes, _) = broadcast::channel(CHANGES_KEPT);
        Self {
            applied,
            revocations,
            changes,
        }
    }
}

pub(super) struct StateMachine<D: Dir> {
    snapshots: Snapshots<D>,
    write_by: WriteBy,
    /// The newest schema level that this member can apply.
    level: u32,
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
    published: Published,
}

impl<D: Dir> StateMachine<D> {
    /// Begins with nothing: the consensus library installs the snapshot that is there, then applies what follows.
    pub(super) fn new(snapshots: Snapshots<D>, write_by: WriteBy, level: u32, published: Published) -> Self {
        Self {
            snapshots,
            write_by,
            level,
            state: State::new(),
            last: None,
            membership: StoredMembership::default(),
            published,
        }
    }

    /// Carries out the commands of an entry.
    fn apply_entry(&mut self, bytes: &[u8], pending: &mut Pending) -> io::Result<Vec<CommandReply>> {
        let command = self.decode(bytes)?;
        let commands = match command.kind {
            Some(command::Kind::Batch(batch)) => {
                let commands = batch.commands.iter().map(|bytes| self.decode(bytes));
                commands.collect::<io::Result<_>>()?
            }
            _ => vec![command],
        };
        let outcomes = self.state.apply_all(&commands).into_iter();
        let replies = outcomes.map(|outcome| {
            if outcome.replaced {
                pending.changes.push(Changed::All);
            } else if !outcome.changes.is_empty() {
                pending.changes.push(Changed::By(outcome.changes.into()));
            }
            outcome.reply
        });
        Ok(replies.collect())
    }

    /// Readers first, then the answers: who was answered finds their write.
    fn publish(&mut self, pending: &mut Pending) {
        self.published.applied.send_replace(Applied {
            state: self.state.clone(),
            log_id: self.last,
        });
        let revocations = self.state.revocations();
        self.published.revocations.send_if_modified(|known| {
            let news = !known.ptr_eq(revocations);
            if news {
                known.clone_from(revocations);
            }
            news
        });
        for changes in pending.changes.drain(..) {
            if self.published.changes.send(changes).is_err() {
                tracing::trace!("nobody watches");
            }
        }
        for (responder, answer) in pending.answers.drain(..) {
            responder.send(answer);
        }
        pending.commands = 0;
    }

    fn decode(&self, bytes: &[u8]) -> io::Result<Command> {
        // Every member has to come to the same state: one that can't read an entry must not go on.
        let command = Command::decode(bytes).map_err(|cause| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a committed command can't be decoded: {cause}"),
            )
        })?;
        self.knows("a committed command", command.level)?;
        Ok(command)
    }

    fn knows(&self, what: &str, level: u32) -> io::Result<()> {
        match level > self.level {
            false => Ok(()),
            true => Err(io::Error::other(format!(
                "{what} needs schema level {level}, this version knows {}: install the newer one",
                self.level
            ))),
        }
    }
}

#[derive(Default)]
struct Pending {
    commands: usize,
    changes: Vec<Changed>,
    answers: Vec<(ApplyResponder<Types>, Answer)>,
}

impl<D: Dir> RaftStateMachine<Types> for StateMachine<D> {
    type SnapshotData = SnapshotFile<D>;
    type SnapshotBuilder = Builder<D>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut pending = Pending::default();
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = match &entry.payload {
                EntryPayload::Blank => Answer::default(),
                EntryPayload::Normal(proposal) => Answer(self.apply_entry(&proposal.0, &mut pending)?),
                EntryPayload::Membership(_) => {
                    if let Some(membership) = entry.payload.get_membership() {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    }
                    Answer::default()
                }
            };
            self.last = Some(entry.log_id);
            pending.commands += answer.0.len().max(1);
            pending
                .answers
                .extend(responder.map(|responder| (responder, answer)));
            if pending.commands >= PUBLISH_COMMANDS_MAX {
                self.publish(&mut pending);
            }
        }
        self.publish(&mut pending);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<D> {
        Builder {
            snapshots: self.snapshots.clone(),
            write_by: self.write_by,
            state: self.state.clone(),
            meta: SnapshotMeta {
                last_log_id: self.last,
                last_membership: self.membership.clone(),
            },
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile<D>,
    ) -> Result<(), io::Error> {
        let (snapshots, meta) = (self.snapshots.clone(), meta.clone());
        let (meta, state) = blocking(self.write_by, move || {
            let (written, mut reader) = snapshots.open_file(&file)?;
            if written != meta {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the snapshot is not the announced one",
                ));
            }
            let mut failed = None;
            let chunks = std::iter::from_fn(|| {
                reader.next_chunk().unwrap_or_else(|cause| {
                    failed = Some(cause);
                    None
                })
            });
            let state = State::decode(chunks);
            if let Some(cause) = failed {
                return Err(cause.into()); // why the state ended too early
            }
            let state = state.map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
            snapshots.make_current(&written, file)?;
            Ok((written, state))
        })
        .await?;
        self.knows("the snapshot", state.level())?;
        self.state = state;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership;
        self.publish(&mut Pending::default());
        if self.published.changes.send(Changed::All).is_err() {
            tracing::trace!("nobody watches");
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<D>>, io::Error> {
        let current = self.snapshots.current();
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

type Snapshot<D> = openraft::type_config::alias::SnapshotOf<Types, SnapshotFile<D>>;

/// Writes a snapshot of the state as it was when the builder was made.
pub(super) struct Builder<D: Dir> {
    snapshots: Snapshots<D>,
    write_by: WriteBy,
    state: State,
    meta: SnapshotMeta,
}

impl<D: Dir> RaftSnapshotBuilder<Types> for Builder<D> {
    type SnapshotData = SnapshotFile<D>;

    async fn build_snapshot(&mut self) -> Result<Snapshot<D>, io::Error> {
        let (snapshots, state, meta) = (self.snapshots.clone(), self.state.clone(), self.meta.clone());
        let (meta, snapshot) = blocking(self.write_by, move || {
            let file = snapshots.write(&meta, state.encode())?;
            let file = snapshots.make_current(&meta, file)?;
            Ok((meta, file))
        })
        .await?;
        Ok(Snapshot { meta, snapshot })
    }
}

/// What a snapshot takes in simulated time.
const SIMULATED_WORK: Duration = Duration::from_millis(30);

/// Off the async threads; in place where no real thread may work.
pub(super) async fn blocking<T: Send + 'static>(
    write_by: WriteBy,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match write_by {
        WriteBy::Caller => work(),
        WriteBy::Task => {
            tokio::time::sleep(SIMULATED_WORK).await;
            work()
        }
        WriteBy::Thread => tokio::task::spawn_blocking(work)
            .await
            .map_err(io::Error::other)?,
    }
}
