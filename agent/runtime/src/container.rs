//! One container, built along one path: `start` for the monitor, `create` and `release` for the OCI command line.
//!
//! The parent prepares (`plan`): the root file system, /dev and the volumes as detached trees, every string and table. The
//! child (`child`) enters the cgroups and namespaces, attaches, and becomes the program. `report` is what it says.

mod become_process;
mod child;
mod copyup;
mod devices;
mod examine;
mod explain;
mod filesystem;
mod idmap;
mod interfaces;
mod mounts;
mod notify;
mod options;
mod places;
mod plan;
mod program;
mod recipe;
mod report;
mod rootfs;
mod scheduling;
mod streams;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use sys::process::{self, CloneArgs};
use sys::socket;

pub use sys::tty::Size;

pub use options::{MountOptions, parse as parse_options};

pub(crate) use examine::examine;
pub(crate) use explain::Names;
pub(crate) use options::mount_options;
pub(crate) use program::{Within, has_variable, home, open_proc, plan_process, selinux_enabled};
pub(crate) use recipe::Plan;
pub(crate) use scheduling::{exec_cpus, personality};

use crate::cgroup::Cgroup;
use crate::sandbox::Sandbox;
use crate::spec::{ContainerSpec, Rootfs};
use explain::Explain;
use notify::Notify;
use report::Record;

/// What a process said before its helper had introduced it.
type Early = (Record, Option<OwnedFd>);

/// A directory that every host has, covered for a moment in a container's own mount namespace.
pub(crate) const PLACE: &std::ffi::CStr = c"/usr";

/// Standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// Input, output, error output. Ours are closed once the process has its own.
    Fds([OwnedFd; 3]),
    /// A terminal made in the container's own devpts. Its master comes over this socket (`sys::socket::recv_fds`), as the
    /// OCI command line's console socket has it.
    Terminal {
        /// Connected unix socket.
        socket: OwnedFd,
        /// First size.
        size: Option<Size>,
        /// Lines end with a bare newline.
        bare_newlines: bool,
    },
}

impl Stdio {
    /// Input, output and error output on /dev/null.
    pub fn null() -> io::Result<Stdio> {
        let open = || {
            Ok::<OwnedFd, io::Error>(
                fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/null")?
                    .into(),
            )
        };
        Ok(Stdio::Fds([open()?, open()?, open()?]))
    }

    /// Copies of our own streams.
    pub fn inherit() -> io::Result<Stdio> {
        Ok(Stdio::Fds([
            sys::fd::dup_above(io::stdin().as_fd(), 3)?,
            sys::fd::dup_above(io::stdout().as_fd(), 3)?,
            sys::fd::dup_above(io::stderr().as_fd(), 3)?,
        ]))
    }
}

/// What the caller decides beside the specification.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Where compiled seccomp profiles are kept; none compiles each time.
    pub seccomp_cache: Option<&'a Path>,
    /// This many descriptors from 3 on are passed to the program, but for those with close-on-exec.
    pub preserve_fds: u32,
    /// Stay in the caller's session keyring.
    pub keep_keyring: bool,
    /// Directory to which relative paths of the configuration (root, bind sources) are relative; none: the current one.
    pub bundle: Option<&'a Path>,
    /// The kernel's list of mounts (/proc/PID/mountinfo) shall have the order of the configuration, at some 0.1 ms for each
    /// bind mount behind a new file system. They are made in that order in any case.
    pub in_order: bool,
    /// The environment is the configuration's alone, without a HOME from the image.
    pub bare_environment: bool,
    /// Of a further process: the container's personality, as the kernel has it.
    pub personality: Option<u64>,
    /// The container has no mount namespace of its own, its root is reached by its process alone: for `exec`.
    pub shared_mounts: bool,
    /// SIGKILL for the process when its parent, the caller, dies.
    pub die_with_parent: bool,
    /// The caller is in the container's user namespace already, in a mount namespace that this one owns.
    pub inside_user: bool,
    /// The container waits and is never released: its configuration names no program.
    pub no_program: bool,
    /// What is executed instead of the first argument: as execv(3), path and argv[0] apart.
    pub program: Option<&'a str>,
    /// The container's state as the OCI specification has it, for the supervisor of a seccomp profile with notifications;
    /// a `pid` of 0 becomes the new process's. None refuses such profiles.
    pub state: Option<&'a serde_json::Value>,
}

