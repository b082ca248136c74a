//! Objects as JSON and YAML, in the schema's field order, such that [`crate::read`] reads them back equal.

use proto::v1::Object;
use proto::v1::object::Object as Any;
use serde_json::Value;

/// Zeros that readers of Kubernetes' JSON expect to see, by the path of the message that has them (`*` for every element).
const ZEROS: &[(&[&str], &str, fn() -> Value)] = &[
    (&["status", "containerStatuses", "*"], "restartCount", zero),
    (&["status", "containerStatuses", "*"], "ready", no),
    (
        &["status", "containerStatuses", "*", "state", "terminated"],
        "exitCode",
        zero,
    ),
    (
        &["status", "containerStatuses", "*", "lastState", "terminated"],
        "exitCode",
        zero,
    ),
    (&["status", "initContainerStatuses", "*"], "restartCount", zero),
    (&["status", "initContainerStatuses", "*"], "ready", no),
    (
        &["status", "initContainerStatuses", "*", "state", "terminated"],
        "exitCode",
        zero,
    ),
];

fn zero() -> Value {
    Value::from(0)
}

fn no() -> Value {
    Value::Bool(false)
}

/// The object as JSON.
pub fn json(object: &Object) -> Value {
    let value = match &object.object {
        Some(Any::Namespace(inner)) => serde_json::to_value(inner),
        Some(Any::Node(inner)) => serde_json::to_value(inner),
        Some(Any::Pod(inner)) => serde_json::to_value(inner),
        Some(Any::ConfigMap(inner)) => serde_json::to_value(inner),
        Some(Any::Deployment(inner)) => serde_json::to_value(inner),
        Some(Any::ReplicaSet(inner)) => serde_json::to_value(inner),
        Some(Any::Event(inner)) => serde_json::to_value(inner),
        None => Ok(Value::Null),
    };
    let mut value = value.expect("generated types have string keys and serializers that do not fail");
    for (path, field, make) in ZEROS {
        fill(&mut value, path, field, *make);
    }
    value
}

fn fill(value: &mut Value, path: &[&str], field: &str, make: fn() -> Value) {
    match (path, value) {
        ([], Value::Object(map)) => {
            map.entry(field).or_insert_with(make);
        }
        (["*", rest @ ..], Value::Array(items)) => {
            for item in items {
                fill(item, rest, field, make);
            }
        }
        ([name, rest @ ..], Value::Object(map)) => {
            if let Some(inner) = map.get_mut(*name) {
                fill(inner, rest, field, make);
            }
        }
        _ => {}
    }
}

/// The object as one YAML document, without `---`.
pub fn yaml(object: &Object) -> String {
    value_yaml(&json(object))
}

/// Any JSON value as one YAML document, quoted such that it means the same to readers of YAML 1.1 and 1.2.
pub fn value_yaml(value: &Value) -> String {
    let mut text = serde_saphyr::to_string(value).expect("a tree of JSON values has a YAML form");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
