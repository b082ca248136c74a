//! Eviction of a pod whose volumes on disk hold more than their `sizeLimit` (Kubernetes, "Volumes", emptyDir; the kubelet's
//! `emptyDirLimitEviction`). The kernel holds volumes in memory to their size; those on disk are measured.

use std::path::PathBuf;
use std::sync::Arc;

use proto::v1::PodSpec;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::actor::{Actor, now};
use super::execute::blocking;
use super::files::Paths;
use super::plan::{self, Observed, Wanted};
use super::record::Eviction;
use super::status::EVICTED;
use super::volume::usage::{self, Usage};

/// Between two measurements of a pod's volumes; the kubelet's own interval.
const MEASURE_EVERY_MS: i64 = 10_000;
/// Pods that are measured at the same time; the others wait, so that many large volumes do not keep the disk busy.
const MEASURED_AT_ONCE: usize = 2;

static MEASURED: Semaphore = Semaphore::const_new(MEASURED_AT_ONCE);

/// A volume on disk that may hold so much.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    volume: String,
    path: PathBuf,
    bytes: u64,
    /// As the pod writes it.
    text: String,
}

/// Measurements of a pod.
#[derive(Debug, Default)]
pub(super) struct Measuring {
    /// The next one begins.
    at: i64,
    /// One is on its way: says why the pod is to be evicted if it is, or why it cannot tell.
    answer: Option<oneshot::Receiver<Result<Option<String>, String>>>,
    _task: Option<AbortOnDropHandle<()>>,
}

/// Volumes on disk that have a limit. One of nothing is none, as with the kubelet.
fn limits(spec: &PodSpec, paths: &Paths) -> Vec<Limit> {
    let on_disk = spec.volumes.iter().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let quantity = source.size_limit.as_ref().filter(|_| source.medium != "Memory")?;
        // What cannot be read was refused when the pod was written.
        let bytes = u64::try_from(model::quantity::of(quantity).ok()?.bytes()).ok()?;
        (bytes > 0).then(|| Limit {
            volume: volume.name.clone(),
            path: paths.volume(&volume.name),
            bytes,
            text: quantity.text.clone(),
        })
    });
    on_disk.collect()
}

/// Why a pod with such a volume is evicted.
fn verdict(limit: &Limit, usage: Usage) -> Option<String> {
    let Limit { volume, text, .. } = limit;
    match usage {
        Usage::Within => None,
        Usage::Above => Some(format!(
            "Usage of EmptyDir volume \"{volume}\" exceeds the limit \"{text}\"."
        )),
        // Deviation: the kubelet counts for as long as it takes. A limit that cannot be checked would be none.
        Usage::Uncounted => Some(format!(
            "EmptyDir volume \"{volume}\" has more files than can be counted against its limit \"{text}\"."
        )),
    }
}

/// The first volume that breaks its limit.
fn measure(limits: &[Limit]) -> Result<Option<String>, String> {
    for limit in limits {
        let usage = usage::measure(&limit.path, limit.bytes)
            .map_err(|error| format!("failed to measure volume \"{}\": {error}", limit.volume))?;
        if let Some(message) = verdict(limit, usage) {
            return Ok(Some(message));
        }
    }
    Ok(None)
}

