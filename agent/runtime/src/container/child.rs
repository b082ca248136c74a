//! What runs between clone and exec. Nothing here allocates or takes a lock: all strings and tables were made before, a
//! failure is a record to the parent. The order is the kernel's; each step says what holds it in its place.

mod ids;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::mount::{Change, FsContext};
use sys::path::Resolve;
use sys::process::CloneArgs;
use sys::{cred, fd, mount, path, process, socket};

use ids::{await_ids, become_root};

use super::become_process::run;
use super::filesystem;
use super::recipe::{MountPlan, Plan, RootPlan, Target, What};
use super::report::{Failure, Record, Step, at};
use super::streams::open_terminal;

/// The first child: what is done with the host's rights, then joining.
pub(crate) fn first(plan: &Plan, status: BorrowedFd<'_>) -> i32 {
    let result = begin(plan).and_then(|()| {
        // With the host's rights, while the file is still ours: the kernel asks who opened it.
        let offsets = match &plan.time {
            Some(_) => Some(at(
                Step::TimeNamespace,
                0,
                path::open(
                    plan.proc.as_fd(),
                    c"self/timens_offsets",
                    O_WRONLY,
                    0,
                    Resolve::Free,
                ),
            )?),
            None => None,
        };
        // CVE-2016-9962: before we become visible to anybody in the namespaces, nobody may trace us or open our files.
        at(Step::JoinNamespace, 0, process::set_dumpable(false))?;
        for (index, (namespace, kind)) in plan.joins.iter().enumerate() {
            at(
                Step::JoinNamespace,
                index,
                process::setns(namespace.as_fd(), *kind),
            )?;
        }
        if let Some(root) = &plan.chroot {
            // Joining a mount namespace has made its root ours.
            at(Step::JoinNamespace, 100, path::fchdir(root.as_fd()))?;
            at(Step::JoinNamespace, 101, path::chroot_here())?;
        }
        if plan.joins_user {
            become_root(plan)?;
        }
        if let (Some(offsets), Some(text)) = (offsets, &plan.time) {
            // For children only, and after joining: it belongs to the container's user namespace.
            at(Step::TimeNamespace, 1, process::unshare(CLONE_NEWTIME))?;
            if !text.is_empty() {
                at(
                    Step::TimeNamespace,
                    2,
                    fd::write(offsets.as_fd(), text.to_bytes()),
                )?;
            }
        }
        // CLONE_PARENT: the container is our parent's child. Its exit signal is then ours, so 0 must be given.
        let args = CloneArgs {
            flags: plan.clone_flags | CLONE_PARENT,
            exit_signal: 0,
            cgroup: None,
        };
        let pid = at(Step::Clone, 0, process::spawn(args, || second(plan, status)))?;
        at(Step::Ready, 0, Record::Pid(pid).send(status))
    });
    conclude(result, status)
}

/// The container's process when it needs no first one.
pub(crate) fn only(plan: &Plan, status: BorrowedFd<'_>) -> i32 {
    let begun = begin(plan).and_then(|()| match &plan.ids {
        Some(_) => await_ids(plan, status).and_then(|()| at(Step::Clone, 1, process::unshare(plan.unshare))),
        None => Ok(()),
    });
    match begun {
        Ok(()) => second(plan, status),
        Err(failure) => conclude(Err(failure), status),
    }
}

/// libc has none for this target.
const CLONE_NEWTIME: i32 = 0x80;
const CLONE_PARENT: u64 = nix::libc::CLONE_PARENT as u64;

fn conclude(result: Result<(), Failure>, status: BorrowedFd<'_>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            if Record::Failed(failure).send(status).is_err() {
                // The parent has gone or no longer listens (a container created long ago): its log is all there is.
                fd::complain(b"bulkhead-runtime: failed to start the process\n");
            }
            127
        }
    }
}

/// With the host's rights.
fn begin(plan: &Plan) -> Result<(), Failure> {
    if let Some(cpus) = &plan.initial_cpus {
        at(Step::Affinity, 0, cpus.apply())?;
    }
    // First of all: what we do is charged to the container. "0" is the writer; it takes no lock (Linux 5.5 and later).
    for (index, tasks) in plan.entry.tasks.iter().enumerate() {
        at(Step::EnterCgroup, index, fd::write(tasks.as_fd(), b"0"))?;
    }
    if let Some(cpus) = &plan.final_cpus {
        // After the cgroup, whose cpuset would have set its own.
        at(Step::Affinity, 1, cpus.apply())?;
    }
    if let Some(value) = &plan.oom_score_adj {
        at(
            Step::OomScore,
            0,
            write_file(plan.proc.as_fd(), c"self/oom_score_adj", value.to_bytes()),
        )?;
    }
    for (index, limit) in plan.raise.iter().enumerate() {
        at(Step::RaiseLimit, index, cred::setrlimit(*limit))?;
    }
    if plan.inside_user {
        become_root(plan)?;
    }
    Ok(())
}

