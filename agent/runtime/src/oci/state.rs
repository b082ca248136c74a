//! A container on disk between two commands: `ROOT/ID/` holds `state.json`, the FIFO that `start` releases, `lock` and,
//! where somebody waits for word of readiness, the directory `notify` of its socket.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::{CONFIG_BYTES_MAX, OciError, SPEC_VERSION};
use crate::cgroup::{Cgroup, Layout};
use crate::rdt::Group;
use crate::systemd::Unit;

/// The only words for where a container is in its life (runtime-spec 1.2, runtime.md, State; `paused` is runc's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not ended.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its process has ended.
    Stopped,
    /// Its processes are frozen.
    Paused,
}

impl std::fmt::Display for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
            Status::Paused => "paused",
        })
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    /// Its creation has not ended; without the creator's lock, it was interrupted.
    #[serde(default)]
    pub(super) creating: bool,
    /// 0 while there is none yet.
    pub(super) pid: i32,
    /// Field 22 of /proc/PID/stat: with the number it names the process for good.
    pub(super) start_time: u64,
    pub(super) cgroup: PathBuf,
    /// Of a container whose cgroup is systemd's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<Unit>,
    /// Made without root where no cgroup can be: it stays in that of its creator.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_cgroup: bool,
    /// Its class of service, with Intel RDT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rdt: Option<Group>,
    /// Of a container without a mount namespace of its own: the mount that its root lies on, as `mount_of` tells; what is
    /// mounted over that is the container's.
    #[serde(default)]
    pub(super) mounted_over: Option<u64>,
    pub(super) created: String,
    pub(super) config: Spec,
}

/// Where a created container waits for `start`.
const FIFO: &str = "exec.fifo";
const STATE: &str = "state.json";
/// Largest record: what is written of the largest configuration, with room for the names of fields that it left out.
const STATE_BYTES_MAX: usize = 4 * CONFIG_BYTES_MAX;
/// The next state, until it takes the place of the last.
const NEW: &str = "state.json.new";
/// Held by the one command that changes the container.
const LOCK: &str = "lock";
/// Directory of the socket by which its program tells that it is ready, of a container made where somebody asks.
const NOTIFY: &str = "notify";

/// A container's directory, locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: Flock<File>,
}

fn fail<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OciError + use<'a> {
    move |source| OciError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

