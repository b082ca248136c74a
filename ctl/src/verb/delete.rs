//! `ctl delete`: by file, by name, by label. Waits until all of it is gone.

use std::collections::BTreeSet;

use model::object;
use proto::state::v1::{DeleteOp, Key};
use rpc::v1::DeleteRequest;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::files::Files;
use crate::output::Output;
use crate::selected::Selected;
use crate::target;
use crate::verb::{apply, get};
use crate::waiting;

/// Arguments of `ctl delete`.
#[derive(clap::Args)]
pub(crate) struct Delete {
    /// KIND/NAME..., KIND NAME..., or a kind with -l or --all
    #[arg(value_name = "KIND/NAME")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    selected: Selected,
    /// What becomes of what the object owns
    #[arg(long, value_name = "HOW", default_value = "background", value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Seconds that a pod may take to end; 0 kills at once
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(0..))]
    grace_period: Option<i32>,
    /// Kill at once and forget pods whose node is lost; one that must not run twice first has ended for certain
    #[arg(long)]
    force: bool,
    /// No error when an object is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Do not wait until it is gone
    #[arg(long = "no-wait", conflicts_with = "wait")]
    no_wait: bool,
    /// Wait until it is gone, or not
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::age::parse)]
    timeout: u64,
    /// server: let the cluster decide everything and change nothing
    #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
    dry_run: String,
}

/// One object to delete, as it is now.
struct Found {
    key: Key,
    uid: String,
}

/// Finds, deletes in one transaction, waits.
pub(crate) async fn run(
    args: Delete,
    cluster: &Cluster,
    namespace: Option<&str>,
    out: &mut Output,
) -> Result<(), CtlError> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for key in keys(&args, cluster, namespace).await? {
        match cluster.find(key.clone()).await? {
            Some(object) => found.push(Found {
                key,
                uid: object::meta(&object).uid.clone(),
            }),
            None => missing.push(get::not_found(waiting::kind_of(&key)?, &key.name, &key.namespace)),
        }
    }
    if !missing.is_empty() && !args.ignore_not_found {
        return Err(CtlError::Refused(missing));
    }
    if found.is_empty() {
        out.note("nothing to delete");
        return Ok(());
    }
    let dry_run = args.dry_run == "server";
    let propagation = match args.cascade.as_str() {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let grace = if args.force { Some(0) } else { args.grace_period };
    let target = |found: &Found| DeleteOp {
        key: Some(found.key.clone()),
        uid: found.uid.clone(),
        propagation: propagation.to_owned(),
        grace_period_seconds: grace,
    };
    let request = DeleteRequest {
        targets: found.iter().map(target).collect(),
        dry_run,
        request_id: apply::request_id().map_err(|status| cluster.error(status))?,
    };
    cluster
        .call(request, async |mut api, request| api.delete(request).await)
        .await
        .map_err(|status| cluster.error(status))?;
    let suffix = if dry_run { " (server dry run)" } else { "" };
    for one in &found {
        out.line(format_args!("{} deleted{suffix}", target::shown(&one.key)))?;
    }
    if dry_run || args.no_wait || !args.wait {
        return Ok(());
    }
    for one in &found {
        waiting::until_gone(cluster, &one.key, &one.uid, args.timeout, out).await?;
    }
    Ok(())
}

/// What is meant, each once; the last named file's objects first, so that what came first goes last.
async fn keys(args: &Delete, cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<Key>, CtlError> {
    if !args.files.filename.is_empty() {
        if !args.targets.is_empty() {
            return Err(CtlError::Usage("either -f FILE or names, not both".to_owned()));
        }
        let mut manifests = args.files.read(&[])?;
        apply::place(&mut manifests, cluster, namespace)?;
        let mut seen = BTreeSet::new();
        let keys = manifests
            .iter()
            .rev()
            .map(|manifest| object::key(&manifest.object));
        return Ok(keys
            .filter(|key| seen.insert((key.kind.clone(), key.namespace.clone(), key.name.clone())))
            .collect());
    }
    args.selected.keys(&args.targets, cluster).await
}
