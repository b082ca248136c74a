//! What each manager's last apply said of an object, beside the object: its next apply compares with it. Nobody else ever
//! looks at it, no watch shows it, and what a workload makes has none.

use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use prost::Message;
use proto::v1::Object;

use crate::key::ObjectKey;

/// Managers of one object: a person's tool, a pipeline and some more; past that somebody makes up a new name each time.
pub const MANAGERS_MAX: usize = 8;
/// Longest name of a manager, as Kubernetes'.
pub const MANAGER_BYTES_MAX: usize = 128;

/// By object; in the order in which the managers came.
#[derive(Clone, Default)]
pub(crate) struct Said {
    by_key: OrdMap<ObjectKey, Arc<[One]>>,
}

/// A manager, and its manifest encoded: a tenth of the size of the decoded form.
type One = (Arc<str>, Arc<[u8]>);

impl Said {
    /// Each manager's word on an object.
    pub(crate) fn of<'a>(&'a self, key: &ObjectKey) -> impl Iterator<Item = (&'a str, Object)> + 'a {
        let all = self.by_key.get(key).map_or(&[][..], AsRef::as_ref);
        all.iter().map(|(manager, bytes)| {
            let said = Object::decode(bytes.as_ref()).expect("encoded by `set`");
            (manager.as_ref(), said)
        })
    }

    /// Takes a manager's newest word; false when the object has too many managers.
    pub(crate) fn set(&mut self, key: &ObjectKey, manager: &str, said: &Object) -> bool {
        let bytes: Arc<[u8]> = said.encode_to_vec().into();
        let mut all = self.by_key.get(key).map_or_else(Vec::new, |all| all.to_vec());
        match all.iter().position(|(name, _)| **name == *manager) {
            Some(place) => all[place].1 = bytes,
            None if all.len() >= MANAGERS_MAX => return false,
            None => all.push((manager.into(), bytes)),
        }
        self.by_key.insert(key.clone(), all.into());
        true
    }

    /// The object is gone.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        self.by_key.remove(key);
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.by_key.keys()
    }
}

/// How many, not what.
impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Said({} objects)", self.by_key.len())
    }
}
