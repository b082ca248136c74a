//! From the specification to a `Plan`: everything read, opened and checked before the first process is made.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxNamespaceType, LinuxPersonalityDomain, LinuxSeccomp, PosixRlimitType,
    Process,
};
use sys::cred::{self, CapSets, Rlimit};
use sys::path::{self, Resolve};
use sys::process::CStrings;

use super::child::{Plan, ProcessPlan, RootPlan, StdioPlan, open_proc};
use super::mounts::{self, Context, maps};
use super::{Options, StartError, Stdio, above_stdio, host, rootfs};
use crate::capability;
use crate::cgroup::Cgroup;
use crate::sandbox::{self, Sandbox};
use crate::seccomp;
use crate::spec::{ContainerSpec, IdRange, Rootfs};

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> StartError {
    StartError::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Namespaces in the order of joining: a user namespace last, as setns of the others takes rights over their owners.
const KINDS: [(LinuxNamespaceType, i32); 8] = [
    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
    (LinuxNamespaceType::Network, libc::CLONE_NEWNET),
    (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
    (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
    (LinuxNamespaceType::Pid, libc::CLONE_NEWPID),
    (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP),
    (LinuxNamespaceType::Time, 0x80),
    (LinuxNamespaceType::User, libc::CLONE_NEWUSER),
];

struct Namespaces {
    joins: Vec<(OwnedFd, i32)>,
    user: Option<OwnedFd>,
    /// Host ids of root inside.
    root: (u32, u32),
    range: Option<IdRange>,
    made: u64,
}

/// Prepares everything.
pub(super) fn plan(
    spec: &ContainerSpec,
    sandbox: Option<&Sandbox>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
) -> Result<Plan, StartError> {
    let config = &spec.config;
    let process = config
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "missing"))?;
    let linux = config
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "missing"))?;
    refuse_unsupported(linux)?;
    let here = PathBuf::from(".");
    let bundle = options.bundle.unwrap_or(&here);
    let namespaces = namespaces(linux, sandbox)?;
    if namespaces.made & libc::CLONE_NEWNS as u64 == 0 {
        return Err(invalid(
            "linux.namespaces",
            "a container needs a mount namespace of its own",
        ));
    }
    let label = linux.mount_label().as_deref().filter(|_| selinux_enabled());
    let users = namespaces.user.as_ref().map(AsFd::as_fd);
    let root = match &spec.rootfs {
        Rootfs::Bundle => {
            let root = config.root().as_ref().ok_or_else(|| invalid("root", "missing"))?;
            rootfs::bundle(&bundle.join(root.path()))?
        }
        Rootfs::Overlay { lowers, upper, work } => {
            let users = users.map(|users| (users, namespaces.range));
            rootfs::overlay(lowers, upper, work, users, label)?
        }
    };
    let cgroup_namespace = namespaces.made & libc::CLONE_NEWCGROUP as u64 != 0;
    let made = namespaces.made & !(libc::CLONE_NEWCGROUP as u64);
    let own = |kind: i32| made & kind as u64 != 0;
    let network = own(libc::CLONE_NEWNET)
        || namespaces
            .joins
            .iter()
            .any(|(_, kind)| *kind == libc::CLONE_NEWNET);
    let context = Context {
        users,
        root_uid: namespaces.root.0,
        root_gid: namespaces.root.1,
        cgroup,
        cgroup_namespace,
        devices: linux.devices().as_deref().unwrap_or_default(),
        terminal: matches!(stdio, Stdio::Terminal { .. }),
        bundle,
        label,
        host_network: !network,
    };
    let mounts = mounts::plan(config.mounts().as_deref().unwrap_or_default(), &context)?;
    let covered = |list: &Option<Vec<String>>| -> Result<Vec<_>, StartError> {
        list.iter().flatten().map(|path| mounts::covered(path)).collect()
    };
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = || format!("linux.sysctl.{name}");
        let kind = sandbox::sysctl_namespace(name)
            .ok_or_else(|| invalid(field(), "not a sysctl of a container's own"))?;
        if !own(kind) {
            return Err(invalid(field(), "its namespace is not the container's own"));
        }
        sysctls.push((
            c_string(&field(), &sandbox::sysctl_path(name))?,
            c_string(&field(), value)?,
        ));
    }
    let name = |field: &str, name: &Option<String>| -> Result<Option<CString>, StartError> {
        match name.as_deref().filter(|name| !name.is_empty()) {
            None => Ok(None),
            Some(_) if !own(libc::CLONE_NEWUTS) => {
                Err(invalid(field, "needs a UTS namespace of the container's own"))
            }
            Some(name) => c_string(field, name).map(Some),
        }
    };
    let mut environment_home = None;
    if !has_variable(process, "HOME") {
        environment_home = Some(home(root.as_fd(), process.user().uid())?);
    }
    let root = RootPlan {
        root,
        place: super::PLACE.to_owned(),
        mounts,
        masked: covered(linux.masked_paths())?,
        readonly: covered(linux.readonly_paths())?,
        readonly_root: config
            .root()
            .as_ref()
            .and_then(oci_spec::runtime::Root::readonly)
            .unwrap_or(false),
        propagation: propagation(linux.rootfs_propagation().as_deref())?,
        loopback: own(libc::CLONE_NEWNET),
        hostname: name("hostname", config.hostname())?,
        domainname: name("domainname", config.domainname())?,
        sysctls,
        hooks: false,
    };
    let in_users = namespaces.user.is_some();
    let mut plan = plan_process(
        process,
        linux.seccomp().as_ref(),
        cgroup,
        stdio,
        options,
        in_users,
        environment_home,
    )?;
    if let Some(personality) = linux.personality() {
        plan.process.personality = Some(match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        });
    }
    plan.joins = namespaces.joins;
    plan.joins_user = namespaces.user.is_some();
    if let Some(user) = namespaces.user {
        plan.joins.push((user, libc::CLONE_NEWUSER));
    }
    plan.clone_flags = made;
    plan.cgroup_namespace = cgroup_namespace;
    plan.root = Some(root);
    Ok(plan)
}

