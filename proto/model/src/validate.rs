//! Whether an object makes sense: Kubernetes' own rules for the fields that we have, and refusal of what we do not enforce.
//!
//! Objects are defaulted first ([`crate::default::object`]). Everything that is wrong is told, not the first only.

mod container;
mod pod;
mod probe;
mod rbac;
mod secret;
mod security;
mod update;
mod volume;
mod workload;

use std::collections::BTreeMap;

use proto::v1::object::Object as Any;
use proto::v1::{ConfigMap, Object, ObjectMeta};

use crate::{Kind, at_most_once, name, object, quantity, schema};

pub use update::update;

/// Most bytes of the values of a config map or a secret, and of an object's annotations (a quarter of it): Kubernetes' own limits.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Most finalizers of an object: each is somebody to wait for.
const FINALIZERS_MAX: usize = 32;
/// Bandwidth annotations, enforced for the whole pod.
pub const BANDWIDTH: [&str; 2] = [
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
];

/// Old way to ask for an AppArmor profile; Kubernetes still makes a field of it. Ignored, the container would be less isolated
/// than was asked for.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldError {
    /// The field: `spec.containers[0].image`, `metadata.labels[app]`.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What is gathered.
#[derive(Default)]
struct Errors {
    list: Vec<FieldError>,
}

impl Errors {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.list.push(FieldError {
            path: path.into(),
            message: message.into(),
        });
    }

    fn check(&mut self, path: impl Into<String>, result: Result<(), String>) {
        if let Err(message) = result {
            self.add(path, message);
        }
    }

    /// Whether it is there.
    fn required(&mut self, path: String, text: &str) -> bool {
        if text.is_empty() {
            self.add(path, "is required");
        }
        !text.is_empty()
    }

    fn one_of(&mut self, path: String, text: &str, allowed: &[&str]) {
        if !allowed.contains(&text) {
            let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
            let hint = schema::hint(schema::nearest(text, allowed.iter().copied()).as_deref());
            self.add(path, format!("must be {}, is `{shown}`{hint}", list(allowed)));
        }
    }

    fn range(&mut self, path: String, number: i32, low: i32, high: i32) {
        if number < low || number > high {
            let message = match high {
                i32::MAX => format!("must be at least {low}, is {number}"),
                _ => format!("must be from {low} to {high}, is {number}"),
            };
            self.add(path, message);
        }
    }
}

fn list(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "empty".to_owned(),
    }
}

/// Everything that is wrong with a defaulted object.
pub fn object(object: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let Some(kind) = object::try_kind(object) else {
        errors.add("", "an object without a kind");
        return errors.list;
    };
    let (api_version, said) = object::type_meta(object);
    if api_version != kind.api_version() {
        errors.add("apiVersion", format!("must be {} for {kind}", kind.api_version()));
    }
    if said != kind.as_str() {
        errors.add("kind", format!("must be {kind}"));
    }
    metadata(&mut errors, object::meta(object), kind);
    match &object.object {
        Some(Any::Pod(inner)) => match &inner.spec {
            Some(spec) => pod::spec(&mut errors, "spec", spec),
            None => errors.add("spec", "is required"),
        },
        Some(Any::Deployment(inner)) => workload::deployment(&mut errors, inner),
        Some(Any::ReplicaSet(inner)) => workload::replica_set(&mut errors, inner),
        Some(Any::ConfigMap(inner)) => config_map(&mut errors, inner),
        Some(Any::Secret(inner)) => secret::secret(&mut errors, inner),
        Some(Any::Role(inner)) => rbac::role(&mut errors, inner),
        Some(Any::ClusterRole(inner)) => rbac::cluster_role(&mut errors, inner),
        Some(Any::RoleBinding(inner)) => rbac::role_binding(&mut errors, inner),
        Some(Any::ClusterRoleBinding(inner)) => rbac::cluster_role_binding(&mut errors, inner),
        Some(Any::Namespace(_) | Any::Node(_) | Any::ServiceAccount(_) | Any::Event(_)) | None => {}
    }
    errors.list
}

fn metadata(errors: &mut Errors, meta: &ObjectMeta, kind: Kind) {
    let check = match kind {
        Kind::Namespace => name::dns1123_label,
        Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding => name::path_segment,
        _ => name::dns1123_subdomain,
    };
    if !meta.name.is_empty() {
        errors.check("metadata.name", check(&meta.name));
    } else if meta.generate_name.is_empty() {
        errors.add("metadata.name", "is required");
    }
    if !meta.generate_name.is_empty() {
        let made = name::generate(&meta.generate_name, [0; name::SUFFIX_LEN]);
        errors.check("metadata.generateName", check(&made));
    }
    if kind.namespaced() {
        errors.check("metadata.namespace", name::dns1123_label(&meta.namespace));
    } else if !meta.namespace.is_empty() {
        errors.add(
            "metadata.namespace",
            format!("a {kind} is in no namespace: remove it"),
        );
    }
    for (index, owner) in meta.owner_references.iter().enumerate() {
        let path = format!("metadata.ownerReferences[{index}]");
        let fields = [
            ("apiVersion", &owner.api_version),
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ];
        for (field, text) in fields {
            errors.required(format!("{path}.{field}"), text);
        }
    }
    let mut controllers = meta
        .owner_references
        .iter()
        .enumerate()
        .filter(|(_, owner)| owner.controller == Some(true));
    if let (Some(_), Some((index, _))) = (controllers.next(), controllers.next()) {
        errors.add(
            format!("metadata.ownerReferences[{index}].controller"),
            "only one owner can be the controller",
        );
    }
    if let Some(seconds) = meta.deletion_grace_period_seconds {
        errors.range(
            "metadata.deletionGracePeriodSeconds".to_owned(),
            seconds,
            0,
            i32::MAX,
        );
    }
    written_metadata(errors, "metadata", meta);
    if kind == Kind::Pod {
        pod_annotations(errors, "metadata", meta);
    } else if meta.annotations.contains_key(at_most_once::ANNOTATION) {
        let place = match kind {
            Kind::Deployment | Kind::ReplicaSet => "write it into spec.template.metadata.annotations",
            _ => "remove it",
        };
        errors.add(
            format!("metadata.annotations[{}]", at_most_once::ANNOTATION),
            format!("is an annotation of pods and means nothing here: {place}"),
        );
    }
}

