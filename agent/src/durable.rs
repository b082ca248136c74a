//! Small files that are replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path`. After a crash at any point there are the old bytes or the new ones, whole; a `.tmp` that is left is
/// overwritten by the next replacement.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(temporary, bytes, mode).and_then(|()| fs::rename(temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; what cannot be removed is overwritten next time.
        drop(fs::remove_file(temporary));
        return Err(error);
    }
    // fsync(2): the file's own sync does not cover its directory entry.
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // With its mode from the first moment: a key is never open to others.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_closed_to_others() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("node.json");
        fs::write(top.path().join("node.json.tmp"), "left by a crash").unwrap();
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("node.json");
        fs::create_dir(&path).unwrap(); // rename(2) refuses to replace a directory by a file
        assert!(replace(&path, b"one", 0o600).is_err());
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
    }
}
