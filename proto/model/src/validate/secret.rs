//! Secrets: their size, and what their types ask for (Kubernetes, "Types of Secret").

use proto::v1::Secret;

use super::{CONFIG_BYTES_MAX, Errors};
use crate::name;

/// Keys of which a type asks for: all, or one at least.
enum Keys {
    All(&'static [&'static str]),
    Any(&'static [&'static str]),
    /// One, with JSON in it.
    Json(&'static str),
}

/// Types that ask for keys. Any other type is the user's own.
const TYPES: &[(&str, Keys)] = &[
    ("kubernetes.io/tls", Keys::All(&["tls.crt", "tls.key"])),
    ("kubernetes.io/basic-auth", Keys::Any(&["username", "password"])),
    ("kubernetes.io/ssh-auth", Keys::All(&["ssh-privatekey"])),
    ("kubernetes.io/dockercfg", Keys::Json(".dockercfg")),
    ("kubernetes.io/dockerconfigjson", Keys::Json(".dockerconfigjson")),
];
/// Its token would have to be made by the cluster.
const SERVICE_ACCOUNT: &str = "kubernetes.io/service-account-token";

pub(super) fn secret(errors: &mut Errors, secret: &Secret) {
    let mut bytes = 0;
    for (key, value) in &secret.data {
        bytes += value.len();
        errors.check(format!("data[{key}]"), name::config_key(key));
    }
    if bytes > CONFIG_BYTES_MAX {
        let message = format!("has {bytes} bytes, at most {CONFIG_BYTES_MAX} are allowed");
        errors.add("data", message);
    }
    if secret.r#type == SERVICE_ACCOUNT {
        errors.add("type", format!("{SERVICE_ACCOUNT} is not supported yet"));
    }
    let Some((kind, keys)) = TYPES.iter().find(|(name, _)| *name == secret.r#type) else {
        return;
    };
    let has = |key: &&str| secret.data.contains_key(*key);
    match keys {
        Keys::All(keys) => {
            for key in keys.iter().filter(|key| !has(key)) {
                errors.add(format!("data[{key}]"), format!("is required by type {kind}"));
            }
        }
        Keys::Any(keys) if !keys.iter().any(has) => {
            let message = format!("type {kind} needs one of {}", keys.join(" and "));
            errors.add("data", message);
        }
        Keys::Any(_) => {}
        // What is in it is nobody's business here, nor the business of a message.
        Keys::Json(key) => match secret.data.get(*key) {
            None => errors.add(format!("data[{key}]"), format!("is required by type {kind}")),
            Some(value) if serde_json::from_slice::<serde_json::Value>(value).is_err() => {
                errors.add(format!("data[{key}]"), "is not JSON");
            }
            Some(_) => {}
        },
    }
}

/// What of a secret cannot change.
pub(super) fn update(errors: &mut Errors, before: &Secret, after: &Secret) {
    if before.r#type != after.r#type {
        let message = format!(
            "cannot change from {}; delete the secret and create it again",
            before.r#type
        );
        errors.add("type", message);
    }
    if before.immutable != Some(true) {
        return;
    }
    let message = "cannot change: immutable is true; delete the secret and create it again";
    if after.immutable != Some(true) {
        errors.add("immutable", message);
    }
    if before.data != after.data {
        errors.add("data", message);
    }
}
