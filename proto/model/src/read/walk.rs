//! One walk of a tree against a message of the schema: a message, or refusals with their places.

use std::collections::HashMap;
use std::fmt::Write;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Field};

use super::scalar::{self, Boolean, Plain};
use super::tree::{Entry, Node, Value};
use super::{NODES_MAX, Position, REFUSALS_MAX};
use crate::{quantity, schema, time};

const QUANTITY: &str = "bulkhead.v1.Quantity";
const INT_OR_STRING: &str = "bulkhead.v1.IntOrString";
const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// Fields that we do not have yet and that are lists in Kubernetes: an empty one says nothing. Elsewhere it is a mistake.
const LISTS: [&str; 17] = [
    "claims",
    "ephemeralContainers",
    "finalizers",
    "hostAliases",
    "imagePullSecrets",
    "managedFields",
    "podCIDRs",
    "readinessGates",
    "resizePolicy",
    "resourceClaims",
    "resourceClaimStatuses",
    "restartPolicyRules",
    "schedulingGates",
    "taints",
    "tolerations",
    "topologySpreadConstraints",
    "volumeDevices",
];

/// The walk of one object.
pub(super) struct Walk<'a> {
    /// Where we are, as the message would say it.
    path: String,
    /// Where each field stands.
    pub(super) positions: HashMap<String, Position>,
    /// Place, path, message.
    pub(super) refusals: Vec<(Position, String, String)>,
    /// Fields that are written and say nothing in a message.
    pub(super) empty: Vec<String>,
    /// The object's own message, for fields that stand in the wrong place.
    root: &'a MessageDescriptor,
    /// Values looked at in the whole file.
    nodes: &'a mut usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a MessageDescriptor, nodes: &'a mut usize) -> Walk<'a> {
        Walk {
            path: String::new(),
            positions: HashMap::new(),
            refusals: Vec::new(),
            empty: Vec::new(),
            root,
            nodes,
        }
    }

    fn refuse(&mut self, at: Position, message: impl Into<String>) {
        self.refusals.push((at, self.path.clone(), message.into()));
    }

    fn refuse_below(&mut self, at: Position, step: &str, message: impl Into<String>) {
        let length = self.enter(step, at);
        self.refuse(at, message);
        self.path.truncate(length);
    }

    /// One step down: a field `name`, an index `[0]` or a key `[app]`. Returns what [`String::truncate`] takes back.
    fn enter(&mut self, step: &str, at: Position) -> usize {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        self.positions.insert(self.path.clone(), at);
        length
    }

    /// Counts; past the limit the rest of the file is a bomb and nothing of it is looked at.
    fn count(&mut self, at: Position) -> bool {
        *self.nodes += 1;
        if *self.nodes == NODES_MAX + 1 {
            self.refuse(at, format!("aliases expand to more than {NODES_MAX} values"));
        }
        *self.nodes <= NODES_MAX
    }

    /// The entries of a mapping, or a refusal.
    fn entries<'n>(&mut self, node: &'n Node) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            _ => {
                self.refuse(
                    node.at,
                    format!("must be a mapping of fields, is {}", node.what()),
                );
                None
            }
        }
    }

    pub(super) fn message(&mut self, node: &Node, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        match descriptor.full_name() {
            QUANTITY => return self.quantity(node, descriptor),
            INT_OR_STRING => return self.int_or_string(node, descriptor),
            TIMESTAMP => return self.timestamp(node, descriptor),
            _ => {}
        }
        let entries = self.entries(node)?;
        let mut message = DynamicMessage::new(descriptor.clone());
        for entry in entries {
            if !self.count(entry.at) {
                return None;
            }
            let Some(field) = descriptor.get_field_by_name(&entry.key) else {
                self.unlisted(entry, descriptor);
                continue;
            };
            if entry.value.is_null() {
                let length = self.enter(&entry.key, entry.at);
                self.empty.push(self.path.clone());
                self.path.truncate(length);
                continue;
            }
            let at = if matches!(entry.value.value, Value::Scalar { .. }) {
                entry.value.at
            } else {
                entry.at
            };
            let length = self.enter(&entry.key, at);
            if let Some(value) = self.field(&entry.value, &field) {
                message.set_field(&field, value);
                if !message.has_field(&field) && !field.is_map() {
                    self.empty.push(self.path.clone());
                }
            }
            self.path.truncate(length);
        }
        Some(message)
    }

    /// A key that is no field of ours.
    fn unlisted(&mut self, entry: &Entry, descriptor: &MessageDescriptor) {
        let step: String = entry.key.chars().take(80).flat_map(char::escape_debug).collect();
        if descriptor.reserved_names().any(|name| name == entry.key) {
            // Nothing said, nothing to refuse: templates write `tolerations: []` and `affinity: null`.
            let nothing = entry.value.is_null()
                || LISTS.contains(&entry.key.as_str())
                    && matches!(&entry.value.value, Value::List(items) if items.is_empty());
            if !nothing {
                self.refuse_below(entry.at, &step, "not supported yet");
            }
            return;
        }
        if self.refusals.len() >= REFUSALS_MAX {
            // Only counted: a hint that nobody reads would make a file of wrong keys slow.
            return self.refuse_below(entry.at, &step, "unknown field");
        }
        let fields: Vec<FieldDescriptor> = descriptor.fields().collect();
        let names = fields
            .iter()
            .map(FieldDescriptor::name)
            .chain(descriptor.reserved_names());
        let suggestion = schema::nearest(&entry.key, names);
        let elsewhere = || place_of(self.root, &entry.key).map(|path| format!("; did you mean `{path}`?"));
        let hint = match suggestion {
            Some(_) => schema::hint(suggestion.as_deref()),
            None => elsewhere().unwrap_or_default(),
        };
        let message = format!("unknown field{hint}");
        self.refuse_below(entry.at, &step, message);
    }

    fn field(&mut self, node: &Node, field: &FieldDescriptor) -> Option<Field> {
        if field.is_map() {
            return self.map(node, field);
        }
        if field.is_list() {
            let Value::List(items) = &node.value else {
                let hint = match &node.value {
                    Value::Scalar { .. } => "; write it as `- ` and the value, or in [ ]",
                    _ => "; put `- ` in front",
                };
                self.refuse(node.at, format!("must be a list, is {}{hint}", node.what()));
                return None;
            };
            let mut values = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                let length = self.path.len();
                // Writing to a String cannot fail.
                write!(self.path, "[{index}]").unwrap_or_default();
                self.positions.insert(self.path.clone(), item.at);
                if !self.count(item.at) {
                    return None;
                }
                let value = if item.is_null() {
                    self.refuse(item.at, "an item must not be null");
                    None
                } else {
                    self.value(item, &field.kind())
                };
                // What was refused keeps its number, so that what is said of later items is said in the right place.
                values.push(value.unwrap_or_else(|| Field::default_value(&field.kind())));
                self.path.truncate(length);
            }
            return Some(Field::List(values));
        }
        self.value(node, &field.kind())
    }

    fn map(&mut self, node: &Node, field: &FieldDescriptor) -> Option<Field> {
        let Kind::Message(pair) = field.kind() else {
            return None;
        };
        let kind = pair.map_entry_value_field().kind();
        let mut values = HashMap::new();
        for entry in self.entries(node)? {
            if !self.count(entry.at) {
                return None;
            }
            let length = self.enter(&format!("[{}]", entry.key), entry.at);
            let value = match (&kind, entry.value.is_null()) {
                // `app:` in labels is the empty text, in Kubernetes too.
                (Kind::String, true) => Some(Field::String(String::new())),
                (_, true) => {
                    self.refuse(entry.at, "must have a value");
                    None
                }
                (_, false) => self.value(&entry.value, &kind),
            };
            if let Some(value) = value {
                values.insert(MapKey::String(entry.key.clone()), value);
            }
            self.path.truncate(length);
        }
        Some(Field::Map(values))
    }

    fn value(&mut self, node: &Node, kind: &Kind) -> Option<Field> {
        if let Kind::Message(descriptor) = kind {
            return self.message(node, descriptor).map(Field::Message);
        }
        let Value::Scalar { text, plain } = &node.value else {
            let wanted = match kind {
                Kind::String => "a text",
                Kind::Bool => "true or false",
                Kind::Bytes => "base64",
                _ => "a number",
            };
            self.refuse(node.at, format!("must be {wanted}, is {}", node.what()));
            return None;
        };
        let result = match kind {
            Kind::String => string(text, *plain).map(|()| Field::String(text.clone())),
            Kind::Bool => boolean(text, *plain).map(Field::Bool),
            Kind::Int32 => integer(text, *plain).map(Field::I32),
            Kind::Uint32 => integer(text, *plain).map(Field::U32),
            Kind::Int64 => integer(text, *plain).map(Field::I64),
            Kind::Uint64 => integer(text, *plain).map(Field::U64),
            Kind::Bytes => bytes(text).map(Field::Bytes),
            _ => Err("the schema has a type here that no manifest can write".to_owned()),
        };
        result.map_err(|message| self.refuse(node.at, message)).ok()
    }

    fn scalar<'n>(&mut self, node: &'n Node, wanted: &str) -> Option<(&'n str, bool)> {
        match &node.value {
            Value::Scalar { text, plain } => Some((text, *plain)),
            _ => {
                self.refuse(node.at, format!("must be {wanted}, is {}", node.what()));
                None
            }
        }
    }

    fn quantity(&mut self, node: &Node, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        let (text, plain) = self.scalar(node, "a quantity such as 500m or 1Gi")?;
        if let Some(octal) = scalar::integer(text).filter(|_| plain && scalar::is_old_octal(text)) {
            // Kubernetes' reader makes 8 of `010`.
            self.refuse(
                node.at,
                format!(
                    "YAML takes {} for the octal number {octal}: write {octal}, or without the leading 0",
                    short(text)
                ),
            );
            return None;
        }
        if let Err(error) = quantity::parse(text) {
            self.refuse(node.at, error.to_string());
            return None;
        }
        let mut message = DynamicMessage::new(descriptor.clone());
        message.set_field_by_name("text", Field::String(text.to_owned()));
        Some(message)
    }

    fn int_or_string(&mut self, node: &Node, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        let (text, plain) = self.scalar(node, "a number or a text")?;
        let mut message = DynamicMessage::new(descriptor.clone());
        if !plain || scalar::plain(text) == Plain::Text {
            message.set_field_by_name("text", Field::String(text.to_owned()));
            return Some(message);
        }
        match integer(text, true) {
            Ok(number) => message.set_field_by_name("number", Field::I32(number)),
            Err(_) => {
                self.refuse(
                    node.at,
                    format!("must be a whole number or a text, is {}", short(text)),
                );
                return None;
            }
        }
        Some(message)
    }

    fn timestamp(&mut self, node: &Node, descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
        let (text, _) = self.scalar(node, "a time such as 2026-01-31T10:00:00Z")?;
        let Some((seconds, nanos)) = time::parse(text) else {
            self.refuse(
                node.at,
                format!("must be a time such as 2026-01-31T10:00:00Z, is {}", short(text)),
            );
            return None;
        };
        let mut message = DynamicMessage::new(descriptor.clone());
        message.set_field_by_name("seconds", Field::I64(seconds));
        message.set_field_by_name("nanos", Field::I32(nanos));
        Some(message)
    }
}