/// A process of ours, our child.
#[derive(Debug)]
pub struct Running {
    /// Its process id, as our own PID namespace has it.
    pub pid: i32,
    /// Names it also after its end; readable once it has ended; `sys::process::wait` reaps it.
    pub pidfd: OwnedFd,
}

/// A container that is built and waits for `release`.
#[derive(Debug)]
pub struct Created {
    /// Its first process.
    pub running: Running,
    /// The FIFO whose other end the process waits on.
    pub fifo: PathBuf,
}

/// Why a process could not be started; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The specification asks for what cannot be.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// Path of the field in the OCI configuration.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A volume's file system cannot be idmapped into the container's user namespace.
    #[error(
        "{} cannot be idmapped here: its file system has no idmapped mounts; use another volume, or hostUsers: true",
        .path.display()
    )]
    Idmap {
        /// The volume.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The same of an image's layer.
    #[error(
        "{} cannot be idmapped here: its file system has no idmapped mounts; give it a copy owned by the pod's ids",
        .path.display()
    )]
    IdmapLayer {
        /// The layer.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program cannot be executed; in the words that engines look for.
    #[error("exec: {program:?}: {reason}")]
    Program {
        /// As in the specification.
        program: String,
        /// `executable file not found in $PATH`, `no such file or directory`, `permission denied`, ...
        reason: String,
        /// The kernel's number for that; no `source`, as `reason` says the same.
        errno: i32,
    },
    /// Something on the host's side.
    #[error("failed to {action}{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Host {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: Option<PathBuf>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step inside.
    #[error("failed to {action}")]
    Step {
        /// What was tried, with its object.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process ended before it could become the program: killed from outside, or out of memory.
    #[error("the process ended before it became the program (code {code}); is its memory limit too small?")]
    Died {
        /// Exit code, 128 plus the signal.
        code: i32,
    },
    /// A hook refused.
    #[error("{0}")]
    Hook(String),
    /// Seccomp profile.
    #[error("failed to prepare the seccomp profile")]
    Seccomp(#[from] crate::seccomp::SeccompError),
    /// Class of service.
    #[error("failed to prepare Intel RDT")]
    Rdt(#[from] crate::rdt::RdtError),
    /// Cgroup.
    #[error("failed to enter the cgroup")]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// User namespace of its own.
    #[error("failed to make the user namespace")]
    Users(#[source] crate::sandbox::SandboxError),
}

impl StartError {
    /// What a shell would exit with: 127 not found, 126 not executable; none when it is no fault of the program.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            StartError::Program { errno, .. } if *errno == libc::ENOENT => Some(127),
            StartError::Program { .. } => Some(126),
            _ => None,
        }
    }
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host {
        action,
        path: None,
        source,
    }
}

/// What a caller does with the process id when the namespaces stand and before the root is entered (`createRuntime`);
/// its error ends the container.
pub type Hooks<'a> = dyn FnMut(i32) -> Result<(), String> + 'a;

/// Builds a container and runs its process; returns once exec has happened, or with the reason why not.
pub fn start(
    spec: &ContainerSpec,
    sandbox: Option<&Sandbox>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
) -> Result<Running, StartError> {
    run(spec, sandbox, cgroup, stdio, options, None)
}

/// `start`, with hooks before the root is entered.
pub fn run(
    spec: &ContainerSpec,
    sandbox: Option<&Sandbox>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
    hooks: Option<&mut Hooks<'_>>,
) -> Result<Running, StartError> {
    let plan = plan::plan(spec, sandbox, cgroup, stdio, options)?;
    launch_with(plan, spec, options, hooks)
}

/// Builds a container whose process waits until somebody calls `release` on `fifo`, also from another process.
pub fn create(
    spec: &ContainerSpec,
    sandbox: Option<&Sandbox>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
    fifo: &Path,
    hooks: Option<&mut Hooks<'_>>,
) -> Result<Created, StartError> {
    let mut plan = plan::plan(spec, sandbox, cgroup, stdio, options)?;
    let fail = |action| {
        move |source| StartError::Host {
            action,
            path: Some(fifo.to_owned()),
            source,
        }
    };
    nix::unistd::mkfifo(
        fifo,
        nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
    )
    .map_err(io::Error::from)
    .map_err(fail("make the FIFO"))?;
    let result = (|| {
        // Both ends in the process: its read never sees an end of file, and `release` finds nobody once it is dead.
        let release = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(fifo)
            .map_err(fail("open the FIFO"))?;
        plan.process.release = Some(release.into());
        launch_with(plan, spec, options, hooks)
    })();
    match result {
        Ok(running) => Ok(Created {
            running,
            fifo: fifo.to_owned(),
        }),
        Err(error) => {
            fs::remove_file(fifo).map_err(fail("remove the FIFO"))?;
            Err(error)
        }
    }
}

/// Runs a container's plan, with its hooks.
fn launch_with(
    mut plan: Plan,
    spec: &ContainerSpec,
    options: &Options<'_>,
    hooks: Option<&mut Hooks<'_>>,
) -> Result<Running, StartError> {
    let Some(hooks) = hooks else {
        return launch(plan, &describe(spec), &mut |_| Ok(()));
    };
    if let Some(root) = &mut plan.root {
        root.hooks = true;
        if let (Rootfs::Bundle, Some(told)) = (&spec.rootfs, spec.config.root()) {
            // Hooks in the container's mount namespace look for its root where the configuration says, and for
            // themselves on the host.
            let bundle = options.bundle.unwrap_or(Path::new("."));
            root.place = rootfs::c_path(&bundle.join(told.path()))?;
        }
    }
    launch(plan, &describe(spec), hooks)
}

/// Why a created container could not be released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// It has ended, or was released already.
    #[error("cannot start a container that has stopped or runs already")]
    Gone,
    /// The FIFO.
    #[error("failed to write {}", .path.display())]
    Fifo {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A container that was let go: the FIFO, open for writing, whose other end its process closes by exec.
#[derive(Debug)]
pub struct Released(fs::File);

impl Released {
    /// Waits until the process is the program, or has ended.
    pub fn wait(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            // Nothing asked for: the end of the last reader is always told, as POLLERR.
            match poll(
                &mut [PollFd::new(self.0.as_fd(), PollFlags::empty())],
                PollTimeout::NONE,
            ) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        }
    }
}

/// Lets a created container's process become its program, and removes the FIFO.
pub fn release(fifo: &Path) -> Result<Released, ReleaseError> {
    let fail = |source| ReleaseError::Fifo {
        path: fifo.to_owned(),
        source,
    };
    let file = match fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)
    {
        Ok(file) => file,
        // ENXIO: nobody has it open for reading.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => {
            return Err(ReleaseError::Gone);
        }
        Err(error) => return Err(fail(error)),
    };
    // Removed first: of two callers only one goes on.
    fs::remove_file(fifo).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ReleaseError::Gone,
        _ => fail(error),
    })?;
    sys::fd::write(file.as_fd(), b"0").map_err(fail)?;
    Ok(Released(file))
}

