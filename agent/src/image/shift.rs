//! Copies of layers with shifted owners, for kernels and file systems that cannot idmap a mount.
//!
//! One copy for each range of ids, made when it is first asked for and removed with the range.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ImageError, Store};

/// Deepest tree that is walked.
const DEPTH_MAX: usize = 1_000;

impl Store {
    /// A layer whose ids 0..count are `start..start + count` on disk.
    pub fn shifted(&self, layer: &Path, start: u32, count: u32) -> Result<PathBuf, ImageError> {
        let name = layer.file_name().unwrap_or_default();
        let range = self.dir.join("shifted").join(format!("{start}-{count}"));
        let target = range.join(name);
        if target.is_dir() {
            return Ok(target);
        }
        fs::create_dir_all(&range).map_err(ImageError::io("create", &range))?;
        let temporary = self.temporary();
        // cp(1) keeps hard links, attributes, sparse files and times; a whiteout is copied as the device that it is.
        let status = Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .arg(layer)
            .arg(&temporary)
            .status();
        let status = status.map_err(ImageError::io("copy", layer))?;
        if !status.success() {
            remove(&temporary)?;
            return Err(ImageError::io("copy", layer)(io::Error::other(format!(
                "cp ended with {status}"
            ))));
        }
        shift(&temporary, start, count, 0)?;
        fs::rename(&temporary, &target).map_err(ImageError::io("put in place", &target))?;
        Ok(target)
    }

    /// Removes the copies of a range. Fine when there are none.
    pub fn remove_shifted(&self, start: u32, count: u32) -> Result<(), ImageError> {
        remove(&self.dir.join("shifted").join(format!("{start}-{count}")))
    }
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The tree is the store's own: nobody else changes it while it is walked.
fn shift(path: &Path, start: u32, count: u32, depth: usize) -> Result<(), ImageError> {
    let failed = || ImageError::io("shift the owner of", path);
    let meta = fs::symlink_metadata(path).map_err(failed())?;
    if depth > DEPTH_MAX {
        return Err(failed()(io::Error::other("nested too deep")));
    }
    let shifted = |id: u32| {
        id.checked_sub(start)
            .filter(|id| *id < count)
            .map_or(id.saturating_add(start), |id| id + start)
    };
    // A second name of a file that was shifted by its first is left alone: its id is in the range already.
    let (uid, gid) = (shifted(meta.uid()), shifted(meta.gid()));
    if (uid, gid) != (meta.uid(), meta.gid()) {
        lchown(path, Some(uid), Some(gid)).map_err(failed())?;
        if meta.is_file() {
            fs::set_permissions(path, meta.permissions()).map_err(failed())?; // chown(2) takes set-id bits away
        }
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(ImageError::io("list", path))? {
            shift(
                &entry.map_err(ImageError::io("list", path))?.path(),
                start,
                count,
                depth + 1,
            )?;
        }
    }
    Ok(())
}
