//! One run of a container as the runtime takes it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Mount, Root, Spec, User,
};
use proto::v1::{Container, Pod, PodSpec};
use runtime::spec::{ContainerSpec, LogSpec, Rootfs};
use runtime::{capability, defaults};

use super::env::{self, EnvError, Sources};
use super::fence;
use super::files::{self, FileError, Owner, Paths};
use super::record;
use super::resources::{self, ResourceError};
use super::security::{self, Ids, SecurityError};
use super::selinux::{self, Labels};
use super::spec;
use super::volume::{self, VolumeError, Volumes};
use crate::configs::Configs;
use crate::image::Image;
use crate::ledger::Slot;
use crate::settings::Settings;

/// Rotate a container's log beyond this; Kubernetes' own default.
const LOG_BYTES_MAX: u64 = 10 << 20;
/// Log files kept of one run, the current one included.
const LOG_FILES_MAX: u32 = 5;
/// Devices of the node that a privileged container gets at most: a table of a container's mounts, not of a data centre.
const DEVICES_MAX: usize = 4_096;
/// SIGTERM, unless the image says otherwise.
const SIGTERM: i32 = libc::SIGTERM;

/// Why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Resources(#[from] ResourceError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to write the container's specification")]
    Json(#[from] serde_json::Error),
}

impl BuildError {
    /// The word that Kubernetes has for it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Env(_) | Self::Security(_) | Self::Volume(_) => "CreateContainerConfigError",
            Self::Resources(_) | Self::File(_) | Self::Json(_) => "CreateContainerError",
        }
    }
}

/// What a run is made from.
pub(super) struct Build<'a> {
    pub(super) settings: &'a Settings,
    pub(super) node_name: &'a str,
    pub(super) uid: &'a str,
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) configs: &'a Configs,
    pub(super) image: &'a Image,
    /// The image's layers, or the copies of them that belong to the pod's ids.
    pub(super) lowers: Vec<PathBuf>,
    pub(super) slot: Slot,
    pub(super) number: u32,
    pub(super) paths: &'a Paths,
}

/// A run ready to be started.
pub(super) struct Built {
    pub(super) spec: ContainerSpec,
    /// To be kept until it has started.
    pub(super) held: Vec<OwnedFd>,
    pub(super) stop_signal: i32,
    /// Keys of ConfigMaps and Secrets that are no names of variables.
    pub(super) skipped: Vec<String>,
}

/// Whom files of a pod belong to.
pub(super) fn owner(spec: &PodSpec, slot: &Slot) -> Result<Owner, SecurityError> {
    let users = slot.ids.filter(|_| spec::has_users(spec));
    Ok(Owner {
        root: users.map_or(0, |range| range.start),
        label: selinux::shared(spec, slot.categories)?,
    })
}

/// Logs of a container.
pub(super) fn log_dir(settings: &Settings, pod: &Pod, uid: &str, container: &str) -> PathBuf {
    let meta = pod.metadata.clone().unwrap_or_default();
    settings
        .pod_log_dir(&meta.namespace, &meta.name, uid)
        .join(container)
}

