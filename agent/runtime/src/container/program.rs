//! The process of the specification as a recipe: program, environment, user, rights, limits, streams.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, PosixRlimitType, Process};
use sys::cred::{self, CapSets, Rlimit};
use sys::path::{self, Resolve};
use sys::process::CStrings;

use super::notify::Notify;
use super::recipe::{Plan, ProcessPlan, StdioPlan};
use super::{Options, StartError, Stdio, above_stdio, host, scheduling};
use crate::capability;
use crate::cgroup::Cgroup;
use crate::seccomp;

pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> StartError {
    StartError::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

pub(crate) fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn apparmor_enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

pub(super) fn c_string(field: &str, value: &str) -> Result<CString, StartError> {
    CString::new(value).map_err(|_| invalid(field, "NUL byte"))
}

pub(crate) fn has_variable(process: &Process, name: &str) -> bool {
    variable(process, name).is_some_and(|value| !value.is_empty())
}

/// Each variable once, with its last value: environ(7) leaves open which of two counts, and programs take the first.
fn last_of_each<'a>(environment: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let name = |entry: &'a str| entry.split_once('=').map_or(entry, |(name, _)| name);
    let mut entries: Vec<&str> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in environment {
        match places.entry(name(entry)) {
            Entry::Occupied(place) => entries[*place.get()] = entry,
            Entry::Vacant(place) => {
                place.insert(entries.len());
                entries.push(entry);
            }
        }
    }
    entries.into_iter()
}

fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let env = process.env().as_deref().unwrap_or_default();
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The image's word for a user's home; "/" when it has none.
pub(crate) fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String, StartError> {
    let fallback = "/".to_owned();
    let file = match path::open(
        root,
        c"etc/passwd",
        libc::O_RDONLY | libc::O_NONBLOCK,
        0,
        Resolve::InRoot,
    ) {
        Ok(file) => file,
        // No such file, or one that cannot be what it says: the image's own fault and no reason to refuse it.
        Err(_) => return Ok(fallback),
    };
    if !path::stat(file.as_fd())
        .map_err(host("look at /etc/passwd"))?
        .is_file()
    {
        return Ok(fallback);
    }
    let mut text = Vec::new();
    let mut limited = io::Read::take(fs::File::from(file), PASSWD_BYTES_MAX);
    io::Read::read_to_end(&mut limited, &mut text).map_err(host("read /etc/passwd"))?;
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id: u32 = fields.nth(2)?.parse().ok()?;
        (id == uid).then(|| fields.nth(2)).flatten()
    });
    Ok(found
        .filter(|home| home.starts_with('/'))
        .map_or(fallback, str::to_owned))
}

/// Of a file that the image controls.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// Whose user namespace a process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Within {
    /// The host's.
    Host,
    /// One of its own, or its pod's.
    Own,
    /// The same, made without root: nobody in it may change the groups that he came with.
    Grouped,
}

impl Within {
    /// Of a process by its number, or `self`.
    pub(crate) fn of(pid: &str, own: bool) -> io::Result<Within> {
        let groups = fs::read_to_string(format!("/proc/{pid}/setgroups"))?;
        Ok(match (own, groups.trim()) {
            (_, "deny") => Within::Grouped,
            (true, _) => Within::Own,
            (false, _) => Within::Host,
        })
    }
}

fn groups(told: Option<&[u32]>, within: Within) -> Result<Option<Vec<u32>>, StartError> {
    let told = told.unwrap_or_default();
    match within {
        Within::Grouped if !told.is_empty() => Err(invalid(
            "process.user.additionalGids",
            "cannot set any additional groups in a rootless container: setgroups is denied in its user namespace",
        )),
        Within::Grouped => Ok(None),
        _ => Ok(Some(told.to_owned())),
    }
}

