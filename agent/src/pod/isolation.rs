//! What really isolates a pod's containers, read back from the kernel.

use std::sync::Arc;

use proto::Timestamp;
use rpc::v1::{ContainerIsolation, InspectResponse, IsolationRow};
use runtime::cgroup::Cgroup;
use runtime::inspect::{self, InspectError, Row};

use super::view::{RunningContainer, Verdict, View};

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
    /// The task that read it died.
    #[error("the readback was interrupted")]
    Interrupted,
}

/// Reads back what every running container has; the verdict goes into the pod's status.
pub(super) async fn inspect(view: &Arc<View>) -> Result<InspectResponse, IsolationError> {
    let (layout, sandbox, running) = {
        let seen = view.lock();
        (seen.layout.clone(), seen.sandbox.clone(), seen.running.clone())
    };
    let Some(layout) = layout.filter(|_| !running.is_empty()) else {
        return Err(IsolationError::NothingRuns);
    };
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
                rows: rows.into_iter().map(row).collect(),
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

    #[tokio::test]
    async fn nothing_that_runs_is_no_isolation() {
        let view = Arc::new(View::default());
        assert!(matches!(inspect(&view).await, Err(IsolationError::NothingRuns)));
    }
}