impl Created {
    /// `release`, by who created it.
    pub fn start(self) -> Result<Running, ReleaseError> {
        release(&self.fifo)?;
        Ok(self.running)
    }
}

/// Runs a plan. Whatever goes wrong, no process is left.
pub(crate) fn launch(mut plan: Plan, names: &Names, hooks: &mut Hooks<'_>) -> Result<Running, StartError> {
    let (ours, theirs) = socket::seqpacket_pair().map_err(host("make a socket pair"))?;
    let first = plan.needs_first();
    let args = CloneArgs {
        flags: if first { 0 } else { plan.clone_flags },
        exit_signal: libc::SIGCHLD,
        cgroup: plan.entry.unified.as_ref().map(AsFd::as_fd),
    };
    let spawned = process::spawn(args, || {
        sys::fd::close_inherited(ours.as_fd());
        if first {
            child::first(&plan, theirs.as_fd())
        } else {
            child::only(&plan, theirs.as_fd())
        }
    });
    let child = spawned.map_err(host("start a process in the container's cgroup"))?;
    // Our copies would keep the container's mounts alive and its ends of pipes open.
    drop(theirs);
    let explain = Explain::of(&plan, names);
    if let Some(ids) = &plan.ids {
        let mapped = ids.write(child).and_then(|()| socket::send(ours.as_fd(), b"0"));
        if let Err(error) = mapped {
            process::kill(child, libc::SIGKILL).map_err(host("end a process"))?;
            process::wait_pid(child).map_err(host("end a process"))?;
            return Err(match Record::receive(ours.as_fd()) {
                Ok(Some((Record::Failed(failure), _))) => explain.error(failure),
                _ => host("map the ids of the user namespace")(error),
            });
        }
    }
    let (notify, interfaces) = (plan.notify.take(), std::mem::take(&mut plan.interfaces));
    drop(plan);
    let mut early = VecDeque::new();
    let pid = if first {
        introduced(&ours, child, &explain, &mut early)?
    } else {
        child
    };
    // Our own child and not reaped, so the number is still its.
    let running = match process::pidfd_open(pid) {
        Ok(pidfd) => Running { pid, pidfd },
        Err(error) => {
            drop(ours);
            process::kill(pid, libc::SIGKILL).map_err(host("end a process"))?;
            process::wait_pid(pid).map_err(host("end a process"))?;
            return Err(host("name a process")(error));
        }
    };
    let mut before = |pid: i32| -> Result<(), StartError> {
        interfaces::give(&interfaces, pid)?;
        hooks(pid).map_err(StartError::Hook)
    };
    match follow(&ours, early, &running, &explain, notify, &mut before) {
        Ok(()) => Ok(running),
        Err(error) => {
            match process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result.map_err(host("end a process"))?,
            }
            let ended = process::wait(running.pidfd.as_fd()).map_err(host("end a process"))?;
            Err(match error {
                StartError::Died { .. } => StartError::Died { code: ended.code() },
                error => error,
            })
        }
    }
}

