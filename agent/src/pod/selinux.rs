//! SELinux labels of a pod's processes and files.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use proto::v1::{Container, PodSpec, SeLinuxOptions};

use super::security::{SecurityError, is_privileged};

/// There while the kernel has SELinux on.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// Takes a context and refuses one that the policy does not know (security_check_context(3)).
const CONTEXT: &str = "/sys/fs/selinux/context";
/// Takes two contexts and a class, and answers what the policy allows (security_compute_av(3)).
const ACCESS: &str = "/sys/fs/selinux/access";
/// Longest answer of it: six numbers.
const ACCESS_BYTES_MAX: u64 = 128;

/// Labels of a container's process and of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) process: String,
    pub(super) files: String,
}

/// Whether the kernel has SELinux on.
pub(super) fn is_enabled() -> bool {
    Path::new(ENFORCE).exists()
}

/// A container's labels, which this node's policy knows; none where SELinux is off, unless the manifest asks for one.
pub(super) fn labels(
    spec: &PodSpec,
    container: &Container,
    categories: Option<(u16, u16)>,
) -> Result<Option<Labels>, SecurityError> {
    if !is_enabled() {
        return match asked(spec, Some(container)) {
            Some(_) => Err(SecurityError::NoSeLinux),
            None => Ok(None),
        };
    }
    let labels = of(spec, Some(container), categories);
    for label in [&labels.process, &labels.files] {
        check(label)?;
    }
    if asked(spec, Some(container)).is_some() && matches!(may_enter(&labels.process), Ok(false)) {
        return Err(SecurityError::Domain {
            label: labels.process,
        });
    }
    Ok(Some(labels))
}

/// The label of the files that the pod's containers share: volumes, /etc/hosts. None where SELinux is off.
pub(super) fn shared(
    spec: &PodSpec,
    categories: Option<(u16, u16)>,
) -> Result<Option<String>, SecurityError> {
    if !is_enabled() {
        return Ok(None);
    }
    let label = shared_of(spec, categories);
    check(&label)?;
    Ok(Some(label))
}

/// What all containers have when they agree, though each says it for itself, or else what the pod says. Privileged ones are
/// held back by no label.
fn shared_of(spec: &PodSpec, categories: Option<(u16, u16)>) -> String {
    let mut own = spec
        .containers
        .iter()
        .chain(&spec.init_containers)
        .filter(|container| !is_privileged(container))
        .map(|container| of(spec, Some(container), categories).files);
    let first = own.next();
    match first {
        Some(first) if own.all(|label| label == first) => first,
        _ => of(spec, None, categories).files,
    }
}

fn check(label: &str) -> Result<(), SecurityError> {
    let told = OpenOptions::new()
        .write(true) // no more: creating is a right of its own
        .open(CONTEXT)
        .and_then(|mut file| file.write_all(label.as_bytes()));
    match told {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(SecurityError::Label {
            label: label.to_owned(),
        }),
        // Where we may not ask, the kernel tells when the label is used.
        _ => Ok(()),
    }
}

