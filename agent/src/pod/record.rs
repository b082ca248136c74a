//! What a pod's actor must not forget: runs, ends and waits of its containers. Put into the ledger as JSON.

use std::collections::BTreeMap;

use runtime::monitor::protocol::OomKill;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::fence;

/// Ends kept of each container: the last one and the one before, as status shows them.
const ENDS_MAX: usize = 2;

/// A pod's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Record {
    /// When the pod was first seen here.
    pub(super) seen_ms: i64,
    /// When its end was first asked for here; the grace period counts from it.
    pub(super) stop_ms: Option<i64>,
    /// It broke a limit of its own: it ends, and stays so until it is deleted.
    pub(super) evicted: Option<Eviction>,
    /// It has, or had, its network: its address is told.
    pub(super) addressed: bool,
    /// By name.
    pub(super) containers: BTreeMap<String, ContainerRecord>,
    /// By type: the status of each condition, and since when.
    pub(super) conditions: BTreeMap<String, Since>,
}

/// Since when a pod is evicted, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Eviction {
    pub(super) since_ms: i64,
    pub(super) message: String,
}

/// A status and when it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Since {
    pub(super) status: String,
    pub(super) since_ms: i64,
}

/// A container's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerRecord {
    /// Number of the next run; runs are counted from 0.
    pub(super) next: u32,
    /// The run that was started and whose end is not here yet.
    pub(super) current: Option<Run>,
    /// The newest last.
    pub(super) ends: Vec<End>,
    /// The last end belongs to the sandbox that stands now (init containers run once in each).
    pub(super) in_sandbox: bool,
    /// Before the next start.
    pub(super) backoff: Backoff,
}

/// One run of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Run {
    pub(super) number: u32,
    pub(super) started_ms: i64,
    /// `NAME@sha256:...`
    pub(super) image_id: String,
    /// As the pod names it: another one means another run.
    pub(super) image: String,
    /// What asks it to end.
    pub(super) stop_signal: i32,
    /// Its startup probe has succeeded, or there is none.
    pub(super) started: bool,
    pub(super) ready: bool,
    /// Its end was asked for.
    pub(super) stop: Option<Stopping>,
}

/// A container on its way to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stopping {
    pub(super) since_ms: i64,
    pub(super) grace_ms: i64,
    /// SIGKILL was sent, last.
    pub(super) killed_ms: Option<i64>,
    /// Not a fault of its own: it starts again without a wait.
    pub(super) replaced: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct End {
    pub(super) number: u32,
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    /// Completed, Error, OOMKilled, StartError, ContainerStatusUnknown, Fenced.
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) started_ms: i64,
    pub(super) finished_ms: i64,
    pub(super) oom: Option<OomKill>,
    pub(super) memory_peak: Option<u64>,
    pub(super) stderr_tail: String,
    pub(super) image_id: String,
}

impl Record {
    /// The container's entry.
    pub(super) fn container(&mut self, name: &str) -> &mut ContainerRecord {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// Since when the pod as a whole is to end, by a word or by itself.
    pub(super) fn ends_since(&self) -> Option<i64> {
        let evicted = self.evicted.as_ref().map(|evicted| evicted.since_ms);
        self.stop_ms.into_iter().chain(evicted).min()
    }
}

impl ContainerRecord {
    /// The run has ended.
    pub(super) fn end(&mut self, end: End, now_ms: i64) {
        let stop = self.current.take().and_then(|run| run.stop);
        self.next = self.next.max(end.number.saturating_add(1));
        self.in_sandbox = true;
        // Not a fault of its own.
        if stop.is_some_and(|stop| stop.replaced) || end.reason == fence::FENCED {
            self.backoff.reset();
        } else {
            self.backoff
                .ended(end.finished_ms.saturating_sub(end.started_ms), now_ms);
        }
        self.ends.retain(|known| known.number != end.number);
        self.ends.push(end);
        let surplus = self.ends.len().saturating_sub(ENDS_MAX);
        self.ends.drain(..surplus);
    }

    /// How often it was started again.
    pub(super) fn restarts(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    pub(super) fn last(&self) -> Option<&End> {
        self.ends.last()
    }
}

/// `NAME-N`: unique in its pod, as names have no dash and number in common with a longer name's run.
pub(super) fn run_id(name: &str, number: u32) -> String {
    format!("{name}-{number}")
}

/// The container and the number of a run's id.
pub(super) fn parse_run_id(id: &str) -> Option<(&str, u32)> {
    let (name, number) = id.rsplit_once('-')?;
    Some((name, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(number: u32, ran_ms: i64) -> End {
        End {
            number,
            started_ms: 0,
            finished_ms: ran_ms,
            ..End::default()
        }
    }

    #[test]
    fn two_ends_are_kept_and_runs_counted() {
        let mut record = ContainerRecord::default();
        for number in 0..4 {
            record.end(end(number, 5), 100);
        }
        let kept: Vec<u32> = record.ends.iter().map(|end| end.number).collect();
        assert_eq!(kept, [2, 3]);
        assert_eq!((record.next, record.restarts()), (4, 3));
        assert_eq!(record.backoff.delay_ms, 8_000);
    }

    #[test]
    fn an_end_that_is_told_twice_is_one() {
        let mut record = ContainerRecord::default();
        record.end(end(0, 5), 100);
        record.end(end(0, 5), 100);
        assert_eq!((record.ends.len(), record.next), (1, 1));
    }

    #[test]
    fn a_run_that_was_replaced_is_no_fault() {
        let mut record = ContainerRecord {
            current: Some(Run {
                stop: Some(Stopping {
                    replaced: true,
                    ..Stopping::default()
                }),
                ..Run::default()
            }),
            ..ContainerRecord::default()
        };
        record.end(end(0, 5), 100);
        assert_eq!(record.backoff, Backoff::default());
    }

    #[test]
    fn a_run_that_the_fence_ended_is_no_fault() {
        let mut record = ContainerRecord::default();
        record.end(end(0, 5), 100);
        record.end(
            End {
                reason: fence::FENCED.to_owned(),
                ..end(1, 5)
            },
            200,
        );
        assert_eq!(record.backoff, Backoff::default());
    }

    #[test]
    fn records_survive_json_and_unknown_or_missing_fields() {
        let mut record = Record::default();
        record.container("web").end(end(0, 5), 100);
        record.evicted = Some(Eviction {
            since_ms: 7,
            message: "too much".into(),
        });
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), record);
        let older: Record = serde_json::from_str(r#"{"seenMs": 5, "later": true}"#).unwrap();
        assert_eq!((older.seen_ms, older.evicted), (5, None));
    }

    #[test]
    fn an_end_counts_from_the_first_reason_for_it() {
        let mut record = Record::default();
        assert_eq!(record.ends_since(), None);
        record.stop_ms = Some(9);
        assert_eq!(record.ends_since(), Some(9));
        record.evicted = Some(Eviction {
            since_ms: 7,
            ..Eviction::default()
        });
        assert_eq!(record.ends_since(), Some(7));
    }

    #[test]
    fn run_ids_come_apart_again() {
        assert_eq!(parse_run_id(&run_id("a-1", 0)), Some(("a-1", 0)));
        assert_eq!(parse_run_id(&run_id("a", 1)), Some(("a", 1)));
        assert_eq!(parse_run_id("nonsense"), None);
    }
}
