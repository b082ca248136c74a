//! Places in the container's root, as the configuration names them: where something is mounted, masked or made read-only.

use std::path::{Component, Path, PathBuf};

use nix::libc;
use sys::path::{self, Resolve};

use super::StartError;
use super::program::invalid;
use super::recipe::Target;
use super::rootfs::c_path;

/// Most masked or read-only paths of one container; engines list some dozens.
const COVERED_MAX: usize = 1024;
/// Deepest place of a mount: each directory on the way is a path of its own in the plan.
const DEPTH_MAX: usize = 128;

/// A place in the container's root. `..` is resolved here: it can name nothing above the root anyway.
pub(super) fn target(destination: &Path, resolve: Resolve, magic: Option<i64>) -> Result<Target, StartError> {
    let refuse = |reason: String| {
        // Its beginning says which it is.
        let shown: String = destination.to_string_lossy().chars().take(64).collect();
        Err(invalid(format!("the place {shown:?}"), reason))
    };
    if destination.as_os_str().len() >= libc::PATH_MAX as usize {
        return refuse(format!("longer than {} bytes", libc::PATH_MAX - 1));
    }
    let mut path = PathBuf::new();
    for part in destination.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.components().count() > DEPTH_MAX {
        return refuse(format!("deeper than {DEPTH_MAX} directories"));
    }
    let mut target = Target {
        prefixes: Vec::new(),
        names: Vec::new(),
        resolve,
        magic,
    };
    let mut prefix = PathBuf::new();
    for part in path.components() {
        prefix.push(part);
        target.prefixes.push(c_path(&prefix)?);
        target.names.push(c_path(Path::new(part.as_os_str()))?);
    }
    Ok(target)
}

/// A place to mask or make read-only. Below /proc and /sys it must lie on a real procfs or sysfs (CVE-2023-28642).
fn covered(path: &str) -> Result<Target, StartError> {
    if !path.starts_with('/') {
        return Err(invalid(path, "must be absolute"));
    }
    let magic = if path == "/proc" || path.starts_with("/proc/") {
        Some(path::PROC_MAGIC)
    } else {
        None
    };
    target(Path::new(path), Resolve::InRoot, magic)
}

/// A list of such places.
pub(super) fn all_covered(field: &str, list: &Option<Vec<String>>) -> Result<Vec<Target>, StartError> {
    let list = list.as_deref().unwrap_or_default();
    if list.len() > COVERED_MAX {
        return Err(invalid(field, format!("more than {COVERED_MAX}")));
    }
    list.iter().map(|path| covered(path)).collect()
}