impl Build<'_> {
    /// Makes directories and files of the run, and its specification, which is also put down for later agents.
    pub(super) fn build(self) -> Result<Built, BuildError> {
        let default = PodSpec::default();
        let pod_spec = self.pod.spec.as_ref().unwrap_or(&default);
        let id = record::run_id(&self.container.name, self.number);
        let owner = owner(pod_spec, &self.slot)?;
        let labels = selinux::labels(pod_spec, self.container, self.slot.categories)?;
        // Of what is this run's alone.
        let own = Owner {
            label: labels.as_ref().map(|labels| labels.files.clone()),
            ..owner.clone()
        };
        let host_ip = self.settings.node_address.to_string();
        let pod_ip = match self.slot.address.filter(|_| !pod_spec.host_network) {
            Some(address) => address.to_string(),
            None => host_ip.clone(),
        };
        let sources = Sources {
            pod: self.pod,
            configs: self.configs,
            host_ip,
            pod_ip,
            node_name: self.node_name,
        };
        let hostname = spec::hostname(self.pod);
        let (args, environment) = env::process(self.container, &self.image.config, &hostname, &sources)?;
        let image_user = self.image.config.user.clone().unwrap_or_default();
        let ids = security::ids(pod_spec, self.container, &image_user, |user| {
            self.image.user(user)
        })?;
        let namespace = self
            .pod
            .metadata
            .as_ref()
            .map(|meta| meta.namespace.clone())
            .unwrap_or_default();
        let volumes = Volumes {
            spec: pod_spec,
            namespace: &namespace,
            configs: self.configs,
            paths: self.paths,
            owner: &owner,
            users: self.slot.ids.is_some() && spec::has_users(pod_spec),
        };
        let (volume_mounts, held) = volumes.mounts(self.container)?;

        let directory = self.paths.run(&id);
        // Of an attempt that failed: overlayfs wants both empty.
        files::remove_tree(&directory)?;
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        files::make_dir(&directory, 0o711)?;
        files::make_dir(&upper, 0o755)?;
        files::make_dir(&work, 0o700)?;
        own.mark(&upper)?;
        own.mark(&work)?;
        let message = self.paths.termination(&id);
        files::message_file(&message, &own, ids.uid, ids.gid)?;
        let logs = log_dir(self.settings, self.pod, self.uid, &self.container.name);
        fs::create_dir_all(&logs).map_err(files::failed("create", &logs))?;

        let mut mounts = shared_files(self.paths, self.container, &message);
        mounts.extend(volume_mounts);
        let cwd = self.directory();
        if let Some(cwd) = &cwd
            && !mounts.iter().any(|mount| cwd.starts_with(mount.destination()))
        {
            make_cwd(&self.lowers, &upper, cwd, &own)?;
        }
        let mut config = defaults::spec();
        self.process(&mut config, pod_spec, args, environment.lines(), &ids, cwd)?;
        self.rights(&mut config, pod_spec, &id)?;
        label(&mut config, labels);
        config.set_mounts(Some(merge(config.mounts().clone().unwrap_or_default(), mounts)));
        let stop_signal = stop_signal(self.image.config.stop_signal.as_deref());
        let spec = ContainerSpec {
            id: id.clone(),
            config,
            rootfs: Rootfs::Overlay {
                lowers: self.lowers,
                upper,
                work,
            },
            log: Some(LogSpec {
                path: logs.join(format!("{}.log", self.number)),
                bytes_max: LOG_BYTES_MAX,
                files_max: LOG_FILES_MAX,
            }),
            stdin: false,
            stop_signal: fence::is_asked(self.pod).then_some(stop_signal),
        };
        let path = self.paths.spec(&id);
        fs::write(&path, serde_json::to_vec(&spec)?).map_err(files::failed("write", &path))?;
        Ok(Built {
            spec,
            held,
            stop_signal,
            skipped: environment.skipped,
        })
    }

    fn directory(&self) -> Option<PathBuf> {
        let own = Some(self.container.working_dir.as_str()).filter(|path| !path.is_empty());
        let image = self.image.config.working_dir.as_deref();
        own.or(image.filter(|path| path.starts_with('/')))
            .map(PathBuf::from)
    }

    fn process(
        &self,
        config: &mut Spec,
        pod_spec: &PodSpec,
        args: Vec<String>,
        environment: Vec<String>,
        ids: &Ids,
        cwd: Option<PathBuf>,
    ) -> Result<(), BuildError> {
        let held = security::capabilities(self.container)?;
        let context = self.container.security_context.as_ref();
        let escalation = context.and_then(|context| context.allow_privilege_escalation);
        let mut user = User::default();
        user.set_uid(ids.uid).set_gid(ids.gid);
        if !ids.groups.is_empty() {
            user.set_additional_gids(Some(ids.groups.clone()));
        }
        let mut process = config.process().clone().unwrap_or_default();
        process
            .set_args(Some(args))
            .set_env(Some(environment))
            .set_cwd(cwd.unwrap_or_else(|| PathBuf::from("/")))
            .set_user(user)
            .set_capabilities(Some(capability::sets(held)))
            .set_no_new_privileges(Some(escalation != Some(true)))
            .set_oom_score_adj(Some(resources::oom_score_adj(
                pod_spec,
                self.container,
                memory_bytes(),
                own_oom_score_adj(),
            )));
        let app_armor = security::app_armor(pod_spec, self.container, security::app_armor_enabled())?;
        process.set_apparmor_profile(app_armor);
        config.set_process(Some(process));
        if context.and_then(|context| context.read_only_root_filesystem) == Some(true) {
            let mut root = Root::default();
            root.set_readonly(Some(true));
            config.set_root(Some(root));
        }
        Ok(())
    }

    fn rights(&self, config: &mut Spec, pod_spec: &PodSpec, id: &str) -> Result<(), BuildError> {
        let privileged = security::is_privileged(self.container);
        let held = security::capabilities(self.container)?;
        let profiles = self.settings.data_dir.join("seccomp");
        let seccomp = security::seccomp(pod_spec, self.container, &held, &profiles)?;
        let mut resources =
            resources::container(self.container, || resources::device_of(&self.settings.data_dir))?;
        let mut linux = config.linux().clone().unwrap_or_default();
        if privileged {
            let mut all = LinuxDeviceCgroup::default();
            all.set_allow(true)
                .set_typ(Some(LinuxDeviceType::A))
                .set_access(Some("rwm".into()));
            resources.set_devices(Some(vec![all]));
            linux.set_devices(Some(node_devices()));
        } else {
            resources.set_devices(Some(vec![defaults::deny_all_devices()]));
        }
        let unmasked = self
            .container
            .security_context
            .as_ref()
            .is_some_and(|context| context.proc_mount == "Unmasked");
        if privileged || unmasked {
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
        if pod_spec.host_pid || spec::shares_processes(pod_spec) {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
            linux.set_namespaces(Some(namespaces));
        }
        linux
            .set_cgroups_path(Some(self.settings.pod_cgroup(self.uid).join(id)))
            .set_resources(Some(resources))
            .set_seccomp(seccomp);
        config.set_linux(Some(linux));
        if privileged {
            let mut mounts = config.mounts().clone().unwrap_or_default();
            for mount in &mut mounts {
                let sys = mount.destination().starts_with("/sys");
                let options = mount.options().clone().filter(|_| sys);
                if let Some(mut options) = options {
                    options.retain(|option| option != "ro");
                    mount.set_options(Some(options));
                }
            }
            config.set_mounts(Some(mounts));
        }
        Ok(())
    }
}

