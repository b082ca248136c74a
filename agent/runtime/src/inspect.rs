//! What a container really has, read from the kernel's own files, beside what it was to have.
//!
//! `observe` reads and decides nothing; `compare` decides and reads nothing. A row that is not `isolated` says that the
//! kernel and the specification differ.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sys::path::Resolve;

pub use compare::{Row, compare};

use crate::cgroup::{Cgroup, CgroupError, Values};
use crate::spec::ContainerSpec;

/// Why a container could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Its process id.
        pid: i32,
    },
    /// A file of the kernel's.
    #[error("failed to read {}", .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its cgroup.
    #[error("failed to read the cgroup")]
    Cgroup(#[from] CgroupError),
}

/// The namespaces looked at, by the kernel's names for them.
pub const NAMESPACES: [&str; 7] = ["user", "mnt", "uts", "ipc", "pid", "net", "cgroup"];

/// A namespace of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number.
    pub inode: u64,
    /// Whether the observer is in it too: then it is the host's.
    pub host: bool,
}

/// One mount of a container, innermost last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Which part of its file system is mounted.
    pub root: String,
    /// Where.
    pub point: PathBuf,
    /// Options of the mount.
    pub options: BTreeSet<String>,
    /// Type of the file system.
    pub fstype: String,
}

/// What the kernel says of a container's first process.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// By kind.
    pub namespaces: BTreeMap<&'static str, Namespace>,
    /// First id inside, first on the host, how many.
    pub uid_map: Vec<(u32, u32, u32)>,
    /// As `uid_map`.
    pub gid_map: Vec<(u32, u32, u32)>,
    /// 0 none, 1 strict, 2 filters.
    pub seccomp_mode: u32,
    /// How many filters; none where the kernel does not say (before 5.9).
    pub seccomp_filters: Option<u32>,
    /// The process can gain nothing by exec.
    pub no_new_privs: bool,
    /// Masks by number.
    pub effective: u64,
    /// Masks by number.
    pub permitted: u64,
    /// Masks by number.
    pub bounding: u64,
    /// The security module's label; none where there is no module.
    pub label: Option<String>,
    /// The specification's SELinux label in the kernel's spelling; none where the kernel does not know it.
    pub label_specified: Option<String>,
    /// Paths in the hierarchies that the process is in, in the kernel's order.
    pub cgroups: BTreeSet<String>,
    /// Where its group is expected.
    pub cgroup_expected: PathBuf,
    /// Whether limits are cgroup v2's.
    pub cgroup_v2: bool,
    /// The limits that hold.
    pub limits: Values,
    /// All its mounts.
    pub mounts: Vec<MountLine>,
    /// Those of the specification's masked and read-only paths that do not exist inside.
    pub absent: BTreeSet<String>,
}

/// Reads everything about a container's first process.
pub fn observe(pid: i32, cgroup: &Cgroup, spec: &ContainerSpec) -> Result<Observed, InspectError> {
    let file = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let read = |name: &str| fs::read_to_string(file(name)).map_err(|source| gone_or(pid, file(name), source));
    let mut namespaces = BTreeMap::new();
    for kind in NAMESPACES {
        let inode = |path: PathBuf| match fs::metadata(&path) {
            Ok(namespace) => Ok(namespace.ino()),
            Err(source) => Err(gone_or(pid, path, source)),
        };
        let its = inode(file(&format!("ns/{kind}")))?;
        namespaces.insert(
            kind,
            Namespace {
                inode: its,
                host: its == inode(format!("/proc/self/ns/{kind}").into())?,
            },
        );
    }
    let status = read("status")?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let mask = |name: &str| {
        field(name)
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or(0)
    };
    let label = match fs::read_to_string(file("attr/current")) {
        Ok(label) => Some(label.trim_end_matches(['\0', '\n']).to_owned()),
        // EINVAL: no module answers.
        Err(_) => None,
    };
    Ok(Observed {
        namespaces,
        uid_map: id_map(&read("uid_map")?),
        gid_map: id_map(&read("gid_map")?),
        seccomp_mode: field("Seccomp").and_then(|text| text.parse().ok()).unwrap_or(0),
        seccomp_filters: field("Seccomp_filters").and_then(|text| text.parse().ok()),
        no_new_privs: field("NoNewPrivs") == Some("1"),
        effective: mask("CapEff"),
        permitted: mask("CapPrm"),
        bounding: mask("CapBnd"),
        label,
        label_specified: spec
            .config
            .process()
            .as_ref()
            .and_then(|process| process.selinux_label().as_deref())
            .and_then(spelled),
        cgroups: read("cgroup")?
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2).map(str::to_owned))
            .collect(),
        cgroup_expected: cgroup.path(),
        cgroup_v2: cgroup.layout().is_v2(),
        limits: cgroup.values()?,
        mounts: mount_lines(&read("mountinfo")?),
        absent: absent(pid, spec)?,
    })
}

