//! From the specification to a `Plan`: everything read, opened and checked before the first process is made.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};

use super::idmap::{id_maps, needs_users};
use super::mounts::{self, Context};
use super::program::{Within, c_string, has_variable, home, invalid, plan_process, selinux_enabled};
use super::recipe::{Plan, RootPlan};
use super::{Options, StartError, Stdio, host, interfaces, places, rootfs, scheduling};
use crate::cgroup::Cgroup;
use crate::sandbox::{self, IdMaps, Sandbox};
use sys::path::{self, Resolve};
use sys::schedule::Cpus;

use crate::spec::{ContainerSpec, IdRange, Rootfs};

/// libc has none for this target.
const CLONE_NEWTIME: i32 = 0x80;

/// Namespaces in the order of joining: a user namespace last, as setns of the others takes rights over their owners.
const KINDS: [(LinuxNamespaceType, i32); 8] = [
    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
    (LinuxNamespaceType::Network, libc::CLONE_NEWNET),
    (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
    (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
    (LinuxNamespaceType::Pid, libc::CLONE_NEWPID),
    (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP),
    (LinuxNamespaceType::Time, CLONE_NEWTIME),
    (LinuxNamespaceType::User, libc::CLONE_NEWUSER),
];

/// The container's user namespace.
enum UserNamespace {
    None,
    Joined(OwnedFd),
    /// Made with the container's process.
    Own(IdMaps),
}

impl UserNamespace {
    /// Makes it now, for what needs it before there is a process.
    fn make(&mut self) -> Result<(), StartError> {
        if let UserNamespace::Own(ids) = self {
            *self = UserNamespace::Joined(sandbox::make_user_namespace(ids).map_err(StartError::Users)?);
        }
        Ok(())
    }
}

struct Namespaces {
    joins: Vec<(OwnedFd, i32)>,
    user: UserNamespace,
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
    refuse_unsupported(config, linux)?;
    if options.bundle.is_none() && linux.intel_rdt().is_some() {
        return Err(invalid("linux.intelRdt", "not supported for pods"));
    }
    let here = PathBuf::from(".");
    let bundle = options.bundle.unwrap_or(&here);
    let mut namespaces = namespaces(linux, sandbox)?;
    let shared = namespaces.made & libc::CLONE_NEWNS as u64 == 0;
    if shared && (!matches!(namespaces.user, UserNamespace::None) || options.bundle.is_none()) {
        return Err(invalid(
            "linux.namespaces",
            "a container of this kind needs a mount namespace of its own",
        ));
    }
    let label = linux.mount_label().as_deref().filter(|_| selinux_enabled());
    let listed = config.mounts().as_deref().unwrap_or_default();
    if !namespaces.joins.is_empty()
        || namespaces.made & CLONE_NEWTIME as u64 != 0
        || matches!(spec.rootfs, Rootfs::Overlay { .. })
        || needs_users(listed)
    {
        namespaces.user.make()?;
    }
    let users = match &namespaces.user {
        UserNamespace::Joined(users) => Some(users.as_fd()),
        _ => None,
    };
    let in_users = !matches!(namespaces.user, UserNamespace::None) || options.inside_user;
    let root = match &spec.rootfs {
        Rootfs::Bundle => {
            let root = config.root().as_ref().ok_or_else(|| invalid("root", "missing"))?;
            let slave = slave(linux.rootfs_propagation().as_deref());
            rootfs::bundle(&bundle.join(root.path()), slave)?
        }
        Rootfs::Overlay { lowers, upper, work } => {
            let users = users.map(|users| (users, namespaces.range));
            rootfs::overlay(lowers, upper, work, users, label)?
        }
    };
    let cgroup_namespace = namespaces.made & libc::CLONE_NEWCGROUP as u64 != 0;
    let time_namespace = namespaces.made & CLONE_NEWTIME as u64 != 0;
    let made = namespaces.made & !(libc::CLONE_NEWCGROUP as u64 | CLONE_NEWTIME as u64);
    let own = |kind: i32| made & kind as u64 != 0;
    let has = |wanted: i32| own(wanted) || namespaces.joins.iter().any(|(_, kind)| *kind == wanted);
    let context = Context {
        root: root.as_fd(),
        users,
        in_users,
        root_uid: namespaces.root.0,
        root_gid: namespaces.root.1,
        cgroup,
        cgroup_namespace,
        devices: linux.devices().as_deref().unwrap_or_default(),
        terminal: matches!(stdio, Stdio::Terminal { .. }),
        bundle,
        label,
        bound: Default::default(),
        in_order: options.in_order,
        host_network: !has(libc::CLONE_NEWNET),
        host_ipc: !has(libc::CLONE_NEWIPC),
    };
    let mounts = mounts::plan(listed, &context)?;
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = || format!("linux.sysctl.{name}");
        if name.replace('/', ".") == "kernel.hostname" {
            return Err(invalid(field(), "the configuration's hostname says that"));
        }
        let kind = sandbox::sysctl_namespace(name)
            .ok_or_else(|| invalid(field(), "not a sysctl of a container's own"))?;
        if !own(kind) && !namespaces.joins_other(linux, kind)? {
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
            Some(_) if !own(libc::CLONE_NEWUTS) && !namespaces.joins_other(linux, libc::CLONE_NEWUTS)? => {
                Err(invalid(field, "needs a UTS namespace of the container's own"))
            }
            Some(name) => c_string(field, name).map(Some),
        }
    };
    let mut environment_home = None;
    if !has_variable(process, "HOME") {
        environment_home = Some(home(root.as_fd(), process.user().uid())?);
    }
    let own_network = own(libc::CLONE_NEWNET) || namespaces.joins_other(linux, libc::CLONE_NEWNET)?;
    let interfaces = interfaces::plan(linux, own_network)?;
    let place = match (config.root(), shared) {
        (Some(root), true) => rootfs::c_path(&bundle.join(root.path()))?,
        _ => super::PLACE.to_owned(),
    };
    let root = RootPlan {
        root,
        shared,
        place,
        directory: places::target(process.cwd(), Resolve::InRoot, None)?,
        mounts,
        masked: places::all_covered("linux.maskedPaths", linux.masked_paths())?,
        readonly: places::all_covered("linux.readonlyPaths", linux.readonly_paths())?,
        readonly_root: config
            .root()
            .as_ref()
            .and_then(oci_spec::runtime::Root::readonly)
            .unwrap_or(false),
        propagation: propagation(linux.rootfs_propagation().as_deref())?,
        root_propagation: root_propagation(linux.rootfs_propagation().as_deref()),
        loopback: own(libc::CLONE_NEWNET),
        hostname: name("hostname", config.hostname())?,
        domainname: name("domainname", config.domainname())?,
        sysctls,
        hooks: !interfaces.is_empty(),
    };
    let within = Within::of("self", in_users).map_err(host("read /proc/self/setgroups"))?;
    let mut plan = plan_process(
        process,
        linux.seccomp().as_ref(),
        cgroup,
        stdio,
        options,
        within,
        environment_home,
    )?;
    if time_namespace {
        plan.time = Some(scheduling::time_offsets(linux)?);
    } else if linux
        .time_offsets()
        .as_ref()
        .is_some_and(|offsets| !offsets.is_empty())
    {
        return Err(invalid(
            "linux.timeOffsets",
            "needs a time namespace of the container's own",
        ));
    }
    // crun's word for it, which podman's `--group-add keep-groups` gives.
    let annotations = config.annotations().as_ref();
    if annotations.is_some_and(|all| {
        all.get("run.oci.keep_original_groups")
            .is_some_and(|value| value == "1")
    }) {
        plan.process.groups = None;
    }
    if let Some(policy) = linux.memory_policy() {
        plan.process.memory_policy = Some(scheduling::memory_policy(policy)?);
    }
    plan.process.personality = scheduling::personality(linux)?;
    // Those of its group: the caller's own, as a service manager may have set them, are not for containers. As runc.
    plan.final_cpus = Some(Cpus::all());
    plan.interfaces = interfaces;
    plan.joins = namespaces.joins;
    plan.inside_user = options.inside_user;
    plan.clone_flags = made;
    if !plan.raise.is_empty() || plan.oom_score_adj.is_some() {
        // Takes the host's rights, which a process that is made in a user namespace never had.
        namespaces.user.make()?;
    }
    match namespaces.user {
        UserNamespace::None => {}
        UserNamespace::Joined(user) => {
            plan.joins_user = true;
            plan.joins.push((user, libc::CLONE_NEWUSER));
        }
        UserNamespace::Own(ids) => {
            // A PID namespace is for children only.
            let pid = made & libc::CLONE_NEWPID as u64;
            plan.clone_flags = libc::CLONE_NEWUSER as u64 | pid;
            plan.unshare = (made & !pid) as i32;
            plan.ids = Some(ids);
        }
    }
    plan.cgroup_namespace = cgroup_namespace;
    plan.root = Some(root);
    Ok(plan)
}

/// What the specification may ask for and we do not have: refused, never ignored.
pub(super) fn refuse_unsupported(config: &Spec, linux: &Linux) -> Result<(), StartError> {
    let user = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|one| one.typ() == LinuxNamespaceType::User);
    let given = [
        ("vm", config.vm().is_some()),
        (
            "linux.uidMappings without a user namespace",
            !user && linux.uid_mappings().as_ref().is_some_and(|maps| !maps.is_empty()),
        ),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(invalid(field, "not supported")),
        None => Ok(()),
    }
}

