//! The mounts of the configuration, prepared: bind sources and /dev as trees made here, the others as recipes for the
//! child, which alone is in the namespaces that proc, sysfs, mqueue and devpts belong to.

use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{LinuxDevice, Mount};
use sys::mount::{self, Change, FsContext};
use sys::path::{self, Resolve};

use super::idmap::idmap;
use super::options::{self, MountOptions};
use super::places::target;
use super::program::invalid;
use super::recipe::{MountPlan, What};
use super::rootfs::c_path;
use super::{StartError, copyup, devices, host};
use crate::cgroup::{Cgroup, Layout};

/// Most mounts of one container, layers of cgroups included: a table that every later clone copies.
const MOUNTS_MAX: usize = 1024;

/// What the mounts depend on.
pub(super) struct Context<'a> {
    /// The container's root file system.
    pub(super) root: BorrowedFd<'a>,
    /// The container's user namespace, where it stands already, and the host id of its root.
    pub(super) users: Option<BorrowedFd<'a>>,
    /// It has one, or will have.
    pub(super) in_users: bool,
    pub(super) root_uid: u32,
    pub(super) root_gid: u32,
    pub(super) cgroup: &'a Cgroup,
    pub(super) cgroup_namespace: bool,
    pub(super) devices: &'a [LinuxDevice],
    pub(super) terminal: bool,
    pub(super) bundle: &'a Path,
    /// SELinux label of file systems made for the container.
    pub(super) label: Option<&'a str>,
    /// Devices that could not be made and are to be bound, in the order of `plan`'s mounts.
    pub(super) bound: RefCell<Vec<devices::Bound>>,
    /// The kernel's list of mounts shall have the configuration's order.
    pub(super) in_order: bool,
    /// No network namespace of its own: sysfs shows the host's and may be refused.
    pub(super) host_network: bool,
    /// No IPC namespace of its own: its message queues are the host's.
    pub(super) host_ipc: bool,
}

/// Refuses what no machine could mount, without looking at any file.
pub(super) fn examine(mounts: &[Mount]) -> Result<(), StartError> {
    if mounts.len() > MOUNTS_MAX {
        return Err(invalid("mounts", format!("more than {MOUNTS_MAX}")));
    }
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let options = options::parse(mount.options().as_deref().unwrap_or_default());
        let kind = check(&field, mount, &options)?;
        target(mount.destination(), Resolve::InRoot, None)?;
        if let Some(source) = mount.source() {
            c_path(source)?;
        }
        string(&field, kind)?;
        for (key, value) in &options.data {
            string(&field, key)?;
            string(&field, value.as_deref().unwrap_or_default())?;
        }
    }
    Ok(())
}

/// What a mount needs to be one; its type.
fn check<'a>(field: &str, mount: &'a Mount, options: &MountOptions) -> Result<&'a str, StartError> {
    if mount.destination().as_os_str().is_empty() {
        return Err(invalid(field, "no destination"));
    }
    let kind = mount.typ().as_deref().unwrap_or("none");
    if !options.bind && kind != "bind" {
        return Ok(kind);
    }
    if mount.source().is_none() {
        return Err(invalid(field, "a bind mount without a source"));
    }
    // What has a value is the file system's (`size=`, `mode=`): it is there already, and mount(2) ignores such data when
    // it binds. A word that nobody knows may be a misspelt restriction.
    let unknown = |(key, value): &&(String, Option<String>)| {
        value.is_none() && !options::OF_FILE_SYSTEMS.contains(&key.as_str())
    };
    if let Some((name, _)) = options.data.iter().find(unknown) {
        return Err(invalid(field, format!("unknown option of a bind mount: {name}")));
    }
    Ok("bind")
}

/// Prepares all mounts, in their order.
pub(super) fn plan(mounts: &[Mount], context: &Context<'_>) -> Result<Vec<MountPlan>, StartError> {
    devices::outside(mounts, context).map_err(host("make device nodes"))?;
    let mut plans = Vec::new();
    bound(context, &mut plans)?;
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let options = options::parse(mount.options().as_deref().unwrap_or_default());
        let kind = check(&field, mount, &options)?;
        if kind == "bind" {
            plans.push(bind(&field, mount, &options, context)?);
            continue;
        }
        match kind {
            "cgroup" | "cgroup2" => cgroup(mount, &options, context, &mut plans)?,
            "tmpfs" if clean(mount.destination()) == Path::new("/dev") => {
                plans.push(MountPlan {
                    target: target(mount.destination(), Resolve::InRoot, None)?,
                    what: What::Tree {
                        tree: dev(mount, &options, context)?,
                        directory: true,
                        unbindable: None,
                        again: false,
                    },
                });
                bound(context, &mut plans)?;
            }
            "tmpfs" if options.copy_up => plans.push(copied(&field, mount, &options, context)?),
            _ => plans.push(new(&field, mount, kind, &options, context)?),
        }
        if plans.len() > MOUNTS_MAX {
            return Err(invalid("mounts", format!("more than {MOUNTS_MAX}")));
        }
    }
    if context.in_order {
        let mut made = false;
        for plan in &mut plans {
            match &mut plan.what {
                What::Tree { again, .. } => *again = made,
                What::New { .. } => made = true,
                What::Change { .. } => {}
            }
        }
    }
    Ok(plans)
}