/// Puts the SELinux labels, if there are any, where the runtime reads them.
fn label(config: &mut Spec, labels: Option<Labels>) {
    let Some(labels) = labels else { return };
    let mut process = config.process().clone().unwrap_or_default();
    process.set_selinux_label(Some(labels.process));
    config.set_process(Some(process));
    let mut linux = config.linux().clone().unwrap_or_default();
    linux.set_mount_label(Some(labels.files));
    config.set_linux(Some(linux));
}

/// /etc/hosts and its like, and the file for last words; a manifest's own mounts take their place.
fn shared_files(paths: &Paths, container: &Container, message: &Path) -> Vec<Mount> {
    let options = ["bind", "rprivate"];
    let mut mounts: Vec<Mount> = ["hosts", "hostname", "resolv.conf"]
        .map(|name| volume::bind(&format!("/etc/{name}"), &paths.etc(name), &options))
        .into();
    if !container.termination_message_path.is_empty() {
        mounts.push(volume::bind(
            &container.termination_message_path,
            message,
            &options,
        ));
    }
    mounts
}

/// All mounts, those nearer the root first; of two at one place the later one.
fn merge(defaults: Vec<Mount>, own: Vec<Mount>) -> Vec<Mount> {
    let clean = |mount: &Mount| -> PathBuf { mount.destination().components().collect() };
    let mut all: Vec<Mount> = Vec::new();
    for mount in defaults.into_iter().chain(own) {
        all.retain(|other| clean(other) != clean(&mount));
        all.push(mount);
    }
    all.sort_by_key(|mount| clean(mount).components().count());
    all
}

