//! The pods of this node: which actors there are, what they are told, and what they report.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use proto::v1::Pod;
use rpc::v1::{Desired as Told, HeldPod, PodReport};
use runtime::cgroup::Layout;
use tokio::sync::{Notify, watch};

use crate::configs::Configs;
use crate::desired::{self, Held};
use crate::ledger::{Change, Ledger, LedgerError};
use crate::node::Node;
use crate::pod::{self, Desired, Handle};
use crate::settings::Settings;

/// A pod whose actor ended by a bug gets another one after this time.
const RESPAWN_PAUSE: Duration = Duration::from_secs(5);
/// Most reports in one message.
const REPORTS_MAX: usize = 128;
/// Bytes of reports after which no further one is added; with the largest status it stays below the 4 MiB that a message
/// may have.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// One for the process.
#[derive(Debug)]
pub(crate) struct Pods {
    node: Arc<Node>,
    inner: Mutex<Inner>,
    reported: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<String, Entry>,
    configs: Arc<Configs>,
    /// Uids whose report has not been sent since it changed.
    dirty: BTreeSet<String>,
    /// Counts actors, so that the end of one is not taken for that of its successor.
    actors: u64,
}

#[derive(Debug)]
struct Entry {
    /// None: it is to go.
    pod: Option<Arc<Pod>>,
    actor: u64,
    desired: watch::Sender<Desired>,
    handle: Handle,
    /// Its actor has ended, with nothing left of the pod.
    gone: bool,
}

/// How many pods there are, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) desired: usize,
    pub(crate) going: usize,
}

/// What there is when the agent starts.
pub(crate) struct Found {
    /// Pods of the ledger.
    held: Vec<Pod>,
    /// Pods of which something is left, and which the ledger no longer wants.
    left: BTreeSet<String>,
}

impl Found {
    /// Looks at the ledger and at the machine.
    pub(crate) fn look(ledger: &Ledger, settings: &Settings, layout: &Layout) -> Result<Self, LedgerError> {
        let held = ledger.pods()?;
        let mut left: BTreeSet<String> = ledger.uids()?.into_iter().collect();
        left.extend(leftovers(settings, layout));
        for pod in &held {
            left.remove(desired::uid(pod));
        }
        Ok(Self { held, left })
    }

    /// All of them.
    pub(crate) fn uids(&self) -> Vec<String> {
        let held = self.held.iter().map(|pod| desired::uid(pod).to_owned());
        held.chain(self.left.iter().cloned()).collect()
    }
}

impl Pods {
    /// Starts an actor for every pod of the ledger, and for whatever is left on the machine of pods that it no longer has.
    pub(crate) fn adopt(node: Arc<Node>, found: Found) -> Result<Arc<Self>, LedgerError> {
        let Found { held, left } = found;
        let configs = Arc::new(Configs::new(node.ledger.config_maps()?));
        let pods = Arc::new(Self {
            node,
            inner: Mutex::new(Inner {
                configs,
                ..Inner::default()
            }),
            reported: Notify::new(),
        });
        let mut inner = pods.lock();
        for pod in held {
            let uid = desired::uid(&pod).to_owned();
            pods.start(&mut inner, uid, Some(Arc::new(pod)));
        }
        for uid in left {
            tracing::info!(uid, "clearing away what is left of a pod");
            pods.start(&mut inner, uid, None);
        }
        drop(inner);
        Ok(pods)
    }

    /// The change that a message makes to what is held.
    pub(crate) fn change(&self, message: Told) -> Change {
        let inner = self.lock();
        let pods = inner.entries.iter();
        let held = Held {
            pods: pods
                .filter_map(|(uid, entry)| Some((&**uid, &**entry.pod.as_ref()?)))
                .collect(),
            configs: inner.configs.keys().collect(),
        };
        desired::change(&held, message)
    }

