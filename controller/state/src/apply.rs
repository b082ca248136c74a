//! One command of the log: everything or nothing, the same on every member.

mod delete;
mod node;
mod put;
pub(crate) mod restore;
mod revoke;
mod status;
mod token;
mod transaction;

use std::sync::Arc;

use model::{Kind, object};
use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Applied, ClusterSettings, Command, CommandReply, Key, Refused};
use proto::v1::object::Object as Any;
use proto::v1::{Namespace, NamespaceStatus, Object, ObjectMeta};

use crate::change::Change;
use crate::cidr::Ranges;
use crate::key::ObjectKey;
use crate::record::{PodRecord, Record};
use crate::store::State;
use crate::{ACTOR_BYTES_MAX, SCHEMA_LEVEL, identity};

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For whoever proposed it.
    pub reply: CommandReply,
    /// For watches, in the order of their revisions; empty when it was refused, a dry run or a repetition.
    pub changes: Vec<Change>,
    /// Another state took the place of the whole: watches list again.
    pub replaced: bool,
}

impl Outcome {
    /// Whether it was carried out (now or, for a repetition, then).
    pub fn applied(&self) -> bool {
        matches!(self.reply.reply, Some(Reply::Applied(_)))
    }
}

/// Why a command is refused; each is a `reason` of `Refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    NotFound,
    AlreadyExists,
    Conflict,
    Invalid,
    Forbidden,
    Expired,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Invalid => "Invalid",
            Reason::Forbidden => "Forbidden",
            Reason::Expired => "Expired",
        }
    }
}

/// A refusal of one operation.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    reason: Reason,
    message: String,
    index: usize,
}

impl Refusal {
    fn at(mut self, index: usize) -> Refusal {
        self.index = index;
        self
    }
}

fn refuse<T>(reason: Reason, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        reason,
        message: message.into(),
        index: 0,
    })
}

/// A state in which a command is being carried out.
struct Trial {
    state: State,
    /// It may no longer be what it was.
    touched: bool,
    changes: Vec<Change>,
    /// What the reply shows.
    objects: Vec<Object>,
    /// Likewise.
    deleted: Vec<Key>,
    /// The state was replaced by another one.
    replaced: bool,
    time: Timestamp,
}

/// How a command went.
enum Went {
    /// The state is as it is to be.
    Right(Outcome),
    /// It left the state in between: only the answer is to stay.
    Back(Outcome),
}

