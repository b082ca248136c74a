//! Which part of the machine's user ids and categories a ledger hands out.
//!
//! Several agents may be on one machine (`ctl dev up`). They share one directory, in which a symbolic link `N -> LEDGER`
//! says whose part N is. A claim stands as long as its ledger exists, also while its agent is away, since containers go
//! on meanwhile; when the ledger has been removed its part is free for the next one. Changes are made under a lock of
//! the directory, which the kernel drops with the process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::allot::PARTS;

/// Where agents of one machine claim their parts.
pub const CLAIMS: &str = "/var/lib/bulkhead/.claims";

/// Tries to lock a directory that others remove meanwhile; each removal is the end of a whole cluster.
const LOCK_TRIES: usize = 16;

/// Why there is no part for this ledger.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A file.
    #[error("failed to {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// All are taken.
    #[error("all {PARTS} parts of this machine's user ids are claimed in {}", .directory.display())]
    Full {
        /// Where.
        directory: PathBuf,
    },
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    let path = path.to_owned();
    move |source| ClaimError::Io { what, path, source }
}

/// Claims a part for a ledger, which exists: the one it had, if nobody else has it, else a free one.
pub(super) fn claim(directory: &Path, ledger: &Path, before: Option<u32>) -> Result<u32, ClaimError> {
    let ledger = ledger.canonicalize().map_err(fail("find", ledger))?;
    let _lock = lock(directory)?;
    let mut free = None;
    let mut first_own = None;
    for part in before.into_iter().filter(|part| *part < PARTS).chain(0..PARTS) {
        match holder(directory, part)? {
            Some(holder) if holder == ledger => {
                first_own.get_or_insert(part);
            }
            Some(holder) if holder.exists() => {}
            _ if free.is_none() => free = Some(part),
            _ => {}
        }
        if first_own.is_some() || (free.is_some() && free == before) {
            break;
        }
    }
    if let Some(part) = first_own {
        return Ok(part);
    }
    let part = free.ok_or_else(|| ClaimError::Full {
        directory: directory.to_owned(),
    })?;
    let link = directory.join(part.to_string());
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("remove", &link)(error)),
        _ => {}
    }
    symlink(&ledger, &link).map_err(fail("create", &link))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(fail("sync", directory))?;
    Ok(part)
}

/// Makes and locks the directory. Held for some file operations; whoever waits here waits for another agent's start.
fn lock(directory: &Path) -> Result<Flock<File>, ClaimError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for _ in 0..LOCK_TRIES {
        builder.create(directory).map_err(fail("create", directory))?;
        let opened = File::open(directory).map_err(fail("open", directory))?;
        let locked = Flock::lock(opened, FlockArg::LockExclusive)
            .map_err(|(_, error)| fail("lock", directory)(error.into()))?;
        // `ctl dev down` removes an empty directory: what was locked may be no longer the one of this name.
        let inode = locked.metadata().map_err(fail("stat", directory))?.ino();
        if fs::metadata(directory).is_ok_and(|meta| meta.ino() == inode) {
            return Ok(locked);
        }
    }
    let source = io::ErrorKind::ResourceBusy.into();
    Err(fail("lock", directory)(source))
}

fn holder(directory: &Path, part: u32) -> Result<Option<PathBuf>, ClaimError> {
    let link = directory.join(part.to_string());
    match fs::read_link(&link) {
        Ok(holder) => Ok(Some(holder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail("read", &link)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledgers_have_parts_of_their_own_and_keep_them() {
        let top = tempfile::tempdir().unwrap();
        let claims = top.path().join("claims");
        let ledger = |name: &str| {
            let path = top.path().join(name);
            fs::write(&path, "").unwrap();
            path
        };
        let (a, b, c) = (ledger("a"), ledger("b"), ledger("c"));
        assert_eq!(claim(&claims, &a, None).unwrap(), 0);
        assert_eq!(claim(&claims, &b, None).unwrap(), 1);
        assert_eq!(claim(&claims, &a, Some(0)).unwrap(), 0);
        // A ledger that is gone has left its part to the next.
        fs::remove_file(&a).unwrap();
        assert_eq!(claim(&claims, &b, Some(1)).unwrap(), 1);
        assert_eq!(claim(&claims, &c, None).unwrap(), 0);
        // One whose part was taken meanwhile gets another.
        let a = ledger("a");
        assert_eq!(claim(&claims, &a, Some(0)).unwrap(), 2);
        // Without the directory each takes again what it had.
        fs::remove_dir_all(&claims).unwrap();
        assert_eq!(claim(&claims, &b, Some(1)).unwrap(), 1);
        assert_eq!(claim(&claims, &a, Some(2)).unwrap(), 2);
    }

    #[test]
    fn a_machine_whose_parts_are_all_taken_says_so() {
        let top = tempfile::tempdir().unwrap();
        for part in 0..PARTS {
            let path = top.path().join(format!("ledger-{part}"));
            fs::write(&path, "").unwrap();
            assert_eq!(claim(&top.path().join("claims"), &path, None).unwrap(), part);
        }
        let path = top.path().join("one-more");
        fs::write(&path, "").unwrap();
        let refused = claim(&top.path().join("claims"), &path, None);
        assert!(matches!(refused, Err(ClaimError::Full { .. })));
    }
}
