//! What an apply makes of an object that is there: a three-way merge of what the manager said last, what it says now, and
//! what the object is.
//!
//! Kubernetes keeps either the last manifest (in an annotation, which `kubectl apply` compares) or the paths that each
//! manager owns (`managedFields`). We keep what each manager's last apply said, without defaults and with digests in place of
//! data, beside the object: with it we know the value too, so that a field which somebody else has set since is theirs
//! without that every other writer keeps books. Pods that a workload makes were never applied and have none.
//!
//! | field | becomes |
//! |---|---|
//! | mentioned | what the manifest says |
//! | not mentioned; as the manager's last apply left it, also by a default of that | its default, or nothing |
//! | not mentioned; as another manager's last apply said | stays |
//! | not mentioned; anything else | stays: somebody else set it |
//!
//! Maps merge by key, lists of the types in [`KEYS`] by the keys there, finalizers as a set, messages field by field; every other list, and the
//! types in [`ATOMIC`], are taken whole (Kubernetes' `patchMergeKey` and `structType`).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value};
use proto::v1::object::Object as Any;
use proto::v1::{Object, ObjectMeta};
use sha2::{Digest, Sha256};

use crate::{default, object, schema};

/// By which fields the items of a list are told apart (Kubernetes' `patchMergeKey`; of ports its `listMapKeys`).
pub(crate) const KEYS: [(&str, &[&str]); 6] = [
    ("bulkhead.v1.Container", &["name"]),
    ("bulkhead.v1.ContainerPort", &["containerPort", "protocol"]),
    ("bulkhead.v1.EnvVar", &["name"]),
    ("bulkhead.v1.OwnerReference", &["uid"]),
    ("bulkhead.v1.Volume", &["name"]),
    ("bulkhead.v1.VolumeMount", &["mountPath"]),
];

/// Messages that are one value (Kubernetes' `structType: atomic`, and scalars that are messages here).
const ATOMIC: [&str; 8] = [
    "bulkhead.v1.ConfigMapKeySelector",
    "bulkhead.v1.IntOrString",
    "bulkhead.v1.LabelSelector",
    "bulkhead.v1.ObjectFieldSelector",
    "bulkhead.v1.ObjectReference",
    "bulkhead.v1.Quantity",
    "bulkhead.v1.SecretKeySelector",
    "google.protobuf.Timestamp",
];

/// Messages in which one field decides what the others may be. Where a manifest changes one, nothing of the old one stays
/// (Kubernetes' `retainKeys`), and where it no longer mentions one, nothing is left over.
const UNIONS: [&str; 7] = [
    "bulkhead.v1.AppArmorProfile",
    "bulkhead.v1.DeploymentStrategy",
    "bulkhead.v1.EnvVar",
    "bulkhead.v1.EnvVarSource",
    "bulkhead.v1.Probe",
    "bulkhead.v1.SeccompProfile",
    "bulkhead.v1.Volume",
];

/// Of the metadata what people write; the rest is the cluster's and is taken as given, to be checked.
const META: [&str; 4] = ["labels", "annotations", "ownerReferences", "finalizers"];
/// The list that is a set: each word of it somebody's own (Kubernetes' `listType: set`).
pub(crate) const SET: &str = "bulkhead.v1.ObjectMeta.finalizers";

/// What is known of the fields that a manifest does not mention.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// What this manager's last apply said, as [`said`] has it.
    pub said: Option<&'a Object>,
    /// What the last applies of the other managers said.
    pub others: &'a [Object],
}

/// The object that an apply of `new` makes of `live`, without new defaults. `empty`: paths of fields that the manifest
/// mentions and that are zeros, which a message cannot tell from silence (see [`not_empty`]). Both are of one kind; `new`
/// has its `stringData` in its data ([`default::string_data`]). What the cluster sets, metadata and status, comes from `new`.
pub fn apply(live: &Object, new: &Object, empty: &BTreeSet<String>, known: Known<'_>) -> Object {
    let (Some(kind), Some(live), Some(new)) =
        (object::try_kind(new), schema::inner(live), schema::inner(new))
    else {
        return new.clone();
    };
    if live.descriptor() != new.descriptor() {
        return schema::typed(new, kind);
    }
    let said = known.said.and_then(schema::inner);
    let implied = known.said.and_then(|said| {
        let mut implied = said.clone();
        default::object(&mut implied);
        schema::inner(&implied)
    });
    let others: Vec<DynamicMessage> = known.others.iter().filter_map(schema::inner).collect();
    let before = Before {
        said: said.as_ref(),
        implied: implied.as_ref(),
        others: others.iter().collect(),
    };
    let merge = Merge { empty };
    let mut merged = DynamicMessage::new(live.descriptor());
    for field in live.descriptor().fields() {
        let value = match field.name() {
            "apiVersion" | "kind" | "status" => held(&new, &field).cloned(),
            "metadata" => merge.metadata(&field, &live, &new, &before),
            name => merge.field(&field, held(&live, &field), held(&new, &field), &before, name),
        };
        if let Some(value) = value {
            merged.set_field(&field, value);
        }
    }
    schema::typed(merged, kind)
}

