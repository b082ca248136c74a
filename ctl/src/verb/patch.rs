//! `ctl patch KIND/NAME -p PATCH`: changes what a patch says of an object, and nothing that others change meanwhile.

use std::io::Read;
use std::path::{Path, PathBuf};

use model::object;
use model::patch::{Patch as How, patched};
use proto::state::v1::Key;
use proto::v1::Object;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::{change, target};

/// Largest patch: of all that it could say, an object holds less.
const PATCH_BYTES_MAX: u64 = 4 << 20;

/// Arguments of `ctl patch`.
#[derive(clap::Args)]
pub(crate) struct Patch {
    /// The object, as deployment/web
    #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
    target: Vec<String>,
    /// The patch, as JSON or YAML
    #[arg(short, long, value_name = "PATCH", required_unless_present = "patch_file")]
    patch: Option<String>,
    /// A file with the patch; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    patch_file: Option<PathBuf>,
    /// strategic: a part of the object, lists merged by the names of their items; merge: RFC 7396, a part with whole lists; json:
    /// RFC 6902, a list of operations
    #[arg(long = "type", value_name = "TYPE", default_value = "strategic", value_parser = ["strategic", "merge", "json"])]
    how: String,
    /// server: let the cluster decide everything and change nothing
    #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
    dry_run: String,
}

/// Patches one object.
pub(crate) async fn run(args: Patch, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let key = target::one(&args.target, &cluster.namespace)?;
    let text = match (args.patch, &args.patch_file) {
        (Some(text), _) => text,
        (None, Some(path)) => read(path)?,
        (None, None) => return Err(CtlError::Usage("give -p PATCH or --patch-file FILE".to_owned())),
    };
    let patch: Value = serde_saphyr::from_str(&text)
        .map_err(|cause| CtlError::Usage(format!("the patch is neither JSON nor YAML: {cause}")))?;
    let how = match args.how.as_str() {
        "merge" => How::Merge,
        "json" => How::Json,
        _ => How::Strategic,
    };
    let dry_run = args.dry_run == "server";
    let carry_out = |object: &mut Object| carry_out(object, &patch, how, &key);
    let changed = change::one(cluster, &key, "patch", dry_run, carry_out).await?;
    let what = if changed { "" } else { " (no change)" };
    let suffix = if dry_run { " (server dry run)" } else { "" };
    out.line(format_args!("{} patched{what}{suffix}", target::shown(&key)))
}

fn carry_out(object: &mut Object, patch: &Value, how: How, key: &Key) -> Result<(), CtlError> {
    let mut before = object.clone();
    object::clear_status(&mut before);
    let value =
        patched(&before, patch, how).map_err(|cause| CtlError::refused(format!("the patch: {cause}")))?;
    if value.get("status").is_some() {
        return Err(CtlError::refused(
            "the patch: status: is the cluster's, and nobody else writes it",
        ));
    }
    // One field a line: a refusal names its place.
    let text = model::write::value_yaml(&value);
    let after = change::manifest("patched", text.as_bytes(), key)?;
    if after != before {
        *object = after;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CtlError> {
    let failed = || CtlError::io(format!("failed to read {}", path.display()));
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin()
            .take(PATCH_BYTES_MAX + 1)
            .read_to_string(&mut text),
        _ => std::fs::File::open(path)
            .and_then(|file| file.take(PATCH_BYTES_MAX + 1).read_to_string(&mut text)),
    };
    read.map_err(failed())?;
    if text.len() as u64 > PATCH_BYTES_MAX {
        return Err(CtlError::Usage(format!(
            "{} is larger than {PATCH_BYTES_MAX} bytes",
            path.display()
        )));
    }
    Ok(text)
}
