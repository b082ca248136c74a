//! Who a container runs as and what it may do.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxSeccomp};
use proto::v1::{Container, PodSpec, SeccompProfile};
use runtime::capability;

use crate::image::{User, UserError};

/// Largest seccomp profile of a file.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// Why a container cannot have the security that it asks for.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    #[error("the image's user is not to be found")]
    User(#[from] UserError),
    #[error("user or group {id} is outside of the pod's user namespace (0 to {most})")]
    Range { id: u32, most: u32 },
    #[error("failed to read the seccomp profile {}", .path.display())]
    Profile { path: PathBuf, source: io::Error },
    #[error("the seccomp profile {} is malformed", .path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("`{name}` is not a capability of Linux")]
    Capability { name: String },
    #[error("this node has no AppArmor")]
    NoAppArmor,
    #[error("seLinuxOptions: this node has no SELinux")]
    NoSeLinux,
    #[error(
        "this node's SELinux policy does not know `{label}`; deploy/selinux has a policy for distributions without one \
         for containers"
    )]
    Label { label: String },
    #[error("this node's SELinux policy does not let containers run as `{label}`")]
    Domain { label: String },
}

/// Ids inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Who the container runs as. `lookup` finds `USER[:GROUP]` in the image.
pub(super) fn ids(
    spec: &PodSpec,
    container: &Container,
    image_user: &str,
    lookup: impl Fn(&str) -> Result<User, UserError>,
) -> Result<Ids, SecurityError> {
    let own = container.security_context.as_ref();
    let pod = spec.security_context.as_ref();
    let wanted = own
        .and_then(|own| own.run_as_user)
        .or(pod.and_then(|pod| pod.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or(pod.and_then(|pod| pod.run_as_group));
    let user = match wanted {
        Some(uid) => lookup(&uid.to_string())?,
        None => lookup(image_user)?,
    };
    let not_root = own
        .and_then(|own| own.run_as_non_root)
        .or(pod.and_then(|pod| pod.run_as_non_root));
    if not_root == Some(true) && user.uid == 0 {
        return Err(SecurityError::Root);
    }
    let mut groups: BTreeSet<u32> = BTreeSet::new();
    // Kubernetes, "Configure a Security Context": Merge takes the image's groups of the user too, Strict does not.
    if pod.is_none_or(|pod| pod.supplemental_groups_policy != "Strict") {
        groups.extend(&user.additional_gids);
    }
    if let Some(pod) = pod {
        groups.extend(&pod.supplemental_groups);
        groups.extend(pod.fs_group);
    }
    let ids = Ids {
        uid: user.uid,
        gid: group.unwrap_or(user.gid),
        groups: groups.into_iter().collect(),
    };
    if spec.host_users == Some(false) {
        let outside = [ids.uid, ids.gid].into_iter().chain(ids.groups.clone());
        if let Some(id) = outside.into_iter().find(|id| *id >= ID_RANGE) {
            return Err(SecurityError::Range {
                id,
                most: ID_RANGE - 1,
            });
        }
    }
    Ok(ids)
}

/// Ids of a pod with a user namespace of its own.
pub(super) const ID_RANGE: u32 = 65_536;

/// Whether the container asks for all rights over the host.
pub(super) fn is_privileged(container: &Container) -> bool {
    container
        .security_context
        .as_ref()
        .is_some_and(|context| context.privileged == Some(true))
}

/// What the container may do beyond an ordinary process.
pub(super) fn capabilities(container: &Container) -> Result<Vec<Capability>, SecurityError> {
    if is_privileged(container) {
        return Ok(capability::ALL.iter().map(|(one, _)| *one).collect());
    }
    let sets = container
        .security_context
        .as_ref()
        .and_then(|context| context.capabilities.clone())
        .unwrap_or_default();
    let is_all = |name: &String| name.trim_start_matches("CAP_") == "ALL";
    let parse = |name: &String| {
        capability::parse(name).ok_or_else(|| SecurityError::Capability { name: name.clone() })
    };
    let mut held: Vec<Capability> = if sets.add.iter().any(is_all) {
        capability::ALL.iter().map(|(one, _)| *one).collect()
    } else if sets.drop.iter().any(is_all) {
        Vec::new()
    } else {
        capability::DEFAULT.to_vec()
    };
    for name in sets.add.iter().filter(|name| !is_all(name)) {
        let one = parse(name)?;
        if !held.contains(&one) {
            held.push(one);
        }
    }
    for name in sets.drop.iter().filter(|name| !is_all(name)) {
        let one = parse(name)?;
        held.retain(|kept| *kept != one);
    }
    Ok(held)
}

/// The filter of system calls; none for Unconfined. Profiles of files lie in `directory`.
pub(super) fn seccomp(
    spec: &PodSpec,
    container: &Container,
    held: &[Capability],
    directory: &Path,
) -> Result<Option<LinuxSeccomp>, SecurityError> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|context| context.seccomp_profile.as_ref());
    let pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.seccomp_profile.as_ref());
    let default = SeccompProfile::default();
    let profile = own.or(pod).unwrap_or(&default);
    match profile.r#type.as_str() {
        "Unconfined" => Ok(None),
        "Localhost" => {
            let path = directory.join(&profile.localhost_profile);
            let read = || -> io::Result<Vec<u8>> {
                use std::io::Read;
                let mut bytes = Vec::new();
                std::fs::File::open(&path)?
                    .take(PROFILE_BYTES_MAX)
                    .read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            let bytes = read().map_err(|source| SecurityError::Profile {
                path: path.clone(),
                source,
            })?;
            let parsed = serde_json::from_slice(&bytes);
            parsed
                .map(Some)
                .map_err(|source| SecurityError::Malformed { path, source })
        }
        _ => Ok(Some(runtime::seccomp::default_profile(held))),
    }
}

