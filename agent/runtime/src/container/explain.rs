//! Words for what a child on its way to exec could not do.

use std::io;

use nix::libc;

use super::recipe::{self, Plan};
use super::report::{Failure, Step};
use super::{StartError, program};

/// Names for messages about a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) program: String,
    pub(crate) directory: String,
}

/// Words for a child's failures, kept when the plan itself goes.
#[derive(Default)]
pub(super) struct Explain {
    names: Names,
    mounts: Vec<String>,
    masked: Vec<String>,
    readonly: Vec<String>,
    sysctls: Vec<String>,
    limits: Vec<u32>,
    searched: bool,
}

impl Explain {
    pub(super) fn of(plan: &Plan, names: &Names) -> Explain {
        let path = |target: &recipe::Target| {
            target
                .prefixes
                .last()
                .map_or("/".to_owned(), |path| format!("/{}", path.to_string_lossy()))
        };
        let root = plan.root.as_ref();
        Explain {
            names: names.clone(),
            mounts: root
                .iter()
                .flat_map(|root| &root.mounts)
                .map(|mount| path(&mount.target))
                .collect(),
            masked: root.iter().flat_map(|root| &root.masked).map(path).collect(),
            readonly: root.iter().flat_map(|root| &root.readonly).map(path).collect(),
            sysctls: root
                .iter()
                .flat_map(|root| &root.sysctls)
                .map(|(name, _)| name.to_string_lossy().into_owned())
                .collect(),
            limits: plan.process.limits.iter().map(|limit| limit.resource).collect(),
            searched: !names.program.contains('/'),
        }
    }

    pub(super) fn error(&self, failure: Failure) -> StartError {
        let source = io::Error::from_raw_os_error(failure.errno);
        let index = failure.index as usize;
        let of = |list: &[String]| list.get(index).cloned().unwrap_or_default();
        let action = match failure.step {
            Step::Find | Step::Exec => {
                let reason = match failure.errno {
                    libc::ENOENT if self.searched => "executable file not found in $PATH".to_owned(),
                    libc::ENOENT => format!("stat {}: no such file or directory", self.names.program),
                    libc::EACCES => "permission denied".to_owned(),
                    libc::ENOEXEC => "exec format error".to_owned(),
                    _ => source.to_string(),
                };
                return StartError::Program {
                    program: self.names.program.clone(),
                    reason,
                    errno: failure.errno,
                };
            }
            Step::EnterCgroup => "enter the cgroup".to_owned(),
            Step::OomScore => "set oom_score_adj (lowering it takes CAP_SYS_RESOURCE)".to_owned(),
            Step::RaiseLimit => "raise a resource limit (takes CAP_SYS_RESOURCE)".to_owned(),
            Step::Affinity => "set the CPUs".to_owned(),
            Step::JoinNamespace => "join a namespace".to_owned(),
            Step::TimeNamespace => "make a time namespace with its offsets".to_owned(),
            Step::MapIds => "wait for the ids of the user namespace".to_owned(),
            Step::BecomeRoot => "become root of the user namespace".to_owned(),
            Step::Clone => "make the container's namespaces".to_owned(),
            Step::CgroupNamespace => "make a cgroup namespace".to_owned(),
            Step::Keyring => "make a session keyring".to_owned(),
            Step::Signals => "reset the signals".to_owned(),
            Step::Propagation => "make the mounts private".to_owned(),
            Step::Loopback => "bring the loopback interface up".to_owned(),
            Step::Hostname => "set the host name".to_owned(),
            Step::AttachRoot => "attach the root file system".to_owned(),
            Step::Target if failure.errno == libc::ELOOP => {
                format!(
                    "find {} in the root file system: a symbolic link is in the way; it must be mounted on ordinary \
                     directory",
                    of(&self.mounts)
                )
            }
            Step::Target => format!("make {} in the root file system", of(&self.mounts)),
            Step::MakeFilesystem => format!("make the file system for {}", of(&self.mounts)),
            Step::AttachMount => format!("mount {}", of(&self.mounts)),
            Step::ChangeMount => format!("set the options of {}", of(&self.mounts)),
            Step::Console => "make a terminal".to_owned(),
            Step::Sysctl => format!("set the sysctl {}", of(&self.sysctls)),
            Step::Mask => format!("mask {}", of(&self.masked)),
            Step::ReadonlyPath => format!("make {} read-only", of(&self.readonly)),
            Step::Hooks => "wait for the hooks".to_owned(),
            Step::Pivot => "enter the root file system".to_owned(),
            Step::ReadonlyRoot => "make the root file system read-only".to_owned(),
            Step::RootPropagation => "set the propagation of the root file system".to_owned(),
            Step::Stdio => "connect the standard streams".to_owned(),
            Step::Label => "set the security label".to_owned(),
            Step::Limit => {
                let resource = self.limits.get(index).copied().unwrap_or_default();
                format!("set the resource limit {}", program::rlimit_name(resource))
            }
            Step::Scheduler => "set the scheduler".to_owned(),
            Step::IoPriority => "set the I/O priority".to_owned(),
            Step::MemoryPolicy => "set the memory policy".to_owned(),
            Step::Personality => "set the personality".to_owned(),
            Step::Directory => format!("chdir to cwd ({:?}) set in config.json", self.names.directory),
            Step::DirectoryOutside => {
                format!(
                    "chdir to cwd ({:?}): it lies outside of the container",
                    self.names.directory
                )
            }
            Step::Ids => "set user and groups".to_owned(),
            Step::Capabilities => "set the capabilities".to_owned(),
            Step::NoNewPrivs => "set no_new_privs".to_owned(),
            Step::Ready => "report to the parent".to_owned(),
            Step::Seccomp => "load the seccomp filter".to_owned(),
            Step::CloseFds => "close the other descriptors".to_owned(),
        };
        StartError::Step { action, source }
    }
}
