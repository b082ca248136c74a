//! Mount options of the OCI configuration: what each means for the mount, and what is left for the file system.

use sys::mount::{
    Change, MOUNT_ATTR_ATIME_BITS, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
};

use nix::libc;

/// Options, sorted by what they concern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`: with all mounted below.
    pub recursive_bind: bool,
    /// Of this mount.
    pub change: Change,
    /// Of it and all below (`rro` and its kin).
    pub recursive: Change,
    /// `MS_*`, and whether for all below too.
    pub propagation: Option<(u64, bool)>,
    /// `idmap` or `ridmap` (true).
    pub idmap: Option<bool>,
    /// Start a tmpfs with what the image has there.
    pub copy_up: bool,
    /// For the file system: `key` or `key=value`.
    pub data: Vec<(String, Option<String>)>,
}

fn set(change: &mut Change, bits: u64) {
    change.set |= bits;
    change.clear &= !bits;
}

fn clear(change: &mut Change, bits: u64) {
    change.clear |= bits;
    change.set &= !bits;
}

fn atime(change: &mut Change, bits: u64) {
    // mount_setattr(2): the access time modes are one field, to be cleared whole.
    change.set = change.set & !MOUNT_ATTR_ATIME_BITS | bits;
    change.clear |= MOUNT_ATTR_ATIME_BITS;
}

/// Applies an attribute's name to a change; false when it is none.
fn attribute(name: &str, change: &mut Change) -> bool {
    match name {
        "ro" => set(change, MOUNT_ATTR_RDONLY),
        "rw" => clear(change, MOUNT_ATTR_RDONLY),
        "nosuid" => set(change, MOUNT_ATTR_NOSUID),
        "suid" => clear(change, MOUNT_ATTR_NOSUID),
        "nodev" => set(change, MOUNT_ATTR_NODEV),
        "dev" => clear(change, MOUNT_ATTR_NODEV),
        "noexec" => set(change, MOUNT_ATTR_NOEXEC),
        "exec" => clear(change, MOUNT_ATTR_NOEXEC),
        "nosymfollow" => set(change, MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => clear(change, MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => set(change, MOUNT_ATTR_NODIRATIME),
        "diratime" => clear(change, MOUNT_ATTR_NODIRATIME),
        "noatime" => atime(change, MOUNT_ATTR_NOATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => atime(change, MOUNT_ATTR_RELATIME),
        "strictatime" => atime(change, MOUNT_ATTR_STRICTATIME),
        _ => return false,
    }
    true
}

/// Every option that means the same on each mount: what `features` tells.
pub(crate) fn mount_options() -> Vec<&'static str> {
    let mut names = OF_FILE_SYSTEMS.to_vec();
    names.extend(PLAIN);
    names.extend(
        ATTRIBUTES
            .iter()
            .flat_map(|(name, recursive)| [*name, *recursive]),
    );
    names.sort_unstable();
    names
}

/// The file system's own flags, which the kernel's `fsconfig` takes of any.
pub(super) const OF_FILE_SYSTEMS: [&str; 5] = ["dirsync", "lazytime", "mand", "nomand", "sync"];

const PLAIN: [&str; 21] = [
    "async",
    "bind",
    "defaults",
    "idmap",
    "loud",
    "nolazytime",
    "private",
    "rbind",
    "remount",
    "ridmap",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "silent",
    "slave",
    "tmpcopyup",
    "unbindable",
    "noiversion",
    "iversion",
];
/// Attributes of a mount, and of it and all below.
const ATTRIBUTES: [(&str, &str); 18] = [
    ("ro", "rro"),
    ("rw", "rrw"),
    ("nosuid", "rnosuid"),
    ("suid", "rsuid"),
    ("nodev", "rnodev"),
    ("dev", "rdev"),
    ("noexec", "rnoexec"),
    ("exec", "rexec"),
    ("nosymfollow", "rnosymfollow"),
    ("symfollow", "rsymfollow"),
    ("nodiratime", "rnodiratime"),
    ("diratime", "rdiratime"),
    ("noatime", "rnoatime"),
    ("atime", "ratime"),
    ("relatime", "rrelatime"),
    ("norelatime", "rnorelatime"),
    ("strictatime", "rstrictatime"),
    ("nostrictatime", "rnostrictatime"),
];

/// Sorts the options; those that no table knows are the file system's.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        match option.as_str() {
            // Versions of inodes are counted always where they can be: by XFS and Btrfs ever since, by ext4 since Linux 6.1,
            // by tmpfs since 6.6; the new mount API has no word for them.
            "" | "defaults" | "remount" | "loud" | "silent" | "nolazytime" | "async" | "iversion"
            | "noiversion" => {}
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive_bind) = (true, true),
            "private" => parsed.propagation = Some((libc::MS_PRIVATE, false)),
            "rprivate" => parsed.propagation = Some((libc::MS_PRIVATE, true)),
            "slave" => parsed.propagation = Some((libc::MS_SLAVE, false)),
            "rslave" => parsed.propagation = Some((libc::MS_SLAVE, true)),
            "shared" => parsed.propagation = Some((libc::MS_SHARED, false)),
            "rshared" => parsed.propagation = Some((libc::MS_SHARED, true)),
            "unbindable" => parsed.propagation = Some((libc::MS_UNBINDABLE, false)),
            "runbindable" => parsed.propagation = Some((libc::MS_UNBINDABLE, true)),
            "idmap" => parsed.idmap = Some(false),
            "ridmap" => parsed.idmap = Some(true),
            "tmpcopyup" => parsed.copy_up = true,
            name if attribute(name, &mut parsed.change) => {}
            name if name
                .strip_prefix('r')
                .is_some_and(|rest| attribute(rest, &mut parsed.recursive)) => {}
            other => parsed.data.push(match other.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (other.to_owned(), None),
            }),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> MountOptions {
        parse(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn what_features_tells_is_understood() {
        for name in PLAIN.into_iter().chain(
            ATTRIBUTES
                .into_iter()
                .flat_map(|(name, recursive)| [name, recursive]),
        ) {
            assert!(of(&[name]).data.is_empty(), "{name} would be the file system's");
        }
        for (name, recursive) in ATTRIBUTES {
            assert_eq!(of(&[name]).change, of(&[recursive]).recursive);
        }
    }

    #[test]
    fn later_options_win() {
        assert_eq!(of(&["ro", "rw"]).change.set, 0);
        assert_eq!(of(&["rw", "ro"]).change.set, MOUNT_ATTR_RDONLY);
        let times = of(&["noatime", "strictatime"]).change;
        assert_eq!(times.set, MOUNT_ATTR_STRICTATIME);
        assert_eq!(times.clear & MOUNT_ATTR_ATIME_BITS, MOUNT_ATTR_ATIME_BITS);
    }

    #[test]
    fn recursive_attributes_and_data_are_told_apart() {
        let options = of(&[
            "rbind",
            "rro",
            "rnosuid",
            "rslave",
            "size=64k",
            "newinstance",
            "ridmap",
        ]);
        assert!(options.bind && options.recursive_bind);
        assert_eq!(options.recursive.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
        assert_eq!(options.change, Change::default());
        assert_eq!(options.propagation, Some((libc::MS_SLAVE, true)));
        assert_eq!(options.idmap, Some(true));
        assert_eq!(
            options.data,
            [("size".into(), Some("64k".into())), ("newinstance".into(), None)]
        );
        // `relatime` is no recursive `elatime`, `rw` no recursive `w`.
        assert_eq!(of(&["relatime"]).change.set, MOUNT_ATTR_RELATIME);
        assert!(of(&["rw"]).data.is_empty());
    }
}
