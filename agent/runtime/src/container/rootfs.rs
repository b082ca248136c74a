//! The root file system as a detached tree: a bundle's directory, or an overlay of idmapped image layers.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use sys::mount::{self, Change, FsContext};
use sys::path::{self, Resolve};
use sys::process::{self, CloneArgs};
use sys::socket;

use super::{StartError, host};
use crate::spec::IdRange;

/// overlayfs takes 500 lower layers (OVL_MAX_STACK).
const LOWERS_MAX: usize = 500;

pub(crate) fn c_path(path: &Path) -> Result<CString, StartError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| StartError::Invalid {
        field: path.display().to_string(),
        reason: "NUL byte in a path".into(),
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host {
        action,
        path: Some(path.to_owned()),
        source,
    }
}

/// A detached copy of the directory's mount and all below: private, or what the host mounts there later shows.
pub(crate) fn bundle(directory: &Path, slave: bool) -> Result<OwnedFd, StartError> {
    if !fs::metadata(directory)
        .map_err(failed("open the root file system", directory))?
        .is_dir()
    {
        return Err(failed("open the root file system", directory)(
            io::Error::from_raw_os_error(libc::ENOTDIR),
        ));
    }
    let tree = mount::clone_tree(path::here(), &c_path(directory)?, true)
        .map_err(failed("open the root file system", directory))?;
    let change = Change {
        propagation: if slave { libc::MS_SLAVE } else { libc::MS_PRIVATE },
        ..Change::default()
    };
    mount::change(tree.as_fd(), change, true).map_err(failed("open the root file system", directory))?;
    Ok(tree)
}

/// Nothing that is mounted below may show on the host.
pub(crate) fn private(tree: BorrowedFd<'_>) -> io::Result<()> {
    mount::change(
        tree,
        Change {
            propagation: libc::MS_PRIVATE,
            ..Change::default()
        },
        true,
    )
}

