//! Our own program file, kept out of reach of containers that run as the host's root (CVE-2019-5736).
//!
//! A container whose program is `#!/proc/self/exe`, by a script's first line or an interpreter's name, runs us and can
//! open our file through /proc. In a user namespace the file belongs to an id that the container does not have. Without
//! one it could be overwritten: then we run from a read-only mount that is nowhere attached, through which no write goes.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use sys::mount::{self, Change};
use sys::path::{self, Resolve};
use sys::process::{self, CStrings};

/// Makes sure that we run from a read-only mount: returns when we do, else begins the program anew from one, with the same
/// arguments, environment and descriptors. Call it before anything has been done that a second beginning would repeat.
pub fn protect() -> io::Result<()> {
    let file = path::open(
        path::here(),
        c"/proc/self/exe",
        nix::libc::O_PATH,
        0,
        Resolve::Free,
    )?;
    if path::is_readonly(file.as_fd())? {
        return Ok(());
    }
    let tree = mount::clone_tree(file.as_fd(), c"", false)?;
    mount::change(
        tree.as_fd(),
        Change {
            set: mount::MOUNT_ATTR_RDONLY,
            ..Change::default()
        },
        false,
    )?;
    let nul = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let arguments: Vec<CString> = std::env::args_os()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(nul)?;
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        environment.push(CString::new(entry).map_err(nul)?);
    }
    Err(process::fexecve(
        tree.as_fd(),
        &CStrings::new(arguments),
        &CStrings::new(environment),
    ))
}