/// The part that a further process in a running container has too. Namespaces and root are empty.
pub(crate) fn plan_process(
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
    within: Within,
    home: Option<String>,
) -> Result<Plan, StartError> {
    let arguments = process.args().as_deref().unwrap_or_default();
    let program = options.program.or(arguments.first().map(String::as_str));
    let program = program.filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| invalid("process.args", "must name a program"))?;
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "must be absolute"));
    }
    let strings = |field: &str, list: &[String]| -> Result<Vec<CString>, StartError> {
        list.iter().map(|value| c_string(field, value)).collect()
    };
    let home = home.map(|home| format!("HOME={home}"));
    let environment = process.env().as_deref().unwrap_or_default();
    let environment = environment.iter().chain(&home).map(String::as_str);
    let environment = last_of_each(environment).map(|entry| c_string("process.env", entry));
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    let user = process.user();
    let (capabilities, unbound, ambient) =
        capabilities(process.capabilities().as_ref(), within != Within::Host)?;
    let (raise, limits) = limits(process)?;
    let stdio = match stdio {
        Stdio::Fds([input, output, error]) => {
            let above = |fd| above_stdio(fd).map_err(host("hold the standard streams"));
            StdioPlan::Fds([above(input)?, above(output)?, above(error)?])
        }
        Stdio::Terminal {
            socket,
            size,
            bare_newlines,
        } => StdioPlan::Terminal {
            bare_newlines,
            socket: above_stdio(socket).map_err(host("hold the console socket"))?,
            size: size.or_else(|| {
                let size = process.console_size()?;
                Some(sys::tty::Size {
                    columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
                    rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
                })
            }),
        },
    };
    let seccomp = match profile {
        Some(profile) => Some(seccomp::prepare(profile, options.seccomp_cache)?),
        None => None,
    };
    let notify = profile
        .map(|profile| Notify::of(profile, options))
        .transpose()?
        .flatten();
    let listener = notify.is_some();
    Ok(Plan {
        entry: cgroup.entry()?,
        proc: open_proc().map_err(host("open /proc"))?,
        oom_score_adj: oom_score_adj(process)?,
        raise,
        initial_cpus: None,
        final_cpus: None,
        joins: Vec::new(),
        joins_user: false,
        inside_user: false,
        ids: None,
        unshare: 0,
        notify,
        interfaces: Vec::new(),
        clone_flags: 0,
        time: None,
        cgroup_namespace: false,
        root: None,
        chroot: None,
        process: ProcessPlan {
            candidates: match options.no_program {
                true => Vec::new(),
                false => candidates(process, program)?,
            },
            arguments: CStrings::new(strings("process.args", arguments)?),
            environment: CStrings::new(environment),
            directory: c_string("process.cwd", &process.cwd().to_string_lossy())?,
            uid: user.uid(),
            gid: user.gid(),
            groups: groups(user.additional_gids().as_deref(), within)?,
            umask: user.umask().unwrap_or(0o022),
            limits,
            personality: None,
            scheduler: scheduling::scheduler(process)?,
            io_priority: scheduling::io_priority(process)?,
            memory_policy: None,
            unbound,
            capabilities,
            ambient,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            seccomp,
            listener,
            labels: labels(process)?,
            stdio,
            preserve_fds: options.preserve_fds,
            die_with_parent: options.die_with_parent,
            new_keyring: !options.keep_keyring,
            key_label: key_label(process)?,
            release: None,
        },
    })
}

/// Where the program may lie: as execvp(3), with the PATH of the process itself.
fn candidates(process: &Process, program: &str) -> Result<Vec<CString>, StartError> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program)?]);
    }
    let path = variable(process, "PATH").unwrap_or(crate::defaults::PATH);
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| c_string("process.args", &format!("{directory}/{program}")))
        .collect()
}

