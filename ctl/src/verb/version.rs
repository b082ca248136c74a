//! `ctl version`: of this client and, when one is configured, of the cluster.

use rpc::v1::VersionRequest;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;

/// Arguments of `ctl version`.
#[derive(clap::Args)]
pub(crate) struct Version {
    /// Only this client's
    #[arg(long)]
    client: bool,
}

/// Prints a line for each.
pub(crate) async fn run(
    args: Version,
    open: impl FnOnce() -> Result<Cluster, CtlError>,
    out: &mut Output,
) -> Result<(), CtlError> {
    out.line(format_args!("ctl {}", env!("CARGO_PKG_VERSION")))?;
    if args.client {
        return Ok(());
    }
    let cluster = open()?;
    let answer = cluster
        .api
        .clone()
        .version(VersionRequest {})
        .await
        .map_err(|status| cluster.error(status))?;
    let answer = answer.into_inner();
    out.line(format_args!(
        "controller {} (schema level {})",
        answer.version, answer.schema_level
    ))
}
