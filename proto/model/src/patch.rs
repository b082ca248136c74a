//! Patches as Kubernetes has them: parts of an object that are merged into it, or a list of steps.
//!
//! | type | is |
//! |---|---|
//! | strategic | a part of the object. Lists whose items have a key are merged by it, as an apply does; null removes a field |
//! | merge | RFC 7396: a part of the object, each list as a whole; null removes a field |
//! | json | RFC 6902: a list of operations |

use prost_reflect::{FieldDescriptor, MessageDescriptor};
use proto::v1::Object;
use serde_json::{Map, Value};

use crate::merge::{SET, keys};
use crate::{object, schema, write};

/// How a patch is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// Kubernetes' own.
    Strategic,
    /// RFC 7396.
    Merge,
    /// RFC 6902.
    Json,
}

/// What says of a message in a strategic patch that it is no part of the object.
const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_WORDS: &str = "$deleteFromPrimitiveList/";

/// Why a patch can't be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if .path.is_empty() { String::new() } else { format!("{}: ", .path) })]
pub struct PatchError {
    /// The field; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

fn refuse<T>(path: &str, message: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError {
        path: path.to_owned(),
        message: message.into(),
    })
}

/// The object as JSON, patched. What it is worth is for whoever reads it as a manifest.
pub fn patched(live: &Object, patch: &Value, how: Patch) -> Result<Value, PatchError> {
    let mut document = write::json(live);
    match how {
        Patch::Json => {
            let steps: json_patch::Patch = serde_json::from_value(patch.clone())
                .or_else(|cause| refuse("", format!("is no list of operations (RFC 6902): {cause}")))?;
            json_patch::patch(&mut document, &steps).or_else(|cause| refuse("", cause.to_string()))?;
        }
        Patch::Merge | Patch::Strategic if !patch.is_object() => {
            return refuse("", "must be a part of the object: {\"spec\": ...}");
        }
        Patch::Merge => json_patch::merge(&mut document, patch),
        Patch::Strategic => {
            let message = object::try_kind(live)
                .and_then(|kind| schema::message(&format!("bulkhead.v1.{}", kind.as_str())));
            merge(&mut document, patch, message.as_ref(), "")?;
        }
    }
    Ok(document)
}

fn merge(
    target: &mut Value,
    patch: &Value,
    message: Option<&MessageDescriptor>,
    path: &str,
) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else {
        return Ok(()); // it is one now
    };
    match patch.get(DIRECTIVE).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => fields.clear(),
        Some(Some("delete")) => {
            fields.clear();
            return Ok(());
        }
        Some(_) => return refuse(&below(path, DIRECTIVE), "must be merge, replace or delete"),
    }
    for (name, value) in patch {
        let path = below(path, name);
        if name == DIRECTIVE || name == RETAIN {
            continue;
        }
        if let Some(list) = name.strip_prefix(DELETE_WORDS) {
            let words = value.as_array();
            let words = words.map_or_else(|| refuse(&path, "must be a list"), Ok)?;
            if let Some(Value::Array(there)) = fields.get_mut(list) {
                there.retain(|word| !words.contains(word));
            }
            continue;
        }
        if name.starts_with('$') {
            return refuse(&path, "this directive is not supported");
        }
        if value.is_null() {
            fields.remove(name);
            continue;
        }
        let field = message.and_then(|message| message.get_field_by_name(name));
        let there = fields.entry(name.clone()).or_insert(Value::Null);
        match &field {
            Some(field) if field.is_list() => list(there, value, field, &path)?,
            _ => merge(there, value, field.as_ref().and_then(inner).as_ref(), &path)?,
        }
    }
    if let Some(kept) = patch.get(RETAIN) {
        let kept = kept.as_array();
        let kept = kept.map_or_else(|| refuse(&below(path, RETAIN), "must be a list"), Ok)?;
        fields.retain(|name, _| kept.iter().any(|other| other == name));
    }
    Ok(())
}

/// The message that a field holds; none for a map, whose entries have names that the schema does not know.
fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    let kind = field.kind();
    kind.as_message().filter(|_| !field.is_map()).cloned()
}

fn list(target: &mut Value, patch: &Value, field: &FieldDescriptor, path: &str) -> Result<(), PatchError> {
    let Value::Array(items) = patch else {
        *target = patch.clone(); // whoever reads it says that it is no list
        return Ok(());
    };
    let mut there = match target.take() {
        Value::Array(there) => there,
        _ => Vec::new(),
    };
    if field.full_name() == SET {
        there.extend(
            items
                .iter()
                .filter(|word| !there.contains(word))
                .cloned()
                .collect::<Vec<_>>(),
        );
        *target = Value::Array(there);
        return Ok(());
    }
    // Kubernetes' lists are merged by one key, also where an apply looks at two.
    let Some(key) = keys(field).and_then(|keys| keys.first()) else {
        *target = patch.clone();
        return Ok(());
    };
    let whole = |item: &&Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    if items.iter().any(|item| whole(&item)) {
        let rest = items.iter().filter(|item| !whole(item)).cloned();
        *target = Value::Array(rest.collect());
        return Ok(());
    }
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(own) = item.get(*key) else {
            return refuse(
                &below(&path, key),
                "is missing: by it the items of this list are told apart",
            );
        };
        let is_it = |other: &Value| other.get(*key) == Some(own);
        if item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
            there.retain(|other| !is_it(other));
            continue;
        }
        let place = there.iter().position(is_it).unwrap_or_else(|| {
            there.push(Value::Null);
            there.len() - 1
        });
        merge(&mut there[place], item, inner(field).as_ref(), &path)?;
    }
    *target = Value::Array(there);
    Ok(())
}

