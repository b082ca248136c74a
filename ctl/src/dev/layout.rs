//! Where a development cluster keeps what: directories, names, addresses. All follow from the cluster's name.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::CtlError;

/// Longest name: it is part of interface names (15 characters) and of unix socket paths (107).
const NAME_LENGTH_MAX: usize = 8;

/// Names and paths of one cluster.
pub(super) struct Layout {
    pub(super) name: String,
    /// Data of every process: the log, images, volumes.
    pub(super) data: PathBuf,
    /// Sockets, pods' directories, network namespaces.
    pub(super) run: PathBuf,
    /// Pod logs and the processes' own.
    pub(super) log: PathBuf,
    /// The bridge between controllers and nodes.
    pub(super) bridge: String,
}

impl Layout {
    pub(super) fn new(name: &str) -> Result<Self, CtlError> {
        let fits = !name.is_empty()
            && name.len() <= NAME_LENGTH_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !fits {
            return Err(CtlError::Usage(format!(
                "`{name}` cannot name a cluster: up to {NAME_LENGTH_MAX} lower-case letters and digits"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            data: PathBuf::from("/var/lib/bulkhead").join(name),
            run: PathBuf::from("/run/bulkhead").join(name),
            log: PathBuf::from("/var/log/bulkhead").join(name),
            bridge: format!("bhb-{name}"),
        })
    }

    /// The file that says what was started.
    pub(super) fn cluster_file(&self) -> PathBuf {
        self.run.join("cluster.json")
    }

    /// Where a node's network namespace is bound.
    pub(super) fn netns(&self, node: &str) -> PathBuf {
        self.run.join("netns").join(node)
    }

    /// Parent of all the cluster's cgroups, in each hierarchy.
    pub(super) fn cgroup(&self) -> String {
        format!("/bulkhead-{}", self.name)
    }

    /// Parent of one node's cgroups.
    pub(super) fn node_cgroup(&self, node: &str) -> String {
        format!("{}/{node}", self.cgroup())
    }
}

/// What was started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cluster {
    /// The cluster's name.
    pub(super) name: String,
    /// First addresses of the shared /24.
    pub(super) subnet: Ipv4Addr,
    /// How many controllers were asked for.
    pub(super) controllers: u32,
    /// How many nodes were asked for.
    pub(super) nodes: u32,
    /// Controllers and agents, in order of starting.
    pub(super) processes: Vec<Process>,
}

/// One started process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) name: String,
    /// controller or agent.
    pub(super) role: String,
    pub(super) pid: i32,
    /// Start time in clock ticks since boot (proc(5), stat field 22): tells the process from a later one of its pid.
    pub(super) started: u64,
    pub(super) address: String,
    pub(super) log: PathBuf,
    /// The program and its arguments, so that it can be started again as it was.
    pub(super) command: Vec<String>,
    /// The network namespace that it runs in; none for this one.
    pub(super) netns: Option<PathBuf>,
    /// Parent of its pods' cgroups.
    pub(super) cgroup: Option<String>,
}

impl Cluster {
    /// What `up` recorded; none when there is no cluster of that name.
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>, CtlError> {
        let path = layout.cluster_file();
        let failed = format!("failed to read {}", path.display());
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                CtlError::refused(format!("{failed}: {error}; `ctl dev down` clears it away"))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CtlError::io(failed)(error)),
        }
    }

    /// Records what was started so far.
    pub(super) fn write(&self, layout: &Layout) -> Result<(), CtlError> {
        let path = layout.cluster_file();
        let failed = |source| CtlError::Io {
            what: format!("failed to write {}", path.display()),
            source,
        };
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, bytes).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)
    }
}