/// What to write, unless it is what we have already.
fn oom_score_adj(process: &Process) -> Result<Option<CString>, StartError> {
    let Some(value) = process.oom_score_adj() else {
        return Ok(None);
    };
    if !(-1000..=1000).contains(&value) {
        return Err(invalid("process.oomScoreAdj", "must be -1000 to 1000"));
    }
    let own =
        fs::read_to_string("/proc/self/oom_score_adj").map_err(host("read /proc/self/oom_score_adj"))?;
    if own.trim() == value.to_string() {
        return Ok(None);
    }
    c_string("process.oomScoreAdj", &value.to_string()).map(Some)
}

type Bits = (CapSets, Vec<u32>, Vec<u32>);

/// The sets to give, the numbers to take out of the bounding set, the ambient ones.
fn capabilities(sets: Option<&LinuxCapabilities>, in_user_namespace: bool) -> Result<Bits, StartError> {
    let mask = |set: Option<&oci_spec::runtime::Capabilities>| set.map_or(0, capability::mask);
    let bounding = mask(sets.and_then(|sets| sets.bounding().as_ref()));
    let permitted = mask(sets.and_then(|sets| sets.permitted().as_ref()));
    let inheritable = mask(sets.and_then(|sets| sets.inheritable().as_ref()));
    let effective = mask(sets.and_then(|sets| sets.effective().as_ref()));
    let ambient = mask(sets.and_then(|sets| sets.ambient().as_ref()));
    if effective & !permitted != 0 {
        return Err(invalid(
            "process.capabilities.effective",
            "has what is not in permitted",
        ));
    }
    let mut unbound = Vec::new();
    let mut have = 0u64;
    for number in 0..64 {
        let Ok(ours) = cred::has_bounding(number) else {
            break; // EINVAL: the kernel has no capability of this number.
        };
        // A process that enters a user namespace gets every capability in it, also those that we have lost ourselves.
        have |= u64::from(ours || in_user_namespace) << number;
        if bounding & 1 << number == 0 {
            unbound.push(number);
        }
    }
    // runtime-spec 1.2, config.md, Linux Process: "Runtimes SHOULD NOT fail if the container configuration requests
    // capabilities that cannot be granted". `capability::grantable` lets a caller say so.
    let (effective, permitted) = (effective & have, permitted & have);
    let inheritable = inheritable & have;
    // Ambient needs both; a set that lacks one of them has none to raise.
    let ambient = ambient & permitted & inheritable;
    let ambient = (0..64).filter(|bit| ambient & 1 << bit != 0).collect();
    Ok((
        CapSets {
            effective,
            permitted,
            inheritable,
        },
        unbound,
        ambient,
    ))
}

/// Hard limits to raise with the host's rights, and all limits as they are to be in the end.
pub(super) fn limits(process: &Process) -> Result<(Vec<Rlimit>, Vec<Rlimit>), StartError> {
    let mut raise = Vec::new();
    let mut limits: Vec<Rlimit> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = RESOURCES
            .iter()
            .find(|(kind, _, _)| *kind == limit.typ())
            .map_or(u32::MAX, |(_, number, _)| *number);
        let field = format!("process.rlimits.{}", rlimit_name(resource));
        if limits.iter().any(|other| other.resource == resource) {
            return Err(invalid(field, "given twice"));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(field, "the soft limit is above the hard one"));
        }
        let now = cred::getrlimit(resource).map_err(host("read a resource limit"))?;
        let wanted = Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        };
        if wanted.hard > now.hard {
            raise.push(Rlimit {
                hard: wanted.hard,
                ..now
            });
        }
        limits.push(wanted);
    }
    Ok((raise, limits))
}

