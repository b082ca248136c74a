//! Objects as JSON and YAML, in the schema's field order, such that [`crate::read`] reads them back equal.
//!
//! Written by the descriptors and not by derived serializers: quantities, times and zeros come out as Kubernetes has them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, ReflectMessage, Value as Field};
use proto::v1::Object;
use serde_json::{Map, Value};

use crate::{schema, time};

/// Zeros that readers of Kubernetes' JSON expect to see: message and field.
const ZEROS: [(&str, &str); 4] = [
    ("bulkhead.v1.ContainerStatus", "ready"),
    ("bulkhead.v1.ContainerStatus", "restartCount"),
    ("bulkhead.v1.ContainerStateTerminated", "exitCode"),
    ("bulkhead.v1.ReplicaSetStatus", "replicas"),
];

/// The object as JSON; null for an empty one.
pub fn json(object: &Object) -> Value {
    schema::inner(object).map_or(Value::Null, |inner| message(&inner))
}

fn message(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "bulkhead.v1.Quantity" => {
            return message
                .get_field_by_name("text")
                .and_then(|text| text.as_str().map(Value::from))
                .unwrap_or_default();
        }
        "bulkhead.v1.IntOrString" => {
            return message
                .fields()
                .next()
                .map_or(Value::Null, |(_, value)| self::value(value));
        }
        "google.protobuf.Timestamp" => {
            let seconds = message
                .get_field_by_name("seconds")
                .and_then(|seconds| seconds.as_i64());
            let nanos = message
                .get_field_by_name("nanos")
                .and_then(|nanos| nanos.as_i32());
            return Value::from(time::format(seconds.unwrap_or(0), nanos.unwrap_or(0)));
        }
        _ => {}
    }
    let mut map = Map::new();
    for field in descriptor.fields() {
        let zero = ZEROS.contains(&(descriptor.full_name(), field.name()));
        if zero || message.has_field(&field) {
            map.insert(field.name().to_owned(), value(&message.get_field(&field)));
        }
    }
    Value::Object(map)
}

fn value(value: &Field) -> Value {
    match value {
        Field::Message(inner) => message(inner),
        Field::List(items) => items.iter().map(self::value).collect(),
        Field::Map(entries) => {
            let mut entries: Vec<_> = entries
                .iter()
                .map(|(key, item)| (key.as_str().unwrap_or_default().to_owned(), item))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(
                entries
                    .into_iter()
                    .map(|(key, item)| (key, self::value(item)))
                    .collect(),
            )
        }
        Field::String(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => Value::from(STANDARD.encode(bytes)),
        Field::Bool(flag) => Value::from(*flag),
        Field::I32(number) | Field::EnumNumber(number) => Value::from(*number),
        Field::U32(number) => Value::from(*number),
        Field::I64(number) => Value::from(*number),
        Field::U64(number) => Value::from(*number),
        Field::F32(number) => Value::from(*number),
        Field::F64(number) => Value::from(*number),
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

/// Any JSON value as indented text. JSON allows a raw DEL in a text, YAML does not: it is escaped, so that our reader, which
/// reads JSON as YAML, takes it.
pub fn value_json(value: &Value) -> String {
    format!("{value:#}").replace('\u{7f}', "\\u007f")
}