/// Takes the devices that are to be bound, after the mount that they lie on.
fn bound(context: &Context<'_>, plans: &mut Vec<MountPlan>) -> Result<(), StartError> {
    for device in context.bound.take() {
        let tree = device.tree().map_err(|source| StartError::Host {
            action: "bind the host's device",
            path: Some(device.place.clone()),
            source,
        })?;
        plans.push(MountPlan {
            target: target(&device.place, Resolve::InRoot, None)?,
            what: What::Tree {
                tree,
                directory: false,
                again: false,
                unbindable: None,
            },
        });
    }
    Ok(())
}

pub(super) fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

/// A tmpfs that begins with what the image has there.
fn copied(
    field: &str,
    mount: &Mount,
    options: &MountOptions,
    context: &Context<'_>,
) -> Result<MountPlan, StartError> {
    let place = target(mount.destination(), Resolve::InRoot, None)?;
    let make = || -> io::Result<OwnedFd> {
        let tree = tmpfs(mount, options, context)?.mount(options.change.set & !mount::MOUNT_ATTR_RDONLY)?;
        if let Some(path) = place.prefixes.last() {
            copyup::copy(context.root, path, tree.as_fd())?;
        }
        let change = Change {
            propagation: 0,
            ..options.change
        };
        mount::change(tree.as_fd(), change, false)?;
        Ok(tree)
    };
    if options.idmap.is_some() || mount.uid_mappings().is_some() {
        return Err(invalid(field, "only bind mounts can be idmapped"));
    }
    if options.data.iter().any(|(key, _)| key == "uid" || key == "gid") {
        return Err(invalid(
            field,
            "uid and gid cannot be had with tmpcopyup, which takes the image's",
        ));
    }
    let tree = make().map_err(|source| StartError::Host {
        action: "make a tmpfs with the image's files for",
        path: Some(mount.destination().clone()),
        source,
    })?;
    Ok(MountPlan {
        target: place,
        what: What::Tree {
            tree,
            directory: true,
            unbindable: None,
            again: false,
        },
    })
}

/// A file system that the child makes.
fn new(
    field: &str,
    mount: &Mount,
    kind: &str,
    options: &MountOptions,
    context: &Context<'_>,
) -> Result<MountPlan, StartError> {
    if options.idmap.is_some() || mount.uid_mappings().is_some() {
        return Err(invalid(field, "only bind mounts can be idmapped"));
    }
    if kind == "sysfs" && context.in_users && context.host_network {
        return Err(invalid(
            field,
            "sysfs needs a network namespace of the container's user namespace; bind /sys",
        ));
    }
    // A procfs elsewhere than where masks and label writes look for it would be a fake for all that trust the path
    // (CVE-2023-27561, CVE-2019-19921).
    let resolve = if matches!(kind, "proc" | "sysfs") {
        Resolve::NoLinks
    } else {
        Resolve::InRoot
    };
    let mut data = Vec::new();
    if let Some(source) = mount.source() {
        data.push((c"source".to_owned(), Some(c_path(source)?)));
    }
    for (key, value) in &options.data {
        data.push((
            string(field, key)?,
            value.as_ref().map(|value| string(field, value)).transpose()?,
        ));
    }
    if kind == "tmpfs" && !options.data.iter().any(|(key, _)| key == "mode") {
        // As runc: that of the directory it covers.
        let place = target(mount.destination(), resolve, None)?;
        let whole = place.prefixes.last().map_or(c".", |path| path.as_c_str());
        if let Ok(found) = path::open(context.root, whole, libc::O_PATH | libc::O_DIRECTORY, 0, resolve) {
            let stat = path::stat(found.as_fd()).map_err(host("look at a directory to cover"))?;
            let mode = format!("{:o}", stat.mode & 0o7777);
            data.push((c"mode".to_owned(), Some(string(field, &mode)?)));
        }
    }
    let mut root_label = None;
    if let Some(label) = context.label {
        match kind {
            "tmpfs" | "devpts" | "ramfs" => {
                data.push((c"context".to_owned(), Some(string(field, label)?)));
            }
            // Its file system is there with its IPC namespace, and a context at a later mount is EINVAL ("same superblock,
            // different security settings", Linux security/selinux/hooks.c, selinux_set_mnt_opts). Queues take the type
            // of the directory. The host's own is not ours to change.
            "mqueue" if !context.host_ipc && options.change.set & mount::MOUNT_ATTR_RDONLY == 0 => {
                root_label = Some(string(field, label)?);
            }
            _ => {}
        }
    }
    Ok(MountPlan {
        target: target(mount.destination(), resolve, None)?,
        what: What::New {
            fstype: string(field, kind)?,
            options: data,
            // Nothing lies below a new one: recursive attributes are its own.
            attributes: options.recursive.set & !options.change.clear | options.change.set,
            propagation: options.propagation.map_or(0, |(flag, _)| flag),
            label: root_label,
        },
    })
}

