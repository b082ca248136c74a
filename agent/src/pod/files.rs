//! A pod's directories, and the files of /etc that its containers share.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use proto::v1::Pod;
use rustix::fs::XattrFlags;

use super::spec;
use crate::settings::Settings;

/// The extended attribute that SELinux reads.
const SELINUX: &str = "security.selinux";
/// Largest file of the node's that is copied.
const NODE_FILE_BYTES_MAX: u64 = 64 << 10;

/// Why a file of a pod could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}", .path.display())]
pub(super) struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

/// Where what of a pod lies.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The monitor's directory; volatile.
    pub(super) monitor: PathBuf,
    /// Volumes and writable layers; on disk.
    pub(super) data: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) uid: String,
}

impl Paths {
    pub(super) fn new(settings: &Settings, uid: &str) -> Self {
        Self {
            monitor: settings.monitor_dir(uid),
            data: settings.pod_dir(uid),
            logs: settings.logs_dir(),
            uid: uid.to_owned(),
        }
    }

    /// The pod as last seen, for an agent that has to end it and is not told of it any more.
    pub(super) fn pod(&self) -> PathBuf {
        self.monitor.join("pod.pb")
    }

    /// One of hosts, hostname, resolv.conf.
    pub(super) fn etc(&self, name: &str) -> PathBuf {
        self.monitor.join("etc").join(name)
    }

    /// /dev/shm of a pod with several containers.
    pub(super) fn shm(&self) -> PathBuf {
        self.monitor.join("shm")
    }

    /// What a run was started with.
    pub(super) fn spec(&self, run: &str) -> PathBuf {
        self.monitor.join(format!("{run}.json"))
    }

    /// Where a run leaves its last words.
    pub(super) fn termination(&self, run: &str) -> PathBuf {
        self.monitor.join(format!("{run}.message"))
    }

    /// Writable layers of all runs.
    pub(super) fn runs(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// A run's writable layer.
    pub(super) fn run(&self, run: &str) -> PathBuf {
        self.runs().join(run)
    }

    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.data.join("volumes").join(name)
    }

    /// Logs of all containers: `NAMESPACE_NAME_UID`.
    pub(super) fn log_dirs(&self) -> Result<Vec<PathBuf>, FileError> {
        let suffix = format!("_{}", self.uid);
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.logs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(failed("list", &self.logs)(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed("list", &self.logs))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.ends_with(&suffix)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Whether anything is there that would have to be removed.
    pub(super) fn exist(&self) -> bool {
        self.monitor.exists() || self.data.exists()
    }
}

/// Whom files for containers belong to, and their label where SELinux is on.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// Host id of root inside.
    pub(super) root: u32,
    pub(super) label: Option<String>,
}

impl Owner {
    /// Gives a file or directory to an id inside.
    pub(super) fn give(&self, path: &Path, uid: u32, gid: u32) -> Result<(), FileError> {
        let host = |id: u32| self.root.saturating_add(id);
        std::os::unix::fs::lchown(path, Some(host(uid)), Some(host(gid)))
            .map_err(failed("set the owner of", path))?;
        self.mark(path)
    }

    /// Labels a file or directory.
    pub(super) fn mark(&self, path: &Path) -> Result<(), FileError> {
        self.label_by(|label, flags| rustix::fs::lsetxattr(path, SELINUX, label, flags))
            .map_err(failed("label", path))
    }

    /// Labels what is open, by O_PATH too, which fsetxattr(2) does not take.
    pub(super) fn mark_open(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.label_by(|label, flags| rustix::fs::setxattr(path, SELINUX, label, flags))
    }

    fn label_by(&self, set: impl FnOnce(&[u8], XattrFlags) -> rustix::io::Result<()>) -> io::Result<()> {
        let Some(label) = &self.label else { return Ok(()) };
        match set(label.as_bytes(), XattrFlags::empty()) {
            // A file system without labels has one for all of it.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes a directory, and those above it; fine when it is there.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(failed("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))
}

/// Writes a file in place, so that what is bound into containers stays the same file.
fn write(path: &Path, text: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .map_err(failed("write", path))?;
    file.write_all(text).map_err(failed("write", path))
}

/// A new empty file of an id inside that anybody inside may write.
pub(super) fn message_file(path: &Path, owner: &Owner, uid: u32, gid: u32) -> Result<(), FileError> {
    write(path, b"", 0o666)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed("set the mode of", path))?;
    owner.give(path, uid, gid)
}

/// The pod's hosts, hostname and resolv.conf.
pub(super) fn write_etc(
    paths: &Paths,
    pod: &Pod,
    address: Option<Ipv4Addr>,
    owner: &Owner,
) -> Result<(), FileError> {
    let directory = paths.monitor.join("etc");
    make_dir(&directory, 0o755)?;
    let hostname = spec::hostname(pod);
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network);
    let hosts = match (host_network, address) {
        (false, Some(address)) => hosts(address, &hostname),
        _ => node_file(Path::new("/etc/hosts")).unwrap_or_else(|| hosts_without(None)),
    };
    let resolver = node_file(Path::new("/etc/resolv.conf")).unwrap_or_default();
    // systemd-resolved listens on the node's loopback, which is not the pod's; its own list is beside it.
    let resolver = match !host_network && names_loopback(&resolver) {
        true => node_file(Path::new("/run/systemd/resolve/resolv.conf")).unwrap_or(resolver),
        false => resolver,
    };
    for (name, text) in [
        ("hosts", hosts),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolver),
    ] {
        let path = paths.etc(name);
        write(&path, text.as_bytes(), 0o644)?;
        owner.give(&path, 0, 0)?;
    }
    Ok(())
}

