//! The schema's descriptors, parsed once, and the nearest of a set of names.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use proto::v1::Object;

use crate::{Kind, object};

/// Parsed on first use: it takes milliseconds and megabytes, which processes that only plan never spend.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::DESCRIPTORS).expect("the build compiled these descriptors")
});

/// The descriptor of a message, by its full name.
pub(crate) fn message(name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(name)
}

/// The object itself, without the `Object` around it; none in an empty one.
pub(crate) fn inner(object: &Object) -> Option<DynamicMessage> {
    let mut any = DynamicMessage::new(message("bulkhead.v1.Object").expect("the schema has Object"));
    any.transcode_from(object)
        .expect("the descriptors are those of the type");
    // The only field that is set is the object itself.
    let field = any.fields().next().map(|(field, _)| field)?;
    any.take_field(&field).and_then(|value| match value {
        Value::Message(inner) => Some(inner),
        _ => None,
    })
}

/// The typed object that holds this message.
pub(crate) fn typed(message: DynamicMessage, kind: Kind) -> Object {
    let outer = self::message("bulkhead.v1.Object").expect("the schema has Object");
    let field = outer
        .fields()
        .find(|field| {
            field
                .kind()
                .as_message()
                .is_some_and(|message| message.name() == kind.as_str())
        })
        .expect("Object holds every kind");
    let mut any = DynamicMessage::new(outer);
    any.set_field(&field, Value::Message(message));
    let mut object: Object = any
        .transcode_to()
        .expect("the types were generated from the same descriptors");
    object::set_type_meta(&mut object);
    object
}

/// The name nearest to what was written, if one is near enough to be meant.
pub(crate) fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Longer than any name: nothing is near, and the distance would cost its square.
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    names
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_ascii_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= 1 + name.len().min(text.len()) / 4)
        .min()
        .map(|(_, name)| name.to_owned())
}

/// `; did you mean ...?`, or nothing.
pub(crate) fn hint(suggestion: Option<&str>) -> String {
    suggestion
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

/// Of a text that a message repeats: not megabytes of it.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    let dots = if text.chars().nth(80).is_some() { "..." } else { "" };
    format!("{cut}{dots}")
}
