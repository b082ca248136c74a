//! Takes away what nobody needs: images when the disk fills up, and logs of pods that are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::image::{self, ImageError};
use crate::node::Node;
use crate::pods::Pods;

/// How often the disk is looked at (as a kubelet).
const INTERVAL: Duration = Duration::from_secs(300);
/// Images are removed when the store's file system is this full, until it is that full, in percent (a kubelet's
/// `imageGCHighThresholdPercent` and `imageGCLowThresholdPercent`).
const DISK_HIGH: u8 = 85;
const DISK_LOW: u8 = 80;
/// An image is not removed before it has been here for this long (a kubelet's `imageMinimumGCAge`): it may have come for
/// a pod that is about to come.
const IMAGE_AGE_MIN_MS: i64 = 120_000;
/// How long logs of a pod that is gone stay, for those who look for its last words.
const LOG_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How much of them stays at most; the oldest go first.
const LOG_BYTES_MAX: u64 = 1 << 30;
/// Deepest directory of logs that is counted: POD/CONTAINER/FILE.
const LOG_DEPTH_MAX: usize = 4;

/// Looks now and at every interval, until the task is dropped.
pub(crate) async fn run(node: Arc<Node>, pods: Arc<Pods>) {
    loop {
        let (node, pods) = (node.clone(), pods.clone());
        let work = tokio::task::spawn_blocking(move || {
            if let Err(error) = collect_images(&node, &pods) {
                let cause = runtime::monitor::chain(&error);
                tracing::warn!(cause, "failed to remove unused images");
            }
            let known = pods.uids().into_iter().collect();
            if let Err(error) = collect_logs(&node.settings.logs_dir(), &known, SystemTime::now()) {
                tracing::warn!(%error, "failed to remove logs of pods that are gone");
            }
        });
        if let Err(error) = work.await {
            tracing::error!(%error, "looking for garbage failed");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn collect_images(node: &Node, pods: &Pods) -> Result<(), ImageError> {
    let store: &image::Store = &node.images;
    if store.disk_used_percent()? < DISK_HIGH {
        return Ok(());
    }
    let mut used = BTreeSet::new();
    for pod in pods.desired() {
        let spec = pod.spec.iter();
        let containers = spec.flat_map(|spec| spec.init_containers.iter().chain(&spec.containers));
        for container in containers {
            used.extend(store.resolve(&container.image)?.map(|image| image.digest));
        }
        // A tag may have moved since the container started.
        let statuses = pod.status.iter().flat_map(|status| &status.container_statuses);
        used.extend(statuses.filter_map(|status| digest_of(&status.image_id)));
    }
    let now = jiff::Timestamp::now().as_millisecond();
    for reference in store.unused(&used) {
        if store.disk_used_percent()? <= DISK_LOW {
            return Ok(());
        }
        let image = store.resolve(&reference)?;
        if image.is_some_and(|image| now - image.created_ms < IMAGE_AGE_MIN_MS) {
            continue;
        }
        tracing::info!(reference, "the disk fills up: removing an unused image");
        store.remove(&reference)?;
    }
    if store.disk_used_percent()? >= DISK_HIGH {
        tracing::warn!("the disk stays over {DISK_HIGH} percent: every image left is in use or new");
    }
    Ok(())
}

/// `sha256:...` in an image id such as `NAME@sha256:...`.
fn digest_of(image_id: &str) -> Option<String> {
    image_id
        .find("sha256:")
        .and_then(|at| image_id.get(at..))
        .map(str::to_owned)
}

/// One pod's logs.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    path: PathBuf,
    changed: SystemTime,
    bytes: u64,
}

fn collect_logs(directory: &Path, known: &BTreeSet<String>, now: SystemTime) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut logs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let uid = name
            .to_str()
            .and_then(|name| name.rsplit_once('_'))
            .map(|(_, uid)| uid);
        // What is not of our naming is not ours.
        if uid.is_none_or(|uid| known.contains(uid)) {
            continue;
        }
        let (changed, bytes) = measure(&entry.path(), 0)?;
        let path = entry.path();
        logs.push(Log { path, changed, bytes });
    }
    for path in condemned(logs, now) {
        tracing::debug!(path = %path.display(), "removing logs of a pod that is gone");
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}

/// Logs to be removed: too old, or beyond the size, the oldest first. Pure.
fn condemned(mut logs: Vec<Log>, now: SystemTime) -> Vec<PathBuf> {
    logs.sort_by_key(|log| std::cmp::Reverse(log.changed));
    let mut bytes: u64 = 0;
    let mut paths = Vec::new();
    for log in logs {
        bytes = bytes.saturating_add(log.bytes);
        let age = now.duration_since(log.changed).unwrap_or_default();
        if age > LOG_AGE_MAX || bytes > LOG_BYTES_MAX {
            paths.push(log.path);
        }
    }
    paths
}

/// When anything below was last changed, and the bytes of it.
fn measure(path: &Path, depth: usize) -> io::Result<(SystemTime, u64)> {
    let meta = fs::symlink_metadata(path)?;
    let (mut changed, mut bytes) = (meta.modified()?, meta.len());
    if meta.is_dir() && depth < LOG_DEPTH_MAX {
        for entry in fs::read_dir(path)? {
            let below = measure(&entry?.path(), depth + 1)?;
            changed = changed.max(below.0);
            bytes = bytes.saturating_add(below.1);
        }
    }
    Ok((changed, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go_and_the_oldest_beyond_the_size() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000);
        let log = |name: &str, hours: u64, bytes: u64| Log {
            path: name.into(),
            changed: now - Duration::from_secs(hours * 3600),
            bytes,
        };
        let half = LOG_BYTES_MAX / 2;
        let gone = condemned(
            vec![
                log("old", 25, 1),
                log("c", 3, half),
                log("a", 1, half),
                log("b", 2, half),
            ],
            now,
        );
        assert_eq!(gone, [PathBuf::from("c"), PathBuf::from("old")]);
        assert!(condemned(vec![log("a", 23, half)], now).is_empty());
    }

    #[test]
    fn logs_of_known_pods_and_of_others_stay() {
        let top = tempfile::tempdir().unwrap();
        for name in ["default_web_uid-1/main", "default_web_uid-2/main", "not ours"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let known = ["uid-1".to_owned()].into();
        let later = SystemTime::now() + 2 * LOG_AGE_MAX;
        collect_logs(top.path(), &known, later).unwrap();
        let left: BTreeSet<_> = fs::read_dir(top.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(
            left,
            ["default_web_uid-1".to_owned(), "not ours".to_owned()].into()
        );
        collect_logs(&top.path().join("absent"), &known, later).unwrap();
    }

    #[test]
    fn digests_are_found_in_image_ids() {
        assert_eq!(digest_of("hello@sha256:ab").as_deref(), Some("sha256:ab"));
        assert_eq!(digest_of("hello"), None);
    }
}