impl Directory {
    /// Makes it; the id must be new.
    pub(super) fn create(root: &Path, id: &str) -> Result<Self, OciError> {
        DirBuilder::new()
            .recursive(true)
            // Sticky: what cleans up a session's directory leaves it alone (XDG Base Directory Specification).
            .mode(0o1700)
            .create(root)
            .map_err(fail("make", root))?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(super::refused(format!(
                    "container with given ID already exists: {id}"
                )));
            }
            result => result.map_err(fail("make", &path))?,
        }
        let file = path.join(LOCK);
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(fail("make", &file))?;
        Self::lock(path)
    }

    /// Opens that of an existing container, once no other command works on it.
    pub(super) fn open(root: &Path, id: &str) -> Result<Self, OciError> {
        let path = root.join(id);
        match Self::lock(path) {
            Err(OciError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(OciError::NoContainer { id: id.to_owned() })
            }
            result => result,
        }
    }

    fn lock(path: PathBuf) -> Result<Self, OciError> {
        let file = path.join(LOCK);
        loop {
            // Never made here: in a directory that is being removed it would stay.
            let lock = OpenOptions::new()
                .write(true)
                .open(&file)
                .map_err(fail("open", &file))?;
            let lock = Flock::lock(lock, FlockArg::LockExclusive)
                .map_err(|(_, errno)| fail("lock", &file)(io::Error::from(errno)))?;
            // While we waited the container may have been deleted, and another made in its place.
            let held = lock.metadata().map_err(fail("look at", &file))?.ino();
            match fs::metadata(&file) {
                Ok(there) if there.ino() == held => return Ok(Directory { path, _lock: lock }),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(fail("look at", &file)(error));
                }
                _ => {}
            }
        }
    }

    pub(super) fn fifo(&self) -> PathBuf {
        self.path.join(FIFO)
    }

    pub(super) fn notify(&self) -> PathBuf {
        self.path.join(NOTIFY)
    }

    /// Writes the record: after a crash it is there whole or not at all.
    pub(super) fn write(&self, record: &Record) -> Result<(), OciError> {
        let path = self.path.join(STATE);
        let new = self.path.join(NEW);
        let bytes = record.to_bytes(&path)?;
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes));
        // No sync: nothing of a container outlives the machine's run, nor does this.
        written
            .and_then(|()| fs::rename(&new, &path))
            .map_err(fail("write", &path))
    }

    /// Reads the record; none when the container's creation did not come that far.
    pub(super) fn read(&self) -> Result<Option<Record>, OciError> {
        read(&self.path)
    }

    /// Removes it; the lock last, so that after a crash on the way somebody can finish.
    pub(super) fn remove(self) -> Result<(), OciError> {
        let notify = self.notify();
        match fs::remove_dir_all(&notify) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("remove", &notify)(error));
            }
            _ => {}
        }
        for name in [FIFO, NEW, STATE, LOCK] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(fail("remove", &path)(error));
                }
                _ => {}
            }
        }
        fs::remove_dir(&self.path).map_err(fail("remove", &self.path))
    }

    /// Removes what a creator left that ended before it had made the lock; something else stays.
    pub(super) fn remove_empty(root: &Path, id: &str) -> Result<(), OciError> {
        let path = root.join(id);
        match fs::remove_dir(&path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(fail("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn status(&self, record: &Record) -> Result<Status, OciError> {
        match status(&self.path, record)? {
            // We hold the lock: whoever made it has died.
            Status::Creating => Ok(Status::Stopped),
            status => Ok(status),
        }
    }
}

fn read(directory: &Path) -> Result<Option<Record>, OciError> {
    let path = directory.join(STATE);
    let mut text = Vec::new();
    // One byte more than is allowed, which `read_state` refuses.
    let read =
        File::open(&path).and_then(|file| file.take(STATE_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    match read {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        result => result.map_err(fail("read", &path))?,
    };
    read_state(&text, &path).map(Some)
}

/// Reads a record from its bytes. `path` is what an error calls it.
pub fn read_state(text: &[u8], path: &Path) -> Result<Record, OciError> {
    check_size(text.len(), path)?;
    serde_json::from_slice(text).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

fn check_size(bytes: usize, path: &Path) -> Result<(), OciError> {
    if bytes > STATE_BYTES_MAX {
        return Err(super::refused(format!(
            "{} is larger than {STATE_BYTES_MAX} bytes",
            path.display()
        )));
    }
    Ok(())
}

fn status(directory: &Path, record: &Record) -> Result<Status, OciError> {
    if record.creating {
        return Ok(Status::Creating);
    }
    if record.process()?.is_none() {
        return Ok(Status::Stopped);
    }
    if record.cgroup()?.is_frozen()? {
        return Ok(Status::Paused);
    }
    if directory.join(FIFO).exists() {
        return Ok(Status::Created);
    }
    Ok(Status::Running)
}

/// Looks at a container without its lock: the file is replaced whole, and a hook may ask while the lock is held.
pub(super) fn look(root: &Path, id: &str) -> Result<(Record, Status), OciError> {
    let directory = root.join(id);
    let record = read(&directory)?.ok_or_else(|| OciError::NoContainer { id: id.to_owned() })?;
    let status = status(&directory, &record)?;
    Ok((record, status))
}

/// What may be containers, sorted.
pub(super) fn ids(root: &Path) -> Result<Vec<String>, OciError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(fail("read", root))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        // No id is anything but UTF-8.
        ids.extend(entry.map_err(fail("read", root))?.file_name().into_string());
    }
    ids.sort_unstable();
    Ok(ids)
}

/// The user name of whoever made the container; its number where nobody has one.
pub(super) fn owner(root: &Path, id: &str) -> Result<String, OciError> {
    let path = root.join(id);
    let uid = fs::metadata(&path).map_err(fail("look at", &path))?.uid();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default(); // a machine without one has no names
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    Ok(name.unwrap_or_else(|| format!("#{uid}")))
}

impl Record {
    /// Its process by descriptor; none once it has ended.
    pub fn process(&self) -> Result<Option<OwnedFd>, OciError> {
        if self.pid <= 0 {
            return Ok(None);
        }
        let pidfd = match sys::process::pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            Err(source) => {
                return Err(OciError::Step {
                    action: "name the container's process",
                    source,
                });
            }
        };
        // The descriptor holds the number: if the start time is the container's now, it is the container's process.
        let same = start_time(self.pid).is_ok_and(|time| time == self.start_time);
        let ended =
            sys::fd::wait_readable(pidfd.as_fd(), Some(std::time::Duration::ZERO)).map_err(|source| {
                OciError::Step {
                    action: "look at the container's process",
                    source,
                }
            })?;
        Ok((same && !ended).then_some(pidfd))
    }

    /// Its cgroup, which may be gone.
    pub fn cgroup(&self) -> Result<Cgroup, OciError> {
        let layout = match self.no_cgroup {
            true => Layout::none(),
            false => Layout::detect()?,
        };
        Ok(Cgroup::open(&layout, &self.cgroup)?)
    }

    /// Its processes. Without a cgroup those of its PID namespace, or where that is not its own the first alone.
    pub(super) fn pids(&self) -> Result<Vec<i32>, OciError> {
        if !self.no_cgroup {
            return Ok(self.cgroup()?.pids()?);
        }
        if self.process()?.is_none() {
            return Ok(Vec::new());
        }
        let namespace = |pid: &str| {
            let metadata = fs::metadata(format!("/proc/{pid}/ns/pid"));
            metadata.map(|metadata| metadata.ino())
        };
        let first = match namespace(&self.pid.to_string()) {
            Ok(first) => first,
            // Nobody may look into it while it is still the runtime, just started; and it is alone so far.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(vec![self.pid]),
            Err(error) => return Err(fail("look at", Path::new("/proc"))(error)),
        };
        if namespace("self").is_ok_and(|ours| ours == first) {
            return Ok(vec![self.pid]);
        }
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").map_err(fail("read", Path::new("/proc")))? {
            let name = entry.map_err(fail("read", Path::new("/proc")))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.parse::<i32>().is_ok()) else {
                continue;
            };
            // Of others' processes we may not look, and those that end meanwhile are none.
            if namespace(name).is_ok_and(|one| one == first) {
                pids.extend(name.parse::<i32>());
            }
        }
        pids.sort_unstable();
        Ok(pids)
    }

    /// As long as there is nothing to exec into: what `delete` and hooks need.
    pub(super) fn outline(&self) -> Record {
        let mut config = Spec::default();
        config
            .set_root(self.config.root().clone())
            .set_hooks(self.config.hooks().clone())
            .set_annotations(self.config.annotations().clone())
            .set_process(None)
            .set_mounts(None)
            .set_linux(None);
        Record {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            creating: self.creating,
            pid: self.pid,
            start_time: self.start_time,
            cgroup: self.cgroup.clone(),
            unit: self.unit.clone(),
            no_cgroup: self.no_cgroup,
            rdt: self.rdt.clone(),
            mounted_over: self.mounted_over,
            created: self.created.clone(),
            config,
        }
    }

    /// The bytes that `read_state` reads. `path` is what an error calls them.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, OciError> {
        let bytes = serde_json::to_vec(self).map_err(|source| OciError::Json {
            path: path.to_owned(),
            source,
        })?;
        // What could not be read again is not written.
        check_size(bytes.len(), path)?;
        Ok(bytes)
    }

    /// What `state` prints and `list` lists.
    pub fn describe(&self, status: Status) -> serde_json::Value {
        let rootfs = self
            .config
            .root()
            .as_ref()
            .map(|root| self.bundle.join(root.path()));
        serde_json::json!({
            "ociVersion": SPEC_VERSION,
            "id": self.id,
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "status": status,
            "bundle": self.bundle,
            "rootfs": rootfs,
            "created": self.created,
            "annotations": self.config.annotations().clone().unwrap_or_default(),
            "owner": "",
        })
    }
}

/// The mount that a path lies on (`mnt_id` of proc_pid_fdinfo(5)).
pub(super) fn mount_of(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH)
        .open(path)?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// When a process started, in clock ticks since boot.
pub(super) fn start_time(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; the last parenthesis ends it. Field 3 follows.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