/// Where in an object a field of this name stands, the place nearest to the root: most fields that are unknown are known
/// elsewhere, as `containers` directly below a deployment's `spec`.
fn place_of(root: &MessageDescriptor, name: &str) -> Option<String> {
    let mut level = vec![(String::new(), root.clone())];
    // The schema's messages do not contain themselves; the bound is for the day when one does.
    for _ in 0..8 {
        let mut next = Vec::new();
        for (path, message) in level {
            for field in message.fields() {
                let step = if field.is_list() { "[]" } else { "" };
                let path = if path.is_empty() {
                    field.name().to_owned()
                } else {
                    format!("{path}.{}", field.name())
                };
                if field.name() == name {
                    return Some(path);
                }
                if let (Kind::Message(inner), false) =
                    (field.kind(), field.is_map() || field.name() == "status")
                {
                    next.push((format!("{path}{step}"), inner));
                }
            }
        }
        level = next;
    }
    None
}

/// A text for a message, quoted.
fn short(text: &str) -> String {
    format!("`{}`", schema::shown(text))
}

fn string(text: &str, plain: bool) -> Result<(), String> {
    let taken_for = match scalar::plain(text) {
        _ if !plain => return Ok(()),
        Plain::Text => return Ok(()),
        Plain::Null => "nothing",
        Plain::Boolean | Plain::OldBoolean => "a boolean",
        Plain::Number => "a number",
    };
    Err(format!(
        "must be a text, is {taken_for}: write \"{text}\" with quotes"
    ))
}