/// What the specification may ask for and we do not have: refused, never ignored.
fn refuse_unsupported(linux: &Linux) -> Result<(), StartError> {
    let given = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        (
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|offsets| !offsets.is_empty()),
        ),
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
        ),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(invalid(field, "not supported")),
        None => Ok(()),
    }
}

fn namespaces(linux: &Linux, sandbox: Option<&Sandbox>) -> Result<Namespaces, StartError> {
    let mut found = Namespaces {
        joins: Vec::new(),
        user: None,
        root: (0, 0),
        range: None,
        made: 0,
    };
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    for (index, one) in listed.iter().enumerate() {
        if listed[..index].iter().any(|other| other.typ() == one.typ()) {
            return Err(invalid(format!("linux.namespaces[{index}]"), "listed twice"));
        }
    }
    for (kind, flag) in KINDS {
        let of_sandbox = sandbox.and_then(|sandbox| match kind {
            LinuxNamespaceType::User => sandbox.user(),
            LinuxNamespaceType::Network => sandbox.net(),
            LinuxNamespaceType::Ipc => sandbox.ipc(),
            LinuxNamespaceType::Uts => sandbox.uts(),
            LinuxNamespaceType::Pid => sandbox.pid(),
            _ => None,
        });
        let join = match listed.iter().find(|one| one.typ() == kind) {
            Some(one) => match one.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) => Some(open_namespace(path)?),
                None if kind == LinuxNamespaceType::User => {
                    if sandbox.is_some_and(|sandbox| sandbox.user().is_some()) {
                        return Err(invalid(
                            "linux.namespaces",
                            "the pod has a user namespace already",
                        ));
                    }
                    let uids = maps(linux.uid_mappings().as_deref().unwrap_or_default());
                    let gids = maps(linux.gid_mappings().as_deref().unwrap_or_default());
                    if uids.is_empty() || gids.is_empty() {
                        return Err(invalid(
                            "linux.uidMappings",
                            "a new user namespace needs uid and gid mappings",
                        ));
                    }
                    found.root = (host_id(&uids)?, host_id(&gids)?);
                    if let [(0, start, count)] = uids[..] {
                        found.range = Some(IdRange { start, count });
                    }
                    Some(sandbox::make_user_namespace(&uids, &gids).map_err(StartError::Users)?)
                }
                None => {
                    found.made |= flag as u64;
                    None
                }
            },
            None => match of_sandbox {
                Some(namespace) => Some(namespace.try_clone_to_owned().map_err(host("hold a namespace"))?),
                None => None,
            },
        };
        match join {
            Some(namespace) if kind == LinuxNamespaceType::User => found.user = Some(namespace),
            Some(namespace) => found.joins.push((namespace, flag)),
            None => {}
        }
    }
    if let (Some(range), None) = (sandbox.and_then(Sandbox::users), found.range) {
        found.root = (range.start, range.start);
        found.range = Some(range);
    }
    Ok(found)
}

