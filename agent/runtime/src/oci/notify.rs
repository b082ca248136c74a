//! Word of readiness (sd_notify(3)): a service manager that waits for it of us hears it from the container's program, which
//! has a socket of our own. `READY=1` is all that is passed on: a container shall not speak for us otherwise.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Mount, Spec};

use super::state::Directory;
use super::{Log, OciError};
use crate::container::selinux_enabled;

/// Where a program's word goes, in its environment and in ours.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// Name of our socket, in its directory.
const SOCKET: &str = "notify";
/// Its directory in the container, where the host's socket says no better: runc's.
const USUAL: &str = "/run/notify";
/// Largest datagram: what systemd itself takes (PIPE_BUF).
const DATAGRAM_BYTES_MAX: usize = 4096;
/// Datagrams read in a row: whoever sends without end must not keep us from all else. The kernel queues ten.
const AT_ONCE: usize = 16;
/// How long the manager may take to read what came before.
const TELL_WAIT: Duration = Duration::from_secs(5);

fn step(action: &'static str) -> impl FnOnce(io::Error) -> OciError {
    move |source| OciError::Step { action, source }
}

/// The manager's socket.
#[derive(Debug)]
pub(super) struct Manager {
    address: SocketAddr,
    /// Directory of our socket in the container.
    inside: String,
}

impl Manager {
    /// Ours, as the environment has it.
    pub(super) fn of_environment(log: &Log) -> Option<Manager> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        let manager = Manager::parse(&name);
        if manager.is_none() {
            log.warn(&format!(
                "{VARIABLE} {name:?} is neither an absolute path nor an abstract socket (@name): no readiness is passed on"
            ));
        }
        manager
    }

    fn parse(name: &OsStr) -> Option<Manager> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name),
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => return None,
        };
        Some(Manager {
            address: address.ok()?,
            inside: inside(name),
        })
    }

    /// Gives the container's program a directory for our socket, and its name.
    pub(super) fn provide(&self, directory: &Directory, config: &mut Spec) -> Result<(), OciError> {
        let source = directory.notify();
        let linux = config.linux().as_ref();
        let label = linux.and_then(|linux| linux.mount_label().clone());
        make(&source, label).map_err(|error| OciError::File {
            action: "make",
            path: source.clone(),
            source: error,
        })?;
        let mut mount = Mount::default();
        mount
            .set_destination(self.inside.clone().into())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(source))
            .set_options(Some(
                ["bind", "ro", "nosuid", "nodev", "noexec"]
                    .map(str::to_owned)
                    .into(),
            ));
        config.mounts_mut().get_or_insert_default().push(mount);
        let process = config.process_mut().get_or_insert_default();
        process
            .env_mut()
            .get_or_insert_default()
            .push(format!("{VARIABLE}={}/{SOCKET}", self.inside));
        Ok(())
    }

    /// Opens our socket, before the program runs; none in a container that was made without one.
    pub(super) fn listen(self, directory: &Directory, log: &Log) -> Result<Option<Notify>, OciError> {
        let path = directory.notify();
        let socket = match bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|source| OciError::File {
                action: "make a socket in",
                path,
                source,
            })?,
        };
        Ok(Some(Notify {
            socket,
            manager: self.address,
            log: log.clone(),
        }))
    }
}

/// The container's path of the directory: that of the host's socket, as with crun. But where an init system in the container
/// has a socket of its own, it must be able to make it.
fn inside(name: &OsStr) -> String {
    let path = Path::new(name);
    match name.to_str() {
        Some(text) if path.is_absolute() && !path.ends_with("systemd/notify") => {
            text.trim_end_matches('/').to_owned()
        }
        _ => USUAL.to_owned(),
    }
}

fn make(directory: &Path, label: Option<String>) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(directory)?;
    // Whatever our umask: the container's users are any.
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    if let Some(label) = label.filter(|_| selinux_enabled()) {
        // What is made in it has its type.
        let directory = fs::File::open(directory)?;
        sys::path::set_xattr(directory.as_fd(), c"security.selinux", label.as_bytes())?;
    }
    Ok(())
}

fn bind(directory: &Path) -> io::Result<UnixDatagram> {
    let held = fs::File::open(directory)?;
    // An address has room for 108 bytes only.
    let path = format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd());
    match fs::remove_file(&path) {
        // Of a `start` that was interrupted.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // For any of its users, from the beginning: by its name it would be changed later whatever has taken its place.
    let umask = sys::path::umask(0);
    let socket = UnixDatagram::bind(&path);
    sys::path::umask(umask);
    let socket = socket?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Our socket, until the program is ready.
#[derive(Debug)]
pub(super) struct Notify {
    socket: UnixDatagram,
    manager: SocketAddr,
    log: Log,
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Notify {
    /// Reads what has come: whether the program has said that it is ready.
    fn heard(&self) -> io::Result<bool> {
        let mut bytes = [0; DATAGRAM_BYTES_MAX];
        for _ in 0..AT_ONCE {
            match self.socket.recv(&mut bytes) {
                Ok(count) if is_ready(&bytes[..count]) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Once the program is ready the manager is told, also of the process to watch when that is not us any more. Whether it
    /// was so.
    pub(super) fn pass_on(&self, main: Option<i32>) -> io::Result<bool> {
        if !self.heard()? {
            return Ok(false);
        }
        if let Err(error) = self.tell(main) {
            // The program runs all the same.
            self.log.warn(&format!(
                "failed to pass readiness on to {VARIABLE} {:?}: {error}",
                self.manager
            ));
        }
        Ok(true)
    }

    fn tell(&self, main: Option<i32>) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TELL_WAIT))?;
        socket.send_to_addr(b"READY=1", &self.manager)?;
        if let Some(pid) = main {
            socket.send_to_addr(format!("MAINPID={pid}").as_bytes(), &self.manager)?;
        }
        Ok(())
    }

    /// Waits until the program is ready or its process, number `pid`, has ended.
    pub(super) fn wait(self, process: BorrowedFd<'_>, pid: i32) -> Result<(), OciError> {
        let fail = || step("wait for the container's readiness");
        loop {
            let mut polled = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(process, PollFlags::POLLIN),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.map_err(|error| fail()(error.into()))?,
            };
            let ended = polled[1].any().unwrap_or(true);
            // What it said before its end counts.
            if self.pass_on(Some(pid)).map_err(fail())? || ended {
                return Ok(());
            }
        }
    }
}

/// Whether one of the lines is the word.
fn is_ready(datagram: &[u8]) -> bool {
    datagram
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_a_path_or_an_abstract_name() {
        let long = format!("/{}", "x".repeat(200));
        for (name, inside) in [
            ("/run/some/socket", Some("/run/some/socket")),
            ("/run/some/socket/", Some("/run/some/socket")),
            ("/run/systemd/notify", Some(USUAL)),
            ("/run/user/1000/systemd/notify", Some(USUAL)),
            ("@abstract", Some(USUAL)),
            ("vsock:2:1234", None),
            ("relative", None),
            (&long, None),
        ] {
            let manager = Manager::parse(OsStr::new(name));
            assert_eq!(manager.as_ref().map(|manager| &*manager.inside), inside, "{name}");
        }
    }

    #[test]
    fn one_line_among_others_is_the_word() {
        for (datagram, ready) in [
            (&b"READY=1"[..], true),
            (b"STATUS=up\nREADY=1\nMAINPID=7\n", true),
            (b"READY=0", false),
            (b"READY=10", false),
            (b"STATUS=READY=1", false),
            (b"", false),
        ] {
            assert_eq!(is_ready(datagram), ready, "{datagram:?}");
        }
    }
}
