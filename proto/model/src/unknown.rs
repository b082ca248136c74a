//! Fields on the wire that this schema does not know: prost would drop them silently, the API refuses them.

use prost_reflect::{DynamicMessage, Value};

use crate::schema;

/// Most places told; the rest is counted by nobody, one is enough to refuse.
const PLACES_MAX: usize = 100;

/// A message that cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum UnknownError {
    /// The schema has no such message.
    #[error("the schema has no message {name}")]
    Type {
        /// Its full name.
        name: String,
    },
    /// The bytes are no such message.
    #[error("not a valid message")]
    Decode {
        /// What the decoder said.
        #[from]
        source: prost::DecodeError,
    },
}

/// Paths of the unknown fields of `message`, an encoded `bulkhead.v1.Object` or other type by its full name,
/// as `pod.spec.containers[0].#99` (an unknown field has a number only).
pub fn fields(message: &[u8], type_name: &str) -> Result<Vec<String>, UnknownError> {
    let descriptor = schema::message(type_name).ok_or_else(|| UnknownError::Type {
        name: type_name.to_owned(),
    })?;
    Ok(of(&DynamicMessage::decode(descriptor, message)?))
}

/// As [`fields`], of a message that the caller has decoded by a schema of its own, such as that of the calls.
pub fn of(message: &DynamicMessage) -> Vec<String> {
    let mut places = Vec::new();
    walk(message, "", &mut places);
    places
}

// Recursion is bounded by prost's own limit of 100 levels while decoding.
fn walk(message: &DynamicMessage, path: &str, places: &mut Vec<String>) {
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for field in message.unknown_fields() {
        if places.len() < PLACES_MAX {
            places.push(join(&format!("#{}", field.number())));
        }
    }
    for (field, value) in message.fields() {
        match value {
            Value::Message(inner) => walk(inner, &join(field.name()), places),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Message(inner) = item {
                        walk(inner, &join(&format!("{}[{index}]", field.name())), places);
                    }
                }
            }
            Value::Map(entries) => {
                for (key, item) in entries {
                    if let Value::Message(inner) = item {
                        let key = key.as_str().unwrap_or("?");
                        walk(inner, &join(&format!("{}[{key}]", field.name())), places);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::v1::{Container, Pod, PodSpec};

    use super::*;
    use crate::object;

    #[test]
    fn a_field_of_a_newer_schema_is_found_at_any_depth() {
        let mut container = Container {
            name: "web".to_owned(),
            ..Default::default()
        }
        .encode_to_vec();
        container.extend([0x9a, 0x06, 1, b'x']); // field 99, length-delimited
        let clean = object::from(Pod {
            spec: Some(PodSpec::default()),
            ..Default::default()
        });
        assert!(
            fields(&clean.encode_to_vec(), "bulkhead.v1.Object")
                .unwrap()
                .is_empty()
        );

        let wrap = |tag: u8, inner: Vec<u8>| {
            let mut bytes = vec![tag << 3 | 2, u8::try_from(inner.len()).unwrap()];
            bytes.extend(inner);
            bytes
        };
        let object = wrap(3, wrap(4, wrap(2, container)));
        assert_eq!(
            fields(&object, "bulkhead.v1.Object").unwrap(),
            ["pod.spec.containers[0].#99"]
        );
    }
}
