//! A ConfigMap or a Secret as files. As in Kubernetes, a volume's visible names are links through `..data`, which is replaced at once:
//! a reader sees all of the old content or all of the new.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use model::Kind;
use proto::v1::{KeyToPath, Volume};

use super::VolumeError;
use crate::configs::{Configs, Content};
use crate::pod::files::{self, FileError, Owner};

/// The link to what holds now.
const DATA: &str = "..data";
const DATA_NEW: &str = "..data_new";

/// Content and mode by path.
type Payload = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Which keys a volume shows, and how.
pub(super) struct Source<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) items: &'a [KeyToPath],
    pub(super) default_mode: Option<i32>,
    pub(super) optional: bool,
}

/// Of a volume that shows a ConfigMap or a Secret.
pub(super) fn source(volume: &Volume) -> Option<Source<'_>> {
    let map = volume.config_map.as_ref().map(|map| Source {
        kind: Kind::ConfigMap,
        name: &map.name,
        items: &map.items,
        default_mode: map.default_mode,
        optional: map.optional == Some(true),
    });
    let secret = volume.secret.as_ref();
    map.or_else(|| {
        secret.map(|secret| Source {
            kind: Kind::Secret,
            name: &secret.secret_name,
            items: &secret.items,
            default_mode: secret.default_mode,
            optional: secret.optional == Some(true),
        })
    })
}

impl Source<'_> {
    pub(super) fn content<'b>(&self, namespace: &str, configs: &'b Configs) -> Option<Content<'b>> {
        configs.content(self.kind, &format!("{namespace}/{}", self.name))
    }
}

/// Whether a volume shows something already.
pub(super) fn has_content(path: &Path) -> bool {
    path.join(DATA).exists()
}

/// Makes the volume or brings it up to date. What has gone leaves a volume as it is.
pub(super) fn prepare(
    path: &Path,
    source: &Source<'_>,
    content: Option<Content<'_>>,
    owner: &Owner,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let payload = match content {
        Some(content) => payload(source, content, group)?,
        None if source.optional => Payload::new(),
        None if has_content(path) => return Ok(()),
        None => {
            return Err(VolumeError::NotFound {
                kind: source.kind,
                name: source.name.to_owned(),
            });
        }
    };
    Ok(write(path, &payload, owner, group)?)
}

/// What the volume shows: all keys, or the items chosen.
fn payload(source: &Source<'_>, content: Content<'_>, group: Option<u32>) -> Result<Payload, VolumeError> {
    let mode = |mode: Option<i32>| {
        let mode = mode.or(source.default_mode).unwrap_or(model::default::FILE_MODE);
        let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
        // Kubernetes: a group that owns a volume's files may read them.
        if group.is_some() { mode | 0o440 } else { mode }
    };
    if source.items.is_empty() {
        let entries = content.entries();
        let files = entries.map(|(key, bytes)| (PathBuf::from(key), (bytes.to_vec(), mode(None))));
        return Ok(files.collect());
    }
    let mut payload = Payload::new();
    for item in source.items {
        match content.get(&item.key) {
            Some(bytes) => {
                payload.insert(PathBuf::from(&item.path), (bytes.to_vec(), mode(item.mode)));
            }
            None if source.optional => {}
            None => {
                return Err(VolumeError::NoKey {
                    kind: source.kind,
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(payload)
}

/// | crash          | what a reader sees            | the next call                        |
/// |----------------|-------------------------------|--------------------------------------|
/// | before rename  | the old content               | makes a new directory, removes others |
/// | after rename   | the new content               | adds links that are missing          |
fn write(path: &Path, payload: &Payload, owner: &Owner, group: Option<u32>) -> Result<(), FileError> {
    files::make_dir(path, 0o755)?;
    owner.give(path, 0, group.unwrap_or(0))?;
    let data = path.join(DATA);
    let current = match fs::read_link(&data) {
        Ok(target) => Some(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(files::failed("read", &data)(error)),
    };
    let target = match current {
        Some(target) if holds(&path.join(&target), payload) => target,
        _ => replace(path, payload, owner, group)?,
    };
    // Names that show; deeper ones come with their first part.
    let names: BTreeSet<PathBuf> = payload
        .keys()
        .filter_map(|path| {
            path.components()
                .next()
                .map(|part| PathBuf::from(part.as_os_str()))
        })
        .collect();
    for name in &names {
        let link = path.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Ok(()) => owner.give(&link, 0, group.unwrap_or(0))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(files::failed("create", &link)(error)),
        }
    }
    for entry in fs::read_dir(path).map_err(files::failed("list", path))? {
        let entry = entry.map_err(files::failed("list", path))?;
        let name = PathBuf::from(entry.file_name());
        if name == Path::new(DATA) || name == target || names.contains(&name) {
            continue;
        }
        match entry
            .file_type()
            .map_err(files::failed("look at", path))?
            .is_dir()
        {
            true => files::remove_tree(&entry.path())?,
            false => files::remove_file(&entry.path())?,
        }
    }
    Ok(())
}

/// Writes a new directory and makes it the one that shows.
fn replace(path: &Path, payload: &Payload, owner: &Owner, group: Option<u32>) -> Result<PathBuf, FileError> {
    let mut number = 0u64;
    let name = loop {
        let name = PathBuf::from(format!("..{number}"));
        match fs::create_dir(path.join(&name)) {
            Ok(()) => break name,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(files::failed("create", &path.join(&name))(error)),
        }
    };
    let directory = path.join(&name);
    owner.give(&directory, 0, group.unwrap_or(0))?;
    for (relative, (bytes, mode)) in payload {
        let mut made = directory.clone();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            made.push(part);
            if !made.is_dir() {
                files::make_dir(&made, 0o755)?;
                owner.give(&made, 0, group.unwrap_or(0))?;
            }
        }
        let file = directory.join(relative);
        fs::write(&file, bytes).map_err(files::failed("write", &file))?;
        owner.give(&file, 0, group.unwrap_or(0))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))
            .map_err(files::failed("set the mode of", &file))?;
    }
    let new = path.join(DATA_NEW);
    files::remove_file(&new)?;
    symlink(&name, &new).map_err(files::failed("create", &new))?;
    owner.give(&new, 0, group.unwrap_or(0))?;
    let data = path.join(DATA);
    fs::rename(&new, &data).map_err(files::failed("replace", &data))?;
    Ok(name)
}

/// Whether a directory has this content already; what cannot be read is written anew.
fn holds(directory: &Path, payload: &Payload) -> bool {
    let Ok(count) = count_files(directory) else {
        return false;
    };
    count == payload.len()
        && payload.iter().all(|(relative, (bytes, mode))| {
            let file = directory.join(relative);
            let same_mode = fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o777 == *mode);
            same_mode && fs::read(&file).is_ok_and(|found| found == *bytes)
        })
}

/// The agent alone writes there: as deep as a manifest's paths.
fn count_files(directory: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        count += match entry.file_type()?.is_dir() {
            true => count_files(&entry.path())?,
            false => 1,
        };
    }
    Ok(count)
}
