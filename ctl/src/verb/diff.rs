//! `ctl diff -f FILE`: what an apply would change, as a unified diff; the cluster decides it as it would decide the apply.
//! Exit code 0: nothing; 1: something; above: an error.

use std::path::PathBuf;

use model::object;
use proto::v1::Object;
use proto::v1::object::Object as Any;
use rpc::v1::ApplyRequest;
use serde_json::Value;

use super::apply;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::files::Files;
use crate::output::Output;
use crate::pruned::Pruned;
use crate::unified;

/// Code for what failed: 1 says that something differs.
const FAILED: i32 = 2;

/// Arguments of `ctl diff`.
#[derive(clap::Args)]
pub(crate) struct Diff {
    /// Manifests: files, directories or -
    #[arg(value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    pruned: Pruned,
    /// Who would apply
    #[arg(long, value_name = "NAME", default_value = "ctl")]
    field_manager: String,
}

/// Prints what differs.
pub(crate) async fn run(
    args: Diff,
    open: impl FnOnce() -> Result<Cluster, CtlError>,
    namespace: Option<&str>,
    out: &mut Output,
) -> Result<(), CtlError> {
    match compare(args, open, namespace, out).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(CtlError::Exited(1)),
        Err(error) if error.exit_code() == 1 => {
            for line in error.to_string().lines() {
                out.note(format_args!("error: {line}"));
            }
            Err(CtlError::Exited(FAILED))
        }
        Err(error) => Err(error),
    }
}

async fn compare(
    args: Diff,
    open: impl FnOnce() -> Result<Cluster, CtlError>,
    namespace: Option<&str>,
    out: &mut Output,
) -> Result<bool, CtlError> {
    if args.paths.is_empty() && args.files.filename.is_empty() {
        return Err(CtlError::Usage(
            "name a manifest: `ctl diff -f FILE`, a directory, or -".to_owned(),
        ));
    }
    let mut manifests = args.files.read(&args.paths)?;
    let cluster = &open()?;
    apply::place(&mut manifests, cluster, namespace)?;
    let prune = args.pruned.request(&mut manifests)?;
    let request = ApplyRequest {
        items: apply::items(&manifests),
        dry_run: true,
        request_id: apply::request_id().map_err(|status| cluster.error(status))?,
        manager: args.field_manager,
        prune,
        ..ApplyRequest::default()
    };
    let answer = cluster
        .call(request, async |mut api, request| api.apply(request).await)
        .await
        .map_err(|status| apply::refuse(cluster, &manifests, status))?;
    let mut differs = false;
    for result in answer.results {
        let Some(merged) = result.object.filter(|_| result.outcome != "unchanged") else {
            continue;
        };
        let name = name(&merged);
        let (live, merged) = match result.outcome.as_str() {
            "created" => (None, Some(merged)),
            "pruned" => (Some(merged), None),
            _ => (cluster.find(object::key(&merged)).await?, Some(merged)),
        };
        let (old, new) = shown(live, merged);
        let text = unified::diff(&format!("LIVE/{name}"), &format!("MERGED/{name}"), &old, &new);
        differs |= !text.is_empty();
        out.bytes(text.as_bytes())?;
    }
    Ok(differs)
}

/// As kubectl names them: `apps.v1.Deployment.default.web`.
fn name(object: &Object) -> String {
    let kind = object::kind(object);
    let meta = object::meta(object);
    let version = kind.api_version().replace('/', ".");
    let namespace = match meta.namespace.as_str() {
        "" => String::new(),
        namespace => format!(".{namespace}"),
    };
    format!("{version}.{kind}{namespace}.{}", meta.name)
}

/// Both as text, without what the cluster sets; of a Secret only whether values differ.
fn shown(live: Option<Object>, merged: Option<Object>) -> (String, String) {
    let either = merged.as_ref().or(live.as_ref());
    let secret = either.is_some_and(|object| matches!(object.object, Some(Any::Secret(_))));
    let mut old = live.map_or(Value::Null, bare);
    let mut new = merged.map_or(Value::Null, bare);
    if secret {
        mask(&mut old, &mut new);
    }
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        value => model::write::value_yaml(value),
    };
    (text(&old), text(&new))
}

fn bare(mut object: Object) -> Value {
    object::clear_status(&mut object);
    let meta = object::meta_mut(&mut object);
    meta.uid.clear();
    meta.resource_version.clear();
    meta.generation = 0;
    meta.creation_timestamp = None;
    model::write::json(&object)
}

fn mask(old: &mut Value, new: &mut Value) {
    let before = old.get("data").cloned().unwrap_or_default();
    let after = new.get("data").cloned().unwrap_or_default();
    let hide = |side: &mut Value, other: &Value, differs: &str| {
        let Some(data) = side.get_mut("data").and_then(Value::as_object_mut) else {
            return;
        };
        for (key, value) in data {
            let same = other.get(key).is_none_or(|other| *other == *value);
            *value = Value::from(if same { "***" } else { differs });
        }
    };
    hide(old, &after, "*** (before)");
    hide(new, &before, "*** (after)");
}

#[cfg(test)]
mod tests {
    use proto::v1::{ObjectMeta, Secret};

    use super::*;

    fn secret(value: &str) -> Object {
        object::from(Secret {
            metadata: Some(ObjectMeta {
                name: "s".to_owned(),
                namespace: "default".to_owned(),
                uid: value.to_owned(),
                ..ObjectMeta::default()
            }),
            data: [
                ("changes".to_owned(), value.as_bytes().to_vec()),
                ("stays".to_owned(), b"hunter2".to_vec()),
            ]
            .into(),
            ..Secret::default()
        })
    }

    #[test]
    fn a_secret_shows_that_a_value_changed_and_no_value() {
        let (old, new) = shown(Some(secret("hunter3")), Some(secret("hunter4")));
        let text = unified::diff("old", "new", &old, &new);
        assert!(
            text.contains("before") && text.contains("after") && text.contains("stays"),
            "{text}"
        );
        for value in ["hunter2", "hunter3", "hunter4"] {
            let coded = model::write::yaml(&secret(value));
            let coded = coded
                .lines()
                .find(|line| line.contains("changes"))
                .unwrap()
                .trim()
                .to_owned();
            assert!(!old.contains(&coded) && !new.contains(&coded), "{text}");
        }
        let (old, new) = shown(None, Some(secret("hunter3")));
        assert!(old.is_empty() && new.contains("***"));
        let (old, new) = shown(Some(secret("hunter3")), None);
        assert!(new.is_empty() && old.contains("***"));
    }

    #[test]
    fn an_object_is_named_as_kubectl_names_it() {
        assert_eq!(name(&secret("x")), "v1.Secret.default.s");
    }
}