/// Makes the working directory where the image has none, as other runtimes do. Whatever is no plain directory on the way
/// is left to the runtime, which walks it with the container's root as its own.
fn make_cwd(lowers: &[PathBuf], upper: &Path, cwd: &Path, owner: &Owner) -> Result<(), FileError> {
    let mut path = PathBuf::new();
    let mut missing = Vec::new();
    for part in cwd.components() {
        match part {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return Ok(()),
        }
        let found = lowers
            .iter()
            .find_map(|lower| fs::symlink_metadata(lower.join(&path)).ok());
        match found {
            Some(meta) if !meta.is_dir() => return Ok(()),
            Some(meta) if missing.iter().all(|(_, known)| *known) => {
                missing.push((path.clone(), true));
                let place = upper.join(&path);
                fs::create_dir(&place).map_err(files::failed("create", &place))?;
                owner.give(&place, meta.uid(), meta.gid())?;
                let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
                fs::set_permissions(&place, mode).map_err(files::failed("set the mode of", &place))?;
            }
            _ => {
                missing.push((path.clone(), false));
                let place = upper.join(&path);
                files::make_dir(&place, 0o755)?;
                owner.give(&place, 0, 0)?;
            }
        }
    }
    if missing.iter().all(|(_, known)| *known) {
        // Nothing was missing: the layers show as they are.
        if let Some(Component::Normal(first)) = cwd.components().nth(1) {
            files::remove_tree(&upper.join(first))?;
        }
    }
    Ok(())
}

/// Device nodes of the node, for privileged containers.
fn node_devices() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    walk_devices(Path::new("/dev"), 0, &mut found);
    found
}

fn walk_devices(directory: &Path, depth: u32, found: &mut Vec<LinuxDevice>) {
    // What is gone or not to be read meanwhile is no device that could be passed on.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let own = defaults::DEVICES.iter().any(|(default, _, _)| *default == name);
        let made = ["pts", "shm", "mqueue", "fd", "ptmx", "console"].contains(&name.as_str());
        if found.len() >= DEVICES_MAX || (depth == 0 && (own || made)) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = meta.file_type();
        if kind.is_dir() && depth < 4 {
            walk_devices(&path, depth + 1, found);
        }
        let typ = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => LinuxDeviceType::C,
            (_, true) => LinuxDeviceType::B,
            _ => continue,
        };
        let mut device = LinuxDevice::default();
        device
            .set_path(path)
            .set_typ(typ)
            .set_major(libc::major(meta.rdev()).into())
            .set_minor(libc::minor(meta.rdev()).into())
            .set_file_mode(Some(meta.mode() & 0o7777))
            .set_uid(Some(meta.uid()))
            .set_gid(Some(meta.gid()));
        found.push(device);
    }
}

/// The signal of an image, as SIGQUIT, QUIT or 3.
fn stop_signal(name: Option<&str>) -> i32 {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return SIGTERM;
    };
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) {
            number
        } else {
            SIGTERM
        };
    }
    let full = match name.starts_with("SIG") {
        true => name.to_owned(),
        false => format!("SIG{name}"),
    };
    full.parse::<nix::sys::signal::Signal>()
        .map_or(SIGTERM, |signal| signal as i32)
}

fn memory_bytes() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

fn own_oom_score_adj() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
#[path = "container_test.rs"]
mod tests;
