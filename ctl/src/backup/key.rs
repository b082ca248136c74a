//! The key of a backup: 32 random bytes in a file, in hex or base64.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use seal::{Key, SECRET_BYTES};

use super::target::sync_directory_of;
use crate::error::CtlError;
use crate::output::Output;

/// A key with line breaks around it; whatever is longer is something else.
const FILE_BYTES_MAX: u64 = 1024;

/// Reads a key; says so when others could read it too.
pub(crate) fn read(path: &Path, out: &mut Output) -> Result<Key, CtlError> {
    let failed = || format!("failed to read the key {}", path.display());
    let file = File::open(path).map_err(CtlError::io(failed()))?;
    let meta = file.metadata().map_err(CtlError::io(failed()))?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        out.note(format_args!(
            "warning: others than you may read {}; `chmod 600` ends that",
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(CtlError::io(failed()))?;
    parse(text.trim()).ok_or_else(|| {
        CtlError::refused(format!(
            "{} holds no key: that is 32 random bytes in hex or base64, as `openssl rand -base64 32` prints them",
            path.display()
        ))
    })
}

fn parse(text: &str) -> Option<Key> {
    let bytes = match text.len() {
        64 => hex::decode(text).ok()?,
        _ => BASE64.decode(text).ok()?,
    };
    bytes.try_into().ok().map(Key::of_secret)
}

/// A key that is not in a file yet.
pub(crate) struct Fresh {
    secret: [u8; SECRET_BYTES],
}

impl Fresh {
    /// From the kernel's random bytes.
    pub(crate) fn make() -> Self {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).expect("the kernel has random bytes once it has booted");
        Self { secret }
    }

    pub(crate) fn key(&self) -> Key {
        Key::of_secret(self.secret)
    }

    /// Writes it into a new file that only its owner reads.
    pub(crate) fn write(&self, path: &Path) -> Result<(), CtlError> {
        let failed = || format!("failed to write the key {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file = file.map_err(CtlError::io(failed()))?;
        let line = format!("{}\n", BASE64.encode(self.secret));
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        written
            .and_then(|()| sync_directory_of(path))
            .map_err(CtlError::io(failed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_hex_and_in_base64_and_nothing_else_is() {
        let secret = [0xa5; SECRET_BYTES];
        let id = Key::of_secret(secret).id();
        assert_eq!(parse(&hex::encode(secret)).unwrap().id(), id);
        assert_eq!(parse(&hex::encode_upper(secret)).unwrap().id(), id);
        assert_eq!(parse(&BASE64.encode(secret)).unwrap().id(), id);
        for bad in [
            "",
            "password",
            &"a".repeat(63),
            &"x".repeat(64),
            &BASE64.encode([1; 31]),
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_fresh_key_is_its_owners_alone_and_replaces_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let fresh = Fresh::make();
        fresh.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path, &mut Output::new()).unwrap().id(), fresh.key().id());
        assert!(Fresh::make().write(&path).is_err());
        assert_eq!(read(&path, &mut Output::new()).unwrap().id(), fresh.key().id());
    }
}