impl Namespaces {
    /// Whether the configuration itself names a namespace of this kind by path, and that is not ours.
    fn joins_other(&self, linux: &Linux, kind: i32) -> Result<bool, StartError> {
        let Some((typ, _)) = KINDS.iter().find(|(_, flag)| *flag == kind) else {
            return Ok(false);
        };
        let named = linux.namespaces().iter().flatten().find(|one| one.typ() == *typ);
        let joined = self.joins.iter().find(|(_, flag)| *flag == kind);
        let (Some(_), Some((namespace, _))) = (named, joined) else {
            return Ok(false);
        };
        let own = match kind {
            libc::CLONE_NEWNET => "net",
            libc::CLONE_NEWIPC => "ipc",
            _ => "uts",
        };
        let own = fs::metadata(format!("/proc/self/ns/{own}")).map_err(host("look at our namespace"))?;
        let joined = path::stat(namespace.as_fd()).map_err(host("look at a namespace"))?;
        Ok(own.ino() != joined.inode)
    }
}

/// runtime-spec 1.2, config-linux.md, Namespaces: of duplicates "the runtime MUST generate an error"; `path` "MUST be an
/// absolute path".
pub(super) fn check_namespaces(linux: &Linux) -> Result<&[LinuxNamespace], StartError> {
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    for (index, one) in listed.iter().enumerate() {
        if listed[..index].iter().any(|other| other.typ() == one.typ()) {
            return Err(invalid(format!("linux.namespaces[{index}]"), "listed twice"));
        }
        // Engines write an empty one for none.
        let path = one.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        if path.is_some_and(|path| !path.is_absolute()) {
            return Err(invalid(
                format!("linux.namespaces[{index}].path"),
                "must be absolute",
            ));
        }
    }
    Ok(listed)
}

