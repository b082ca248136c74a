//! What may not change once it is there.

use proto::v1::object::Object as Any;
use proto::v1::{Object, PodSpec};
use serde_json::Value;

use super::{Errors, FieldError};
use crate::{at_most_once, object, write};

/// Everything in `new` that may not follow `old`; both defaulted, both of one key.
pub fn update(old: &Object, new: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if object::key(old) != object::key(new) {
        errors.add("metadata.name", "kind, namespace and name cannot change");
        return errors.list;
    }
    match (&old.object, &new.object) {
        (Some(Any::Pod(before)), Some(Any::Pod(after))) => {
            if let (Some(before), Some(after)) = (&before.spec, &after.spec) {
                pod(&mut errors, before, after, old, new);
            }
            // Its node was told at the start.
            let asked = |object| at_most_once::is_asked(&object::meta(object).annotations);
            if asked(old) != asked(new) {
                errors.add(
                    format!("metadata.annotations[{}]", at_most_once::ANNOTATION),
                    "cannot change in a pod: delete the pod and create it again",
                );
            }
        }
        (Some(Any::Deployment(before)), Some(Any::Deployment(after))) => {
            let selector = |spec: &Option<proto::v1::DeploymentSpec>| {
                spec.as_ref().and_then(|spec| spec.selector.clone())
            };
            if selector(&before.spec) != selector(&after.spec) {
                errors.add(
                    "spec.selector",
                    "cannot change: delete the deployment and create it again",
                );
            }
        }
        (Some(Any::ReplicaSet(before)), Some(Any::ReplicaSet(after))) => {
            let selector = |spec: &Option<proto::v1::ReplicaSetSpec>| {
                spec.as_ref().and_then(|spec| spec.selector.clone())
            };
            if selector(&before.spec) != selector(&after.spec) {
                errors.add("spec.selector", "cannot change");
            }
        }
        (Some(Any::ConfigMap(before)), Some(Any::ConfigMap(after))) if before.immutable == Some(true) => {
            let message = "cannot change: immutable is true; delete the config map and create it again";
            if after.immutable != Some(true) {
                errors.add("immutable", message);
            }
            if before.data != after.data {
                errors.add("data", message);
            }
            if before.binary_data != after.binary_data {
                errors.add("binaryData", message);
            }
        }
        (Some(Any::Secret(before)), Some(Any::Secret(after))) => {
            super::secret::update(&mut errors, before, after)
        }
        (Some(Any::RoleBinding(before)), Some(Any::RoleBinding(after))) => {
            super::rbac::update(&mut errors, before.role_ref.as_ref(), after.role_ref.as_ref());
        }
        (Some(Any::ClusterRoleBinding(before)), Some(Any::ClusterRoleBinding(after))) => {
            super::rbac::update(&mut errors, before.role_ref.as_ref(), after.role_ref.as_ref());
        }
        (Some(Any::Node(before)), Some(Any::Node(after))) => {
            let range = |spec: &Option<proto::v1::NodeSpec>| {
                spec.as_ref()
                    .map(|spec| spec.pod_cidr.clone())
                    .unwrap_or_default()
            };
            if !range(&before.spec).is_empty() && range(&before.spec) != range(&after.spec) {
                errors.add("spec.podCIDR", "cannot change");
            }
        }
        _ => {}
    }
    errors.list
}

/// Of a pod only images may change.
fn pod(errors: &mut Errors, before: &PodSpec, after: &PodSpec, old: &Object, new: &Object) {
    let same_shape = before.containers.len() == after.containers.len()
        && before.init_containers.len() == after.init_containers.len();
    if same_shape {
        let mut allowed = before.clone();
        let mine = allowed.init_containers.iter_mut().chain(&mut allowed.containers);
        for (mine, theirs) in mine.zip(after.init_containers.iter().chain(&after.containers)) {
            mine.image.clone_from(&theirs.image);
        }
        // Binding is a call of its own: a manifest that does not name the node keeps it.
        if after.node_name.is_empty() {
            allowed.node_name.clear();
        }
        if allowed == *after {
            return;
        }
    }
    let mut paths = Vec::new();
    differences(&spec(old), &spec(new), "spec", &mut paths);
    for path in paths {
        let of_container = path.starts_with("spec.containers[") || path.starts_with("spec.initContainers[");
        let node = path == "spec.nodeName" && after.node_name.is_empty();
        if !(of_container && path.ends_with("].image") || node) {
            errors.add(
                path,
                "cannot change in a pod, only images can: delete the pod and create it again",
            );
        }
    }
}

fn spec(object: &Object) -> Value {
    write::json(object)
        .get_mut("spec")
        .map(Value::take)
        .unwrap_or_default()
}

/// Paths of what differs, as deep as both sides have the same shape.
fn differences(old: &Value, new: &Value, path: &str, paths: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let path = format!("{path}.{key}");
                match new.get(key) {
                    Some(other) => differences(value, other, &path, paths),
                    None => paths.push(path),
                }
            }
            paths.extend(
                new.keys()
                    .filter(|key| !old.contains_key(*key))
                    .map(|key| format!("{path}.{key}")),
            );
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                differences(old, new, &format!("{path}[{index}]"), paths);
            }
        }
        (old, new) => {
            if old != new {
                paths.push(path.to_owned());
            }
        }
    }
}
