//! One command of the log: everything or nothing, the same on every member.

mod delete;
mod node;
mod put;
pub(crate) mod restore;
mod status;
mod token;
mod transaction;

use std::sync::Arc;

use model::{Kind, object};
use proto::Timestamp;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Applied, Change, ClusterSettings, Command, CommandReply, Key, Refused};
use proto::v1::object::Object as Any;
use proto::v1::{Namespace, NamespaceStatus, Object, ObjectMeta};

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

/// A state on which a command is tried; it replaces the real one when all of it went well.
struct Trial {
    state: State,
    changes: Vec<Change>,
    /// What the reply shows.
    objects: Vec<Object>,
    /// Likewise.
    deleted: Vec<Key>,
    /// The state was replaced by another one.
    replaced: bool,
    time: Timestamp,
}

impl State {
    /// Carries a command out, or refuses it and changes nothing. Deterministic: the same commands make the same state. It
    /// takes any command, also a senseless one; only a `level` above [`SCHEMA_LEVEL`] the caller has to stop at, since other
    /// members may understand it.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let id = command.request_id.as_str();
        if !id.is_empty()
            && let Some(reply) = self.replies.get(id)
        {
            return Outcome {
                reply,
                changes: Vec::new(),
                replaced: false,
            };
        }
        let mut trial = Trial {
            state: self.clone(),
            changes: Vec::new(),
            objects: Vec::new(),
            deleted: Vec::new(),
            replaced: false,
            time: command.time.unwrap_or_default(),
        };
        let dry = matches!(&command.kind, Some(Body::Transaction(transaction)) if transaction.dry_run);
        let (reply, changes, replaced) = match trial.run(command) {
            Ok(()) => {
                let applied = Applied {
                    revision: trial.state.revision,
                    objects: trial.objects,
                    deleted: trial.deleted,
                };
                if !dry {
                    *self = trial.state;
                }
                (
                    Reply::Applied(applied),
                    if dry { Vec::new() } else { trial.changes },
                    trial.replaced,
                )
            }
            Err(Refusal {
                reason,
                message,
                index,
            }) => {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                (
                    Reply::Refused(Refused {
                        reason: reason.as_str().to_owned(),
                        message,
                        index,
                    }),
                    Vec::new(),
                    false,
                )
            }
        };
        let reply = CommandReply { reply: Some(reply) };
        if !id.is_empty() && !dry {
            self.replies.push(id, &reply);
        }
        Outcome {
            reply,
            changes,
            replaced,
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
        let kind = if self.state.records.contains_key(&key) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.changes.push(Change {
            revision: self.state.revision,
            r#type: kind.to_owned(),
            object: Some(record.object(&key)),
        });
        self.state.insert(key, record);
    }

    /// Takes an object away: one step of the revision.
    fn erase(&mut self, key: &ObjectKey) {
        let Some(record) = self.state.remove(key) else {
            return;
        };
        self.state.revision += 1;
        let mut object = record.object(key);
        object::meta_mut(&mut object).resource_version = self.state.revision.to_string();
        self.changes.push(Change {
            revision: self.state.revision,
            r#type: "DELETED".to_owned(),
            object: Some(object),
        });
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
