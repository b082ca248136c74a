//! Compiled filters in a directory, by the hash of all that they depend on. A file is the instructions and, after them,
//! their SHA-256: a torn or changed one is compiled anew. Whoever may write the directory may weaken the filter: it must
//! be root's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};
use sys::seccomp::Instruction;

use super::{SeccompError, compile};

/// Most profiles kept: a node has a handful (the default one with a few sets of capabilities); the oldest goes.
pub(super) const FILES_MAX: usize = 64;
/// Changes with the file's form and with what `compile` makes of a profile.
const VERSION: u32 = 1;
const SUFFIX: &str = "bpf";
const HASH_BYTES: usize = 32;

fn key(profile: &LinuxSeccomp) -> Result<String, SeccompError> {
    let fail = |source| SeccompError::Io {
        action: "name the profile",
        source,
    };
    let text = serde_json::to_vec(profile).map_err(|error| fail(io::Error::other(error)))?;
    let kernel = fs::read("/proc/sys/kernel/osrelease").map_err(fail)?;
    let library = libseccomp::ScmpVersion::current()
        .map(|version| version.to_string())
        .unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [
        &VERSION.to_le_bytes()[..],
        &text,
        &kernel,
        library.as_bytes(),
        std::env::consts::ARCH.as_bytes(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// From the directory, or compiled and then kept there.
pub(super) fn get_or_compile(
    profile: &LinuxSeccomp,
    directory: &Path,
) -> Result<Vec<Instruction>, SeccompError> {
    let key = key(profile)?;
    let path = directory.join(format!("{key}.{SUFFIX}"));
    match fs::read(&path) {
        Ok(bytes) => {
            if let Some(program) = checked(&bytes) {
                return Ok(program);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(SeccompError::Io {
                action: "read a compiled filter",
                source,
            });
        }
    }
    let program = compile::compile(profile)?;
    keep(directory, &path, &key, &program).map_err(|source| SeccompError::Io {
        action: "keep a compiled filter",
        source,
    })?;
    Ok(program)
}

fn checked(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
    (Sha256::digest(body)[..] == *hash)
        .then(|| compile::decode(body))
        .flatten()
}

fn keep(directory: &Path, path: &Path, key: &str, program: &[Instruction]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut bytes = compile::encode(program);
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    // Written aside, so that a reader finds a whole one or none; by process id, as two runtimes may compile at once.
    let aside = directory.join(format!("{key}.{}.tmp", sys::process::getpid()));
    let written = fs::write(&aside, &bytes).and_then(|()| fs::rename(&aside, path));
    if written.is_err() && aside.exists() {
        fs::remove_file(&aside)?;
    }
    written?;
    forget_oldest(directory)
}

fn forget_oldest(directory: &Path) -> io::Result<()> {
    let mut files: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if Path::new(&entry.file_name())
            .extension()
            .is_some_and(|suffix| suffix == SUFFIX)
        {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(FILES_MAX);
    for (_, path) in &files[..surplus] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxSeccompAction, LinuxSyscall};

    fn small(errno: u32) -> LinuxSeccomp {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["ptrace".into()])
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(errno));
        let mut profile = LinuxSeccomp::default();
        profile
            .set_default_action(LinuxSeccompAction::ScmpActAllow)
            .set_syscalls(Some(vec![rule]));
        profile
    }

    #[test]
    fn damaged_file_is_compiled_anew() {
        let directory = tempfile::tempdir().unwrap();
        let program = get_or_compile(&small(1), directory.path()).unwrap();
        let path = fs::read_dir(directory.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let whole = fs::read(&path).unwrap();
        for length in [0, 8, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(get_or_compile(&small(1), directory.path()).unwrap(), program);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        let mut changed = whole.clone();
        changed[3] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert_eq!(get_or_compile(&small(1), directory.path()).unwrap(), program);
    }

    #[test]
    fn directory_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        for errno in 1..=FILES_MAX as u32 + 5 {
            get_or_compile(&small(errno), directory.path()).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), FILES_MAX);
    }
}
