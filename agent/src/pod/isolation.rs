//! What really isolates a pod's containers, read back from the kernel.

use std::sync::Arc;

use proto::Timestamp;
use rpc::v1::{ContainerIsolation, InspectResponse, IsolationRow};
use runtime::cgroup::Cgroup;
use runtime::inspect::{self, InspectError, Row};

use super::view::{Limited, RunningContainer, Verdict, View};
use crate::network::{Bandwidth, NetworkError};
use crate::node::Node;

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// There is nothing to look at.
    #[error("no container of the pod runs")]
    NothingRuns,
    /// A file of the kernel's.
    #[error("failed to look at container {container}")]
    Inspect {
        /// Which.
        container: String,
        /// Why.
        source: InspectError,
    },
    /// The network's limits.
    #[error("failed to look at the pod's network")]
    Network(#[from] NetworkError),
    /// The task that read it died.
    #[error("the readback was interrupted")]
    Interrupted,
}

/// Reads back what every running container has; the verdict goes into the pod's status.
pub(super) async fn inspect(node: &Node, view: &Arc<View>) -> Result<InspectResponse, IsolationError> {
    let (layout, sandbox, running, limited) = {
        let seen = view.lock();
        (
            seen.layout.clone(),
            seen.sandbox.clone(),
            seen.running.clone(),
            seen.limited.clone(),
        )
    };
    let Some(layout) = layout.filter(|_| !running.is_empty()) else {
        return Err(IsolationError::NothingRuns);
    };
    let of_network = network_rows(node, limited).await?;
    let read = tokio::task::spawn_blocking(move || {
        let mut containers = Vec::new();
        for container in running {
            let rows = match read_one(&container, &layout, sandbox.as_deref()) {
                Ok(rows) => rows,
                // It ended since: no longer something to be isolated.
                Err(InspectError::Gone { .. }) => continue,
                Err(source) => {
                    return Err(IsolationError::Inspect {
                        container: container.name,
                        source,
                    });
                }
            };
            containers.push(ContainerIsolation {
                container: container.name,
                pid: container.pid,
                read_at: Some(now()),
                rows: rows.into_iter().map(row).chain(of_network.clone()).collect(),
            });
        }
        Ok(containers)
    });
    let containers = match read.await {
        Ok(result) => result?,
        Err(_) => return Err(IsolationError::Interrupted),
    };
    if containers.is_empty() {
        return Err(IsolationError::NothingRuns);
    }
    let verdict = Some(verdict(&containers));
    let changed = {
        let mut seen = view.lock();
        let changed = seen.verdict != verdict;
        seen.verdict = verdict;
        changed
    };
    if changed {
        view.wake.notify_one();
    }
    Ok(InspectResponse { containers })
}

fn read_one(
    container: &RunningContainer,
    layout: &runtime::cgroup::Layout,
    sandbox: Option<&runtime::spec::SandboxSpec>,
) -> Result<Vec<Row>, InspectError> {
    let linux = container.spec.config.linux().as_ref();
    let path = linux
        .and_then(|linux| linux.cgroups_path().clone())
        .unwrap_or_default();
    let cgroup = Cgroup::open(layout, &path)?;
    let observed = inspect::observe(container.pid, &cgroup, &container.spec)?;
    Ok(inspect::compare(&container.spec, sandbox, &observed))
}

fn row(row: Row) -> IsolationRow {
    IsolationRow {
        layer: row.layer.to_owned(),
        expected: row.expected,
        observed: row.observed,
        isolated: row.isolated,
    }
}

fn now() -> Timestamp {
    crate::events::now()
}

/// The limits of the pod's traffic, one row for each that it has or should have.
async fn network_rows(node: &Node, limited: Option<Limited>) -> Result<Vec<IsolationRow>, IsolationError> {
    let Some(Limited { uid, bandwidth }) =
        limited.filter(|limited| limited.bandwidth != Bandwidth::default())
    else {
        return Ok(Vec::new());
    };
    let observed = match node.network().await {
        Some(network) => network.bandwidth(&uid).await?,
        None => Bandwidth::default(),
    };
    Ok(compare(bandwidth, observed))
}

fn compare(wanted: Bandwidth, observed: Bandwidth) -> Vec<IsolationRow> {
    let text = |bps: Option<u64>| bps.map_or("unlimited".to_owned(), |bps| format!("{bps} bit/s"));
    let row = |layer: &str, wanted: Option<u64>, observed: Option<u64>| {
        let wanted = wanted?;
        Some(IsolationRow {
            layer: layer.to_owned(),
            expected: text(Some(wanted)),
            observed: text(observed),
            // The kernel keeps bytes a second.
            isolated: observed.is_some_and(|observed| observed / 8 == wanted / 8),
        })
    };
    [
        row("network ingress", wanted.ingress_bps, observed.ingress_bps),
        row("network egress", wanted.egress_bps, observed.egress_bps),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Which layers are weaker than they should be.
fn verdict(containers: &[ContainerIsolation]) -> Verdict {
    let weak = containers.iter().flat_map(|container| {
        let rows = container.rows.iter().filter(|row| !row.isolated);
        rows.map(|row| {
            format!(
                "{}: {}: expected {}, observed {}",
                container.container, row.layer, row.expected, row.observed
            )
        })
    });
    Verdict { weak: weak.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_layer_is_named_with_its_container() {
        let of = |isolated| ContainerIsolation {
            container: "web".into(),
            rows: vec![IsolationRow {
                layer: "pids".into(),
                expected: "4096".into(),
                observed: "max".into(),
                isolated,
            }],
            ..ContainerIsolation::default()
        };
        assert_eq!(verdict(&[of(true)]), Verdict::default());
        assert_eq!(
            verdict(&[of(false)]).weak,
            ["web: pids: expected 4096, observed max"]
        );
    }

    #[test]
    fn limits_of_the_network_are_rows_of_their_own() {
        let limits = |ingress_bps, egress_bps| Bandwidth {
            ingress_bps,
            egress_bps,
        };
        let rows = compare(
            limits(Some(10_000_001), Some(1_000)),
            limits(Some(10_000_000), None),
        );
        let said: Vec<_> = rows
            .iter()
            .map(|row| (row.layer.as_str(), row.observed.as_str(), row.isolated))
            .collect();
        assert_eq!(
            said,
            [
                ("network ingress", "10000000 bit/s", true),
                ("network egress", "unlimited", false)
            ]
        );
        assert_eq!(compare(limits(None, None), limits(Some(1), Some(1))), []);
    }
}
