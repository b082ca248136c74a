//! A file system that only a member of the container's namespaces can make. Runs between clone and exec: nothing here
//! allocates.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use sys::mount::FsContext;
use sys::path::{self, Resolve};

/// Makes it, detached; `label` is for its root directory.
pub(super) fn make(
    fstype: &CStr,
    options: &[(CString, Option<CString>)],
    attributes: u64,
    label: Option<&CStr>,
) -> io::Result<OwnedFd> {
    let context = FsContext::open(fstype)?;
    for (key, value) in options {
        match value {
            Some(value) => context.string(key, value)?,
            None => context.flag(key)?,
        }
    }
    let tree = context.mount(attributes)?;
    if let Some(label) = label {
        // The tree is an O_PATH descriptor, which takes no attributes.
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let root = path::open(tree.as_fd(), c".", flags, 0, Resolve::NoLinks)?;
        match path::set_xattr(root.as_fd(), c"security.selinux", label.to_bytes()) {
            // Of an IPC namespace made in the same clone(2) as its user namespace the root belongs to an id that the
            // container does not have: nobody in it may label it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            result => result?,
        }
    }
    Ok(tree)
}
