//! `ctl logs POD`: a container's output, from its node's files.

use pbjson_types::Timestamp;
use rpc::v1::{LogsRequest, PodRef};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::{age, pods};

/// Arguments of `ctl logs`.
#[derive(clap::Args)]
pub(crate) struct Logs {
    /// The pod, as pod/web-1 or web-1; or one of what has pods, as deploy/web
    #[arg(required = true, value_name = "POD")]
    pod: String,
    /// The container; may be left out where there is one
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    second: Option<String>,
    /// The container; may be left out where there is one
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// The run before the current one
    #[arg(short, long)]
    previous: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1..))]
    tail: Option<i32>,
    /// Only what is younger, as 10m
    #[arg(long, value_name = "DURATION", value_parser = age::parse)]
    since: Option<u64>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Prints until the end, or for ever with `-f`.
pub(crate) async fn run(args: Logs, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let since = args.since.map(|seconds| Timestamp {
        seconds: age::now().saturating_sub(i64::try_from(seconds).unwrap_or(i64::MAX)),
        nanos: 0,
    });
    let request = LogsRequest {
        pod: Some(PodRef {
            namespace: cluster.namespace.clone(),
            name: pods::find(cluster, &args.pod, out).await?,
            container: args.container.or(args.second).unwrap_or_default(),
        }),
        follow: args.follow,
        previous: args.previous,
        tail_lines: args.tail.unwrap_or(-1),
        since,
        timestamps: args.timestamps,
    };
    let answer = cluster
        .api
        .clone()
        .logs(request)
        .await
        .map_err(|status| cluster.error(status))?;
    let mut chunks = answer.into_inner();
    while let Some(chunk) = chunks.message().await.map_err(|status| cluster.error(status))? {
        out.bytes(&chunk.data)?;
    }
    Ok(())
}
