//! `ctl drain NODE...`: closes nodes for new pods, then ends their pods; what owns them makes others elsewhere.

use model::{Kind, object};
use proto::state::v1::DeleteOp;
use proto::v1::Object;
use proto::v1::object::Object as Any;
use rpc::v1::DeleteRequest;

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::output::Output;
use crate::verb::{apply, cordon};
use crate::{target, waiting};

/// Arguments of `ctl drain`.
#[derive(clap::Args)]
pub(crate) struct Drain {
    /// Nodes to empty
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Also end pods that nothing will make again
    #[arg(long)]
    force: bool,
    /// Also end pods whose emptyDir volumes are lost by it
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Seconds that a pod may take to end [default: its own]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(0..))]
    grace_period: Option<i32>,
    /// How long to wait until the nodes are empty
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::age::parse)]
    timeout: u64,
}

/// Cordons, then deletes in one transaction and waits.
pub(crate) async fn run(args: Drain, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    cordon::set(cluster, &args.nodes, true, out).await?;
    let mut pods = Vec::new();
    for node in &args.nodes {
        let name = node.trim_start_matches("node/").trim_start_matches("nodes/");
        let query = Query {
            kind: Kind::Pod.as_str().to_owned(),
            fields: format!("spec.nodeName={name}"),
            ..Query::default()
        };
        pods.extend(cluster.list(&query).await?.items);
    }
    let reasons: Vec<String> = pods.iter().filter_map(|pod| obstacle(pod, &args)).collect();
    if !reasons.is_empty() {
        return Err(CtlError::Refused(reasons));
    }
    let target = |pod: &Object| DeleteOp {
        key: Some(object::key(pod)),
        uid: object::meta(pod).uid.clone(),
        propagation: "Background".to_owned(),
        grace_period_seconds: args.grace_period,
    };
    if !pods.is_empty() {
        let request = DeleteRequest {
            targets: pods.iter().map(target).collect(),
            dry_run: false,
            request_id: apply::request_id().map_err(|status| cluster.error(status))?,
        };
        cluster
            .call(request, async |mut api, request| api.delete(request).await)
            .await
            .map_err(|status| cluster.error(status))?;
    }
    for pod in &pods {
        let key = object::key(pod);
        waiting::until_gone(cluster, &key, &object::meta(pod).uid, args.timeout, out).await?;
        out.line(format_args!("{} evicted", target::shown(&key)))?;
    }
    for node in &args.nodes {
        out.line(format_args!("node/{} drained", node.trim_start_matches("node/")))?;
    }
    Ok(())
}

/// Why a pod is not ended without a word from its owner; none when it may be.
fn obstacle(pod: &Object, args: &Drain) -> Option<String> {
    let meta = object::meta(pod);
    let shown = format!("pod/{} (namespace {})", meta.name, meta.namespace);
    let owned = meta
        .owner_references
        .iter()
        .any(|owner| owner.controller == Some(true));
    if !owned && !args.force {
        return Some(format!(
            "{shown}: nothing would make it again; --force ends it all the same"
        ));
    }
    let Some(Any::Pod(pod)) = &pod.object else {
        return None;
    };
    let holds_data = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.volumes.iter().any(|volume| volume.empty_dir.is_some()));
    if holds_data && !args.delete_emptydir_data {
        return Some(format!(
            "{shown}: the data of its emptyDir would be lost; --delete-emptydir-data accepts that"
        ));
    }
    None
}