/// Name of the AppArmor profile; none leaves the container unconfined by it. `enabled` says whether the kernel has it.
pub(super) fn app_armor(
    spec: &PodSpec,
    container: &Container,
    enabled: bool,
) -> Result<Option<String>, SecurityError> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|context| context.app_armor_profile.as_ref());
    let pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.app_armor_profile.as_ref());
    match own.or(pod) {
        Some(profile) if profile.r#type == "Localhost" => match enabled {
            true => Ok(Some(profile.localhost_profile.clone())),
            false => Err(SecurityError::NoAppArmor),
        },
        // No profile of ours is loaded into kernels: what isolates is the user namespace, seccomp and SELinux.
        _ => Ok(None),
    }
}

/// Whether the kernel has AppArmor on.
pub(super) fn app_armor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Capabilities, PodSecurityContext, SecurityContext};

    fn with(context: SecurityContext) -> Container {
        Container {
            security_context: Some(context),
            ..Container::default()
        }
    }

    fn lookup(spec: &str) -> Result<User, UserError> {
        let uid = match spec {
            "www" => 33,
            "" => 0,
            number => number.parse().unwrap(),
        };
        Ok(User {
            uid,
            gid: uid,
            additional_gids: vec![7],
            home: None,
        })
    }

    #[test]
    fn the_container_overrides_the_pod_and_the_pod_the_image() {
        let pod = |context| PodSpec {
            security_context: Some(context),
            host_users: Some(false),
            ..PodSpec::default()
        };
        let plain = Container::default();
        let of_image = ids(&PodSpec::default(), &plain, "www", lookup).unwrap();
        assert_eq!((of_image.uid, of_image.gid, of_image.groups), (33, 33, vec![7]));
        let spec = pod(PodSecurityContext {
            run_as_user: Some(1000),
            fs_group: Some(2000),
            supplemental_groups: vec![3000],
            supplemental_groups_policy: "Strict".into(),
            ..PodSecurityContext::default()
        });
        let of_pod = ids(&spec, &plain, "www", lookup).unwrap();
        assert_eq!((of_pod.uid, of_pod.groups), (1000, vec![2000, 3000]));
        let own = with(SecurityContext {
            run_as_user: Some(5),
            run_as_group: Some(6),
            ..SecurityContext::default()
        });
        let of_container = ids(&spec, &own, "www", lookup).unwrap();
        assert_eq!((of_container.uid, of_container.gid), (5, 6));
        let far = ids(&spec, &plain, "0", |_| {
            Ok(User {
                uid: 70_000,
                ..User::default()
            })
        });
        assert!(matches!(far, Err(SecurityError::Range { id: 70_000, .. })));
    }

    #[test]
    fn root_is_refused_to_those_who_must_not_be() {
        let container = with(SecurityContext {
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        });
        let refused = ids(&PodSpec::default(), &container, "", lookup).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "container has runAsNonRoot and image will run as root"
        );
        assert!(ids(&PodSpec::default(), &container, "www", lookup).is_ok());
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_kubernetes_does() {
        let sets = |add: &[&str], drop: &[&str]| {
            let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
            capabilities(&with(SecurityContext {
                capabilities: Some(Capabilities {
                    add: words(add),
                    drop: words(drop),
                }),
                ..SecurityContext::default()
            }))
            .unwrap()
        };
        assert_eq!(sets(&[], &[]), capability::DEFAULT);
        assert_eq!(
            sets(&["NET_BIND_SERVICE"], &["ALL"]),
            [Capability::NetBindService]
        );
        assert!(!sets(&[], &["CHOWN"]).contains(&Capability::Chown));
        let most = sets(&["ALL"], &["SYS_ADMIN"]);
        assert_eq!(most.len(), capability::ALL.len() - 1);
    }

    #[test]
    fn a_profile_of_a_file_is_read_and_a_missing_one_named() {
        let temp = tempfile::tempdir().unwrap();
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#;
        std::fs::write(temp.path().join("own.json"), text).unwrap();
        let of = |name: &str| {
            let container = with(SecurityContext {
                seccomp_profile: Some(SeccompProfile {
                    r#type: "Localhost".into(),
                    localhost_profile: name.into(),
                }),
                ..SecurityContext::default()
            });
            seccomp(&PodSpec::default(), &container, &[], temp.path())
        };
        let profile = of("own.json").unwrap().unwrap();
        assert_eq!(profile.syscalls().as_ref().map(Vec::len), Some(1));
        assert!(of("absent.json").unwrap_err().to_string().contains("absent.json"));
        let default = seccomp(&PodSpec::default(), &Container::default(), &[], temp.path());
        assert!(default.unwrap().is_some(), "nothing said is the default profile");
    }
}
