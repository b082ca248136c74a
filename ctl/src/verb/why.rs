//! `ctl why KIND/NAME`: every reason why an object is not as it should be, the most important first.

use rpc::v1::GetRequest;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::target;

/// Arguments of `ctl why`.
#[derive(clap::Args)]
pub(crate) struct Why {
    /// What is meant, as pod/web-1 or deployment/web
    #[arg(required = true, value_name = "KIND/NAME", num_args = 1..=2)]
    target: Vec<String>,
}

/// Asks and prints a paragraph for each reason.
pub(crate) async fn run(args: Why, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let key = target::one(&args.target, &cluster.namespace)?;
    let request = GetRequest {
        key: Some(key),
        stale: false,
    };
    let answer = cluster
        .call(request, async |mut api, request| api.why(request).await)
        .await
        .map_err(|status| cluster.error(status))?;
    for reason in &answer.reasons {
        let word = match reason.severity.as_str() {
            "error" if out.colours => "\x1b[31merror\x1b[0m",
            "waiting" if out.colours => "\x1b[33mwaiting\x1b[0m",
            other => other,
        };
        out.line(format_args!(
            "{word}: {}: {}: {}",
            reason.subject, reason.reason, reason.message
        ))?;
        if !reason.hint.is_empty() {
            out.line(format_args!("  -> {}", reason.hint))?;
        }
    }
    Ok(())
}