impl Actor {
    /// Measures the pod's volumes when it is time, and evicts the pod for what was found; until when to wait.
    pub(super) async fn watch_usage(
        &mut self,
        wanted: &Wanted,
        observed: &Observed,
        until: i64,
        now_ms: i64,
    ) -> i64 {
        // Who goes or has finished is not evicted any more.
        if wanted.ending().is_some() || plan::outcome(wanted.restart, observed).is_some() {
            self.measuring = Measuring::default();
            return until;
        }
        if let Some(answer) = &mut self.measuring.answer {
            let found = match answer.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => return until, // it wakes the actor
                Err(TryRecvError::Closed) => {
                    Err("failed to measure volumes: a worker of the agent died".into())
                }
            };
            self.measuring = Measuring {
                at: now_ms.saturating_add(MEASURE_EVERY_MS),
                ..Measuring::default()
            };
            match found {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.evict(message).await;
                    return now_ms;
                }
                Err(message) => {
                    tracing::warn!(uid = self.uid, message, "a pod's volumes were not measured");
                    self.event("Warning", "FailedMeasureVolume", message);
                }
            }
        }
        let spec = self.pod.as_ref().and_then(|pod| pod.spec.as_ref());
        let limits = spec.map(|spec| limits(spec, &self.paths)).unwrap_or_default();
        if limits.is_empty() {
            return until;
        }
        if self.measuring.at > now_ms {
            return until.min(self.measuring.at);
        }
        let (sender, answer) = oneshot::channel();
        let wake = Arc::clone(&self.view.wake);
        let task = tokio::spawn(async move {
            let found = match MEASURED.acquire().await {
                Ok(_permit) => match blocking(move || measure(&limits)).await {
                    Ok(found) => found,
                    Err(trouble) => Err(trouble.message),
                },
                Err(error) => Err(error.to_string()),
            };
            // The receiver is gone when the pod goes: nobody asks any more.
            drop(sender.send(found));
            wake.notify_one();
        });
        self.measuring.answer = Some(answer);
        self.measuring._task = Some(AbortOnDropHandle::new(task));
        until
    }

    /// Known for good before anything is done or told; when it cannot be kept, the next measurement finds the same.
    async fn evict(&mut self, message: String) {
        self.record.evicted = Some(Eviction {
            since_ms: now(),
            message: message.clone(),
        });
        match self.save().await {
            Ok(()) => self.event("Warning", EVICTED, message),
            Err(trouble) => {
                self.record.evicted = None;
                self.failed(None, trouble);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{EmptyDirVolumeSource, Quantity, Volume};

    fn paths(temp: &std::path::Path) -> Paths {
        Paths {
            monitor: temp.join("run"),
            data: temp.to_owned(),
            logs: temp.join("log"),
            uid: "u1".into(),
        }
    }

    fn volume(name: &str, medium: &str, limit: Option<&str>) -> Volume {
        Volume {
            name: name.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: medium.into(),
                size_limit: limit.map(|text| Quantity { text: text.into() }),
            }),
            ..Volume::default()
        }
    }

    #[test]
    fn volumes_on_disk_with_a_limit_are_measured() {
        let spec = PodSpec {
            volumes: vec![
                volume("free", "", None),
                volume("none", "", Some("0")),
                volume("memory", "Memory", Some("1Mi")),
                volume("data", "", Some("5Mi")),
            ],
            ..PodSpec::default()
        };
        let found = limits(&spec, &paths("/data".as_ref()));
        let names: Vec<&str> = found.iter().map(|limit| limit.volume.as_str()).collect();
        assert_eq!((names, found[0].bytes), (vec!["data"], 5 << 20));
    }

    #[test]
    fn the_volume_above_its_limit_is_named_with_it() {
        let temp = tempfile::tempdir().unwrap();
        let paths = paths(temp.path());
        let spec = PodSpec {
            volumes: vec![
                volume("small", "", Some("1Mi")),
                volume("data", "", Some("100Ki")),
            ],
            ..PodSpec::default()
        };
        let limits = limits(&spec, &paths);
        for limit in &limits {
            std::fs::create_dir_all(&limit.path).unwrap();
            std::fs::write(limit.path.join("file"), vec![1; 50 << 10]).unwrap();
        }
        assert_eq!(measure(&limits), Ok(None));
        std::fs::write(paths.volume("data").join("more"), vec![1; 90 << 10]).unwrap();
        let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"100Ki\".";
        assert_eq!(measure(&limits), Ok(Some(message.to_owned())));
    }

    #[test]
    fn a_limit_that_cannot_be_checked_is_broken() {
        let limit = Limit {
            volume: "data".into(),
            path: PathBuf::new(),
            bytes: 1,
            text: "1".into(),
        };
        assert_eq!(verdict(&limit, Usage::Within), None);
        assert!(verdict(&limit, Usage::Uncounted).is_some());
    }
}
