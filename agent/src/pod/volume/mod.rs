//! A pod's volumes on the node, and their mounts in its containers.

mod config;
mod host_path;
mod sub_path;
pub(super) mod usage;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::Kind;
use nix::mount::MsFlags;
use oci_spec::runtime::Mount;
use proto::v1::{Container, EmptyDirVolumeSource, PodSpec, Volume, VolumeMount};

use super::account;
use super::files::{self, FileError, Owner, Paths};
use crate::configs::{Configs, Content};

/// Why a volume or a mount of it cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} \"{name}\" not found", .kind.singular())]
    NotFound { kind: Kind, name: String },
    #[error("{} references non-existent key: {key}", .kind.singular())]
    NoKey { kind: Kind, key: String },
    #[error("{reason}")]
    Account { reason: String },
    #[error("hostPath type check failed: {} is not a {kind}", .path.display())]
    HostPathType { path: PathBuf, kind: &'static str },
    #[error("failed to {action} {}", .path.display())]
    HostPath {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to open subPath `{sub_path}` of volume {volume}")]
    SubPath {
        sub_path: String,
        volume: String,
        source: std::io::Error,
    },
    #[error("the pod has no volume `{name}`")]
    Unknown { name: String },
    #[error("invalid sizeLimit")]
    SizeLimit(#[source] model::quantity::QuantityError),
    #[error("failed to mount a tmpfs on {}", .path.display())]
    Tmpfs { path: PathBuf, source: std::io::Error },
}

/// What volumes are made from.
pub(super) struct Volumes<'a> {
    pub(super) spec: &'a PodSpec,
    pub(super) namespace: &'a str,
    pub(super) configs: &'a Configs,
    pub(super) paths: &'a Paths,
    pub(super) owner: &'a Owner,
    /// The pod has ids of its own: what belongs to the node is idmapped.
    pub(super) users: bool,
}

/// A volume that failed, by name.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\"")]
pub(super) struct PrepareError {
    volume: String,
    source: VolumeError,
}

impl Volumes<'_> {
    /// Makes every volume, or brings it up to date; a second time changes nothing. `account`: of the pod's service account.
    pub(super) fn prepare(&self, account: &account::Content) -> Result<(), PrepareError> {
        for volume in &self.spec.volumes {
            self.prepare_one(volume, account).map_err(|source| PrepareError {
                volume: volume.name.clone(),
                source,
            })?;
        }
        if self.shares_memory() {
            self.shared_memory().map_err(|source| PrepareError {
                volume: "/dev/shm".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    fn fs_group(&self) -> Option<u32> {
        self.spec
            .security_context
            .as_ref()
            .and_then(|context| context.fs_group)
    }

    fn prepare_one(&self, volume: &Volume, account: &account::Content) -> Result<(), VolumeError> {
        let path = self.paths.volume(&volume.name);
        if let Some(host) = &volume.host_path {
            return host_path::prepare(host);
        }
        if let Some(source) = config::source(volume) {
            if source.kind == Kind::Secret {
                // Never on a disk.
                self.tmpfs(&path, None, 0o755, self.fs_group())?;
            }
            let content = match (volume.name.as_str(), account) {
                (account::VOLUME, Ok(files)) => Some(Content::of(files)),
                // What is there stays, as of a Secret that has gone.
                (account::VOLUME, Err(_)) if config::has_content(&path) => None,
                (account::VOLUME, Err(reason)) => {
                    let reason = reason.clone();
                    return Err(VolumeError::Account { reason });
                }
                _ => source.content(self.namespace, self.configs),
            };
            return config::prepare(&path, &source, content, self.owner, self.fs_group());
        }
        let default = EmptyDirVolumeSource::default();
        let source = volume.empty_dir.as_ref().unwrap_or(&default);
        if source.medium == "Memory" {
            let limit = source.size_limit.as_ref().map(model::quantity::of).transpose();
            let limit = limit.map_err(VolumeError::SizeLimit)?;
            let bytes = limit.filter(|limit| !limit.is_zero()).map(|limit| limit.bytes());
            return self.tmpfs(&path, bytes, 0o777, self.fs_group());
        }
        if path.is_dir() {
            return Ok(());
        }
        files::make_dir(&path, 0o777)?;
        self.own(&path, 0o777, self.fs_group())
    }

    /// Owner and mode of a volume's root; with `fsGroup`, its files belong to the group (Kubernetes, "Configure a Security
    /// Context").
    fn own(&self, path: &Path, mode: u32, group: Option<u32>) -> Result<(), VolumeError> {
        self.owner.give(path, 0, group.unwrap_or(0))?;
        let mode = if group.is_some() { mode | 0o2000 } else { mode };
        // After the owner: chown(2) takes set-id bits away.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(files::failed("set the mode of", path))?;
        Ok(())
    }

    fn tmpfs(
        &self,
        path: &Path,
        bytes: Option<i64>,
        mode: u32,
        group: Option<u32>,
    ) -> Result<(), VolumeError> {
        files::make_dir(path, 0o755)?;
        if is_mounted(path)? {
            return Ok(());
        }
        let root = self.owner.root;
        let group_mode = if group.is_some() { mode | 0o2000 } else { mode };
        let gid = root.saturating_add(group.unwrap_or(0));
        let mut data = format!("mode={group_mode:o},uid={root},gid={gid}");
        if let Some(bytes) = bytes {
            data.push_str(&format!(",size={bytes}"));
        }
        if let Some(label) = &self.owner.label {
            data.push_str(&format!(",context=\"{label}\""));
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(data.as_str())).map_err(|error| {
            VolumeError::Tmpfs {
                path: path.to_owned(),
                source: error.into(),
            }
        })
    }

    /// Whether containers see one /dev/shm: POSIX shared memory goes with the IPC namespace, which is the pod's.
    fn shares_memory(&self) -> bool {
        self.spec.containers.len() > 1 && !self.spec.host_ipc
    }

    fn shared_memory(&self) -> Result<(), VolumeError> {
        self.tmpfs(&self.paths.shm(), Some(SHM_BYTES), 0o1777, None)
    }

    /// A container's mounts of volumes, and of what it shares with its pod. The descriptors are to be kept open until the
    /// container has started: sources name them.
    pub(super) fn mounts(&self, container: &Container) -> Result<(Vec<Mount>, Vec<OwnedFd>), VolumeError> {
        let mut mounts = Vec::new();
        let mut held = Vec::new();
        if self.shares_memory() {
            let options = ["rbind", "rprivate", "nosuid", "nodev", "noexec"];
            mounts.push(bind("/dev/shm", &self.paths.shm(), &options));
        } else if self.spec.host_ipc {
            let options = ["rbind", "rprivate", "nosuid", "nodev", "noexec"];
            mounts.push(bind("/dev/shm", Path::new("/dev/shm"), &options));
        }
        for mount in &container.volume_mounts {
            let volume = self.spec.volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| VolumeError::Unknown {
                name: mount.name.clone(),
            })?;
            mounts.push(self.mount(volume, mount, &mut held)?);
        }
        Ok((mounts, held))
    }

    fn mount(
        &self,
        volume: &Volume,
        mount: &VolumeMount,
        held: &mut Vec<OwnedFd>,
    ) -> Result<Mount, VolumeError> {
        let mut options = vec!["rbind", "rprivate"];
        let mut source = self.paths.volume(&volume.name);
        let mut read_only = mount.read_only;
        if let Some(host) = &volume.host_path {
            source = PathBuf::from(&host.path);
            if self.users {
                options.push("ridmap");
            }
        } else {
            options.push("nodev");
            // Files of a ConfigMap or a Secret are the manifest's, not the container's.
            read_only |= config::source(volume).is_some();
        }
        if !mount.sub_path.is_empty() {
            let writable = config::source(volume).is_none();
            let give = volume.host_path.is_none().then_some(self.owner);
            let fd = sub_path::open(&source, &mount.sub_path, writable, give).map_err(|error| {
                VolumeError::SubPath {
                    sub_path: mount.sub_path.clone(),
                    volume: volume.name.clone(),
                    source: error,
                }
            })?;
            source = sub_path::name(&fd);
            held.push(fd);
        }
        if read_only {
            options.extend(["ro", "rro"]);
        }
        Ok(bind(&mount.mount_path, &source, &options))
    }

    /// What of ConfigMaps and Secrets the volumes show, as it is now: when it changes, volumes are brought up to date.
    pub(super) fn shown<'b>(
        spec: &PodSpec,
        namespace: &str,
        configs: &'b Configs,
    ) -> Vec<Option<Content<'b>>> {
        let sources = spec.volumes.iter().filter_map(config::source);
        sources.map(|source| source.content(namespace, configs)).collect()
    }
}

/// Size of a pod's /dev/shm, as of a lone container's.
const SHM_BYTES: i64 = 64 << 20;

/// Whether something is mounted on a directory.
fn is_mounted(path: &Path) -> Result<bool, FileError> {
    let device = |path: &Path| -> Result<u64, FileError> {
        Ok(fs::metadata(path).map_err(files::failed("look at", path))?.dev())
    };
    let above = path.parent().unwrap_or(path);
    Ok(device(path)? != device(above)?)
}

/// A bind mount.
pub(super) fn bind(destination: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

#[cfg(test)]
#[path = "test.rs"]
mod tests;
