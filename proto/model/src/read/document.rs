//! One document: which kind it is, lists taken apart, the object made, defaulted and validated.

use std::rc::Rc;

use super::tree::{Node, Value};
use super::walk::{self, Walk};
use super::{
    DEPTH_MAX, Manifest, NODES_MAX, Position, REFUSALS_MAX, Reader, nearest_position, parent, refusal,
};
use crate::{Kind, KindError, default, object, schema, validate};

/// What a list may have besides its items.
const LIST_FIELDS: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];

impl Reader<'_> {
    pub(super) fn document(&mut self, root: &Rc<Node>) {
        self.item(root, DEPTH_MAX, None);
    }

    fn refuse(&mut self, at: Position, path: &str, message: impl Into<String>) {
        self.refusals.push(refusal(self.file, at, path, message.into()));
    }

    /// `levels`: how many lists may still stand in each other. `of`: apiVersion and kind of what stands in a `PodList` and
    /// need not say so itself.
    fn item(&mut self, root: &Rc<Node>, levels: usize, of: Option<(&str, &str)>) {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            // Told once, by whoever comes to the limit: here or the walk.
            if self.nodes == NODES_MAX + 1 {
                self.refuse(
                    root.at,
                    "",
                    format!("aliases expand to more than {NODES_MAX} values"),
                );
            }
            return;
        }
        if !matches!(root.value, Value::Map(_)) {
            let message = format!(
                "an object is a mapping with apiVersion, kind and metadata; this is {}",
                root.what()
            );
            return self.refuse(root.at, "", message);
        }
        let silent = |name| walk::entry(root, name).is_none();
        let (kind, api_version) = match of.filter(|_| silent("kind") && silent("apiVersion")) {
            Some((api_version, kind)) => (
                Some((kind.to_owned(), root.at)),
                Some((api_version.to_owned(), root.at)),
            ),
            None => (self.type_field(root, "kind"), self.type_field(root, "apiVersion")),
        };
        let (Some((kind, kind_at)), Some((api_version, version_at))) = (kind, api_version) else {
            return;
        };
        // `List`, and what a list call answers: `PodList`.
        let listed = kind.strip_suffix("List").filter(|listed| {
            let mut kinds = Kind::ALL.iter();
            kinds.any(|ours| ours.as_str() == *listed && ours.api_version() == api_version)
        });
        if (kind == "List" || listed.is_some()) && levels > 0 {
            return self.list(root, levels - 1, listed.map(|kind| (api_version.as_str(), kind)));
        }
        match Kind::from_manifest(&api_version, &kind) {
            Ok(kind) => self.object(root, kind),
            Err(error @ KindError::Version { .. }) => {
                self.refuse(version_at, "apiVersion", error.to_string())
            }
            Err(KindError::Unsupported { kind }) => {
                self.refuse(kind_at, "kind", format!("{kind} is not supported yet"));
            }
            Err(error) => self.refuse(kind_at, "kind", error.to_string()),
        }
    }

    /// `kind` or `apiVersion`, with its place; absent or empty is refused.
    fn type_field(&mut self, root: &Rc<Node>, name: &str) -> Option<(String, Position)> {
        match walk::entry(root, name).map(|entry| &entry.value) {
            Some(node) if !node.is_null() => match &node.value {
                Value::Scalar { text, .. } if !text.is_empty() => return Some((text.clone(), node.at)),
                _ => self.refuse(node.at, name, "must be a text"),
            },
            _ => self.refuse(root.at, name, "is missing"),
        }
        None
    }

    fn list(&mut self, root: &Rc<Node>, levels: usize, of: Option<(&str, &str)>) {
        let Value::Map(entries) = &root.value else { return };
        for entry in entries {
            if !LIST_FIELDS.contains(&entry.key.as_str()) {
                let hint = schema::hint(schema::nearest(&entry.key, LIST_FIELDS).as_deref());
                self.refuse(entry.at, &entry.key, format!("unknown field{hint}"));
            }
        }
        match walk::entry(root, "items").map(|entry| &entry.value) {
            None => self.refuse(root.at, "items", "is missing"),
            Some(node) if node.is_null() => {}
            Some(node) => match &node.value {
                Value::List(items) => items.iter().for_each(|item| self.item(item, levels, of)),
                _ => self.refuse(node.at, "items", format!("must be a list, is {}", node.what())),
            },
        }
    }

    fn object(&mut self, root: &Rc<Node>, kind: Kind) {
        let inner = schema::message(&kind.message()).expect("the schema has every kind");
        let mut walk = Walk::new(&inner, &mut self.nodes);
        let message = walk.message(root, &inner);
        let (positions, refused, empty) = (walk.positions, walk.refusals, walk.empty);
        for (at, path, message) in &refused {
            self.refusals.push(refusal(self.file, *at, path, message.clone()));
        }
        let Some(message) = message else { return };
        let mut object = schema::typed(message, kind);
        if !kind.namespaced() {
            // Kubernetes clears it too: tools write the namespace into everything, the Namespace itself included.
            object::meta_mut(&mut object).namespace.clear();
        }
        let mut defaulted = object.clone();
        default::object(&mut defaulted);
        for error in validate::object(&defaulted) {
            // What was refused above looks missing now, and so do its neighbours when a name was misspelled: no need to say
            // that too.
            let around = parent(&error.path);
            let missing = error.message.contains("required");
            let said = refused.iter().take(REFUSALS_MAX).any(|(_, path, _)| {
                below(&error.path, path) || missing && !around.is_empty() && below(path, around)
            });
            if !said {
                let at = nearest_position(&positions, &error.path).unwrap_or(root.at);
                self.refuse(at, &error.path, error.message);
            }
        }
        self.manifests.push(Manifest {
            object,
            file: self.file.to_owned(),
            line: root.at.line,
            empty,
            positions,
        });
    }
}

/// Whether `path` is `ancestor` or stands in it.
fn below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| rest.is_empty() || ancestor.is_empty() || rest.starts_with(['.', '[']))
}
