//! The file of the audit log: appended to, and put aside when it is full.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of one file, unless one batch of lines alone has more.
pub(crate) const FILE_BYTES_MAX: u64 = 32 << 20;
/// Files that are kept: the one that is written, and older ones.
pub(crate) const FILES_MAX: usize = 8;
const NAME: &str = "audit.log";

/// `audit.log`, with `audit.log.1` (the newest) and so on behind it.
pub(super) struct File {
    directory: PathBuf,
    bytes_max: u64,
    files_max: usize,
    file: fs::File,
    bytes: u64,
}

impl File {
    pub(super) fn open(directory: &Path, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let (file, bytes) = open(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            bytes_max,
            files_max,
            file,
            bytes,
        })
    }

    /// Whole lines; after an error some of them may be there.
    pub(super) fn append(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        let batch = lines.concat();
        if self.bytes > 0 && self.bytes + batch.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        if let Err(cause) = self.file.write_all(&batch) {
            // Where it ends now is looked at anew: the next line must begin a line.
            (self.file, self.bytes) = open(&self.directory)?;
            return Err(cause);
        }
        self.bytes += batch.len() as u64;
        Ok(())
    }

    fn path(&self, number: usize) -> PathBuf {
        match number {
            0 => self.directory.join(NAME),
            number => self.directory.join(format!("{NAME}.{number}")),
        }
    }

    /// The oldest goes first: whatever breaks this off, no file is written over that is younger than it.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        for number in (0..self.files_max.saturating_sub(1)).rev() {
            match fs::rename(self.path(number), self.path(number + 1)) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
        }
        (self.file, self.bytes) = open(&self.directory)?;
        Ok(())
    }
}

/// Ends a line that a crash cut off.
fn open(directory: &Path) -> io::Result<(fs::File, u64)> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(directory.join(NAME))?;
    let mut bytes = file.metadata()?.len();
    if bytes > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            bytes += 1;
        }
    }
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = File::open(directory.path(), 100, 3).unwrap();
        for number in 0..50 {
            file.append(&[format!("{number:>39}\n").into_bytes()]).unwrap();
        }
        assert_eq!(
            names(directory.path()),
            ["audit.log", "audit.log.1", "audit.log.2"]
        );
        let mut last = Vec::new();
        for name in ["audit.log.2", "audit.log.1", "audit.log"] {
            let text = fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(text.len() <= 100, "{name}: {}", text.len());
            last.extend(text.lines().map(|line| line.trim().parse::<u32>().unwrap()));
        }
        assert_eq!(last, [44, 45, 46, 47, 48, 49]);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_swallow_the_next() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "{\"half").unwrap();
        let mut file = File::open(directory.path(), 100, 2).unwrap();
        file.append(&[b"{}\n".to_vec()]).unwrap();
        let text = fs::read_to_string(directory.path().join(NAME)).unwrap();
        assert_eq!(text, "{\"half\n{}\n");
    }
}