    /// Tells the actors of a change that is in the ledger.
    pub(crate) fn apply(self: &Arc<Self>, change: Change) {
        let mut inner = self.lock();
        if let Some(configs) = inner.configs.after(&change) {
            inner.configs = Arc::new(configs);
            let configs = inner.configs.clone();
            for entry in inner.entries.values() {
                entry
                    .desired
                    .send_modify(|desired| desired.configs = configs.clone());
            }
        }
        for uid in &change.removed {
            let gone = match inner.entries.get_mut(uid) {
                None => continue,
                Some(entry) => {
                    entry.pod = None;
                    entry.desired.send_modify(|desired| desired.pod = None);
                    entry.gone
                }
            };
            inner.dirty.remove(uid);
            if gone {
                inner.entries.remove(uid);
            }
        }
        for pod in change.pods {
            let uid = desired::uid(&pod).to_owned();
            let pod = Some(Arc::new(pod));
            match inner.entries.get_mut(&uid) {
                // Deleted while it was already gone: the last report says so again.
                Some(entry) if entry.gone && is_deleted(pod.as_deref()) => {
                    entry.pod = pod;
                    inner.dirty.insert(uid);
                }
                Some(entry) if !entry.gone => {
                    entry.pod = pod.clone();
                    entry.desired.send_modify(|desired| desired.pod = pod);
                    inner.dirty.insert(uid);
                }
                _ => self.start(&mut inner, uid, pod),
            }
        }
        drop(inner);
        self.reported.notify_one();
    }

    /// A pod's actor.
    pub(crate) fn handle(&self, uid: &str) -> Option<Handle> {
        self.lock().entries.get(uid).map(|entry| entry.handle.clone())
    }

    /// What the ledger holds, for Hello.
    pub(crate) fn held(&self) -> Vec<HeldPod> {
        let inner = self.lock();
        let pods = inner
            .entries
            .values()
            .filter_map(|entry| entry.pod.as_ref()?.metadata.as_ref());
        pods.map(|meta| HeldPod {
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
        })
        .collect()
    }

    /// Pods that are or are to go: what they have on the machine stays.
    pub(crate) fn uids(&self) -> Vec<String> {
        self.lock().entries.keys().cloned().collect()
    }

    /// Pods that are to be here.
    pub(crate) fn desired(&self) -> Vec<Arc<Pod>> {
        let inner = self.lock();
        inner
            .entries
            .values()
            .filter_map(|entry| entry.pod.clone())
            .collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let inner = self.lock();
        let desired = inner.entries.values().filter(|entry| entry.pod.is_some()).count();
        Counts {
            desired,
            going: inner.entries.len() - desired,
        }
    }

    /// Reports that changed, and are taken to be sent. `report_all` brings them back.
    pub(crate) fn take_reports(&self) -> Vec<PodReport> {
        let mut inner = self.lock();
        let mut reports = Vec::new();
        let mut bytes = 0;
        while let Some(uid) = inner.dirty.pop_first() {
            let report = inner.entries.get(&uid).filter(|entry| entry.pod.is_some());
            let Some(report) = report.map(|entry| entry.handle.report().borrow().clone()) else {
                continue;
            };
            if report.status.is_none() && !report.gone {
                continue; // nothing is known yet
            }
            bytes += report.encoded_len();
            reports.push(report);
            if reports.len() >= REPORTS_MAX || bytes >= REPORT_BYTES_MAX {
                break;
            }
        }
        reports
    }

    /// Whether `take_reports` has something to look at.
    pub(crate) fn has_reports(&self) -> bool {
        !self.lock().dirty.is_empty()
    }

    /// A new session: the controller hears of everything again.
    pub(crate) fn report_all(&self) {
        let mut inner = self.lock();
        inner.dirty = inner.entries.keys().cloned().collect();
    }

    /// Returns when reports may have changed.
    pub(crate) async fn reported(&self) {
        self.reported.notified().await;
    }

    fn start(self: &Arc<Self>, inner: &mut Inner, uid: String, pod: Option<Arc<Pod>>) {
        let (sender, receiver) = watch::channel(Desired {
            pod: pod.clone(),
            configs: inner.configs.clone(),
        });
        let handle = pod::spawn(self.node.clone(), uid.clone(), receiver);
        inner.actors += 1;
        let entry = Entry {
            pod,
            actor: inner.actors,
            desired: sender,
            handle: handle.clone(),
            gone: false,
        };
        tokio::spawn(self.clone().follow(uid.clone(), inner.actors, handle));
        inner.dirty.insert(uid.clone());
        inner.entries.insert(uid, entry);
    }