fn namespaces(linux: &Linux, sandbox: Option<&Sandbox>) -> Result<Namespaces, StartError> {
    let mut found = Namespaces {
        joins: Vec::new(),
        user: UserNamespace::None,
        root: (0, 0),
        range: None,
        made: 0,
    };
    let listed = check_namespaces(linux)?;
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
                    let ids = id_maps(
                        linux.uid_mappings().as_deref().unwrap_or_default(),
                        linux.gid_mappings().as_deref().unwrap_or_default(),
                    );
                    if ids.uids.is_empty() || ids.gids.is_empty() {
                        return Err(invalid(
                            "linux.uidMappings",
                            "a new user namespace needs uid and gid mappings",
                        ));
                    }
                    found.root = (host_id(&ids.uids)?, host_id(&ids.gids)?);
                    if let [(0, start, count)] = ids.uids[..] {
                        found.range = Some(IdRange { start, count });
                    }
                    found.user = UserNamespace::Own(ids);
                    None
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
            Some(namespace) if kind == LinuxNamespaceType::User => {
                if found.root == (0, 0) && listed.iter().any(|one| one.typ() == kind) {
                    // One that somebody else made and mapped.
                    found.root = sandbox::root_of(&namespace).map_err(StartError::Users)?;
                }
                found.user = UserNamespace::Joined(namespace);
            }
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

/// Of the tree that is ours until the pivot: what of the host's mounts still reaches it.
fn propagation(name: Option<&str>) -> Result<u64, StartError> {
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

fn slave(name: Option<&str>) -> bool {
    matches!(name, Some("slave" | "rslave"))
}

/// Of the root file system in the end. Deviation: a shared one is shared among what the container mounts and binds, not
/// with the host; nothing that a container mounts outside of a volume that says so shows there.
fn root_propagation(name: Option<&str>) -> Option<(u64, bool)> {
    match name? {
        "shared" => Some((libc::MS_SHARED, false)),
        "rshared" => Some((libc::MS_SHARED, true)),
        "unbindable" => Some((libc::MS_UNBINDABLE, false)),
        "runbindable" => Some((libc::MS_UNBINDABLE, true)),
        _ => None,
    }
}