impl State {
    /// Carries a command out, or refuses it and changes nothing. Deterministic: the same commands make the same state. It
    /// takes any command, also a senseless one; only a `level` above [`SCHEMA_LEVEL`] the caller has to stop at, since other
    /// members may understand it.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let mut outcomes = self.apply_all(std::slice::from_ref(command));
        outcomes.pop().expect("each command has an outcome")
    }

    /// Carries commands out one after the other, each as [`State::apply`] does. What they change is copied once for all of
    /// them and not for each.
    pub fn apply_all(&mut self, commands: &[Command]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(commands.len());
        // Where to go back to, and which command comes next there.
        let (mut kept, mut next) = (self.clone(), 0);
        for (index, command) in commands.iter().enumerate() {
            let outcome = match self.carry_out(command) {
                Went::Right(outcome) => outcome,
                Went::Back(outcome) => {
                    // Those before it once more, which comes to the same; and none of them a third time.
                    *self = kept;
                    for before in &commands[next..index] {
                        self.carry_out(before);
                    }
                    self.remember(command, &outcome.reply);
                    (kept, next) = (self.clone(), index + 1);
                    outcome
                }
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    fn carry_out(&mut self, command: &Command) -> Went {
        if !command.request_id.is_empty()
            && let Some(reply) = self.replies.get(&command.request_id)
        {
            return Went::Right(Outcome {
                reply,
                changes: Vec::new(),
                replaced: false,
            });
        }
        let mut trial = Trial {
            state: std::mem::take(self),
            touched: false,
            changes: Vec::new(),
            objects: Vec::new(),
            deleted: Vec::new(),
            replaced: false,
            time: command.time.unwrap_or_default(),
        };
        let result = trial.run(command);
        *self = trial.state;
        let reply = match result {
            Ok(()) => Reply::Applied(Applied {
                revision: self.revision,
                objects: trial.objects,
                deleted: trial.deleted,
            }),
            Err(refusal) => Reply::Refused(refusal.into()),
        };
        let refused = matches!(reply, Reply::Refused(_));
        let mut outcome = Outcome {
            reply: CommandReply { reply: Some(reply) },
            changes: trial.changes,
            replaced: trial.replaced,
        };
        if refused || is_dry_run(command) {
            outcome.changes.clear();
            outcome.replaced = false;
            if trial.touched {
                return Went::Back(outcome);
            }
        }
        self.remember(command, &outcome.reply);
        Went::Right(outcome)
    }

    /// For a retry.
    fn remember(&mut self, command: &Command, reply: &CommandReply) {
        if !command.request_id.is_empty() && !is_dry_run(command) {
            self.replies.push(&command.request_id, reply);
        }
    }
}

fn is_dry_run(command: &Command) -> bool {
    matches!(&command.kind, Some(Body::Transaction(transaction)) if transaction.dry_run)
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused {
            reason: refusal.reason.as_str().to_owned(),
            message: refusal.message,
            index: u32::try_from(refusal.index).unwrap_or(u32::MAX),
        }
    }
}

impl Trial {
    fn run(&mut self, command: &Command) -> Result<(), Refusal> {
        if command.level > SCHEMA_LEVEL {
            let message = format!("schema level {} is above {SCHEMA_LEVEL}", command.level);
            return refuse(Reason::Invalid, message);
        }
        if command.request_id.len() > crate::REQUEST_ID_BYTES_MAX {
            return refuse(Reason::Invalid, "the request id is too long");
        }
        if command.actor.len() > ACTOR_BYTES_MAX || command.verb.len() > ACTOR_BYTES_MAX {
            return refuse(
                Reason::Invalid,
                "the name of the actor or of the verb is too long",
            );
        }
        // Transactions are many, and mostly refused before they begin.
        self.touched = !matches!(command.kind, Some(Body::Transaction(_)));
        self.drop_abandoned();
        match &command.kind {
            Some(Body::Transaction(transaction)) => self.transaction(transaction, command),
            Some(Body::Status(batch)) => {
                self.status_batch(batch);
                Ok(())
            }
            Some(Body::Token(change)) => self.token(change),
            Some(Body::Settings(settings)) => self.settle(settings),
            Some(Body::NodeJoin(join)) => self.join(join),
            Some(Body::Restore(restore)) => self.restore(restore),
            Some(Body::Revocation(revocation)) => self.revoke(revocation),
            Some(Body::RaiseLevel(raise)) => {
                // Two leaders in turn may do it: it never falls.
                self.state.level = self.state.level.max(raise.level.min(SCHEMA_LEVEL));
                Ok(())
            }
            Some(Body::Batch(_)) => refuse(Reason::Invalid, "a batch is carried out command by command"),
            None => refuse(Reason::Invalid, "the command says nothing"),
        }
    }

    /// Fixes the settings and makes the first namespace.
    fn settle(&mut self, settings: &ClusterSettings) -> Result<(), Refusal> {
        if let Some(there) = self.state.settings() {
            return match there == settings {
                true => Ok(()),
                false => refuse(Reason::AlreadyExists, "the cluster has other settings"),
            };
        }
        if settings.cluster_id.is_empty() {
            return refuse(Reason::Invalid, "the cluster needs an id");
        }
        if let Err(message) = Ranges::of(settings) {
            return refuse(Reason::Invalid, message);
        }
        self.state.settings = Some(Arc::new(settings.clone()));
        let namespace = Namespace {
            metadata: Some(ObjectMeta {
                name: "default".to_owned(),
                uid: identity::uid(&["namespace", &settings.cluster_id, "default"]),
                generation: 1,
                creation_timestamp: Some(self.time),
                ..Default::default()
            }),
            status: Some(NamespaceStatus {
                phase: "Active".to_owned(),
                conditions: Vec::new(),
            }),
            ..Default::default()
        };
        let mut object = Object {
            object: Some(Any::Namespace(namespace)),
        };
        object::set_type_meta(&mut object);
        self.store(ObjectKey::new(Kind::Namespace, "", "default"), object);
        Ok(())
    }

    /// Stores an object that changed: one step of the revision.
    fn store(&mut self, key: ObjectKey, mut object: Object) {
        self.state.revision += 1;
        object::meta_mut(&mut object).resource_version = self.state.revision.to_string();
        self.put_record(key, Record::Whole(Arc::new(object)));
    }

    /// Stores a pod that changed in what its node is to do: one step of the revision.
    fn store_pod(&mut self, key: ObjectKey, mut pod: PodRecord) {
        pod.desired_revision = self.state.revision + 1;
        self.store_pod_status(key, pod);
    }

    /// Stores a pod of which only the status changed: one step of the revision.
    fn store_pod_status(&mut self, key: ObjectKey, mut pod: PodRecord) {
        self.state.revision += 1;
        pod.resource_version = self.state.revision;
        self.put_record(key, Record::Pod(Arc::new(pod)));
    }

    fn put_record(&mut self, key: ObjectKey, record: Record) {
        let before = self.state.records.get(&key).cloned();
        self.changes
            .push(Change::put(self.state.revision, &key, before, record.clone()));
        self.state.insert(key, record);
    }

    /// Takes an object away: one step of the revision.
    fn erase(&mut self, key: &ObjectKey) {
        let Some(record) = self.state.remove(key) else {
            return;
        };
        self.state.revision += 1;
        self.changes
            .push(Change::erased(self.state.revision, key, record));
    }

    /// The record under a key, with the uid that is meant (any when empty).
    fn find(&self, key: &ObjectKey, uid: &str) -> Result<Record, Refusal> {
        let Some(record) = self.state.records.get(key) else {
            return refuse(Reason::NotFound, format!("{key} does not exist"));
        };
        if !uid.is_empty() && record.uid() != uid {
            return refuse(
                Reason::Conflict,
                format!("{key} is another one: its uid is {}", record.uid()),
            );
        }
        Ok(record.clone())
    }
}