fn string(field: &str, value: &str) -> Result<CString, StartError> {
    CString::new(value).map_err(|_| invalid(field, "NUL byte"))
}

/// A host's file or directory.
fn bind(
    field: &str,
    mount: &Mount,
    options: &MountOptions,
    context: &Context<'_>,
) -> Result<MountPlan, StartError> {
    let source = mount
        .source()
        .as_ref()
        .ok_or_else(|| invalid(field, "a bind mount without a source"))?;
    let source = context.bundle.join(source);
    let failed = |action: &'static str| {
        let path = source.clone();
        move |error| StartError::Host {
            action,
            path: Some(path),
            source: error,
        }
    };
    let tree = mount::clone_tree(path::here(), &c_path(&source)?, options.recursive_bind)
        .map_err(failed("open the source of a mount:"))?;
    let directory = path::stat(tree.as_fd()).map_err(failed("look at"))?.is_dir();
    let idmapped = idmap(field, &source, tree.as_fd(), mount, options, context)?;
    mount::change(
        tree.as_fd(),
        Change {
            propagation: 0,
            ..options.recursive
        },
        true,
    )
    .map_err(failed("set the options of"))?;
    mount::change(
        tree.as_fd(),
        Change {
            propagation: 0,
            ..options.change
        },
        false,
    )
    .map_err(failed("set the options of"))?;
    // Private unless asked: a container's mounts below a volume are nobody else's matter.
    let (propagation, recursive) = options.propagation.unwrap_or((libc::MS_PRIVATE, true));
    let unbindable = (propagation == libc::MS_UNBINDABLE).then_some(recursive);
    if unbindable.is_none() {
        let change = Change {
            propagation,
            ..Change::default()
        };
        mount::change(tree.as_fd(), change, recursive).map_err(failed("set the propagation of"))?;
    }
    drop(idmapped);
    Ok(MountPlan {
        target: target(mount.destination(), Resolve::InRoot, None)?,
        what: What::Tree {
            tree,
            directory,
            unbindable,
            again: false,
        },
    })
}

/// A tmpfs that belongs to whoever is root inside.
fn tmpfs(mount: &Mount, options: &MountOptions, context: &Context<'_>) -> io::Result<FsContext> {
    let tmpfs = FsContext::open(c"tmpfs")?;
    if let Some(source) = mount.source() {
        // A name and no more, which the kernel's list of mounts shows.
        tmpfs.string(c"source", &CString::new(source.as_os_str().as_bytes())?)?;
    }
    for (key, value) in &options.data {
        // Ours below: as whoever is root inside.
        if key == "uid" || key == "gid" {
            continue;
        }
        match value {
            Some(value) => tmpfs.string(&CString::new(key.as_str())?, &CString::new(value.as_str())?)?,
            None => tmpfs.flag(&CString::new(key.as_str())?)?,
        }
    }
    tmpfs.string(c"uid", &CString::new(context.root_uid.to_string())?)?;
    tmpfs.string(c"gid", &CString::new(context.root_gid.to_string())?)?;
    if let Some(label) = context.label {
        tmpfs.string(c"context", &CString::new(label)?)?;
    }
    Ok(tmpfs)
}

/// /dev: a tmpfs of ours with nodes made on the detached tree, so that they work in a user namespace too.
fn dev(mount: &Mount, options: &MountOptions, context: &Context<'_>) -> Result<OwnedFd, StartError> {
    let make = || -> io::Result<OwnedFd> {
        let tmpfs = tmpfs(mount, options, context)?;
        tmpfs.mount(options.change.set & !mount::MOUNT_ATTR_NODEV & !mount::MOUNT_ATTR_RDONLY)
    };
    let tree = make().map_err(host("make /dev"))?;
    let old = path::umask(0); // the nodes are for everybody
    let filled = fill(tree.as_fd(), context);
    path::umask(old);
    filled.map_err(host("fill /dev"))?;
    if options.change.set & mount::MOUNT_ATTR_RDONLY != 0 {
        let change = Change {
            set: mount::MOUNT_ATTR_RDONLY,
            ..Change::default()
        };
        mount::change(tree.as_fd(), change, false).map_err(host("make /dev read-only"))?;
    }
    Ok(tree)
}

