//! Settings of the agent's process, all of them from flags or `BULKHEAD_*`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::network::Backend;

/// Where what is, and how the node is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ledger, images, volumes and containers' writable layers.
    pub data_dir: PathBuf,
    /// Identity and registries.
    pub config_dir: PathBuf,
    /// Monitors' directories.
    pub run_dir: PathBuf,
    /// Logs of pods, and nothing else that matters.
    pub log_dir: PathBuf,
    /// The group below which every pod has one, absolute in each hierarchy.
    pub cgroup_parent: PathBuf,
    /// `bulkhead-runtime`.
    pub runtime: PathBuf,
    /// Address by which other nodes reach this one.
    pub node_address: Ipv4Addr,
    /// Name of the bridge.
    pub bridge: String,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// Where metrics and health are served.
    pub metrics_address: SocketAddr,
}

impl Settings {
    /// Directory of a pod's monitor.
    pub fn monitor_dir(&self, uid: &str) -> PathBuf {
        self.monitors_dir().join(uid)
    }

    /// Where all monitors' directories are.
    pub fn monitors_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// A pod's volumes and its containers' writable layers.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    /// Where all pods' own files are.
    pub fn pods_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// Logs of a pod: `LOG_DIR/pods/NAMESPACE_NAME_UID`.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs_dir().join(format!("{namespace}_{name}_{uid}"))
    }

    /// Where all pods' logs are.
    pub fn logs_dir(&self) -> PathBuf {
        self.log_dir.join("pods")
    }

    /// Group of a pod.
    pub fn pod_cgroup(&self, uid: &str) -> PathBuf {
        self.cgroup_parent.join(format!("{POD_GROUP_PREFIX}{uid}"))
    }

    /// The uid in the name of a pod's group.
    pub fn uid_of_cgroup(name: &str) -> Option<&str> {
        name.strip_prefix(POD_GROUP_PREFIX)
    }

    /// The store of images: its `layers` are labelled by the SELinux policy where they lie.
    pub fn images_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// What the agent must not forget.
    pub fn ledger_file(&self) -> PathBuf {
        ledger_file(&self.data_dir)
    }

    /// Credentials and certificates of registries.
    pub fn registries_dir(&self) -> PathBuf {
        self.config_dir.join("registries")
    }
}

/// How groups of pods begin.
const POD_GROUP_PREFIX: &str = "pod-";

/// The ledger in a data directory.
pub(crate) fn ledger_file(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger.redb")
}