/// An overlay, `volatile`: without it every end of a container syncs the whole disk beneath. Whoever keeps `upper` must
/// discard it after a power cut.
pub(crate) fn overlay(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    users: Option<(BorrowedFd<'_>, Option<IdRange>)>,
    label: Option<&str>,
) -> Result<OwnedFd, StartError> {
    if lowers.is_empty() || lowers.len() > LOWERS_MAX {
        return Err(StartError::Invalid {
            field: "rootfs.overlay.lowers".into(),
            reason: format!("{} layers; there must be 1 to {LOWERS_MAX}", lowers.len()),
        });
    }
    let mut layers = Vec::with_capacity(lowers.len());
    for lower in lowers {
        let tree = mount::clone_tree(path::here(), &c_path(lower)?, false)
            .map_err(failed("open the layer", lower))?;
        private(tree.as_fd()).map_err(failed("open the layer", lower))?;
        if let Some((users, range)) = users
            && !shifted(lower, range)?
        {
            mount::idmap(tree.as_fd(), users, false).map_err(|source| StartError::IdmapLayer {
                path: lower.clone(),
                source,
            })?;
        }
        layers.push(tree);
    }
    let root = users.map_or(0, |(_, range)| range.map_or(0, |range| range.start));
    let directory = fs::File::open(upper).map_err(failed("open the upper layer", upper))?;
    path::chown(directory.as_fd(), c"", root, root).map_err(failed("give away the upper layer", upper))?;
    // "/" shows with the upper directory's mode; the topmost layer's is what the image means.
    let mode = fs::metadata(&lowers[0])
        .map_err(failed("open the layer", &lowers[0]))?
        .mode()
        & 0o7777;
    directory
        .set_permissions(fs::Permissions::from_mode(mode))
        .map_err(failed("set the mode of", upper))?;
    let attributes = 0;
    match by_descriptors(&layers, upper, work, label, attributes) {
        Ok(tree) => Ok(tree),
        Err(error) if older_kernel(&error) => by_paths(&layers, upper, work, label),
        Err(error) => Err(error),
    }
    // `layers` close here: before, the kernel would have dissolved the trees that the overlay is to be made of.
}

/// Whether a layer's files already belong to the pod's ids: the agent's copy for file systems without idmapped mounts.
fn shifted(lower: &Path, range: Option<IdRange>) -> Result<bool, StartError> {
    let owner = fs::metadata(lower)
        .map_err(failed("open the layer", lower))?
        .uid();
    Ok(range.is_some_and(|range| owner == range.start))
}

/// Whether it is what overlayfs said before 6.5 and 6.13, when it took neither `lowerdir+` nor descriptors.
fn older_kernel(error: &StartError) -> bool {
    let StartError::Host { source, .. } = error else {
        return false;
    };
    matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

fn by_descriptors(
    layers: &[OwnedFd],
    upper: &Path,
    work: &Path,
    label: Option<&str>,
    attributes: u64,
) -> Result<OwnedFd, StartError> {
    let overlay = FsContext::open(c"overlay").map_err(host("make an overlay"))?;
    let set = || -> io::Result<()> {
        overlay.string(c"source", c"bulkhead")?;
        for layer in layers {
            overlay.fd(c"lowerdir+", layer.as_fd())?;
        }
        // Descriptors here too: a string is at most 255 bytes.
        overlay.fd(c"upperdir", fs::File::open(upper)?.as_fd())?;
        overlay.fd(c"workdir", fs::File::open(work)?.as_fd())?;
        overlay.flag(c"volatile")?;
        if let Some(label) = label {
            overlay.string(c"context", &CString::new(label)?)?;
        }
        Ok(())
    };
    set().map_err(host("make an overlay"))?;
    overlay.mount(attributes).map_err(host("make an overlay"))
}

/// The way of older kernels: a child attaches the layers in a mount namespace of its own, mounts by path, and hands a
/// detached copy back.
fn by_paths(
    layers: &[OwnedFd],
    upper: &Path,
    work: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, StartError> {
    let writable = [c_path(upper)?, c_path(work)?];
    let upper = fs::File::open(upper).map_err(failed("open the upper layer", upper))?;
    let work = fs::File::open(work).map_err(failed("open the work directory", work))?;
    let fd = |file: BorrowedFd<'_>| std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut names = Vec::with_capacity(layers.len());
    let mut lowerdir = String::new();
    for (index, layer) in layers.iter().enumerate() {
        names.push(
            CString::new(index.to_string())
                .map_err(|_| host("make an overlay")(io::ErrorKind::InvalidInput.into()))?,
        );
        if index > 0 {
            lowerdir.push(':');
        }
        lowerdir.push_str(&format!("/proc/self/fd/{}", fd(layer.as_fd())));
    }
    let mut options = format!(
        "lowerdir={lowerdir},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{},volatile",
        fd(upper.as_fd()),
        fd(work.as_fd())
    );
    if let Some(label) = label {
        options.push_str(&format!(",context=\"{label}\""));
    }
    if options.len() >= OPTIONS_MAX {
        return Err(StartError::Invalid {
            field: "rootfs.overlay.lowers".into(),
            reason: format!("{} layers are too many for this kernel", layers.len()),
        });
    }
    let options = CString::new(options).map_err(|_| StartError::Invalid {
        field: "linux.mountLabel".into(),
        reason: "NUL byte".into(),
    })?;
    let (ours, theirs) = socket::seqpacket_pair().map_err(host("make a socket pair"))?;
    let body = || {
        let made = reopen(&writable[0], upper.as_fd())
            .and_then(|()| reopen(&writable[1], work.as_fd()))
            .and_then(|()| scratch(layers, &names, &options));
        let sent = match made {
            Ok(tree) => socket::send_fds(theirs.as_fd(), &0i32.to_le_bytes(), &[tree.as_fd()]),
            Err(error) => socket::send(
                theirs.as_fd(),
                &error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes(),
            ),
        };
        i32::from(sent.is_err())
    };
    let args = CloneArgs {
        flags: libc::CLONE_NEWNS as u64,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    let pid = process::spawn(args, body).map_err(host("start a helper process"))?;
    drop(theirs);
    let mut errno = [0; 4];
    let answer = socket::recv_fds(ours.as_fd(), &mut errno);
    process::wait_pid(pid).map_err(host("end a helper process"))?;
    match answer.map_err(host("hear from a helper process"))? {
        (4, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
        (4, _) => Err(host("make an overlay")(io::Error::from_raw_os_error(
            i32::from_le_bytes(errno),
        ))),
        _ => Err(host("make an overlay")(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// mount(2): its options are at most one page.
const OPTIONS_MAX: usize = 4096;

/// Puts the directory, as this mount namespace has it, at the number of one opened elsewhere, which overlayfs refuses.
fn reopen(path: &CString, number: BorrowedFd<'_>) -> io::Result<()> {
    let own = path::open(
        path::here(),
        path,
        libc::O_RDONLY | libc::O_DIRECTORY,
        0,
        Resolve::Free,
    )?;
    sys::fd::dup_onto(own.as_fd(), std::os::fd::AsRawFd::as_raw_fd(&number))
}

/// In a mount namespace of its own, without allocating.
fn scratch(layers: &[OwnedFd], names: &[CString], options: &CString) -> io::Result<OwnedFd> {
    mount::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    let scratch = FsContext::open(c"tmpfs")?.mount(0)?;
    mount::attach_at(scratch.as_fd(), super::PLACE)?;
    for (layer, name) in layers.iter().zip(names) {
        path::mkdir(scratch.as_fd(), name, 0o700)?;
        let place = path::open(
            scratch.as_fd(),
            name,
            libc::O_PATH | libc::O_DIRECTORY,
            0,
            Resolve::NoLinks,
        )?;
        mount::attach(layer.as_fd(), place.as_fd())?;
    }
    path::mkdir(scratch.as_fd(), c"root", 0o700)?;
    path::fchdir(scratch.as_fd())?;
    mount::mount(Some(c"bulkhead"), c"root", Some(c"overlay"), 0, Some(options))?;
    mount::clone_tree(path::here(), c"root", false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Kernels before 6.13 take the second way; it works on later ones too, so that it is tested everywhere.
    #[test]
    fn both_ways_of_making_an_overlay_show_the_layers() {
        let temp = tempfile::tempdir().unwrap();
        let lowers = [directory(temp.path(), "top"), directory(temp.path(), "bottom")];
        fs::write(lowers[0].join("a"), "top").unwrap();
        fs::write(lowers[1].join("a"), "bottom").unwrap();
        fs::write(lowers[1].join("b"), "bottom").unwrap();
        for way in ["descriptors", "paths"] {
            let (upper, work) = (
                directory(temp.path(), &format!("{way}-u")),
                directory(temp.path(), &format!("{way}-w")),
            );
            let layers: Vec<OwnedFd> = lowers
                .iter()
                .map(|lower| mount::clone_tree(path::here(), &c_path(lower).unwrap(), false).unwrap())
                .collect();
            let tree = match way {
                "descriptors" => by_descriptors(&layers, &upper, &work, None, 0),
                _ => by_paths(&layers, &upper, &work, None),
            };
            if tree.as_ref().is_err_and(older_kernel) && way == "descriptors" {
                crate::skip::skip(
                    "both_ways_of_making_an_overlay_show_the_layers",
                    "one of them: the kernel takes no descriptors for layers",
                );
                continue;
            }
            let tree = tree.unwrap();
            for (name, content) in [(c"a", "top"), (c"b", "bottom")] {
                let file = path::open(tree.as_fd(), name, libc::O_RDONLY, 0, Resolve::NoLinks).unwrap();
                assert_eq!(
                    io::read_to_string(fs::File::from(file)).unwrap(),
                    content,
                    "{way}"
                );
            }
        }
    }
}
