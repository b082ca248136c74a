//! Probes of a run: whether it has started, is alive, is ready. `Tally` counts, `Watch` asks.

mod ask;

use std::sync::Arc;
use std::time::Duration;

use proto::v1::{Container, Pod, Probe};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub(super) use ask::Target;

use crate::node::Node;

/// How soon after a start a probe is first repeated while it fails: a program opens its port some milliseconds after it
/// began. The wait doubles up to the probe's period. Such failures are not counted (Kubernetes, "Configure Liveness,
/// Readiness and Startup Probes": a readiness probe may run at other times than its period to make a pod ready faster).
const FIRST_AGAIN: Duration = Duration::from_millis(10);

/// What probes have found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Results {
    /// The startup probe has succeeded, or there is none.
    pub(super) started: bool,
    pub(super) ready: bool,
    /// The container is to be ended: the probe that says so.
    pub(super) dead: Option<Dead>,
}

/// A probe that failed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    /// Liveness or Startup.
    pub(super) kind: &'static str,
    /// Its own grace period.
    pub(super) grace_ms: Option<i64>,
}

/// Counts outcomes in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    successes: i32,
    failures: i32,
}

impl Tally {
    /// Another outcome; what the probe says now, if these were enough.
    fn count(&mut self, probe: &Probe, success: bool) -> Option<bool> {
        if success {
            *self = Tally {
                successes: self.successes.saturating_add(1),
                failures: 0,
            };
            (self.successes >= probe.success_threshold.max(1)).then_some(true)
        } else {
            *self = Tally {
                successes: 0,
                failures: self.failures.saturating_add(1),
            };
            (self.failures >= probe.failure_threshold.max(1)).then_some(false)
        }
    }
}

/// What a run is before its probes have spoken. `before` is what is known of it from an earlier agent.
pub(super) fn at_start(container: &Container, before: Option<(bool, bool)>) -> Results {
    let (started, ready) = before.unwrap_or((container.startup_probe.is_none(), false));
    Results {
        started,
        // Nothing will ever say that it is ready when nothing asks: also for a run that was started just before an agent's
        // death, of which no more is known than that it runs.
        ready: started && (ready || container.readiness_probe.is_none()),
        dead: None,
    }
}

/// Whether there is anything to ask.
pub(super) fn has_probes(container: &Container) -> bool {
    container.startup_probe.is_some()
        || container.liveness_probe.is_some()
        || container.readiness_probe.is_some()
}

/// Asks the probes of one run until it is dropped.
pub(super) struct Watch {
    pub(super) node: Arc<Node>,
    pub(super) pod: Arc<Pod>,
    pub(super) container: Container,
    pub(super) target: Target,
    pub(super) results: watch::Sender<Results>,
    pub(super) wake: Arc<Notify>,
    /// How long ago the run began.
    pub(super) age: Duration,
}

impl Watch {
    pub(super) async fn run(self) {
        let began = Instant::now().checked_sub(self.age).unwrap_or_else(Instant::now);
        if let Some(probe) = &self.container.startup_probe
            && !self.results.borrow().started
        {
            self.follow("Startup", probe, began, |results, success| {
                results.started = success;
                results.ready = success && self.container.readiness_probe.is_none();
            })
            .await;
            if !self.results.borrow().started {
                return; // it failed, and the container is to end
            }
        }
        let liveness = async {
            if let Some(probe) = &self.container.liveness_probe {
                self.follow("Liveness", probe, began, |_, _| {}).await;
            }
        };
        let readiness = async {
            if let Some(probe) = &self.container.readiness_probe {
                self.follow("Readiness", probe, began, |results, success| {
                    results.ready = success
                })
                .await;
            }
        };
        tokio::join!(liveness, readiness);
    }

    /// Asks one probe again and again; ends when a startup probe has spoken, or the container is to end.
    async fn follow(
        &self,
        kind: &'static str,
        probe: &Probe,
        began: Instant,
        note: impl Fn(&mut Results, bool),
    ) {
        let seconds = |number: i32| Duration::from_secs(u64::try_from(number).unwrap_or(0));
        let period = seconds(probe.period_seconds.max(1));
        let timeout = seconds(probe.timeout_seconds.max(1));
        tokio::time::sleep_until(began + seconds(probe.initial_delay_seconds)).await;
        let mut tally = Tally::default();
        let hasty = kind != "Liveness" && self.age < period;
        let mut again = if hasty { FIRST_AGAIN } else { period };
        loop {
            let asked = Instant::now();
            let outcome = ask::ask(probe, &self.container, &self.target, timeout).await;
            let success = outcome.is_ok();
            if !success && again < period {
                tokio::time::sleep_until(asked + again).await;
                again = again.saturating_mul(2);
                continue;
            }
            again = period;
            if let Err(message) = &outcome {
                let message = format!("{kind} probe failed: {message}");
                self.node
                    .events
                    .record(&self.pod, "Warning", "Unhealthy", message);
            }
            if let Some(verdict) = tally.count(probe, success) {
                let ends = !verdict && kind != "Readiness";
                let changed = self.results.send_if_modified(|results| {
                    let before = results.clone();
                    note(results, verdict);
                    if ends {
                        results.dead = Some(Dead {
                            kind,
                            grace_ms: probe
                                .termination_grace_period_seconds
                                .map(|seconds| i64::from(seconds) * 1_000),
                        });
                    }
                    *results != before
                });
                if changed {
                    self.wake.notify_one();
                }
                if ends || kind == "Startup" {
                    return;
                }
            }
            tokio::time::sleep_until(asked + period).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success_threshold: i32, failure_threshold: i32) -> Probe {
        Probe {
            success_threshold,
            failure_threshold,
            ..Probe::default()
        }
    }

    #[test]
    fn only_outcomes_in_a_row_count() {
        let probe = probe(2, 3);
        let mut tally = Tally::default();
        let said: Vec<Option<bool>> = [false, false, true, false, false, false, true, true]
            .map(|success| tally.count(&probe, success))
            .into();
        assert_eq!(
            said,
            [None, None, None, None, None, Some(false), None, Some(true)]
        );
    }

    #[test]
    fn thresholds_are_at_least_one() {
        let probe = probe(0, 0);
        assert_eq!(Tally::default().count(&probe, true), Some(true));
        assert_eq!(Tally::default().count(&probe, false), Some(false));
    }

    #[test]
    fn what_has_no_probe_is_ready_at_once_and_an_adopted_run_is_what_it_was() {
        let plain = Container::default();
        for before in [None, Some((true, false)), Some((true, true))] {
            let results = at_start(&plain, before);
            assert!(results.started && results.ready, "{before:?}");
        }
        let probed = Container {
            readiness_probe: Some(Probe::default()),
            ..Container::default()
        };
        assert!(!at_start(&probed, None).ready && at_start(&probed, None).started);
        assert!(at_start(&probed, Some((true, true))).ready);
        let slow = Container {
            startup_probe: Some(Probe::default()),
            ..Container::default()
        };
        assert_eq!(at_start(&slow, None), Results::default());
    }
}