pub(super) fn write_file(dir: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let file = path::open(dir, name, O_WRONLY, 0, Resolve::Free)?;
    fd::write(file.as_fd(), value).map(drop)
}

const O_WRONLY: i32 = nix::libc::O_WRONLY;
const O_PATH: i32 = nix::libc::O_PATH;
const O_DIRECTORY: i32 = nix::libc::O_DIRECTORY;
const ENOENT: i32 = nix::libc::ENOENT;
const ENOTDIR: i32 = nix::libc::ENOTDIR;
const EEXIST: i32 = nix::libc::EEXIST;

/// The container's process.
fn second(plan: &Plan, status: BorrowedFd<'_>) -> i32 {
    conclude(build(plan, status), status)
}

fn build(plan: &Plan, status: BorrowedFd<'_>) -> Result<(), Failure> {
    at(Step::Signals, 0, process::reset_signals())?;
    // Ours until here: files below must have the modes they are made with.
    path::umask(0);
    if plan.cgroup_namespace {
        // After entering the groups, or /proc/self/cgroup shows paths outside for ever.
        at(
            Step::CgroupNamespace,
            0,
            process::unshare(nix::libc::CLONE_NEWCGROUP),
        )?;
    }
    if plan.process.new_keyring {
        join_keyring(plan)?;
    }
    // A session of its own: no terminal of the caller's to push characters into (TIOCSTI).
    at(Step::Stdio, 0, process::setsid())?;
    let terminal = match &plan.root {
        Some(root) => enter_root(root, plan, status)?,
        None => open_terminal(&plan.process.stdio, None)?,
    };
    run(plan, terminal, status)
}

/// A session keyring of its own, with the label of the process: keycreate(7) holds for keys that are made from then on, and
/// for us alone, as the program's begin with none.
fn join_keyring(plan: &Plan) -> Result<(), Failure> {
    const KEYCREATE: &CStr = c"thread-self/attr/keycreate";
    let Some(label) = &plan.process.key_label else {
        return at(Step::Keyring, 0, cred::join_new_session_keyring());
    };
    // Through the host's verified procfs, as all labels. It is the first use of one: who names a wrong label reads of it here.
    at(
        Step::Label,
        0,
        write_file(plan.proc.as_fd(), KEYCREATE, label.to_bytes()),
    )?;
    at(Step::Keyring, 0, cred::join_new_session_keyring())?;
    // An empty line is none.
    at(Step::Keyring, 0, write_file(plan.proc.as_fd(), KEYCREATE, b"\n"))
}

