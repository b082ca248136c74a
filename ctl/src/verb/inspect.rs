//! `ctl inspect pod/NAME`: each layer of isolation, what was asked for and what the kernel's own files show.

use rpc::v1::PodRef;

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};
use crate::{age, pods};

/// Arguments of `ctl inspect`.
#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// The pod, as pod/web-1 or web-1
    #[arg(required = true, value_name = "POD")]
    pod: String,
    /// Only this container
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<String>,
}

/// Asks the pod's node and prints a table for each container. Ends with 1 when a layer is weaker than asked for.
pub(crate) async fn run(args: Inspect, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let request = PodRef {
        namespace: cluster.namespace.clone(),
        name: pods::find(cluster, &args.pod, out).await?,
        container: args.container.unwrap_or_default(),
    };
    let answer = cluster
        .api
        .clone()
        .inspect(request)
        .await
        .map_err(|status| cluster.error(status))?;
    let mut weak = Vec::new();
    for (number, container) in answer.into_inner().containers.into_iter().enumerate() {
        if number > 0 {
            out.line("")?;
        }
        let read = container.read_at.as_ref().map(age::stamp).unwrap_or_default();
        out.line(format_args!(
            "container {} (pid {}, read {read})",
            container.container, container.pid
        ))?;
        let mut table = Table::new(["LAYER", "ISOLATED", "EXPECTED", "OBSERVED"]);
        for row in container.rows {
            let verdict = match (row.isolated, out.colours) {
                (true, _) => "yes",
                (false, false) => "NO",
                (false, true) => "\x1b[31mNO\x1b[0m",
            };
            if !row.isolated {
                weak.push(format!(
                    "{}: {}: expected {}, observed {}",
                    container.container, row.layer, row.expected, row.observed
                ));
            }
            table.row(vec![row.layer, verdict.to_owned(), row.expected, row.observed]);
        }
        out.table(&table)?;
    }
    if weak.is_empty() {
        Ok(())
    } else {
        Err(CtlError::Refused(weak))
    }
}
