//! What is left of a pod whose monitor died without a `Shutdown`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{SOCKET, SOCKET_NEW};
use crate::cgroup::{Cgroup, CgroupError, Layout};
use crate::spec::SandboxSpec;

/// How long killed processes may take to go: a non-volatile overlay's last unmount can wait for the disk.
const WAIT: Duration = Duration::from_secs(10);

/// Why something of a dead pod is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanupError {
    /// Its processes or its cgroup.
    #[error("failed to end what is left in the pod's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A file.
    #[error("failed to remove {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Kills everything in the pod's cgroup, removes the cgroup with all below it, and the monitor's socket in `directory`.
/// For use after the monitor's death; may be repeated. The directory itself, with the log, is the agent's.
pub fn cleanup(spec: &SandboxSpec, directory: &Path) -> Result<(), CleanupError> {
    let layout = Layout::detect()?;
    let cgroup = Cgroup::open(&layout, &spec.cgroup.path)?;
    let ended = cgroup.end(WAIT);
    for name in [SOCKET, SOCKET_NEW] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CleanupError::File { path, source });
            }
            _ => {}
        }
    }
    Ok(ended?)
}
