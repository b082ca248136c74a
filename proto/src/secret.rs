//! Debug of a Secret, without its values.

use std::fmt;

use crate::v1::Secret;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.data.keys().chain(self.string_data.keys()).collect();
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("type", &self.r#type)
            .field("keys", &keys)
            .field("immutable", &self.immutable)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_print_has_the_keys_and_no_values() {
        let secret = Secret {
            data: [("password".to_owned(), b"hunter2".to_vec())].into(),
            string_data: [("token".to_owned(), "hunter3".to_owned())].into(),
            ..Secret::default()
        };
        let object = crate::v1::Object {
            object: Some(crate::v1::object::Object::Secret(secret)),
        };
        let printed = format!("{object:?}");
        assert!(
            printed.contains("password") && printed.contains("token"),
            "{printed}"
        );
        let numbers = |text: &str| format!("{:?}", text.as_bytes());
        for value in ["hunter2", "hunter3"] {
            assert!(
                !printed.contains(value) && !printed.contains(&numbers(value)),
                "{printed}"
            );
        }
    }
}
