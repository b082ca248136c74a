//! Volumes and where they are mounted.

use std::collections::BTreeSet;

use proto::v1::{Container, KeyToPath, PodSpec, Volume};

use super::Errors;
use crate::{name, quantity};

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

pub(super) fn volumes(errors: &mut Errors, path: &str, volumes: &[Volume]) {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if errors.required(format!("{path}.name"), &volume.name) {
            errors.check(format!("{path}.name"), name::dns1123_label(&volume.name));
            if !names.insert(&volume.name) {
                errors.add(
                    format!("{path}.name"),
                    format!("`{}` is the name of another volume too", volume.name),
                );
            }
        }
        let sources = [
            volume.empty_dir.is_some(),
            volume.host_path.is_some(),
            volume.config_map.is_some(),
            volume.secret.is_some(),
        ];
        if sources.iter().filter(|written| **written).count() > 1 {
            errors.add(&path, "a volume has one source");
        }
        source(errors, &path, volume);
    }
}

fn source(errors: &mut Errors, path: &str, volume: &Volume) {
    if let Some(empty) = &volume.empty_dir {
        if empty.medium.starts_with("HugePages") {
            errors.add(
                format!("{path}.emptyDir.medium"),
                format!("{} is not supported yet", empty.medium),
            );
        } else {
            errors.one_of(format!("{path}.emptyDir.medium"), &empty.medium, &["", "Memory"]);
        }
        let limit = empty.size_limit.as_ref().map(quantity::of);
        match limit {
            Some(Err(error)) => errors.add(format!("{path}.emptyDir.sizeLimit"), error.to_string()),
            Some(Ok(amount)) if amount.is_negative() => {
                errors.add(format!("{path}.emptyDir.sizeLimit"), "must not be negative");
            }
            _ => {}
        }
    }
    if let Some(host) = &volume.host_path {
        let field = format!("{path}.hostPath.path");
        if errors.required(field.clone(), &host.path) {
            if !host.path.starts_with('/') {
                errors.add(&field, "must be an absolute path of the node");
            }
            if steps_up(&host.path) {
                errors.add(&field, "must not have `..`");
            }
        }
        errors.one_of(format!("{path}.hostPath.type"), &host.r#type, &HOST_PATH_TYPES);
    }
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        if errors.required(format!("{path}.name"), &map.name) {
            errors.check(format!("{path}.name"), name::dns1123_subdomain(&map.name));
        }
        files(errors, &path, map.default_mode, &map.items);
    }
    if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        if errors.required(format!("{path}.secretName"), &secret.secret_name) {
            let name = name::dns1123_subdomain(&secret.secret_name);
            errors.check(format!("{path}.secretName"), name);
        }
        files(errors, &path, secret.default_mode, &secret.items);
    }
}

/// Keys as files.
fn files(errors: &mut Errors, path: &str, default_mode: Option<i32>, items: &[KeyToPath]) {
    if let Some(bits) = default_mode {
        mode(errors, format!("{path}.defaultMode"), bits);
    }
    let mut paths = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if errors.required(format!("{path}.key"), &item.key) {
            errors.check(format!("{path}.key"), name::config_key(&item.key));
        }
        if errors.required(format!("{path}.path"), &item.path) {
            if item.path.starts_with('/') || item.path.starts_with("..") || steps_up(&item.path) {
                errors.add(format!("{path}.path"), "must be a relative path without `..`");
            }
            if !paths.insert(&item.path) {
                errors.add(
                    format!("{path}.path"),
                    format!("`{}` is written twice", item.path),
                );
            }
        }
        if let Some(bits) = item.mode {
            mode(errors, format!("{path}.mode"), bits);
        }
    }
}

fn mode(errors: &mut Errors, path: String, bits: i32) {
    if !(0..=0o777).contains(&bits) {
        let message = format!("must be from 0 to 0777 (511 in decimal), is {bits}; octal needs a leading 0");
        errors.add(path, message);
    }
}

fn steps_up(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

pub(super) fn mounts(errors: &mut Errors, path: &str, container: &Container, pod: &PodSpec) {
    let mut paths = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if errors.required(format!("{path}.name"), &mount.name)
            && !pod.volumes.iter().any(|volume| volume.name == mount.name)
        {
            let names = pod.volumes.iter().map(|volume| volume.name.as_str());
            let hint = crate::schema::hint(crate::schema::nearest(&mount.name, names).as_deref());
            errors.add(
                format!("{path}.name"),
                format!("the pod has no volume `{}`{hint}", mount.name),
            );
        }
        if errors.required(format!("{path}.mountPath"), &mount.mount_path) {
            if !mount.mount_path.starts_with('/') || steps_up(&mount.mount_path) {
                errors.add(
                    format!("{path}.mountPath"),
                    "must be an absolute path without `..`",
                );
            } else if mount.mount_path.contains(':') {
                errors.add(format!("{path}.mountPath"), "must not have `:`");
            } else if mount.mount_path.trim_end_matches('/').is_empty() {
                errors.add(format!("{path}.mountPath"), "must not be the root");
            }
            if !paths.insert(mount.mount_path.trim_end_matches('/')) {
                errors.add(
                    format!("{path}.mountPath"),
                    format!("`{}` is mounted twice", mount.mount_path),
                );
            }
        }
        if mount.sub_path.starts_with('/') || steps_up(&mount.sub_path) {
            errors.add(format!("{path}.subPath"), "must be a relative path without `..`");
        }
    }
}
