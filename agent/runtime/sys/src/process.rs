//! Making processes, naming them by descriptor, moving them between namespaces, and replacing their program.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{cvt, cvt_int, own};

/// What a child of `spawn` is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`; `CLONE_VM` and its kin are refused.
    pub flags: u64,
    /// Signal to the parent at exit; 0 with `CLONE_PARENT`.
    pub exit_signal: i32,
    /// A cgroup v2 directory in which the child begins.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Ends the process without running anything, also when a panic passes by.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit(125);
    }
}

/// libc's own constant is an int, which this bit does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Flags that would share memory, descriptors or the stack with the parent: none of them is safe behind a safe function.
const SHARING: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PIDFD
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_VFORK) as u64;

/// Starts a child that runs `body` on a copy of our memory and exits with what it returns. Returns the child's process id,
/// as our own process id namespace has it.
///
/// `body` must not allocate nor take locks: another thread of ours may have held one at the moment of the copy, and the
/// child would wait for ever. A panic in it ends the child with code 125.
pub fn spawn(args: CloneArgs<'_>, body: impl FnOnce() -> i32) -> io::Result<i32> {
    if args.flags & SHARING != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut raw: libc::clone_args = unsafe { std::mem::zeroed() };
    raw.flags = args.flags;
    raw.exit_signal = args.exit_signal as u64;
    if let Some(cgroup) = args.cgroup {
        raw.flags |= CLONE_INTO_CGROUP;
        raw.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `raw` outlives the call and has the size told. No flag shares memory, descriptors or thread-local storage
    // (checked above), so the child owns a copy of everything and runs on its own copy of this stack.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of::<libc::clone_args>()) };
    let pid = cvt(ret)?;
    if pid == 0 {
        SPAWNED.store(true, Ordering::Relaxed);
        let _bomb = ExitOnDrop;
        let code = body();
        exit(code);
    }
    Ok(pid as i32)
}

/// Set in the copy of our memory that a child of `spawn` has.
static SPAWNED: AtomicBool = AtomicBool::new(false);

/// Whether this process is a child of `spawn`.
pub(crate) fn is_spawned() -> bool {
    SPAWNED.load(Ordering::Relaxed)
}

/// Ends this process by SIGABRT.
pub(crate) fn abort() -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}

/// Ends this process at once: no destructors, no buffers written.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// This process's id.
pub fn getpid() -> i32 {
    // SAFETY: getpid has no arguments and cannot fail. The raw call, as the C library could have kept a parent's id.
    unsafe { libc::syscall(libc::SYS_getpid) as i32 }
}

/// A descriptor for a process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and reads no memory of ours.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal to exactly the process that `pidfd` names; ESRCH once it was reaped.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo means "as kill(2)"; the other arguments are integers.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Ended {
    /// The exit code, or 128 plus the signal, as shells have it.
    pub fn code(self) -> i32 {
        match self {
            Ended::Exited(code) => code,
            Ended::Signaled(signal) => 128 + signal,
        }
    }
}

fn ended(info: &libc::siginfo_t) -> Ended {
    // SAFETY: waitid filled this in with WEXITED, so that the SIGCHLD member of the union is the valid one.
    let status = unsafe { info.si_status() };
    if info.si_code == libc::CLD_EXITED {
        Ended::Exited(status)
    } else {
        Ended::Signaled(status)
    }
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<Option<(i32, Ended)>> {
    loop {
        // SAFETY: siginfo_t is plain data, for which zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is ours and lives through the call.
        match cvt_int(unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | options) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                // SAFETY: after success the SIGCHLD member is valid, or all zero when WNOHANG found nothing.
                let pid = unsafe { info.si_pid() };
                return Ok((pid != 0).then(|| (pid, ended(&info))));
            }
        }
    }
}

/// Waits for our child and reaps it.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Ended> {
    match waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, 0)? {
        Some((_, ended)) => Ok(ended),
        None => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// Reaps our child if it has ended.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ended>> {
    Ok(waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, libc::WNOHANG)?.map(|(_, ended)| ended))
}