/// Host id of root.
fn host_id(maps: &[(u32, u32, u32)]) -> Result<u32, StartError> {
    maps.iter()
        .find(|(inside, _, count)| *inside == 0 && *count > 0)
        .map(|(_, host, _)| *host)
        .ok_or_else(|| invalid("linux.uidMappings", "id 0 is not mapped"))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, StartError> {
    let file = fs::File::open(path).map_err(|source| StartError::Host {
        action: "open the namespace",
        path: Some(path.to_owned()),
        source,
    })?;
    Ok(file.into())
}

fn propagation(name: Option<&str>) -> Result<u64, StartError> {
    // The container's tree is a private copy in any case; this says what of the host's mounts still reaches its copies.
    Ok(match name.unwrap_or_default() {
        "" | "rslave" | "slave" | "shared" | "rshared" => libc::MS_SLAVE,
        "private" | "rprivate" | "unbindable" | "runbindable" => libc::MS_PRIVATE,
        other => {
            return Err(invalid(
                "linux.rootfsPropagation",
                format!("unknown value {other:?}"),
            ));
        }
    })
}

fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn apparmor_enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn c_string(field: &str, value: &str) -> Result<CString, StartError> {
    CString::new(value).map_err(|_| invalid(field, "NUL byte"))
}

fn has_variable(process: &Process, name: &str) -> bool {
    variable(process, name).is_some()
}

fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let env = process.env().as_deref().unwrap_or_default();
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The image's word for a user's home; "/" when it has none.
fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String, StartError> {
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

/// The part that a further process in a running container has too. Namespaces and root are empty.
pub(crate) fn plan_process(
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    cgroup: &Cgroup,
    stdio: Stdio,
    options: &Options<'_>,
    in_user_namespace: bool,
    home: Option<String>,
) -> Result<Plan, StartError> {
    for (field, given) in [
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ] {
        if given {
            return Err(invalid(field, "not supported"));
        }
    }
    let arguments = process.args().as_deref().unwrap_or_default();
    let program = arguments.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| invalid("process.args", "must name a program"))?;
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "must be absolute"));
    }
    let strings = |field: &str, list: &[String]| -> Result<Vec<CString>, StartError> {
        list.iter().map(|value| c_string(field, value)).collect()
    };
    let mut environment = strings("process.env", process.env().as_deref().unwrap_or_default())?;
    if let Some(home) = home {
        environment.push(c_string("process.env", &format!("HOME={home}"))?);
    }
    let user = process.user();
    let (capabilities, unbound, ambient) = capabilities(process.capabilities().as_ref(), in_user_namespace)?;
    let (raise, limits) = limits(process)?;
    let stdio = match stdio {
        Stdio::Fds([input, output, error]) => {
            let above = |fd| above_stdio(fd).map_err(host("hold the standard streams"));
            StdioPlan::Fds([above(input)?, above(output)?, above(error)?])
        }
        Stdio::Terminal { socket, size } => StdioPlan::Terminal {
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
    Ok(Plan {
        entry: cgroup.entry()?,
        proc: open_proc().map_err(host("open /proc"))?,
        oom_score_adj: oom_score_adj(process)?,
        raise,
        joins: Vec::new(),
        joins_user: false,
        clone_flags: 0,
        cgroup_namespace: false,
        root: None,
        process: ProcessPlan {
            candidates: candidates(process, program)?,
            arguments: CStrings::new(strings("process.args", arguments)?),
            environment: CStrings::new(environment),
            directory: c_string("process.cwd", &process.cwd().to_string_lossy())?,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022),
            limits,
            personality: None,
            unbound,
            capabilities,
            ambient,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            seccomp,
            labels: labels(process)?,
            stdio,
            preserve_fds: options.preserve_fds,
            die_with_parent: options.die_with_parent,
            new_keyring: !options.keep_keyring,
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
    // What the host itself lacks cannot be given. runc and crun go on without; a manifest that names it should say so.
    let missing = (bounding | permitted) & !have;
    if missing != 0 {
        let names = capability::names(missing).join(", ");
        return Err(invalid(
            "process.capabilities",
            format!("this machine's runtime has no {names} to give"),
        ));
    }
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
fn limits(process: &Process) -> Result<(Vec<Rlimit>, Vec<Rlimit>), StartError> {
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
    if let Some(label) = process
        .selinux_label()
        .as_deref()
        .filter(|label| !label.is_empty())
        && selinux_enabled()
    {
        labels.push((
            c"thread-self/attr/exec".to_owned(),
            c_string("process.selinuxLabel", label)?,
        ));
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