/// A label as the kernel spells it: of `s0:c3,c2,c1` it makes `s0:c1.c3`. None where it has no such label, or no SELinux.
fn spelled(label: &str) -> Option<String> {
    // Answers in the same open file (Linux, security/selinux/selinuxfs.c, selinux_transaction_write).
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/sys/fs/selinux/context")
        .ok()?;
    file.write_all(label.as_bytes()).ok()?;
    let mut answer = String::new();
    file.take(LABEL_BYTES_MAX).read_to_string(&mut answer).ok()?;
    Some(answer.trim_end_matches('\0').to_owned())
}

/// The kernel answers with at most a page.
const LABEL_BYTES_MAX: u64 = 4096;

fn gone_or(pid: i32, path: PathBuf, source: io::Error) -> InspectError {
    const ESRCH: i32 = nix::libc::ESRCH;
    if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(ESRCH) {
        InspectError::Gone { pid }
    } else {
        InspectError::File { path, source }
    }
}

fn id_map(text: &str) -> Vec<(u32, u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
                numbers.next()?.ok()?,
            ))
        })
        .collect()
}

/// The lines of a mountinfo file.
pub(crate) fn mount_lines(text: &str) -> Vec<MountLine> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            Some(MountLine {
                root: unescape(left.next()?),
                point: unescape(left.next()?).into(),
                options: left.next()?.split(',').map(str::to_owned).collect(),
                fstype: right.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

/// Which of the paths that the specification covers the container does not have at all.
fn absent(pid: i32, spec: &ContainerSpec) -> Result<BTreeSet<String>, InspectError> {
    let mut absent = BTreeSet::new();
    let Some(linux) = spec.config.linux() else {
        return Ok(absent);
    };
    let path = PathBuf::from(format!("/proc/{pid}/root"));
    let root = fs::File::open(&path).map_err(|source| gone_or(pid, path, source))?;
    for covered in linux
        .masked_paths()
        .iter()
        .chain(linux.readonly_paths())
        .flatten()
    {
        let Ok(inside) = CString::new(covered.trim_start_matches('/')) else {
            continue;
        };
        match sys::path::open(root.as_fd(), &inside, nix::libc::O_PATH, 0, Resolve::InRoot) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {
                absent.insert(covered.clone());
            }
            Err(source) => {
                return Err(InspectError::File {
                    path: Path::new(covered).to_owned(),
                    source,
                });
            }
        }
    }
    Ok(absent)
}

/// A path of /proc/PID/mountinfo with its octal escapes undone (proc_pid_mountinfo(5)).
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let raw = text.as_bytes();
    let mut index = 0;
    while index < raw.len() {
        let octal = raw.get(index + 1..index + 4).filter(|_| raw[index] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                index += 4;
            }
            None => {
                bytes.push(raw[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text = "36 35 98:0 /a\\040b /mnt\\134x ro,nosuid master:1 - ext4 /dev/root rw,errors=continue\n\
                    37 35 0:5 / /dev rw - devtmpfs none rw\nnonsense\n";
        let lines = mount_lines(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].root, "/a b");
        assert_eq!(lines[0].point, Path::new("/mnt\\x"));
        assert!(lines[0].options.contains("ro"));
        assert_eq!(lines[1].fstype, "devtmpfs");
        assert_eq!(unescape("a\\04"), "a\\04", "a cut escape is text");
    }
}
