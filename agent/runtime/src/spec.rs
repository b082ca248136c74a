//! What a pod's shared parts and one of its containers are to be. The agent writes these; the monitor and the library
//! carry them out. A lone OCI container is the same `ContainerSpec` without a sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

/// A pod's shared parts: made once, held by the monitor by descriptors, joined by each container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SandboxSpec {
    /// The pod's uid; names its cgroup and its directories.
    pub id: String,
    /// Host name of the pod's UTS namespace; none when the pod uses the host's.
    pub hostname: Option<String>,
    /// The ids of the pod's user namespace; none when it uses the host's (`hostUsers: true`).
    pub users: Option<IdRange>,
    /// A network namespace of its own, or the host's.
    pub network: Share,
    /// An IPC namespace of its own, or the host's.
    pub ipc: Share,
    /// A PID namespace for each container, one for the pod, or the host's.
    pub pid: PidShare,
    /// The pod's cgroup.
    pub cgroup: CgroupSpec,
    /// Sysctls of the pod's own network and IPC namespaces, by dotted name.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Of a pod that must not run twice: it runs only as long as its monitor is told so again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceSpec>,
}

/// How a pod that must not run twice ends when its monitor hears nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FenceSpec {
    /// From asking containers to end until what is left is killed, in milliseconds.
    pub grace_ms: u64,
}

/// Host ids `start..start + count` stand for ids `0..count` inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdRange {
    /// First host id.
    pub start: u32,
    /// How many ids.
    pub count: u32,
}

/// Whether a namespace is the pod's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Share {
    /// A namespace of the pod's own.
    Pod,
    /// The host's.
    Host,
}

/// Whose PID namespace a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PidShare {
    /// Each container has its own and is its first process.
    Container,
    /// One for the pod (`shareProcessNamespace`), whose first process is a minimal init of ours.
    Pod,
    /// The host's (`hostPID`).
    Host,
}

/// Where a cgroup is and what it may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CgroupSpec {
    /// Path below the root of every hierarchy, as `/bulkhead/pod-UID` or `/bulkhead/pod-UID/CONTAINER`.
    pub path: PathBuf,
    /// Limits; absent ones are the kernel's defaults.
    #[serde(default)]
    pub resources: LinuxResources,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerSpec {
    /// Unique in its pod; restarts get a new one.
    pub id: String,
    /// Process, mounts, resources, seccomp, labels, masked paths: the OCI runtime configuration. Its namespaces are
    /// those that the container makes itself; the others are its sandbox's. `root.path` is where a lone container's
    /// root file system lies and is ignored when `rootfs` says otherwise.
    pub config: Spec,
    /// How the root file system comes about.
    pub rootfs: Rootfs,
    /// Where standard output and error go, for containers that a monitor owns.
    pub log: Option<LogSpec>,
    /// Keep standard input open (`stdin: true`, attach); else it reads end of file.
    #[serde(default)]
    pub stdin: bool,
    /// The signal by which a monitor asks it to end by itself, when its pod has a fence; SIGTERM for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
}

/// A container's root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Rootfs {
    /// The directory `config.root.path`, as the OCI specification has it.
    Bundle,
    /// An overlay (`volatile`) of image layers below a private upper directory. Layers are owned by ids 0..65535 and
    /// idmapped into the pod's range where the kernel can. `upper` and `work` are empty directories on one file
    /// system, made and removed by the agent.
    Overlay {
        /// Topmost first.
        lowers: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs's own scratch directory.
        work: PathBuf,
    },
}

/// A log file in the CRI format, `TIME stdout|stderr F|P TEXT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LogSpec {
    /// The file written to; rotated ones get a time stamp as suffix.
    pub path: PathBuf,
    /// Rotate when it would grow beyond this, in bytes.
    pub bytes_max: u64,
    /// How many files to keep, the current one included.
    pub files_max: u32,
}
