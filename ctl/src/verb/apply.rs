//! `ctl apply FILE...`: create or update what manifests describe. All documents are one transaction.

use std::path::PathBuf;

use model::object;
use model::read::Manifest;
use proto::v1::Object;
use rpc::v1::{ApplyItem, ApplyRequest, ApplyResponse, ApplyResult, Refusals};

use crate::cluster::Cluster;
use crate::error::{self, CtlError};
use crate::files::Files;
use crate::output::Output;
use crate::pruned::Pruned;
use crate::{target, waiting};

/// Arguments of `ctl apply`.
#[derive(clap::Args)]
pub(crate) struct Apply {
    /// Manifests: files, directories or -
    #[arg(value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    files: Files,
    /// server: let the cluster decide everything and change nothing; client: only read the manifests and look what is there
    #[arg(long, value_name = "WHERE", value_parser = ["server", "client", "none"], default_value = "none")]
    dry_run: String,
    #[command(flatten)]
    pruned: Pruned,
    /// Who applies: what it applied before and leaves out now is removed, what others set stays
    #[arg(long, value_name = "NAME", default_value = "ctl")]
    field_manager: String,
    /// Wait until what was applied is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::age::parse)]
    timeout: u64,
    /// yaml, json or name: show the objects as they are now
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "json", "name"])]
    output: Option<String>,
}

/// Reads all, asks once, prints a line for each object. What is wrong with a manifest is told also where no cluster is known.
pub(crate) async fn run(
    args: Apply,
    open: impl FnOnce() -> Result<Cluster, CtlError>,
    namespace: Option<&str>,
    out: &mut Output,
) -> Result<(), CtlError> {
    if args.paths.is_empty() && args.files.filename.is_empty() {
        return Err(CtlError::Usage(
            "name a manifest: `ctl apply FILE`, a directory, or -".to_owned(),
        ));
    }
    let mut manifests = args.files.read(&args.paths)?;
    let cluster = &open()?;
    place(&mut manifests, cluster, namespace)?;
    let prune = args.pruned.request(&mut manifests)?;
    if prune.is_some() && args.dry_run == "client" {
        return Err(CtlError::Usage(
            "what --prune removes only the cluster knows: use --dry-run=server".to_owned(),
        ));
    }
    let dry_run = args.dry_run != "none";
    let response = if args.dry_run == "client" {
        look(cluster, &manifests).await?
    } else {
        let request = ApplyRequest {
            items: items(&manifests),
            dry_run,
            request_id: request_id().map_err(|status| cluster.error(status))?,
            manager: args.field_manager.clone(),
            prune,
            ..ApplyRequest::default()
        };
        let answer = cluster
            .call(request, async |mut api, request| api.apply(request).await)
            .await;
        answer.map_err(|status| refuse(cluster, &manifests, status))?
    };
    let suffix = match args.dry_run.as_str() {
        "server" => " (server dry run)",
        "client" => " (dry run)",
        _ => "",
    };
    let mut applied = Vec::new();
    for result in response.results {
        let Some(object) = result.object else { continue };
        let shown = target::shown(&object::key(&object));
        match args.output.as_deref() {
            None => out.line(format_args!("{shown} {}{suffix}", result.outcome))?,
            Some("name") => out.line(shown)?,
            Some("json") => out.line(crate::rows::json_text(&object)?)?,
            Some(_) => out.bytes(format!("---\n{}", model::write::yaml(&object)).as_bytes())?,
        }
        if result.outcome != "pruned" {
            applied.push(object);
        }
    }
    if args.wait && !dry_run {
        for object in &applied {
            waiting::until_ready(cluster, &object::key(object), args.timeout, out).await?;
        }
    }
    Ok(())
}

/// Each manifest as it is sent to be merged.
pub(crate) fn items(manifests: &[Manifest]) -> Vec<ApplyItem> {
    let item = |manifest: &Manifest| ApplyItem {
        object: Some(manifest.object.clone()),
        mode: String::new(),
        empty: manifest.empty.clone(),
    };
    manifests.iter().map(item).collect()
}

/// What an apply would do by what is there, without asking the cluster to decide anything.
async fn look(cluster: &Cluster, manifests: &[Manifest]) -> Result<ApplyResponse, CtlError> {
    let mut response = ApplyResponse::default();
    for manifest in manifests {
        let mut object = manifest.object.clone();
        model::default::object(&mut object);
        let there = cluster.find(object::key(&object)).await?;
        response.results.push(ApplyResult {
            object: Some(object),
            outcome: match there {
                Some(_) => "configured".to_owned(),
                None => "created".to_owned(),
            },
        });
    }
    Ok(response)
}

/// One `Apply` call for all, without a manifest behind it.
pub(crate) async fn send(
    cluster: &Cluster,
    objects: Vec<Object>,
    mode: &str,
    verb: &str,
    dry_run: bool,
) -> Result<ApplyResponse, tonic::Status> {
    let items = objects
        .into_iter()
        .map(|object| ApplyItem {
            object: Some(object),
            mode: mode.to_owned(),
            empty: Vec::new(),
        })
        .collect();
    let request = ApplyRequest {
        items,
        dry_run,
        request_id: request_id()?,
        verb: verb.to_owned(),
        ..ApplyRequest::default()
    };
    cluster
        .call(request, async |mut api, request| api.apply(request).await)
        .await
}

/// Unique to this call, so that a retry after a lost answer is not a second write.
pub(crate) fn request_id() -> Result<String, tonic::Status> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| tonic::Status::internal(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives each object its namespace: its own, else that of `-n`, else `default`. Two different ones are refused.
pub(crate) fn place(
    manifests: &mut [Manifest],
    cluster: &Cluster,
    flag: Option<&str>,
) -> Result<(), CtlError> {
    let mut refusals = Vec::new();
    for manifest in manifests {
        if !object::kind(&manifest.object).namespaced() {
            continue;
        }
        let own = object::meta(&manifest.object).namespace.clone();
        match flag {
            Some(flag) if !own.is_empty() && own != flag => {
                let message = format!("`{own}` differs from -n {flag}");
                refusals.push(manifest.refusal("metadata.namespace", &message).to_string());
            }
            _ if own.is_empty() => {
                let meta = object::meta_mut(&mut manifest.object);
                meta.namespace.clone_from(&cluster.namespace);
            }
            _ => {}
        }
    }
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(CtlError::Refused(refusals))
    }
}

/// The server's refusals, each at its line of its file.
pub(crate) fn refuse(cluster: &Cluster, manifests: &[Manifest], status: tonic::Status) -> CtlError {
    use prost::Message;
    let refusals = match Refusals::decode(status.details()) {
        Ok(refusals) if !refusals.refusals.is_empty() => refusals.refusals,
        _ => return cluster.error(status),
    };
    let lines = error::lines(&status)
        .into_iter()
        .zip(&refusals)
        .map(|(line, refusal)| match manifests.get(refusal.item as usize) {
            None => line,
            Some(manifest) => {
                let at = manifest.position(&refusal.path);
                let shown = target::shown(&object::key(&manifest.object));
                let subject = if refusal.path.is_empty() {
                    format!("{shown}: ")
                } else {
                    String::new()
                };
                format!("{}:{}:{}: {subject}{line}", manifest.file, at.line, at.column)
            }
        });
    CtlError::Refused(lines.collect())
}
