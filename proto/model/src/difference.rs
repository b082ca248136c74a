//! In which fields two objects differ.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value};
use proto::v1::Object;

use crate::merge::{held, is_atomic, keyed, keys};
use crate::schema;

/// Paths of the fields that differ, as refusals name them: `spec.template.spec.containers[0].image`, `metadata.labels[app]`.
/// Items of a list that have keys are compared by them, under the number that they have in `new`, or in `old` when they are
/// gone. Empty for objects of two kinds.
pub fn paths(old: &Object, new: &Object) -> Vec<String> {
    let mut paths = Vec::new();
    if let (Some(old), Some(new)) = (schema::inner(old), schema::inner(new))
        && old.descriptor() == new.descriptor()
    {
        message(&old, &new, "", &mut paths);
    }
    paths
}

fn message(old: &DynamicMessage, new: &DynamicMessage, path: &str, paths: &mut Vec<String>) {
    for field in old.descriptor().fields() {
        let path = match path {
            "" => field.name().to_owned(),
            path => format!("{path}.{}", field.name()),
        };
        self::field(&field, held(old, &field), held(new, &field), &path, paths);
    }
}

fn field(
    field: &FieldDescriptor,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &str,
    paths: &mut Vec<String>,
) {
    let no_map = std::collections::HashMap::new();
    match (old, new) {
        (old, new) if old == new => {}
        (old, new) if field.is_map() => {
            let old = old.and_then(Value::as_map).unwrap_or(&no_map);
            let new = new.and_then(Value::as_map).unwrap_or(&no_map);
            let keys: BTreeSet<&MapKey> = old.keys().chain(new.keys()).collect();
            let differ = keys.into_iter().filter(|key| old.get(key) != new.get(key));
            paths.extend(differ.map(|key| format!("{path}[{}]", key.as_str().unwrap_or_default())));
        }
        (old, new) if keys(field).is_some() => {
            let old = old.and_then(Value::as_list).unwrap_or_default();
            let new = new.and_then(Value::as_list).unwrap_or_default();
            list(field, old, new, path, paths);
        }
        (Some(Value::Message(old)), Some(Value::Message(new))) if !is_atomic(old) => {
            message(old, new, path, paths);
        }
        _ => paths.push(path.to_owned()),
    }
}

fn list(field: &FieldDescriptor, old: &[Value], new: &[Value], path: &str, paths: &mut Vec<String>) {
    let (Some(old), Some(new)) = (keyed(field, old), keyed(field, new)) else {
        return paths.push(path.to_owned());
    };
    let before = paths.len();
    for (index, (key, item)) in new.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match old.iter().find(|(other, _)| other == key) {
            Some((_, old)) => message(old, item, &path, paths),
            None => paths.push(path),
        }
    }
    for (index, (key, _)) in old.iter().enumerate() {
        if new.iter().all(|(other, _)| other != key) {
            paths.push(format!("{path}[{index}]"));
        }
    }
    if paths.len() == before {
        // The same items in another order.
        paths.push(path.to_owned());
    }
}
