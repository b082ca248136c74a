//! What an entry of a layer says of itself, checked.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Gid, Mode, Timespec, Uid};
use tar::Entry;

use super::unpack::UnpackError;

/// Largest id that exists in a container: pods have 65,536.
const ID_MAX: u64 = 65_535;
/// Most of an entry's name in an error.
const SHOWN_CHARACTERS_MAX: usize = 256;

/// Owner, mode and time of an entry.
#[derive(Clone, Copy)]
pub(super) struct Attributes {
    pub uid: Uid,
    pub gid: Gid,
    pub mode: Mode,
    pub time: Timespec,
}

pub(super) fn attributes(entry: &Entry<impl Read>, shown: &Path) -> Result<Attributes, UnpackError> {
    let header = entry.header();
    let number = |value: io::Result<u64>| value.map_err(UnpackError::archive);
    let (uid, gid) = (number(header.uid())?, number(header.gid())?);
    if uid > ID_MAX || gid > ID_MAX {
        let reason = format!("its owner {uid}:{gid} is beyond {ID_MAX}, the last id of a container");
        return Err(UnpackError::Refused {
            path: shown.to_owned(),
            reason,
        });
    }
    let mode = header.mode().map_err(UnpackError::archive)?;
    let seconds = i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX);
    // Both checked to be below 65,536.
    let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
    Ok(Attributes {
        uid: Uid::from_raw(id(uid)),
        gid: Gid::from_raw(id(gid)),
        mode: Mode::from_raw_mode(mode & 0o7777),
        time: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    })
}

/// An entry's name for people: whatever it holds, one short line.
pub(super) fn shown(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        shown.push_str("...");
    }
    PathBuf::from(shown)
}

/// The entry's path below the root; leading slashes and `.` mean nothing, `..` is refused even where it would stay inside.
pub(super) fn inside(path: &Path, shown: &Path) -> Result<PathBuf, UnpackError> {
    let refused = |reason: &str| UnpackError::Refused {
        path: shown.to_owned(),
        reason: reason.to_owned(),
    };
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(refused("its name has a NUL byte"));
    }
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(refused("its name has `..` in it")),
        }
    }
    Ok(clean)
}

pub(super) fn link_name(entry: &Entry<impl Read>, shown: &Path) -> Result<OsString, UnpackError> {
    match entry.link_name_bytes() {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(OsStr::from_bytes(&name).to_owned()),
        _ => Err(UnpackError::Refused {
            path: shown.to_owned(),
            reason: "a link to nothing".to_owned(),
        }),
    }
}