/// What people write of an object's metadata, or of a template's.
fn written_metadata(errors: &mut Errors, path: &str, meta: &ObjectMeta) {
    labels(errors, &format!("{path}.labels"), &meta.labels);
    let mut bytes = 0;
    for (key, value) in &meta.annotations {
        bytes += key.len() + value.len();
        // Kubernetes compares the keys of annotations without regard to case.
        errors.check(
            format!("{path}.annotations[{key}]"),
            name::label_key(&key.to_ascii_lowercase()),
        );
    }
    if bytes > CONFIG_BYTES_MAX / 4 {
        let limit = CONFIG_BYTES_MAX / 4;
        errors.add(
            format!("{path}.annotations"),
            format!("have {bytes} bytes together, at most {limit} are allowed"),
        );
    }
    finalizers(errors, path, meta);
}

/// The names of those who have a part in an object's end; some that have no domain are Kubernetes' own.
fn finalizers(errors: &mut Errors, path: &str, meta: &ObjectMeta) {
    if meta.finalizers.len() > FINALIZERS_MAX {
        errors.add(
            format!("{path}.finalizers"),
            format!(
                "are {}, at most {FINALIZERS_MAX} are allowed",
                meta.finalizers.len()
            ),
        );
        return;
    }
    for (index, finalizer) in meta.finalizers.iter().enumerate() {
        let path = format!("{path}.finalizers[{index}]");
        if meta.finalizers[..index].contains(finalizer) {
            errors.add(path, format!("`{}` is there twice", name::shown(finalizer)));
        } else if finalizer.contains('/') {
            errors.check(path, name::label_key(finalizer));
        } else if finalizer != object::FOREGROUND {
            let text = name::shown(finalizer);
            errors.add(path, format!("`{text}` must say whose it is: example.com/{text}"));
        }
    }
}

fn labels(errors: &mut Errors, path: &str, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        errors.check(format!("{path}[{key}]"), name::label_key(key));
        errors.check(format!("{path}[{key}]"), name::label_value(value));
    }
}

/// Annotations that mean something to a pod.
fn pod_annotations(errors: &mut Errors, path: &str, meta: &ObjectMeta) {
    bandwidth(errors, path, meta);
    if let Some(value) = meta.annotations.get(at_most_once::ANNOTATION) {
        let path = format!("{path}.annotations[{}]", at_most_once::ANNOTATION);
        errors.one_of(path, value, &[at_most_once::ASKED, "false"]);
    }
    for key in meta.annotations.keys().filter(|key| key.starts_with(APPARMOR)) {
        errors.add(
            format!("{path}.annotations[{key}]"),
            "not supported yet: write securityContext.appArmorProfile, which replaced it",
        );
    }
}

/// Kubernetes' bounds of a pod's bandwidth: 1k to 1P bits a second.
fn bandwidth(errors: &mut Errors, path: &str, meta: &ObjectMeta) {
    for key in BANDWIDTH {
        let Some(text) = meta.annotations.get(key) else {
            continue;
        };
        let path = format!("{path}.annotations[{key}]");
        match quantity::parse(text) {
            Ok(amount) if (1_000..=1_000_000_000_000_000).contains(&amount.bytes()) => {}
            Ok(_) => errors.add(
                path,
                format!("must be from 1k to 1P (bits a second), is `{text}`"),
            ),
            Err(error) => errors.add(path, error.to_string()),
        }
    }
}

fn config_map(errors: &mut Errors, map: &ConfigMap) {
    let mut bytes = 0;
    for (key, value) in &map.data {
        bytes += value.len();
        errors.check(format!("data[{key}]"), name::config_key(key));
    }
    for (key, value) in &map.binary_data {
        bytes += value.len();
        errors.check(format!("binaryData[{key}]"), name::config_key(key));
        if map.data.contains_key(key) {
            errors.add(format!("binaryData[{key}]"), "the same key is in data");
        }
    }
    if bytes > CONFIG_BYTES_MAX {
        errors.add(
            "data",
            format!("has {bytes} bytes with binaryData, at most {CONFIG_BYTES_MAX} are allowed"),
        );
    }
}
