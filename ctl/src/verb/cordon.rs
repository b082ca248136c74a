//! `ctl cordon NODE...` and `ctl uncordon NODE...`: whether nodes take new pods; what runs there stays.

use rpc::v1::SetSchedulableRequest;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;

/// Arguments of `ctl cordon`.
#[derive(clap::Args)]
pub(crate) struct Cordon {
    /// Nodes to close for new pods
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Arguments of `ctl uncordon`.
#[derive(clap::Args)]
pub(crate) struct Uncordon {
    /// Nodes to open for new pods
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Closes nodes.
pub(crate) async fn cordon(args: Cordon, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    set(cluster, &args.nodes, true, out).await
}

/// Opens nodes.
pub(crate) async fn uncordon(args: Uncordon, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    set(cluster, &args.nodes, false, out).await
}

/// One transaction: all of them or none.
pub(crate) async fn set(
    cluster: &Cluster,
    nodes: &[String],
    unschedulable: bool,
    out: &mut Output,
) -> Result<(), CtlError> {
    let nodes: Vec<String> = nodes
        .iter()
        .map(|node| {
            node.trim_start_matches("node/")
                .trim_start_matches("nodes/")
                .to_owned()
        })
        .collect();
    let request = SetSchedulableRequest {
        nodes: nodes.clone(),
        unschedulable,
    };
    let answer = cluster
        .call(request, async |mut api, request| {
            api.set_schedulable(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    let word = if unschedulable { "cordoned" } else { "uncordoned" };
    for (node, result) in nodes.iter().zip(&answer.results) {
        let already = if result.outcome == "unchanged" {
            "already "
        } else {
            ""
        };
        out.line(format_args!("node/{node} {already}{word}"))?;
    }
    Ok(())
}