/// Builds the container's root and makes it ours. Returns the terminal's slave.
fn enter_root(plan: &RootPlan, whole: &Plan, status: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Failure> {
    if !plan.shared {
        // Before the first mount: none of ours may reach the host. MS_SLAVE keeps the host's unmounts coming.
        at(
            Step::Propagation,
            0,
            mount::mount(None, c"/", None, MS_REC | plan.propagation, None),
        )?;
    }
    if plan.loopback {
        at(Step::Loopback, 0, socket::loopback_up())?;
    }
    if let Some(name) = &plan.hostname {
        at(Step::Hostname, 0, cred::sethostname(name))?;
    }
    if let Some(name) = &plan.domainname {
        at(Step::Hostname, 1, cred::setdomainname(name))?;
    }
    at(
        Step::AttachRoot,
        0,
        mount::attach_at(plan.root.as_fd(), &plan.place),
    )?;
    let root = plan.root.as_fd();
    for (index, one) in plan.mounts.iter().enumerate() {
        mount_one(root, whole.proc.as_fd(), one, index)?;
    }
    let terminal = open_terminal(&whole.process.stdio, Some(root))?;
    for (index, (name, value)) in plan.sysctls.iter().enumerate() {
        // Through the host's verified procfs, not the container's (CVE-2025-52881); namespaced ones are still its own.
        at(
            Step::Sysctl,
            index,
            write_file(whole.proc.as_fd(), name, value.to_bytes()),
        )?;
    }
    // As runc and crun: an image need not have it. A place where none can be made is told by chdir.
    drop(make_target(root, &plan.directory, true));
    // The host's /dev/null and an own empty tmpfs: nothing the image could have put there (CVE-2025-31133).
    mask(root, &plan.masked)?;
    for (index, target) in plan.readonly.iter().enumerate() {
        make_readonly(root, target, index)?;
    }
    if plan.hooks {
        at(Step::Hooks, 0, Record::Hooks.send(status))?;
        let mut answer = [0];
        if at(Step::Hooks, 1, fd::read(status, &mut answer))? == 0 {
            return at(
                Step::Hooks,
                2,
                Err(io::Error::from_raw_os_error(nix::libc::ECANCELED)),
            );
        }
    }
    // proc and sysfs stand: the kernel compares new ones with the host's, which go with the pivot.
    at(Step::Pivot, 0, path::fchdir(root))?;
    if plan.shared {
        at(Step::Pivot, 4, path::chroot_here())?;
    } else {
        at(Step::Pivot, 1, mount::pivot_here())?;
        at(Step::Pivot, 2, mount::detach(c"."))?;
    }
    at(Step::Pivot, 3, path::chdir(c"/"))?;
    if plan.readonly_root {
        let change = Change {
            set: mount::MOUNT_ATTR_RDONLY,
            ..Change::default()
        };
        at(Step::ReadonlyRoot, 0, mount::change(root, change, false))?;
    }
    if let Some((propagation, recursive)) = plan.root_propagation {
        // After the pivot, which refuses a shared root.
        let change = Change {
            propagation,
            ..Change::default()
        };
        at(Step::RootPropagation, 0, mount::change(root, change, recursive))?;
    }
    Ok(terminal)
}

const MS_REC: u64 = nix::libc::MS_REC;

fn mount_one(
    root: BorrowedFd<'_>,
    proc: BorrowedFd<'_>,
    plan: &MountPlan,
    index: usize,
) -> Result<(), Failure> {
    match &plan.what {
        What::Tree {
            tree,
            directory,
            unbindable,
            again,
        } => {
            let target = at(Step::Target, index, make_target(root, &plan.target, *directory))?;
            at(
                Step::AttachMount,
                index,
                mount::attach(tree.as_fd(), target.as_fd()),
            )?;
            let copy = if *again {
                Some(at(
                    Step::AttachMount,
                    index,
                    replace(proc, tree.as_fd(), target.as_fd()),
                )?)
            } else {
                None
            };
            let Some(recursive) = unbindable else {
                return Ok(());
            };
            let change = Change {
                propagation: nix::libc::MS_UNBINDABLE,
                ..Change::default()
            };
            let tree = copy.as_ref().unwrap_or(tree);
            at(
                Step::ChangeMount,
                index,
                mount::change(tree.as_fd(), change, *recursive),
            )
        }
        What::New {
            fstype,
            options,
            attributes,
            propagation,
            label,
        } => {
            let target = at(Step::Target, index, make_target(root, &plan.target, true))?;
            let tree = at(
                Step::MakeFilesystem,
                index,
                filesystem::make(fstype, options, *attributes, label.as_deref()),
            )?;
            at(
                Step::AttachMount,
                index,
                mount::attach(tree.as_fd(), target.as_fd()),
            )?;
            if *propagation != 0 {
                let change = Change {
                    propagation: *propagation,
                    ..Change::default()
                };
                at(
                    Step::ChangeMount,
                    index,
                    mount::change(tree.as_fd(), change, false),
                )?;
            }
            Ok(())
        }
        What::Change { change, recursive } => {
            let target = at(Step::Target, index, find(root, &plan.target))?;
            at(
                Step::ChangeMount,
                index,
                mount::change(target.as_fd(), *change, *recursive),
            )
        }
    }
}

/// Puts a copy in the place of an attached tree. Linux 6.8 and later list mounts by when they were made, and many read
/// their order from that list.
fn replace(proc: BorrowedFd<'_>, tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = mount::clone_tree(tree, c"", true)?;
    mount::detach_fd(proc, tree)?;
    mount::attach(copy.as_fd(), target)?;
    Ok(copy)
}

/// Finds a place; the directory, file or link must be there.
fn find(root: BorrowedFd<'_>, target: &Target) -> io::Result<OwnedFd> {
    let whole = target.prefixes.last().map_or(c".", |path| path.as_c_str());
    let found = path::open(root, whole, O_PATH, 0, target.resolve)?;
    if let Some(magic) = target.magic
        && path::fs_magic(found.as_fd())? != magic
    {
        return Err(io::Error::from_raw_os_error(nix::libc::EXDEV));
    }
    Ok(found)
}

/// Finds a place, making what is missing of it: directories, at the end a directory or an empty file.
fn make_target(root: BorrowedFd<'_>, target: &Target, directory: bool) -> io::Result<OwnedFd> {
    match find(root, target) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => {}
        result => return result,
    }
    let mut parent = path::open(root, c".", O_PATH | O_DIRECTORY, 0, target.resolve)?;
    let last = target.names.len().saturating_sub(1);
    for (index, (prefix, name)) in target.prefixes.iter().zip(&target.names).enumerate() {
        // Always from the root: a link on the way is taken as the container would take it, and made by descriptor, so
        // that nobody can move the place away between the look and the making (CVE-2024-45310).
        match path::open(root, prefix, O_PATH, 0, target.resolve) {
            Ok(found) => {
                parent = found;
                continue;
            }
            Err(error) if error.raw_os_error() == Some(ENOENT) => {}
            Err(error) => return Err(error),
        }
        let made = if index < last || directory {
            path::mkdir(parent.as_fd(), name, 0o755)
        } else {
            path::mknod(parent.as_fd(), name, nix::libc::S_IFREG | 0o644, 0)
        };
        match made {
            Err(error) if error.raw_os_error() != Some(EEXIST) => return Err(error),
            _ => {}
        }
        parent = path::open(root, prefix, O_PATH, 0, target.resolve)?;
    }
    Ok(parent)
}