    /// Passes on what an actor reports until it ends.
    async fn follow(self: Arc<Self>, uid: String, actor: u64, handle: Handle) {
        let mut report = handle.report();
        while report.changed().await.is_ok() {
            if report.borrow_and_update().gone {
                break;
            }
            self.mark(&uid);
        }
        let gone = report.borrow().gone;
        handle.join().await;
        if !gone {
            // It ended with its pod still there: a bug, which must not cost the pod.
            tokio::time::sleep(RESPAWN_PAUSE).await;
        }
        self.ended(&uid, actor, gone);
    }

    fn mark(&self, uid: &str) {
        self.lock().dirty.insert(uid.to_owned());
        self.reported.notify_one();
    }

    fn ended(self: &Arc<Self>, uid: &str, actor: u64, gone: bool) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(uid).filter(|entry| entry.actor == actor) else {
            return;
        };
        let pod = entry.pod.clone();
        if !gone {
            tracing::error!(uid, "the task of a pod ended by itself; starting another");
            self.start(&mut inner, uid.to_owned(), pod);
        } else if pod.is_none() {
            inner.entries.remove(uid);
            inner.dirty.remove(uid);
        } else if is_deleted(pod.as_deref()) {
            entry.gone = true;
            inner.dirty.insert(uid.to_owned());
        } else {
            // It was to go, and went, and is wanted again.
            self.start(&mut inner, uid.to_owned(), pod);
        }
        drop(inner);
        self.reported.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the entries whole: each is inserted or removed as one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_deleted(pod: Option<&Pod>) -> bool {
    let meta = pod.and_then(|pod| pod.metadata.as_ref());
    meta.is_some_and(|meta| meta.deletion_timestamp.is_some())
}

/// Uids of which something is on the machine: monitors' directories, files, groups.
fn leftovers(settings: &Settings, layout: &Layout) -> BTreeSet<String> {
    let mut uids: BTreeSet<String> = names(&settings.monitors_dir());
    uids.extend(names(&settings.pods_dir()));
    let below = settings
        .cgroup_parent
        .strip_prefix("/")
        .unwrap_or(&settings.cgroup_parent);
    let mounts: Vec<&Path> = match layout {
        Layout::V2 { mount } => vec![mount],
        Layout::V1 { hierarchies, unified } => {
            let v1 = hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path());
            v1.chain(unified.as_deref()).collect()
        }
    };
    for mount in mounts {
        let groups = names(&mount.join(below));
        uids.extend(
            groups
                .iter()
                .filter_map(|name| Settings::uid_of_cgroup(name))
                .map(str::to_owned),
        );
    }
    uids
}

/// Names of the directories in a directory that may be absent.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "failed to list {}", directory.display());
            }
            return BTreeSet::new();
        }
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_by_directory_and_group() {
        let top = tempfile::tempdir().unwrap();
        let settings = Settings {
            data_dir: top.path().join("data"),
            config_dir: top.path().join("config"),
            run_dir: top.path().join("run"),
            log_dir: top.path().join("log"),
            cgroup_parent: "/bulkhead".into(),
            runtime: "bulkhead-runtime".into(),
            node_address: std::net::Ipv4Addr::LOCALHOST,
            bridge: "bulkhead0".to_owned(),
            backend: crate::network::Backend::Vxlan,
            metrics_address: ([127, 0, 0, 1], 0).into(),
        };
        let layout = Layout::V2 {
            mount: top.path().join("cgroup"),
        };
        assert!(leftovers(&settings, &layout).is_empty());
        fs::create_dir_all(settings.monitor_dir("a")).unwrap();
        fs::create_dir_all(settings.pod_dir("b")).unwrap();
        fs::create_dir_all(top.path().join("cgroup/bulkhead/pod-c/main")).unwrap();
        fs::create_dir_all(top.path().join("cgroup/bulkhead/somebody-else")).unwrap();
        let found: Vec<String> = leftovers(&settings, &layout).into_iter().collect();
        assert_eq!(found, ["a", "b", "c"]);
    }
}