fn below(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::read;

    const WEB: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, labels: {a: b}, finalizers: [x/a]}\n\
        spec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      \
        volumes: [{name: v, emptyDir: {}}]\n      containers:\n      - {name: main, image: 'web:1', args: [a, b], env: [{name: A, value: '1'}]}\n      \
        - {name: side, image: 'side:1'}\n";

    fn web(how: Patch, patch: Value) -> Result<Value, PatchError> {
        let manifest = read::manifests("web", WEB.as_bytes()).unwrap().remove(0);
        patched(&manifest.object, &patch, how)
    }

    fn pod(value: &Value) -> &Value {
        &value["spec"]["template"]["spec"]
    }

    #[test]
    fn a_strategic_patch_merges_lists_by_their_keys() {
        let patch = json!({
            "metadata": { "labels": { "a": null, "c": "d" }, "finalizers": ["x/b", "x/a"] },
            "spec": { "replicas": 3, "template": { "spec": { "containers": [
                { "name": "main", "args": ["c"], "env": [{ "name": "B", "value": "2" }, { "name": "A", "$patch": "delete" }] },
                { "name": "new", "image": "new:1" },
                { "name": "side", "$patch": "delete" },
            ] } } }
        });
        let patched = web(Patch::Strategic, patch).unwrap();
        assert_eq!(patched["metadata"]["labels"], json!({ "c": "d" }));
        assert_eq!(patched["metadata"]["finalizers"], json!(["x/a", "x/b"]));
        assert_eq!(patched["spec"]["replicas"], 3);
        let containers = &pod(&patched)["containers"];
        let names: Vec<&str> = containers
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["main", "new"]);
        assert_eq!(containers[0]["image"], "web:1");
        assert_eq!(containers[0]["args"], json!(["c"]));
        assert_eq!(containers[0]["env"], json!([{ "name": "B", "value": "2" }]));
        assert_eq!(pod(&patched)["volumes"][0]["name"], "v");
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let at = |patch: Value| json!({ "spec": { "template": { "spec": patch } } });
        let replaced =
            at(json!({ "containers": [{ "$patch": "replace" }, { "name": "only", "image": "o:1" }] }));
        let patched = web(Patch::Strategic, replaced).unwrap();
        assert_eq!(
            pod(&patched)["containers"],
            json!([{ "name": "only", "image": "o:1" }])
        );
        let emptied = json!({ "metadata": { "labels": { "$patch": "replace", "x": "y" } } });
        let patched = web(Patch::Strategic, emptied).unwrap();
        assert_eq!(patched["metadata"]["labels"], json!({ "x": "y" }));
        let words = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["x/a"] } });
        assert_eq!(
            web(Patch::Strategic, words).unwrap()["metadata"]["finalizers"],
            json!([])
        );
        let union = at(
            json!({ "volumes": [{ "name": "v", "$retainKeys": ["name", "configMap"], "configMap": { "name": "m" } }] }),
        );
        let patched = web(Patch::Strategic, union).unwrap();
        assert_eq!(
            pod(&patched)["volumes"][0],
            json!({ "name": "v", "configMap": { "name": "m" } })
        );
    }

    #[test]
    fn the_two_standards_are_what_they_say() {
        let merge = json!({ "spec": { "replicas": null, "template": { "spec": { "containers": [{ "name": "x", "image": "y" }] } } } });
        let patched = web(Patch::Merge, merge).unwrap();
        assert_eq!(patched["spec"].get("replicas"), None);
        assert_eq!(pod(&patched)["containers"].as_array().unwrap().len(), 1);
        let steps = json!([
            { "op": "test", "path": "/spec/replicas", "value": 2 },
            { "op": "replace", "path": "/spec/template/spec/containers/1/image", "value": "side:2" },
            { "op": "remove", "path": "/metadata/labels/a" },
        ]);
        let patched = web(Patch::Json, steps).unwrap();
        assert_eq!(pod(&patched)["containers"][1]["image"], "side:2");
    }

    #[test]
    fn what_can_not_be_carried_out_says_where() {
        let at = |patch: Value| json!({ "spec": { "template": { "spec": patch } } });
        for (how, patch, words) in [
            (Patch::Strategic, json!([]), "part of the object"),
            (Patch::Merge, json!(1), "part of the object"),
            (Patch::Json, json!({}), "RFC 6902"),
            (
                Patch::Json,
                json!([{ "op": "test", "path": "/spec/replicas", "value": 9 }]),
                "did not match",
            ),
            (
                Patch::Json,
                json!([{ "op": "remove", "path": "/spec/nothing" }]),
                "/0",
            ),
            (
                Patch::Strategic,
                at(json!({ "containers": [{ "image": "x" }] })),
                "spec.template.spec.containers[0].name: is missing",
            ),
            (
                Patch::Strategic,
                json!({ "spec": { "$patch": "nope" } }),
                "spec.$patch: must be",
            ),
            (
                Patch::Strategic,
                json!({ "$setElementOrder/x": [] }),
                "not supported",
            ),
            (
                Patch::Strategic,
                json!({ "spec": { "$retainKeys": 1 } }),
                "must be a list",
            ),
        ] {
            let error = web(how, patch.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{patch}: {error}");
        }
    }
}
