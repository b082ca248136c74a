//! Whether image layers can be idmapped here: asked of the kernel once, with the store's own file system.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// First kernel whose overlayfs takes idmapped layers (Linux 5.19, "overlayfs: support idmapped layers").
const OVERLAY: (u32, u32) = (5, 19);

/// Tries it. A machine where the try itself fails is one that cannot.
pub(crate) fn probe(directory: &Path) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_none_or(|version| version < OVERLAY) {
        return false;
    }
    match try_it(directory) {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, "no idmapped mounts in {}: copies with shifted owners are used", directory.display());
            false
        }
    }
}

fn try_it(directory: &Path) -> io::Result<()> {
    // A process with threads cannot make a user namespace for itself; util-linux's program lends one.
    let holder = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", "echo && read -r _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut holder = Holder(holder);
    let stdout = holder.0.stdout.as_mut();
    let mut ready = [0; 1];
    stdout.ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut ready)?;
    let users = File::open(format!("/proc/{}/ns/user", holder.0.id()))?;
    let tree = File::open(directory)?;
    let tree = sys::mount::clone_tree(tree.as_fd(), c"", false)?;
    sys::mount::idmap(tree.as_fd(), users.as_fd(), false)
}

/// Ends the program with the probe, whatever came of it.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take()); // its end: `read` returns
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "failed to wait for unshare");
        }
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-13-amd64\n"), Some((6, 1)));
        assert!(version("5.4.0").unwrap() < OVERLAY);
        assert!(version("5.19").unwrap() >= OVERLAY);
        assert_eq!(version("strange"), None);
    }
}