const RESOURCES: [(PosixRlimitType, u32, &str); 16] = [
    (PosixRlimitType::RlimitCpu, libc::RLIMIT_CPU, "RLIMIT_CPU"),
    (PosixRlimitType::RlimitFsize, libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
    (PosixRlimitType::RlimitData, libc::RLIMIT_DATA, "RLIMIT_DATA"),
    (PosixRlimitType::RlimitStack, libc::RLIMIT_STACK, "RLIMIT_STACK"),
    (PosixRlimitType::RlimitCore, libc::RLIMIT_CORE, "RLIMIT_CORE"),
    (PosixRlimitType::RlimitRss, libc::RLIMIT_RSS, "RLIMIT_RSS"),
    (PosixRlimitType::RlimitNproc, libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
    (
        PosixRlimitType::RlimitNofile,
        libc::RLIMIT_NOFILE,
        "RLIMIT_NOFILE",
    ),
    (
        PosixRlimitType::RlimitMemlock,
        libc::RLIMIT_MEMLOCK,
        "RLIMIT_MEMLOCK",
    ),
    (PosixRlimitType::RlimitAs, libc::RLIMIT_AS, "RLIMIT_AS"),
    (PosixRlimitType::RlimitLocks, libc::RLIMIT_LOCKS, "RLIMIT_LOCKS"),
    (
        PosixRlimitType::RlimitSigpending,
        libc::RLIMIT_SIGPENDING,
        "RLIMIT_SIGPENDING",
    ),
    (
        PosixRlimitType::RlimitMsgqueue,
        libc::RLIMIT_MSGQUEUE,
        "RLIMIT_MSGQUEUE",
    ),
    (PosixRlimitType::RlimitNice, libc::RLIMIT_NICE, "RLIMIT_NICE"),
    (
        PosixRlimitType::RlimitRtprio,
        libc::RLIMIT_RTPRIO,
        "RLIMIT_RTPRIO",
    ),
    (
        PosixRlimitType::RlimitRttime,
        libc::RLIMIT_RTTIME,
        "RLIMIT_RTTIME",
    ),
];

/// The name of a limit, for messages.
pub(super) fn rlimit_name(resource: u32) -> &'static str {
    RESOURCES
        .iter()
        .find(|(_, number, _)| *number == resource)
        .map_or("?", |(_, _, name)| name)
}

/// The labels that the process gets at its exec. Where a security module is off there is nothing that could enforce one:
/// an SELinux label is then left out, as every runtime does; an AppArmor profile that was asked for is refused.
fn labels(process: &Process) -> Result<Vec<(CString, CString)>, StartError> {
    let mut labels = Vec::new();
    if let Some(label) = key_label(process)? {
        labels.push((c"thread-self/attr/exec".to_owned(), label));
    }
    if let Some(profile) = process
        .apparmor_profile()
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        if apparmor_enabled() {
            let value = c_string("process.apparmorProfile", &format!("exec {profile}"))?;
            labels.push((c"thread-self/attr/apparmor/exec".to_owned(), value));
        } else if profile != "unconfined" {
            return Err(invalid(
                "process.apparmorProfile",
                "AppArmor is not enabled on this machine",
            ));
        }
    }
    Ok(labels)
}

/// The SELinux label of the process, which its keyring has too.
fn key_label(process: &Process) -> Result<Option<CString>, StartError> {
    let label = process.selinux_label().as_deref();
    label
        .filter(|label| !label.is_empty() && selinux_enabled())
        .map(|label| c_string("process.selinuxLabel", label))
        .transpose()
}

/// Opens the host's procfs and makes sure that it is one.
pub(crate) fn open_proc() -> io::Result<OwnedFd> {
    let proc = path::open(
        path::here(),
        c"/proc",
        libc::O_RDONLY | libc::O_DIRECTORY,
        0,
        Resolve::Free,
    )?;
    // proc(5): the root directory of a procfs has inode 1.
    if path::fs_magic(proc.as_fd())? != path::PROC_MAGIC || path::stat(proc.as_fd())?.inode != 1 {
        return Err(io::Error::from_raw_os_error(libc::EXDEV));
    }
    assert!(
        proc.as_raw_fd() > 2,
        "a process of ours has its standard streams open"
    );
    Ok(proc)
}
