//! A container's log in the CRI format, one file that is rotated by size. Writing never blocks the container and never
//! fails it: lines that a full disk refuses are dropped, counted, and told of in the log when there is room again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::spec::LogSpec;

/// Longest piece of a line in one log line, as in other CRI implementations; log shippers join the pieces marked `P`.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// Room that a rotated file never goes below, so that one line always fits and rotation cannot spin.
const FILE_BYTES_MIN: u64 = 2 * LINE_BYTES_MAX as u64;
/// Mode of log files: the operator's group of the directory may read.
const FILE_MODE: u32 = 0o640;
/// Memory that an idle stream may keep for its next partial line.
const IDLE_BYTES_MAX: usize = 512;

/// Which of a container's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Output {
    fn name(self) -> &'static str {
        match self {
            Output::Stdout => "stdout",
            Output::Stderr => "stderr",
        }
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to open log {}", .path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    source: io::Error,
}

/// Writes one container's log.
#[derive(Debug)]
pub struct LogWriter {
    spec: LogSpec,
    file: File,
    /// Bytes in `file`.
    size: u64,
    /// The line begun but not ended, for each stream.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    lost: Lost,
}

/// Lines that could not be written since the last that could.
#[derive(Debug, Default)]
struct Lost {
    lines: u64,
    cause: Option<io::Error>,
}

impl LogWriter {
    /// Opens the log, appending to what is there; its directory must exist.
    pub fn open(mut spec: LogSpec) -> Result<Self, LogError> {
        spec.bytes_max = spec.bytes_max.max(FILE_BYTES_MIN);
        spec.files_max = spec.files_max.max(1);
        let fail = |source| LogError {
            path: spec.path.clone(),
            source,
        };
        let file = open(&spec.path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        Ok(LogWriter {
            spec,
            file,
            size,
            stdout: Vec::new(),
            stderr: Vec::new(),
            lost: Lost::default(),
        })
    }

    /// Takes what was read from a stream. Whole lines are written at once, the rest waits for its end.
    pub fn write(&mut self, output: Output, bytes: &[u8], now: Timestamp) {
        let mut rest = bytes;
        let mut pending = std::mem::take(self.pending(output));
        let mut batch = Batch {
            bytes: Vec::new(),
            lines: 0,
        };
        while !rest.is_empty() {
            let room = LINE_BYTES_MAX - pending.len();
            let (piece, whole) = match rest.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(at) => {
                    let piece = &rest[..at];
                    rest = &rest[at + 1..];
                    (piece, true)
                }
                None => {
                    let (piece, after) = rest.split_at(room.min(rest.len()));
                    rest = after;
                    (piece, false)
                }
            };
            pending.extend_from_slice(piece);
            if whole || pending.len() == LINE_BYTES_MAX {
                self.make_room(&mut batch, pending.len(), now);
                batch.line(output, whole, &pending, now);
                pending.clear();
            }
        }
        if pending.is_empty() && pending.capacity() > IDLE_BYTES_MAX {
            pending = Vec::new();
        }
        *self.pending(output) = pending;
        self.append(batch, now);
    }

    /// The stream has ended: writes the line that has no end, marked as partial.
    pub fn flush(&mut self, output: Output, now: Timestamp) {
        let pending = std::mem::take(self.pending(output));
        if pending.is_empty() {
            return;
        }
        let mut batch = Batch {
            bytes: Vec::new(),
            lines: 0,
        };
        self.make_room(&mut batch, pending.len(), now);
        batch.line(output, false, &pending, now);
        self.append(batch, now);
    }

    fn pending(&mut self, output: Output) -> &mut Vec<u8> {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }

    /// Writes the batch and rotates when a line of `bytes` more would pass the limit.
    fn make_room(&mut self, batch: &mut Batch, bytes: usize, now: Timestamp) {
        let line = (bytes + PREFIX_BYTES_MAX) as u64;
        if self.size + batch.bytes.len() as u64 + line <= self.spec.bytes_max {
            return;
        }
        self.append(
            std::mem::replace(
                batch,
                Batch {
                    bytes: Vec::new(),
                    lines: 0,
                },
            ),
            now,
        );
        if self.size > 0
            && let Err(error) = self.rotate(now)
        {
            eprintln!("failed to rotate {}: {error}", self.spec.path.display());
        }
    }

    fn append(&mut self, batch: Batch, now: Timestamp) {
        if batch.lines == 0 {
            return;
        }
        if self.lost.lines > 0 {
            let mut notice = Batch {
                bytes: Vec::new(),
                lines: 0,
            };
            let cause = self
                .lost
                .cause
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            let text = format!("bulkhead: {} log lines were dropped: {cause}", self.lost.lines);
            notice.line(Output::Stderr, true, text.as_bytes(), now);
            match self.put(&notice.bytes) {
                Ok(()) => self.lost = Lost::default(),
                Err(error) => {
                    self.lost = Lost {
                        lines: self.lost.lines + batch.lines,
                        cause: Some(error),
                    };
                    return;
                }
            }
        }
        if let Err(error) = self.put(&batch.bytes) {
            self.lost = Lost {
                lines: self.lost.lines + batch.lines,
                cause: Some(error),
            };
        }
    }