/// What is remembered of an apply: what people write, without what the cluster sets, and of data only digests, so that
/// it is small and no secret is kept twice.
pub fn said(new: &Object) -> Object {
    let mut said = new.clone();
    object::clear_status(&mut said);
    let meta = object::meta_mut(&mut said);
    *meta = ObjectMeta {
        labels: std::mem::take(&mut meta.labels),
        annotations: std::mem::take(&mut meta.annotations),
        owner_references: std::mem::take(&mut meta.owner_references),
        finalizers: std::mem::take(&mut meta.finalizers),
        ..ObjectMeta::default()
    };
    match &mut said.object {
        Some(Any::ConfigMap(map)) => {
            for text in map.data.values_mut() {
                *text = digest_text(text);
            }
            for bytes in map.binary_data.values_mut() {
                *bytes = digest(bytes);
            }
        }
        Some(Any::Secret(secret)) => {
            for bytes in secret.data.values_mut() {
                *bytes = digest(bytes);
            }
        }
        _ => {}
    }
    said
}

/// Those of `paths` that do not lead to a field which is not set in the object: only such can be mentioned as empty.
pub fn not_empty<'a>(object: &Object, paths: &'a [String]) -> Vec<&'a str> {
    let Some(root) = schema::inner(object) else {
        return Vec::new();
    };
    let paths = paths.iter().map(String::as_str);
    paths.filter(|path| !is_empty(&root, path)).collect()
}

fn is_empty(root: &DynamicMessage, path: &str) -> bool {
    let mut message = root;
    let mut steps = path.split('.').peekable();
    while let Some(step) = steps.next() {
        let (name, index) = match step.split_once('[') {
            None => (step, None),
            Some((name, rest)) => match rest.strip_suffix(']').map(str::parse::<usize>) {
                Some(Ok(index)) => (name, Some(index)),
                _ => return false,
            },
        };
        let Some(field) = message.descriptor().get_field_by_name(name) else {
            return false;
        };
        if steps.peek().is_none() {
            return index.is_none() && !message.has_field(&field);
        }
        let below = match (held(message, &field), index) {
            (Some(Value::List(items)), Some(index)) => items.get(index),
            (value, None) => value,
            _ => None,
        };
        let Some(Value::Message(below)) = below else {
            return false;
        };
        message = below;
    }
    false
}

/// 128 bits: enough that no two values of one key meet, also where somebody looks for two that do.
fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).iter().take(16).copied().collect()
}

fn digest_text(text: &str) -> String {
    let digest = digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was said before, at one place of the object.
struct Before<'a> {
    said: Option<&'a DynamicMessage>,
    /// `said` with the defaults that follow from it.
    implied: Option<&'a DynamicMessage>,
    others: Vec<&'a DynamicMessage>,
}

impl<'a> Before<'a> {
    /// The same, one step down, for what each of them has there.
    fn below(&self, step: impl Fn(&'a DynamicMessage) -> Option<&'a DynamicMessage>) -> Before<'a> {
        Before {
            said: self.said.and_then(&step),
            implied: self.implied.and_then(&step),
            others: self.others.iter().filter_map(|other| step(other)).collect(),
        }
    }

    /// Whether what is there is this manager's alone: its last apply left it so, and no other manager's said the same.
    fn is_ours(&self, same: impl Fn(&DynamicMessage) -> bool) -> bool {
        self.implied.is_some_and(&same) && !self.others.iter().any(|other| same(other))
    }
}

struct Merge<'a> {
    empty: &'a BTreeSet<String>,
}

