//! What became of an object: before and after, shared with the states that hold them.

use std::sync::{Arc, OnceLock};

use model::{Kind, object};
use prost::Message;
use proto::v1::Object;
use proto::v1::object::Object as Any;

use crate::conditions;
use crate::key::ObjectKey;
use crate::record::{PodRecord, Record, millis};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It was not there before.
    Added,
    /// It is another one than before.
    Modified,
    /// It is gone.
    Deleted,
}

impl Happened {
    /// As in the schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// How a pod came to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Began {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Where it runs.
    pub node: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it was given its node.
    pub scheduled_ms: i64,
}

/// One step of the revision: what a watch shows. It takes little beside what the state holds anyway.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision that it led to.
    pub revision: u64,
    /// What happened.
    pub happened: Happened,
    object: Form,
    before: Option<Form>,
}

/// An object as it was at some time.
#[derive(Clone, Debug)]
enum Form {
    Whole(Arc<Object>),
    Pod(Arc<Pod>),
}

/// Put together when somebody looks at it for the first time: of most pods nobody does.
#[derive(Debug)]
struct Pod {
    key: ObjectKey,
    record: Arc<PodRecord>,
    whole: OnceLock<Object>,
}

impl Form {
    fn of(key: &ObjectKey, record: Record) -> Form {
        match record {
            Record::Whole(object) => Form::Whole(object),
            Record::Pod(record) => Form::Pod(Arc::new(Pod {
                key: key.clone(),
                record,
                whole: OnceLock::new(),
            })),
        }
    }

    fn get(&self) -> &Object {
        match self {
            Form::Whole(object) => object,
            Form::Pod(pod) => pod.whole.get_or_init(|| Object {
                object: Some(Any::Pod(pod.record.assemble(&pod.key))),
            }),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Form::Whole(object) => object.encoded_len(),
            Form::Pod(pod) => pod.record.bytes(),
        }
    }
}

impl Change {
    /// Of a record that was put where `before` was.
    pub(crate) fn put(revision: u64, key: &ObjectKey, before: Option<Record>, after: Record) -> Change {
        let before = before.map(|before| Form::of(key, before));
        Change {
            revision,
            happened: match before {
                Some(_) => Happened::Modified,
                None => Happened::Added,
            },
            object: Form::of(key, after),
            before,
        }
    }

    /// Of a record that was taken away.
    pub(crate) fn erased(revision: u64, key: &ObjectKey, record: Record) -> Change {
        let stamped = match record {
            Record::Whole(object) => Record::Whole(stamped(object, revision)),
            Record::Pod(mut pod) => {
                Arc::make_mut(&mut pod).resource_version = revision;
                Record::Pod(pod)
            }
        };
        Change {
            revision,
            happened: Happened::Deleted,
            object: Form::of(key, stamped),
            before: None,
        }
    }

    /// Of an object that no state holds, and that was put where `before` was. It has that revision already.
    pub fn of_put(revision: u64, before: Option<Arc<Object>>, after: Arc<Object>) -> Change {
        Change {
            revision,
            happened: match before {
                Some(_) => Happened::Modified,
                None => Happened::Added,
            },
            object: Form::Whole(after),
            before: before.map(Form::Whole),
        }
    }

    /// Of an object that no state held and that is gone.
    pub fn of_erased(revision: u64, before: Arc<Object>) -> Change {
        Change {
            revision,
            happened: Happened::Deleted,
            object: Form::Whole(stamped(before, revision)),
            before: None,
        }
    }

    /// After the change; for a deletion as it was before, with the revision of the deletion.
    pub fn object(&self) -> &Object {
        self.object.get()
    }

    /// What a modified object was.
    pub fn before(&self) -> Option<&Object> {
        self.before.as_ref().map(Form::get)
    }

    /// The kind of the object; `None` for an empty object.
    pub fn kind(&self) -> Option<Kind> {
        match &self.object {
            Form::Whole(object) => object::try_kind(object),
            Form::Pod(_) => Some(Kind::Pod),
        }
    }

    /// The node that a pod is bound to; empty for other kinds, and before it is bound.
    pub fn node_of_pod(&self) -> &str {
        match &self.object {
            Form::Whole(_) => "",
            Form::Pod(pod) => &pod.record.node,
        }
    }

    /// How a pod came to run, when its first container has since this change.
    pub fn began(&self) -> Option<Began> {
        let (Form::Pod(before), Form::Pod(pod)) = (self.before.as_ref()?, &self.object) else {
            return None;
        };
        let (was, is) = (&before.record.status, &pod.record.status);
        if was.finished || was == is || was.decoded().phase != "Pending" {
            return None;
        }
        let status = is.decoded();
        if status.phase != "Running" {
            return None;
        }
        let scheduled = conditions::get(&status.conditions, "PodScheduled")?;
        Some(Began {
            namespace: pod.key.namespace.as_ref().to_owned(),
            name: pod.key.name.as_ref().to_owned(),
            uid: pod.record.uid.as_ref().to_owned(),
            node: pod.record.node.as_ref().to_owned(),
            created_ms: millis(pod.record.created.as_ref()),
            scheduled_ms: millis(scheduled.last_transition_time.as_ref()),
        })
    }

    /// What both forms take, encoded.
    pub fn bytes(&self) -> usize {
        self.object.bytes() + self.before.as_ref().map_or(0, Form::bytes)
    }
}

impl PartialEq for Change {
    fn eq(&self, other: &Change) -> bool {
        (self.revision, self.happened) == (other.revision, other.happened)
            && self.object() == other.object()
            && self.before() == other.before()
    }
}

fn stamped(object: Arc<Object>, revision: u64) -> Arc<Object> {
    let mut object = object;
    object::meta_mut(Arc::make_mut(&mut object)).resource_version = revision.to_string();
    object
}