/// A file of the node's; none when it has none, or one that is no such file.
fn node_file(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(NODE_FILE_BYTES_MAX).read_to_end(&mut text));
    read.ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn names_loopback(resolver: &str) -> bool {
    resolver
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .any(|address| address.trim().starts_with("127."))
}

fn hosts(address: Ipv4Addr, hostname: &str) -> String {
    hosts_without(Some(&format!("{address}\t{hostname}\n")))
}

fn hosts_without(own: Option<&str>) -> String {
    format!(
        "# Made for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n{}",
        own.unwrap_or_default()
    )
}

/// Unmounts whatever is mounted below a directory, the innermost first.
pub(super) fn unmount_below(directory: &Path) -> Result<(), FileError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(failed("read", table))?;
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| Some(PathBuf::from(runtime::inspect::unescape(line.split(' ').nth(4)?))))
        .filter(|point| point.starts_with(directory))
        .collect();
    points.reverse(); // later lines lie on top
    for point in points {
        umount2(&point, MntFlags::MNT_DETACH).map_err(|error| failed("unmount", &point)(error.into()))?;
    }
    Ok(())
}

/// Removes a tree; fine when it is not there.
pub(super) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    // Containers can nest deeper than one process may have descriptors; rm(1) walks with few.
    let status = Command::new("rm")
        .args(["-rf", "--one-file-system", "--"])
        .arg(path)
        .status()
        .map_err(failed("remove", path))?;
    match status.success() {
        true => Ok(()),
        false => Err(failed("remove", path)(io::Error::other(format!(
            "rm ended with {status}"
        )))),
    }
}

/// Removes a file; fine when it is not there.
pub(super) fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes everything of a pod.
pub(super) fn remove_all(paths: &Paths) -> Result<(), FileError> {
    for directory in [&paths.monitor, &paths.data] {
        if directory.exists() {
            unmount_below(directory)?;
        }
    }
    // The monitor's last: it holds the pod as last seen, without which a next try knows less.
    for logs in paths.log_dirs()? {
        remove_tree(&logs)?;
    }
    remove_tree(&paths.data)?;
    remove_tree(&paths.monitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ObjectMeta, PodSpec};

    fn paths(temp: &Path) -> Paths {
        Paths {
            monitor: temp.join("run/u1"),
            data: temp.join("data/u1"),
            logs: temp.join("log"),
            uid: "u1".into(),
        }
    }

    fn me() -> Owner {
        Owner {
            root: rustix::process::getuid().as_raw(),
            label: None,
        }
    }

    #[test]
    fn a_pod_finds_itself_in_its_hosts() {
        let temp = tempfile::tempdir().unwrap();
        let paths = paths(temp.path());
        let pod = Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec::default()),
            ..Pod::default()
        };
        write_etc(&paths, &pod, Some(Ipv4Addr::new(10, 244, 0, 2)), &me()).unwrap();
        let hosts = fs::read_to_string(paths.etc("hosts")).unwrap();
        assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.contains("10.244.0.2\tweb\n"));
        assert_eq!(fs::read_to_string(paths.etc("hostname")).unwrap(), "web\n");
    }

    #[test]
    fn a_resolver_on_loopback_is_not_the_pods() {
        assert!(names_loopback("# x\nnameserver 127.0.0.53\n"));
        assert!(!names_loopback("nameserver 192.0.2.1\nsearch example\n"));
    }

    #[test]
    fn all_of_a_pod_is_removed_and_nothing_of_another() {
        let temp = tempfile::tempdir().unwrap();
        let paths = paths(temp.path());
        for path in [
            paths.monitor.join("x"),
            paths.volume("v"),
            temp.path().join("log/ns_a_u1/c"),
            temp.path().join("log/ns_b_u11/c"),
        ] {
            fs::create_dir_all(path).unwrap();
        }
        assert!(paths.exist());
        remove_all(&paths).unwrap();
        remove_all(&paths).unwrap();
        assert!(!paths.exist());
        let left: Vec<_> = fs::read_dir(temp.path().join("log"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["ns_b_u11"]);
    }
}