pub(super) fn fill(dev: BorrowedFd<'_>, context: &Context<'_>) -> io::Result<()> {
    for (name, major, minor) in crate::defaults::DEVICES {
        let node = devices::Node {
            mode: libc::S_IFCHR | 0o666,
            device: path::makedev(major, minor),
            uid: context.root_uid,
            gid: context.root_gid,
        };
        let place = Path::new("/dev").join(name);
        devices::node_or_bound(dev, &CString::new(name)?, place, node, context)?;
    }
    for (name, to) in [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"ptmx", c"pts/ptmx"),
    ] {
        devices::there(path::symlink(to, dev, name))?;
        path::chown(dev, name, context.root_uid, context.root_gid)?;
    }
    for name in [c"pts", c"shm", c"mqueue"] {
        devices::there(path::mkdir(dev, name, 0o755))?;
        path::chown(dev, name, context.root_uid, context.root_gid)?;
    }
    if context.terminal {
        devices::node(
            dev,
            c"console",
            libc::S_IFREG | 0o600,
            0,
            context.root_uid,
            context.root_gid,
        )?;
    }
    for device in context.devices {
        if let Ok(inside) = device.path().strip_prefix("/dev") {
            // A default device, which here is a link to the container's own.
            if inside == Path::new("ptmx") {
                continue;
            }
            devices::make(dev, inside, device, context)?;
        }
    }
    Ok(())
}

/// The container's own part of the cgroup tree.
fn cgroup(
    mount: &Mount,
    options: &MountOptions,
    context: &Context<'_>,
    plans: &mut Vec<MountPlan>,
) -> Result<(), StartError> {
    let attributes = options.change.set;
    let whole = |path: &Path| target(path, Resolve::InRoot, None);
    let attach = |plans: &mut Vec<MountPlan>,
                  place: &Path,
                  host: &Path,
                  kind: &str,
                  data: Vec<(CString, Option<CString>)>| {
        let what = if context.cgroup_namespace {
            What::New {
                fstype: string("mounts", kind)?,
                options: data,
                attributes,
                propagation: 0,
                label: None,
            }
        } else {
            let directory = host.join(context.cgroup.path().strip_prefix("/").unwrap_or(Path::new("")));
            let fail = |source| StartError::Host {
                action: "open",
                path: Some(directory.clone()),
                source,
            };
            let tree = mount::clone_tree(path::here(), &c_path(&directory)?, false).map_err(fail)?;
            let change = Change {
                set: attributes,
                clear: 0,
                propagation: libc::MS_PRIVATE,
            };
            mount::change(tree.as_fd(), change, false).map_err(fail)?;
            What::Tree {
                tree,
                directory: true,
                unbindable: None,
                again: false,
            }
        };
        plans.push(MountPlan {
            target: whole(place)?,
            what,
        });
        Ok::<(), StartError>(())
    };
    let destination = mount.destination();
    match context.cgroup.layout() {
        Layout::V2 { mount: host } => attach(plans, destination, host, "cgroup2", Vec::new()),
        Layout::V1 { hierarchies, unified } => {
            plans.push(MountPlan {
                target: whole(destination)?,
                what: What::New {
                    fstype: c"tmpfs".to_owned(),
                    options: vec![(c"mode".to_owned(), Some(c"755".to_owned()))],
                    attributes: attributes & !mount::MOUNT_ATTR_RDONLY,
                    propagation: 0,
                    label: None,
                },
            });
            for hierarchy in hierarchies {
                let name = hierarchy.mount.file_name().unwrap_or(hierarchy.mount.as_os_str());
                let mut data = Vec::new();
                for controller in &hierarchy.controllers {
                    data.push(match controller.strip_prefix("name=") {
                        Some(name) => (c"name".to_owned(), Some(string("mounts", name)?)),
                        None => (string("mounts", controller)?, None),
                    });
                }
                attach(plans, &destination.join(name), &hierarchy.mount, "cgroup", data)?;
            }
            if let Some(host) = unified {
                let name = host.file_name().unwrap_or(host.as_os_str());
                attach(plans, &destination.join(name), host, "cgroup2", Vec::new())?;
            }
            if attributes & mount::MOUNT_ATTR_RDONLY != 0 {
                plans.push(MountPlan {
                    target: whole(destination)?,
                    what: What::Change {
                        change: Change {
                            set: mount::MOUNT_ATTR_RDONLY,
                            ..Change::default()
                        },
                        recursive: false,
                    },
                });
            }
            Ok(())
        }
    }
}