/// The id of the container's process, of which its helper tells before it ends. The process runs beside the helper and
/// may speak first: what it has said is kept in `early`.
fn introduced(
    ours: &OwnedFd,
    helper: i32,
    explain: &Explain,
    early: &mut VecDeque<Early>,
) -> Result<i32, StartError> {
    let hear = || Record::receive(ours.as_fd()).map_err(host("hear from a helper process"));
    let mut told = hear();
    let ended = process::wait_pid(helper).map_err(host("end a helper process"))?;
    loop {
        match told? {
            Some((Record::Pid(pid), _)) => return Ok(pid),
            Some(record) => early.push_back(record),
            None => break,
        }
        // The helper has ended: its word is here by now, or never comes.
        let more = sys::fd::wait_readable(ours.as_fd(), Some(Duration::ZERO));
        if !more.map_err(host("hear from a helper process"))? {
            break;
        }
        told = hear();
    }
    Err(match early.pop_front() {
        Some((Record::Failed(failure), _)) => explain.error(failure),
        _ => StartError::Died { code: ended.code() },
    })
}

/// Follows a child until it is ready or has become the program.
fn follow(
    ours: &OwnedFd,
    mut early: VecDeque<Early>,
    running: &Running,
    explain: &Explain,
    mut notify: Option<Notify>,
    hooks: &mut dyn FnMut(i32) -> Result<(), StartError>,
) -> Result<(), StartError> {
    let mut at_exec = false;
    loop {
        let told = match early.pop_front() {
            Some(record) => Some(record),
            None => Record::receive(ours.as_fd()).map_err(host("hear from the container's process"))?,
        };
        let (told, listener) = told.map_or((None, None), |(told, fd)| (Some(told), fd));
        match told {
            Some(Record::Hooks) => {
                hooks(running.pid)?;
                socket::send(ours.as_fd(), b"0").map_err(host("answer the container's process"))?;
            }
            Some(Record::Listener) => match (notify.take(), listener) {
                (Some(notify), Some(listener)) => notify.hand_over(running.pid, listener.as_fd())?,
                _ => return Err(StartError::Died { code: 0 }),
            },
            Some(Record::Ready) => return Ok(()),
            Some(Record::Exec) => at_exec = true,
            Some(Record::Failed(failure)) => return Err(explain.error(failure)),
            // Its end closed by exec; or by its death, which is then the program's.
            None if at_exec => return Ok(()),
            Some(Record::Pid(_)) | None => return Err(StartError::Died { code: 0 }),
        }
    }
}

fn describe(spec: &ContainerSpec) -> Names {
    let process = spec.config.process().as_ref();
    Names {
        program: process
            .and_then(|process| process.args().as_ref()?.first().cloned())
            .unwrap_or_default(),
        directory: process
            .map(|process| process.cwd().display().to_string())
            .unwrap_or_default(),
    }
}

/// A descriptor of at least 3, as the numbers below become the program's streams.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        Ok(fd)
    } else {
        sys::fd::dup_above(fd.as_fd(), 3)
    }
}

#[cfg(test)]
#[path = "container_test.rs"]
mod tests;