impl Merge<'_> {
    fn metadata(
        &self,
        field: &FieldDescriptor,
        live: &DynamicMessage,
        new: &DynamicMessage,
        before: &Before<'_>,
    ) -> Option<Value> {
        let none = DynamicMessage::new(field.kind().as_message()?.clone());
        let live = inner(live, field).unwrap_or(&none);
        let new = inner(new, field).unwrap_or(&none);
        let before = before.below(|message| inner(message, field));
        let mut merged = new.clone();
        for field in new
            .descriptor()
            .fields()
            .filter(|field| META.contains(&field.name()))
        {
            let path = format!("metadata.{}", field.name());
            match self.field(&field, held(live, &field), held(new, &field), &before, &path) {
                Some(value) => merged.set_field(&field, value),
                None => merged.clear_field(&field),
            }
        }
        Some(Value::Message(merged))
    }

    fn message(
        &self,
        live: &DynamicMessage,
        new: Option<&DynamicMessage>,
        before: &Before<'_>,
        path: &str,
    ) -> DynamicMessage {
        let mut merged = DynamicMessage::new(live.descriptor());
        for field in live.descriptor().fields() {
            let path = format!("{path}.{}", field.name());
            let says = new.and_then(|new| held(new, &field));
            if let Some(value) = self.field(&field, held(live, &field), says, before, &path) {
                merged.set_field(&field, value);
            }
        }
        merged
    }

    fn field(
        &self,
        field: &FieldDescriptor,
        live: Option<&Value>,
        new: Option<&Value>,
        before: &Before<'_>,
        path: &str,
    ) -> Option<Value> {
        if new.is_none() && self.empty.contains(path) {
            return None;
        }
        let Some(live) = live else { return new.cloned() };
        match (live, new) {
            (Value::Map(live), new) => map(field, live, new.and_then(Value::as_map), before),
            (Value::Message(live), new) if !is_atomic(live) => {
                let new = new.and_then(Value::as_message);
                let before = before.below(|message| inner(message, field));
                self.nested(live, new, &before, path)
            }
            (Value::List(live), new) if keys(field).is_some() => {
                self.list(field, live, new.and_then(Value::as_list), before, path)
            }
            (Value::List(live), new) if field.full_name() == SET => set(
                field,
                live,
                new.and_then(Value::as_list).unwrap_or_default(),
                before,
            ),
            (live, new) => whole(field, live, new, before),
        }
    }

    fn nested(
        &self,
        live: &DynamicMessage,
        new: Option<&DynamicMessage>,
        before: &Before<'_>,
        path: &str,
    ) -> Option<Value> {
        let merged = match new {
            Some(new) => self.mentioned(live, new, before, path),
            None if before.said.is_some() && is_union(live) && before.others.is_empty() => return None,
            None => {
                let rest = self.message(live, None, before, path);
                let was = live.fields().next().is_some() || before.is_ours(|_| true);
                if was && rest.fields().next().is_none() {
                    return None;
                }
                rest
            }
        };
        Some(Value::Message(merged))
    }

    fn mentioned(
        &self,
        live: &DynamicMessage,
        new: &DynamicMessage,
        before: &Before<'_>,
        path: &str,
    ) -> DynamicMessage {
        if is_union(live) && !covers(live, new) {
            return new.clone();
        }
        self.message(live, Some(new), before, path)
    }

    /// A list whose items have keys. In the order of the manifest; what others added keeps its place among them.
    fn list(
        &self,
        field: &FieldDescriptor,
        live: &[Value],
        new: Option<&[Value]>,
        before: &Before<'_>,
        path: &str,
    ) -> Option<Value> {
        let (Some(there), Some(wanted)) = (keyed(field, live), keyed(field, new.unwrap_or_default())) else {
            // Kubernetes takes variables of one name too, the last of them counts.
            let all = Value::List(live.to_vec());
            return whole(
                field,
                &all,
                new.map(|new| Value::List(new.to_vec())).as_ref(),
                before,
            );
        };
        let find = |key: &str| there.iter().position(|(other, _)| other == key);
        let item = |message, key: &str| item(message, field, key);
        let stays = there.iter().enumerate().filter(|(_, (key, _))| {
            let ours = before.said.is_some_and(|said| item(said, key).is_some());
            let theirs = before.others.iter().any(|other| item(other, key).is_some());
            wanted.iter().all(|(other, _)| other != key) && (!ours || theirs)
        });
        let mut stays = stays.map(|(place, (_, message))| (place, *message)).peekable();
        let mut merged = Vec::new();
        for (index, (key, new)) in wanted.iter().enumerate() {
            let place = find(key);
            while let Some((_, message)) =
                stays.next_if(|(other, _)| place.is_some_and(|place| *other < place))
            {
                merged.push(Value::Message(message.clone()));
            }
            let message = match place.and_then(|place| there.get(place)) {
                None => (*new).clone(),
                Some((_, live)) => {
                    let before = before.below(|message| item(message, key));
                    self.mentioned(live, new, &before, &format!("{path}[{index}]"))
                }
            };
            merged.push(Value::Message(message));
        }
        merged.extend(stays.map(|(_, message)| Value::Message(message.clone())));
        (!merged.is_empty()).then_some(Value::List(merged))
    }
}

/// A value that is taken as it is.
fn whole(field: &FieldDescriptor, live: &Value, new: Option<&Value>, before: &Before<'_>) -> Option<Value> {
    match new {
        Some(new) => Some(new.clone()),
        None if before.is_ours(|said| held(said, field) == Some(live)) => None,
        None => Some(live.clone()),
    }
}

