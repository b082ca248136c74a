//! Who a container runs as: `USER[:GROUP]` of an image looked up in the image's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::Image;

/// Largest /etc/passwd or /etc/group that is read.
const BYTES_MAX: u64 = 1 << 20;
/// Most supplementary groups of one user that are taken: the kernel's own limit (getgroups(2), NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

/// Ids inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Groups whose member the user is by name.
    pub additional_gids: Vec<u32>,
    /// The user's home, when /etc/passwd has one.
    pub home: Option<String>,
}

/// Why nobody was found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("the image's {file} has no {name}")]
    Unknown {
        /// /etc/passwd or /etc/group.
        file: &'static str,
        /// The name.
        name: String,
    },
    /// A file of the image could not be read.
    #[error("failed to read the image's {file}")]
    Read {
        /// Which.
        file: &'static str,
        /// Cause.
        source: io::Error,
    },
}

impl Image {
    /// The ids that `spec` means in this image; an empty one is root.
    pub fn user(&self, spec: &str) -> Result<User, UserError> {
        let (name, group) = spec.split_once(':').unwrap_or((spec, ""));
        let name = if name.is_empty() { "0" } else { name };
        let passwd = self.file("/etc/passwd")?;
        let entry = passwd.lines().map(fields).find(|fields| matches(fields, name));
        let number = |entry: &Option<Vec<&str>>, at: usize| {
            entry.as_ref().and_then(|entry| entry.get(at)?.parse().ok())
        };
        let uid = number(&entry, 2).or_else(|| name.parse().ok());
        let uid = uid.ok_or_else(|| UserError::Unknown {
            file: "/etc/passwd",
            name: name.to_owned(),
        })?;
        let mut user = User {
            uid,
            gid: number(&entry, 3).unwrap_or(0),
            ..User::default()
        };
        user.home = entry
            .as_ref()
            .and_then(|entry| entry.get(5))
            .map(|home| (*home).to_owned());
        let groups = self.file("/etc/group")?;
        if !group.is_empty() {
            let entry = groups.lines().map(fields).find(|fields| matches(fields, group));
            let gid = number(&entry, 2).or_else(|| group.parse().ok());
            user.gid = gid.ok_or_else(|| UserError::Unknown {
                file: "/etc/group",
                name: group.to_owned(),
            })?;
            return Ok(user); // a group that is named is the only one, as docker has it
        }
        if let Some(login) = entry.as_ref().and_then(|entry| entry.first()) {
            let member = |entry: &Vec<&str>| {
                entry
                    .get(3)
                    .is_some_and(|members| members.split(',').any(|one| one == *login))
            };
            let gids = groups
                .lines()
                .map(fields)
                .filter(member)
                .filter_map(|entry| entry.get(2)?.parse().ok());
            user.additional_gids = gids.filter(|gid| *gid != user.gid).take(GROUPS_MAX).collect();
        }
        Ok(user)
    }

    /// A file of the image, from the topmost layer that has it; empty when none has, or a layer has taken it away.
    fn file(&self, path: &'static str) -> Result<String, UserError> {
        let failed = |source| UserError::Read { file: path, source };
        for layer in &self.layers {
            let root = File::open(layer).map_err(failed)?;
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let file = match openat2(&root, Path::new(path), flags, Mode::empty(), within) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => continue,
                Err(error) => return Err(failed(error.into())),
            };
            let kind = file.metadata().map_err(failed)?.file_type();
            if kind.is_char_device() {
                return Ok(String::new()); // a whiteout
            }
            if !kind.is_file() {
                continue;
            }
            let mut bytes = Vec::new();
            file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(String::new())
    }
}

fn fields(line: &str) -> Vec<&str> {
    line.trim().split(':').collect()
}

/// By name, or by number when the name is one.
fn matches(fields: &[&str], wanted: &str) -> bool {
    let number = wanted.parse::<u32>().is_ok();
    fields.first() == Some(&wanted) || (number && fields.get(2) == Some(&wanted))
}