    /// Appends all of `bytes` or none: half a line would be read as somebody's line.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.size)?;
                Err(error)
            }
        }
    }

    /// Gives the file a time stamp for a suffix, begins a new one, and removes the oldest beyond `files_max`. When it
    /// fails the log goes on in the file it has.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let mut name = self.spec.path.clone().into_os_string();
        name.push(now.strftime(".%Y%m%d-%H%M%S.%9f").to_string());
        fs::rename(&self.spec.path, &name)?;
        match open(&self.spec.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                fs::rename(&name, &self.spec.path)?;
                return Err(error);
            }
        }
        self.size = 0;
        let rotated = rotated(&self.spec.path)?;
        let keep = self.spec.files_max as usize - 1;
        for path in rotated.iter().take(rotated.len().saturating_sub(keep)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(FILE_MODE)
        .open(path)
}

/// The rotated files of a log, oldest first.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut prefix = name.as_encoded_bytes().to_vec();
    prefix.push(b'.');
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_stamp = entry
            .file_name()
            .as_encoded_bytes()
            .strip_prefix(&prefix[..])
            .is_some_and(|stamp| {
                !stamp.is_empty()
                    && stamp
                        .iter()
                        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
            });
        if is_stamp {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Time stamp with nanoseconds, stream, tag, three spaces and the line's end.
const PREFIX_BYTES_MAX: usize = 30 + 6 + 1 + 3 + 1;

struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    fn line(&mut self, output: Output, whole: bool, text: &[u8], now: Timestamp) {
        let tag = if whole { 'F' } else { 'P' };
        self.bytes
            .extend_from_slice(format!("{now:.9} {} {tag} ", output.name()).as_bytes());
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
        self.lines += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-24T10:00:00.123456789Z";

    fn writer(directory: &Path, bytes_max: u64, files_max: u32) -> LogWriter {
        LogWriter::open(LogSpec {
            path: directory.join("0.log"),
            bytes_max,
            files_max,
        })
        .unwrap()
    }

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    #[test]
    fn lines_are_whole_and_the_unended_one_is_partial_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = writer(directory.path(), 1 << 20, 2);
        log.write(Output::Stdout, b"one\ntw", now());
        log.write(Output::Stderr, b"oops\n\n", now());
        log.write(Output::Stdout, b"o\nthree", now());
        log.flush(Output::Stdout, now());
        let text = fs::read_to_string(directory.path().join("0.log")).unwrap();
        let expected = format!(
            "{NOW} stdout F one\n{NOW} stderr F oops\n{NOW} stderr F \n{NOW} stdout F two\n{NOW} stdout P three\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_line_beyond_the_limit_is_cut_into_partial_ones() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = writer(directory.path(), 1 << 20, 2);
        let mut line = vec![b'x'; LINE_BYTES_MAX * 2 + 5];
        line.push(b'\n');
        for part in line.chunks(1000) {
            log.write(Output::Stdout, part, now());
        }
        let text = fs::read_to_string(directory.path().join("0.log")).unwrap();
        let tags: Vec<&str> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        let joined: usize = text
            .lines()
            .map(|line| line.split(' ').nth(3).unwrap().len())
            .sum();
        assert_eq!(joined, line.len() - 1);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = writer(directory.path(), 1 << 20, 2);
        let mut line = vec![b'y'; LINE_BYTES_MAX];
        line.extend_from_slice(b"\nnext\n");
        log.write(Output::Stdout, &line, now());
        let text = fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert!(
            text.ends_with(&format!("{NOW} stdout F next\n")),
            "{}",
            text.len()
        );
        assert_eq!(text.bytes().filter(|byte| *byte == b'y').count(), LINE_BYTES_MAX);
    }

    #[test]
    fn rotation_keeps_sizes_and_counts_and_loses_no_line_that_it_keeps() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = writer(directory.path(), FILE_BYTES_MIN, 3);
        let start = now();
        let mut lines = 0u64;
        for step in 0..200i64 {
            let at = start + jiff::SignedDuration::from_micros(step);
            let mut text = String::new();
            for _ in 0..20 {
                text.push_str(&format!("{lines:0100}\n"));
                lines += 1;
            }
            log.write(Output::Stdout, text.as_bytes(), at);
        }
        let path = directory.path().join("0.log");
        let mut files = rotated(&path).unwrap();
        assert_eq!(files.len(), 2);
        files.push(path);
        let mut numbers = Vec::new();
        for file in &files {
            let text = fs::read_to_string(file).unwrap();
            assert!(text.len() as u64 <= FILE_BYTES_MIN && !text.is_empty());
            numbers.extend(
                text.lines()
                    .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()),
            );
        }
        assert_eq!(numbers.last(), Some(&(lines - 1)));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            3,
            "nothing else is left"
        );
    }

    #[test]
    fn a_full_disk_drops_lines_and_tells_how_many() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = writer(directory.path(), 1 << 20, 2);
        let good = std::mem::replace(
            &mut log.file,
            OpenOptions::new().write(true).open("/dev/full").unwrap(),
        );
        log.write(Output::Stdout, b"a\nb\n", now());
        log.write(Output::Stdout, b"c\n", now());
        log.file = good;
        log.write(Output::Stdout, b"d\n", now());
        let text = fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert!(
            text.starts_with(&format!("{NOW} stderr F bulkhead: 3 log lines were dropped: ")),
            "{text}"
        );
        assert!(text.ends_with(&format!("{NOW} stdout F d\n")), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
