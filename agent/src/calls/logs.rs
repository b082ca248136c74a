//! Sends a container's log: what is there, then what comes, until the run has ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rpc::v1::{LogChunk, LogsRequest, carry_up};
use runtime::monitor::log::rotated;
use rustix::fs::inotify;
use tokio::net::unix::pipe;
use tonic::Status;

use super::cri::{Count, LINE_BYTES_MAX, Selection};
use super::exec::no_container;
use super::{Stop, Up};
use crate::pod::Handle;

/// Bytes of a file read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes after which a frame is sent.
const FRAME_BYTES: usize = 64 << 10;
/// A file system that tells of no changes is looked at this often all the same.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Sends what `request` asks for of a container of the pod.
pub(super) async fn send(pod: &Handle, name: &str, request: &LogsRequest, up: &Up) -> Result<(), Stop> {
    let container = pod.container(name).ok_or_else(|| no_container(name))?;
    let run = if request.previous {
        let none = || Status::not_found(format!("container {} has no previous run", container.name));
        container.previous.ok_or_else(none)?
    } else {
        let none =
            || Status::failed_precondition(format!("container {} has not started yet", container.name));
        container.run.ok_or_else(none)?
    };
    let since = since(request)?;
    let path = container.log(run);
    let mut watch = None;
    if request.follow && !request.previous {
        // Before the first read, so that nothing is missed between them.
        watch = Some(Watch::new(&container.log_dir).map_err(failed)?);
    }
    let skip = match u64::try_from(request.tail_lines) {
        Err(_) => 0,
        Ok(tail) => {
            let path = path.clone();
            let lines = blocking(move || count(&path, since)).await?;
            lines.saturating_sub(tail)
        }
    };
    let mut follower = Follower {
        files: Files::new(path),
        selection: Selection::new(since, skip, request.timestamps),
        frame: Vec::new(),
    };
    let mut report = pod.report();
    loop {
        // Asked before the read: what was written until then is read below.
        let goes_on = |pod: &Handle| {
            let now = pod.container(&container.name);
            now.is_some_and(|now| now.run == Some(run) && now.running)
        };
        let more = watch.is_some() && goes_on(pod);
        follower = drain(follower, up).await?;
        let Some(watch) = watch.as_mut().filter(|_| more) else {
            return Ok(());
        };
        tokio::select! {
            changed = watch.changed() => changed.map_err(failed)?,
            changed = report.changed() => if changed.is_err() {
                // Its actor has ended: the pod is gone, or will be adopted anew; what is there is sent.
                drain(follower, up).await?;
                return Ok(());
            },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn since(request: &LogsRequest) -> Result<Option<Timestamp>, Status> {
    let since = request.since.as_ref();
    let time = since
        .map(|since| Timestamp::new(since.seconds, since.nanos))
        .transpose();
    time.map_err(|error| Status::invalid_argument(format!("since: {error}")))
}

fn failed(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found("the log is not there (any more)"),
        _ => Status::internal(format!("failed to read the log: {error}")),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Stop> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done.map_err(failed)?),
        Err(error) => Err(Status::internal(format!("a task of the agent failed: {error}")).into()),
    }
}

/// Sends all that can be read now.
async fn drain(follower: Follower, up: &Up) -> Result<Follower, Stop> {
    let mut follower = follower;
    loop {
        let (next, done) = blocking(move || {
            let mut follower = follower;
            let done = follower.fill()?;
            Ok((follower, done))
        })
        .await?;
        follower = next;
        if !follower.frame.is_empty() {
            let data = std::mem::take(&mut follower.frame);
            up.send(carry_up::Frame::Logs(LogChunk { data })).await?;
        }
        if done {
            return Ok(follower);
        }
    }
}

/// Reads, selects, and keeps its place.
struct Follower {
    files: Files,
    selection: Selection,
    frame: Vec<u8>,
}

impl Follower {
    /// Fills a frame; true when nothing more can be read now.
    fn fill(&mut self) -> io::Result<bool> {
        while self.frame.len() < FRAME_BYTES {
            let (selection, frame) = (&mut self.selection, &mut self.frame);
            if !self.files.read(|line| selection.take(line, frame))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn count(path: &Path, since: Option<Timestamp>) -> io::Result<u64> {
    let mut count = Count::new(since);
    let mut files = Files::new(path.to_owned());
    while files.read(|line| count.take(line))? {}
    Ok(count.lines)
}

/// The files of a run's log, the rotated ones first, read line by line across rotations.
struct Files {
    path: PathBuf,
    current: Option<File>,
    inode: u64,
    /// The begin of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Files {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            current: None,
            inode: 0,
            rest: Vec::new(),
        }
    }

    /// Reads a piece and hands out the lines in it; false when nothing more is there now.
    fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(false);
            }
            let Some(file) = &mut self.current else {
                return Ok(false);
            };
            let count = file.read(&mut buffer)?;
            if count == 0 {
                if self.open_next()? {
                    continue;
                }
                return Ok(false);
            }
            self.rest
                .extend_from_slice(buffer.get(..count).unwrap_or_default());
            let mut begin = 0;
            while let Some(length) = self.rest.get(begin..).and_then(end_of_line) {
                take(self.rest.get(begin..begin + length).unwrap_or_default());
                begin += length + 1;
            }
            self.rest.drain(..begin);
            if self.rest.len() > LINE_BYTES_MAX {
                self.rest.clear(); // not of our writing
            }
            return Ok(true);
        }
    }

    /// Goes on with the file after the current one; false when the current one is the last.
    fn open_next(&mut self) -> io::Result<bool> {
        let mut paths = rotated(&self.path)?;
        paths.push(self.path.clone());
        let mut inodes = Vec::new();
        for path in &paths {
            // Removed meanwhile, or between two names: the next look finds it.
            match std::fs::metadata(path) {
                Ok(meta) => inodes.push(meta.ino()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => inodes.push(0),
                Err(error) => return Err(error),
            }
        }
        let current = inodes
            .iter()
            .position(|inode| self.current.is_some() && *inode == self.inode);
        // The current one is gone with all before it: on with the oldest that is left.
        let next = current.map_or(0, |at| at + 1);
        for path in paths.iter().skip(next) {
            match File::open(path) {
                Ok(file) => {
                    self.inode = file.metadata()?.ino();
                    self.current = Some(file);
                    self.rest.clear();
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

fn end_of_line(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

/// Tells of changes in a directory (inotify(7)).
struct Watch(pipe::Receiver);

impl Watch {
    fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, flags)?;
        // An inotify descriptor is read and waited for as a pipe is.
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Returns after a change; what changed is found by looking.
    async fn changed(&mut self) -> io::Result<()> {
        self.0.readable().await?;
        let mut buffer = [0; 4096];
        loop {
            match self.0.try_read(&mut buffer) {
                Ok(_) => {} // on until the queue is empty
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(text: &str) -> String {
        format!("2026-11-24T10:00:00.000000000Z stdout F {text}\n")
    }

    fn read_all(files: &mut Files) -> Vec<String> {
        let mut lines = Vec::new();
        while files
            .read(|line| {
                lines.push(
                    String::from_utf8_lossy(line)
                        .rsplit(' ')
                        .next()
                        .unwrap()
                        .to_owned(),
                )
            })
            .unwrap()
        {}
        lines
    }

    #[test]
    fn rotated_files_come_first_and_a_rotation_meanwhile_loses_nothing() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("0.log");
        std::fs::write(top.path().join("0.log.20261124-100000.000000001"), line("a")).unwrap();
        std::fs::write(&path, line("b")).unwrap();
        let mut files = Files::new(path.clone());
        assert_eq!(read_all(&mut files), ["a", "b"]);
        // A line that is half written is shown once it is whole.
        let mut file = File::options().append(true).open(&path).unwrap();
        let text = line("c");
        file.write_all(&text.as_bytes()[..20]).unwrap();
        assert!(read_all(&mut files).is_empty());
        file.write_all(&text.as_bytes()[20..]).unwrap();
        // Two rotations between two looks.
        std::fs::rename(&path, top.path().join("0.log.20261124-100000.000000002")).unwrap();
        std::fs::write(top.path().join("0.log.20261124-100000.000000003"), line("d")).unwrap();
        std::fs::write(&path, line("e")).unwrap();
        assert_eq!(read_all(&mut files), ["c", "d", "e"]);
        assert!(read_all(&mut files).is_empty());
        assert_eq!(count(&path, None).unwrap(), 5);
    }

    #[test]
    fn a_log_that_is_not_there_yet_has_no_lines() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(count(&top.path().join("0.log"), None).unwrap(), 0);
    }
}