/// Hides files behind the host's /dev/null and directories behind an empty read-only tmpfs.
fn mask(root: BorrowedFd<'_>, targets: &[Target]) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for (index, target) in targets.iter().enumerate() {
        let place = match find(root, target) {
            Ok(place) => place,
            // Nothing there to hide.
            Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR)) => continue,
            Err(error) => return at(Step::Mask, index, Err(error)),
        };
        let stat = at(Step::Mask, index, path::stat(place.as_fd()))?;
        let tree = if !stat.is_dir() {
            // The path is the host's: the pivot comes later.
            let null = at(
                Step::Mask,
                index,
                mount::clone_tree(path::here(), c"/dev/null", false),
            )?;
            let stat = at(Step::Mask, index, path::stat(null.as_fd()))?;
            if !stat.is_char_device() || stat.rdev != path::makedev(1, 3) {
                return at(
                    Step::Mask,
                    index,
                    Err(io::Error::from_raw_os_error(nix::libc::ENODEV)),
                );
            }
            null
        } else if let Some(first) = &empty {
            at(Step::Mask, index, mount::clone_tree(first.as_fd(), c"", false))?
        } else {
            let attributes = mount::MOUNT_ATTR_RDONLY
                | mount::MOUNT_ATTR_NOSUID
                | mount::MOUNT_ATTR_NODEV
                | mount::MOUNT_ATTR_NOEXEC;
            let context = at(Step::Mask, index, FsContext::open(c"tmpfs"))?;
            at(Step::Mask, index, context.mount(attributes))?
        };
        at(Step::Mask, index, mount::attach(tree.as_fd(), place.as_fd()))?;
        if stat.is_dir() && empty.is_none() {
            empty = Some(tree);
        }
    }
    Ok(())
}

fn make_readonly(root: BorrowedFd<'_>, target: &Target, index: usize) -> Result<(), Failure> {
    let place = match find(root, target) {
        Ok(place) => place,
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENOTDIR)) => return Ok(()),
        Err(error) => return at(Step::ReadonlyPath, index, Err(error)),
    };
    let tree = at(
        Step::ReadonlyPath,
        index,
        mount::clone_tree(place.as_fd(), c"", true),
    )?;
    let change = Change {
        set: mount::MOUNT_ATTR_RDONLY,
        ..Change::default()
    };
    at(
        Step::ReadonlyPath,
        index,
        mount::change(tree.as_fd(), change, true),
    )?;
    at(
        Step::ReadonlyPath,
        index,
        mount::attach(tree.as_fd(), place.as_fd()),
    )
}
