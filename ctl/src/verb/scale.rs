//! `ctl scale KIND/NAME --replicas N`.

use rpc::v1::ScaleRequest;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::target;

/// Arguments of `ctl scale`.
#[derive(clap::Args)]
pub(crate) struct Scale {
    /// What to scale, as deployment/web
    #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
    target: Vec<String>,
    /// How many replicas there are to be
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    replicas: i32,
    /// Refuse unless there are to be this many now
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    current_replicas: Option<i32>,
}

/// Scales and says so.
pub(crate) async fn run(args: Scale, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let key = target::one(&args.target, &cluster.namespace)?;
    let shown = target::shown(&key);
    let request = ScaleRequest {
        key: Some(key),
        replicas: args.replicas,
        current_replicas: args.current_replicas,
    };
    cluster
        .api
        .clone()
        .scale(request)
        .await
        .map_err(|status| cluster.error(status))?;
    out.line(format_args!("{shown} scaled to {}", args.replicas))
}
