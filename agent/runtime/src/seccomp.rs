//! Seccomp: our default profile, and any profile of the OCI configuration compiled to the kernel's form.
//!
//! Compiling takes libseccomp tens of milliseconds for three architectures, so that compiled filters are kept in a
//! directory by the hash of everything that they depend on.

mod cache;
mod calls;
mod compile;
mod profile;
mod table;

use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;
use sys::seccomp::Instruction;

pub use profile::default_profile;
pub use table::table;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// It asks for what we do not have, or what makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which part.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// libseccomp refused.
    #[error("failed to {action}")]
    Library {
        /// What was tried.
        action: String,
        /// Its answer.
        source: libseccomp::error::SeccompError,
    },
    /// The compiled filter could not be read or kept.
    #[error("failed to {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Refuses what makes no sense in any profile, without compiling it.
pub(crate) fn examine(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    compile::examine(profile)
}

/// Where the supervisor of a profile with notifications listens; none when it has no notification.
pub fn listener(profile: &LinuxSeccomp) -> Result<Option<&Path>, SeccompError> {
    compile::listener(profile)
}

/// A profile as the kernel takes it, from `cache` when it has been compiled before; with the flags to load it with.
pub fn prepare(
    profile: &LinuxSeccomp,
    cache: Option<&Path>,
) -> Result<(Vec<Instruction>, u32), SeccompError> {
    let flags = compile::flags(profile)?;
    let program = match cache {
        Some(directory) => cache::get_or_compile(profile, directory)?,
        None => compile::compile(profile)?,
    };
    Ok((program, flags))
}
