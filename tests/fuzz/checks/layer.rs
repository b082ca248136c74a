//! What holds of any bytes that come as a layer of an image. The fuzzer calls it, and a test of the agent does with the
//! corpus.

#![allow(
    unreachable_pub,
    reason = "a module of tests and of the fuzzers' library, which exports it"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Unpacks an archive into a directory; how many bytes of files it held, or why not.
pub type Unpack = fn(BorrowedFd<'_>, &[u8]) -> Result<u64, String>;

const OUTSIDE: &str = "untouched";
/// Largest id of a container.
const ID_MAX: u32 = 65_535;
/// As deep as a directory may be.
const DEPTH_MAX: usize = 256;

/// Whether the bytes are taken or refused: nothing is written outside the directory, and nothing is in it that a layer may
/// not have. It runs as root, as the store does.
pub fn layer(bytes: &[u8], unpack: Unpack) {
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let (root, outside) = (place.path().join("root"), place.path().join("outside"));
    fs::create_dir(&root).expect("a directory can be made");
    fs::write(&outside, OUTSIDE).expect("a file can be written");
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o640)).expect("a mode can be set");
    let before = fs::metadata(&outside).expect("a file can be looked at");
    let directory = fs::File::open(&root).expect("a directory can be opened");

    let result = unpack(directory.as_fd(), bytes);

    let names: BTreeSet<_> = fs::read_dir(place.path())
        .expect("a directory can be listed")
        .map(|entry| entry.expect("a directory can be listed").file_name())
        .collect();
    assert_eq!(
        names,
        ["outside".into(), "root".into()].into(),
        "something appeared beside the root"
    );
    let after = fs::symlink_metadata(&outside).expect("the file outside is there");
    assert_eq!(
        (
            after.ino(),
            after.nlink(),
            after.mode(),
            after.uid(),
            after.mtime_nsec()
        ),
        (before.ino(), 1, before.mode(), before.uid(), before.mtime_nsec()),
        "the file outside was changed"
    );
    assert_eq!(
        fs::read(&outside).expect("the file outside is there"),
        OUTSIDE.as_bytes()
    );
    let mut seen = BTreeSet::new();
    let held = look(&root, 0, &mut seen);
    if let Ok(bytes) = result {
        assert!(
            held <= bytes,
            "{held} bytes in files of an archive that had {bytes}"
        );
    }
}

/// Looks at a directory and all below; how many bytes its files have, each counted once.
fn look(directory: &Path, depth: usize, seen: &mut BTreeSet<u64>) -> u64 {
    assert!(depth <= DEPTH_MAX, "{} is too deep", directory.display());
    attributes(directory, depth > 0);
    let mut bytes = 0;
    for entry in fs::read_dir(directory).expect("a directory can be listed") {
        let path = entry.expect("a directory can be listed").path();
        let meta = fs::symlink_metadata(&path).expect("an entry can be looked at");
        let kind = meta.file_type();
        let shown = path.display();
        assert!(meta.uid() <= ID_MAX && meta.gid() <= ID_MAX, "owner of {shown}");
        assert!(
            !kind.is_block_device() && !kind.is_socket(),
            "{shown} is a device or a socket"
        );
        // A whiteout.
        assert!(!kind.is_char_device() || meta.rdev() == 0, "{shown} is a device");
        if kind.is_dir() {
            bytes += look(&path, depth + 1, seen);
        } else if kind.is_file() {
            attributes(&path, true);
            bytes += if seen.insert(meta.ino()) { meta.len() } else { 0 };
        }
    }
    bytes
}

/// Extended attributes that an image may have, and overlayfs's word for an opaque directory; of the root itself, which
/// the test's own machine may label, only overlayfs's are looked at.
fn attributes(path: &Path, all: bool) {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("attributes can be listed");
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = str::from_utf8(name).expect("the kernel's prefixes are ASCII, and ours UTF-8");
        if name == "trusted.overlay.opaque" {
            let mut value = [0; 2];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute can be read");
            assert_eq!(&value[..length], b"y", "{}", path.display());
            continue;
        }
        let allowed = name.starts_with("user.") || matches!(name, "security.capability" | "security.selinux");
        assert!(
            allowed || !all && !name.starts_with("trusted."),
            "{name} of {}",
            path.display()
        );
    }
}