/// Whether the policy lets us start a process with a label; at the exec itself nobody could tell why not.
fn may_enter(label: &str) -> io::Result<bool> {
    let number = |path: &str| -> io::Result<u32> {
        let text = fs::read_to_string(path)?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    };
    if number(ENFORCE)? == 0 {
        return Ok(true);
    }
    let own = fs::read_to_string("/proc/self/attr/current")?;
    let class = number("/sys/fs/selinux/class/process/index")?;
    let transition = number("/sys/fs/selinux/class/process/perms/transition")?;
    let mut file = OpenOptions::new().read(true).write(true).open(ACCESS)?;
    file.write_all(format!("{} {label} {class}", own.trim_end_matches('\0')).as_bytes())?;
    let mut answer = String::new();
    file.take(ACCESS_BYTES_MAX).read_to_string(&mut answer)?;
    allows(&answer, transition).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads `ALLOWED DECIDED AUDITALLOW AUDITDENY SEQNO FLAGS`; permissions count from 1 (Linux, security/selinux/selinuxfs.c,
/// sel_write_access). Flag 1: the domain that asks is permissive.
fn allows(answer: &str, permission: u32) -> Option<bool> {
    let words: Vec<&str> = answer.trim_end_matches('\0').split_whitespace().collect();
    let allowed = u32::from_str_radix(words.first()?, 16).ok()?;
    let flags = u32::from_str_radix(words.get(5)?, 16).ok()?;
    let bit = 1u32.checked_shl(permission.checked_sub(1)?)?;
    Some(allowed & bit != 0 || flags & 1 != 0)
}

/// What the manifest says: the container's word as a whole goes before the pod's.
fn asked<'a>(spec: &'a PodSpec, container: Option<&'a Container>) -> Option<&'a SeLinuxOptions> {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.se_linux_options.as_ref());
    let of_container = container
        .and_then(|container| container.security_context.as_ref())
        .and_then(|context| context.se_linux_options.as_ref());
    of_container.or(of_pod)
}

/// `container_t` with the pod's own pair of categories, unless asked for otherwise.
fn of(spec: &PodSpec, container: Option<&Container>, categories: Option<(u16, u16)>) -> Labels {
    let given = asked(spec, container);
    let or = |field: fn(&SeLinuxOptions) -> &String, default: &str| {
        let text = given.map(field).filter(|text| !text.is_empty());
        text.cloned().unwrap_or_else(|| default.to_owned())
    };
    let privileged = container.is_some_and(is_privileged);
    let level = match categories {
        Some((low, high)) if !privileged => format!("s0:c{low},c{high}"),
        _ => "s0".to_owned(),
    };
    let level = or(|options| &options.level, &level);
    let user = or(|options| &options.user, "system_u");
    let role = or(|options| &options.role, "system_r");
    let kind = or(
        |options| &options.r#type,
        if privileged { "spc_t" } else { "container_t" },
    );
    Labels {
        process: format!("{user}:{role}:{kind}:{level}"),
        files: format!("system_u:object_r:container_file_t:{level}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{PodSecurityContext, SecurityContext};

    fn with(context: SecurityContext) -> Container {
        Container {
            security_context: Some(context),
            ..Container::default()
        }
    }

    fn at(level: &str) -> Option<SeLinuxOptions> {
        Some(SeLinuxOptions {
            level: level.to_owned(),
            ..SeLinuxOptions::default()
        })
    }

    fn container_at(level: &str) -> Container {
        with(SecurityContext {
            se_linux_options: at(level),
            ..SecurityContext::default()
        })
    }

    fn privileged() -> Container {
        with(SecurityContext {
            privileged: Some(true),
            ..SecurityContext::default()
        })
    }

    #[test]
    fn labels_carry_the_pods_own_categories() {
        let labels = of(&PodSpec::default(), None, Some((5, 900)));
        assert_eq!(labels.process, "system_u:system_r:container_t:s0:c5,c900");
        assert_eq!(labels.files, "system_u:object_r:container_file_t:s0:c5,c900");
        let labels = of(&PodSpec::default(), Some(&privileged()), Some((5, 900)));
        assert_eq!(labels.process, "system_u:system_r:spc_t:s0");
    }

    #[test]
    fn shared_files_have_the_level_that_all_containers_have() {
        let pod = |level: Option<&str>, containers: Vec<Container>| {
            let spec = PodSpec {
                security_context: Some(PodSecurityContext {
                    se_linux_options: level.and_then(at),
                    ..PodSecurityContext::default()
                }),
                containers,
                ..PodSpec::default()
            };
            let label = shared_of(&spec, Some((5, 900)));
            let level = label.strip_prefix("system_u:object_r:container_file_t:");
            level.unwrap().to_owned()
        };
        assert_eq!(pod(None, vec![Container::default()]), "s0:c5,c900");
        assert_eq!(pod(Some("s0:c1,c2"), vec![Container::default()]), "s0:c1,c2");
        assert_eq!(
            pod(None, vec![container_at("s0:c1,c2"), container_at("s0:c1,c2")]),
            "s0:c1,c2"
        );
        assert_eq!(
            pod(None, vec![container_at("s0:c1,c2"), Container::default()]),
            "s0:c5,c900"
        );
        assert_eq!(pod(None, vec![Container::default(), privileged()]), "s0:c5,c900");
        assert_eq!(pod(None, vec![privileged()]), "s0:c5,c900");
    }

    #[test]
    fn the_policys_answer_is_read() {
        assert_eq!(allows("2 ffffffff 0 ffffffff 1 0", 2), Some(true));
        assert_eq!(allows("2 ffffffff 0 ffffffff 1 0\0", 1), Some(false));
        assert_eq!(allows("0 ffffffff 0 ffffffff 1 1", 32), Some(true));
        assert_eq!(allows("nothing", 1), None);
        assert_eq!(allows("2 ffffffff 0 ffffffff 1 0", 0), None);
    }

    #[test]
    fn a_label_that_the_node_cannot_give_is_refused() {
        let refused = labels(&PodSpec::default(), &container_at("no level"), None).unwrap_err();
        let expected = match is_enabled() {
            true => {
                "this node's SELinux policy does not know `system_u:system_r:container_t:no level`; \
                     deploy/selinux has a policy for distributions without one for containers"
            }
            false => "seLinuxOptions: this node has no SELinux",
        };
        assert_eq!(refused.to_string(), expected);
    }
}
