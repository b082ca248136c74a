//! A small disk, to be filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small disk in place of a directory, for as long as it lives.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// With what the directory holds; `size` as mount(8) takes it of a tmpfs.
    pub fn over(directory: &Path, size: &str) -> Self {
        let kept = tempfile::tempdir().expect("a directory");
        let copy = |from: &Path, to: &Path| run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to));
        copy(directory, kept.path());
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"])
            .arg(directory));
        let disk = Self(directory.to_owned());
        copy(kept.path(), directory);
        disk
    }

    /// Bytes that are left.
    pub fn free(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(&self.0).expect("a disk");
        disk.blocks_available() * disk.fragment_size()
    }

    /// Fills it with a file until so many bytes are left.
    pub fn fill(&self, left: u64) {
        let more = self.free().saturating_sub(left);
        fs::write(self.filler(), vec![0; more as usize]).expect("room for the file that fills the disk");
    }

    /// Takes that file away.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).expect("the file that fills the disk");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that a failed test left still has files there.
        let gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        if let Err(error) = gone {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("a program of every Linux machine");
    assert!(status.success(), "{command:?}: {status}");
}
