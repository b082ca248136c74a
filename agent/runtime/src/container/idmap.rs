//! Volumes whose ids are mapped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount};
use sys::mount;

use super::StartError;
use super::mounts::Context;
use super::options::MountOptions;
use super::program::invalid;
use crate::sandbox::{self, IdMaps};

/// Maps the ids of a volume when the mount asks: by `idmap` or `ridmap`, with its own mappings or else the container's.
pub(super) fn idmap(
    field: &str,
    source: &Path,
    tree: BorrowedFd<'_>,
    mount: &Mount,
    options: &MountOptions,
    context: &Context<'_>,
) -> Result<Option<OwnedFd>, StartError> {
    let own = match (mount.uid_mappings(), mount.gid_mappings()) {
        (Some(uids), Some(gids)) if !uids.is_empty() && !gids.is_empty() => {
            Some(sandbox::make_user_namespace(&id_maps(uids, gids)).map_err(StartError::Users)?)
        }
        (None, None) => None,
        _ => return Err(invalid(field, "uidMappings and gidMappings must both be given")),
    };
    if own.is_none() && options.idmap.is_none() {
        return Ok(None);
    }
    let users = own
        .as_ref()
        .map(AsFd::as_fd)
        .or(context.users)
        .ok_or_else(|| invalid(field, "idmap without mappings and without a user namespace"))?;
    mount::idmap(tree, users, options.idmap == Some(true)).map_err(|error| StartError::Idmap {
        path: source.to_owned(),
        source: error,
    })?;
    Ok(own)
}

pub(super) fn id_maps(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> IdMaps {
    let all = |list: &[LinuxIdMapping]| {
        list.iter()
            .map(|map| (map.container_id(), map.host_id(), map.size()))
            .collect()
    };
    IdMaps {
        uids: all(uids),
        gids: all(gids),
    }
}

/// Whether a mount is to have the ids of the container's own user namespace, which must then stand before it is made.
pub(super) fn needs_users(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        let mapped = mount.uid_mappings().as_ref().is_some_and(|maps| !maps.is_empty());
        let options = mount.options().iter().flatten();
        !mapped
            && options
                .into_iter()
                .any(|option| matches!(option.as_str(), "idmap" | "ridmap"))
    })
}