/// What others have put in stays, in its place.
fn set(field: &FieldDescriptor, live: &[Value], new: &[Value], before: &Before<'_>) -> Option<Value> {
    let has = |said: &DynamicMessage, word: &Value| {
        let said = held(said, field).and_then(Value::as_list);
        said.is_some_and(|said| said.contains(word))
    };
    let stays = |word: &&Value| new.contains(word) || !before.is_ours(|said| has(said, word));
    let added = new.iter().filter(|word| !live.contains(word));
    let merged: Vec<Value> = live.iter().filter(stays).chain(added).cloned().collect();
    (!merged.is_empty()).then_some(Value::List(merged))
}

fn map(
    field: &FieldDescriptor,
    live: &HashMap<MapKey, Value>,
    new: Option<&HashMap<MapKey, Value>>,
    before: &Before<'_>,
) -> Option<Value> {
    let digested = is_digested(field);
    let mut merged = new.cloned().unwrap_or_default();
    for (key, value) in live {
        if merged.contains_key(key) {
            continue;
        }
        let as_said = match (digested, value) {
            (true, Value::String(text)) => Cow::Owned(Value::String(digest_text(text))),
            (true, Value::Bytes(bytes)) => Cow::Owned(Value::Bytes(digest(bytes).into())),
            _ => Cow::Borrowed(value),
        };
        let same = |said: &DynamicMessage| {
            let said = held(said, field).and_then(Value::as_map);
            said.and_then(|said| said.get(key)) == Some(&*as_said)
        };
        if !before.is_ours(same) {
            merged.insert(key.clone(), value.clone());
        }
    }
    (!merged.is_empty()).then_some(Value::Map(merged))
}

/// Whether everything that `new` says is in `live` already.
fn covers(live: &DynamicMessage, new: &DynamicMessage) -> bool {
    new.fields().all(|(field, new)| match (held(live, &field), new) {
        (Some(Value::Map(live)), Value::Map(new)) => {
            new.iter().all(|(key, value)| live.get(key) == Some(value))
        }
        (Some(Value::Message(live)), Value::Message(new)) if !is_atomic(live) => covers(live, new),
        (Some(live), new) => live == new,
        (None, _) => false,
    })
}

/// The field's value, when it is set.
pub(crate) fn held<'a>(message: &'a DynamicMessage, field: &FieldDescriptor) -> Option<&'a Value> {
    match message.has_field(field).then(|| message.get_field(field))? {
        Cow::Borrowed(value) => Some(value),
        Cow::Owned(_) => None,
    }
}

fn inner<'a>(message: &'a DynamicMessage, field: &FieldDescriptor) -> Option<&'a DynamicMessage> {
    held(message, field)?.as_message()
}

/// The item of a list with this key.
fn item<'a>(
    message: &'a DynamicMessage,
    field: &FieldDescriptor,
    wanted: &str,
) -> Option<&'a DynamicMessage> {
    let keys = keys(field)?;
    let items = held(message, field)?.as_list()?.iter();
    items
        .filter_map(Value::as_message)
        .find(|item| key(item, keys) == wanted)
}

/// The fields by which items of this list are told apart.
pub(crate) fn keys(field: &FieldDescriptor) -> Option<&'static [&'static str]> {
    let kind = field.kind();
    let message = kind.as_message().filter(|_| field.is_list())?;
    let found = KEYS.iter().find(|(name, _)| *name == message.full_name());
    found.map(|(_, keys)| *keys)
}

/// Items with their keys; none when two have the same.
pub(crate) fn keyed<'a>(
    field: &FieldDescriptor,
    items: &'a [Value],
) -> Option<Vec<(String, &'a DynamicMessage)>> {
    let keys = keys(field)?;
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(items.len());
    for item in items.iter().filter_map(Value::as_message) {
        let key = key(item, keys);
        if !seen.insert(key.clone()) {
            return None;
        }
        all.push((key, item));
    }
    Some(all)
}

fn key(item: &DynamicMessage, keys: &[&str]) -> String {
    let part = |name: &&str| {
        let value = item.get_field_by_name(name);
        match value.as_deref() {
            Some(Value::String(text)) if text.is_empty() && *name == "protocol" => "TCP".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::I32(number)) => number.to_string(),
            _ => String::new(),
        }
    };
    keys.iter().map(part).collect::<Vec<_>>().join("\0")
}

pub(crate) fn is_atomic(message: &DynamicMessage) -> bool {
    ATOMIC.contains(&message.descriptor().full_name())
}

fn is_union(message: &DynamicMessage) -> bool {
    UNIONS.contains(&message.descriptor().full_name())
}

/// Whether [`said`] has digests in place of this map's values.
fn is_digested(field: &FieldDescriptor) -> bool {
    let parent = field.parent_message();
    matches!(parent.full_name(), "bulkhead.v1.ConfigMap" | "bulkhead.v1.Secret")
        && matches!(field.name(), "data" | "binaryData")
}
