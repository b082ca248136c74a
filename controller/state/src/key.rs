//! Keys of the maps: ordered by kind, namespace, name, so that a list is a range.

use std::sync::Arc;

use model::{Kind, object};
use proto::state::v1::Key;
use proto::v1::Object;

/// Where an object is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) kind: Kind,
    /// Empty for kinds that are cluster-wide.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl ObjectKey {
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
        let namespace = if kind.namespaced() { namespace } else { "" };
        ObjectKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// `None` when the kind is none of ours.
    pub(crate) fn from_proto(key: &Key) -> Option<ObjectKey> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == key.kind)?;
        Some(ObjectKey::new(kind, &key.namespace, &key.name))
    }

    /// `None` for an empty `Object`.
    pub(crate) fn of(object: &Object) -> Option<ObjectKey> {
        let kind = object::try_kind(object)?;
        let meta = object::meta(object);
        Some(ObjectKey::new(kind, &meta.namespace, &meta.name))
    }

    pub(crate) fn to_proto(&self) -> Key {
        Key {
            kind: self.kind.as_str().to_owned(),
            namespace: self.namespace.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
        }
    }
}

/// As people name objects: `deployment default/web`, `node n1`.
impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.as_str();
        if self.kind.namespaced() {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        } else {
            write!(f, "{kind} {}", self.name)
        }
    }
}