fn boolean(text: &str, plain: bool) -> Result<bool, String> {
    match scalar::boolean(text) {
        Some(Boolean::New(value)) if plain => Ok(value),
        Some(Boolean::New(value)) => Err(format!(
            "must be true or false, is a text: write {value} without quotes"
        )),
        Some(Boolean::Old(value)) => Err(format!("must be true or false: write {value} instead of {text}")),
        None => Err(format!("must be true or false, is {}", short(text))),
    }
}

fn integer<T: TryFrom<i128> + Bounds>(text: &str, plain: bool) -> Result<T, String> {
    match scalar::integer(text) {
        Some(number) if plain => T::try_from(number)
            .map_err(|_| format!("{number} is out of range: from {} to {}", T::MIN, T::MAX)),
        Some(number) => Err(format!(
            "must be a number, is a text: write {number} without quotes"
        )),
        None => Err(format!("must be a whole number, is {}", short(text))),
    }
}

/// The ends of an integer type.
trait Bounds {
    const MIN: i128;
    const MAX: i128;
}

macro_rules! bounds {
    ($($integer:ident),*) => {$(
        impl Bounds for $integer {
            const MIN: i128 = $integer::MIN as i128;
            const MAX: i128 = $integer::MAX as i128;
        }
    )*};
}
bounds!(i32, u32, i64, u64);

fn bytes(text: &str) -> Result<Bytes, String> {
    // Line breaks inside are allowed, as in Kubernetes.
    let joined: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    STANDARD
        .decode(joined.trim_end())
        .map(Bytes::from)
        .map_err(|error| format!("must be base64: {}", error.to_string().to_ascii_lowercase()))
}

/// For the caller's own look at `apiVersion` and `kind` before the walk.
pub(super) fn entry<'n>(node: &'n Rc<Node>, key: &str) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
        _ => None,
    }
}