/// Waits for our child by its process id and reaps it.
pub fn wait_pid(pid: i32) -> io::Result<Ended> {
    match waitid(libc::P_PID, pid as libc::id_t, 0)? {
        Some((_, ended)) => Ok(ended),
        None => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// Reaps any one child that has ended; `None` when none has. ECHILD when there is no child.
pub fn reap_any() -> io::Result<Option<(i32, Ended)>> {
    waitid(libc::P_ALL, 0, libc::WNOHANG)
}

/// Waits for any one child and reaps it. ECHILD when there is no child.
pub fn wait_any() -> io::Result<Option<(i32, Ended)>> {
    waitid(libc::P_ALL, 0, 0)
}

/// Joins the namespace that `fd` names (`kind` one `CLONE_NEW*`, or 0 for any), or with a pidfd all those in `kind`.
pub fn setns(fd: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: two integers; the process holds no state of ours that depends on its namespaces.
    cvt_int(unsafe { libc::setns(fd.as_raw_fd(), kind) }).map(drop)
}

/// Leaves namespaces for new ones.
pub fn unshare(flags: i32) -> io::Result<()> {
    if flags as u64 & SHARING & !(libc::CLONE_FS as u64) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an integer; with namespace flags only, memory and descriptors stay as they are.
    cvt_int(unsafe { libc::unshare(flags) }).map(drop)
}

/// Sends a signal to a process by its number; only for numbers that cannot have been reused.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: two integers.
    cvt_int(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Becomes the parent of orphaned descendants.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// Whether others may trace this process and open its files in /proc.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable))
}

/// Forbids for good that an exec gains privileges.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Asks for a signal at the death of the parent; does not survive a change of credentials.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)
}

/// The process's name in ps, at most 15 bytes.
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a terminated string, which a CStr is.
    cvt_int(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

pub(crate) fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only called with options that take one integer; the unused ones must be zero and are.
    cvt_int(unsafe {
        libc::prctl(
            option,
            argument,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    })
    .map(drop)
}

/// Begins a session, so that a terminal can become the controlling one.
pub fn setsid() -> io::Result<()> {
    // SAFETY: no arguments.
    cvt_int(unsafe { libc::setsid() }).map(drop)
}

/// All signals as a fresh program expects them: default action, none blocked.
pub fn reset_signals() -> io::Result<()> {
    // The kernel's own struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL. The raw call, as the C
    // library refuses the two signals that it keeps for itself and that a caller may have ignored all the same.
    let default = [0u64; 4];
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: `default` is as long as the kernel's structure and lives through the call; a null old one means that it
        // is not wanted. SIG_DFL is no function of ours.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        cvt(ret)?;
    }
    // SAFETY: sigset_t is plain data, for which zero is valid and here means "empty".
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` lives through the call; a null old set means that it is not wanted.
    cvt_int(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) }).map(drop)
}

/// Blocks these signals for this thread, as a `signalfd` needs.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = sigset(signals)?;
    // SAFETY: `set` lives through the call; a null old set means that it is not wanted.
    cvt_int(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) }).map(drop)
}

pub(crate) fn sigset(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data, for which zero is valid and means "empty".
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in signals {
        // SAFETY: `set` is ours; a number out of range gives EINVAL.
        cvt_int(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    Ok(set)
}

/// Strings in the form that execve wants, made before the clone.
#[derive(Debug)]
pub struct CStrings {
    strings: Vec<CString>,
    /// Pointers into `strings`, and a null. The heap buffers of the strings do not move when the vectors do.
    pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers point into the strings that the same value owns and never changes.
unsafe impl Send for CStrings {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for CStrings {}

impl CStrings {
    /// Keeps the strings. Allocates.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        CStrings { strings, pointers }
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Replaces the program; returns only to say why not.
pub fn execve(path: &CStr, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: the path is terminated; both tables end with a null and point to terminated strings that live as long.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    io::Error::last_os_error()
}

/// Replaces the program by an open file; returns only to say why not.
pub fn fexecve(file: BorrowedFd<'_>, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: the empty path is terminated; the tables are as in `execve`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Waits for a signal.
pub fn pause() {
    // SAFETY: no arguments; it returns after a handler ran, which is no failure.
    unsafe { libc::pause() };
}

/// Children leave no zombies and no word when they end.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN is no function of ours.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
