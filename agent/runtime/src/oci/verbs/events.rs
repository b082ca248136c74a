//! `events [--stats] [--interval 5s] ID`: usage in runc's fields, a JSON line each, and a line at each want of memory.

mod stats;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::super::arguments::Arguments;
use super::super::state::{Record, Status, look};
use super::super::{Globals, OciError, refused};
use super::step;
use stats::stats;

const INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn events(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let interval = match arguments.value("interval") {
        None => INTERVAL,
        Some(text) => duration(text)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| {
                refused(format!(
                    "duration interval {text:?} must be greater than 0, as 5s or 500ms"
                ))
            })?,
    };
    let (record, status) = look(&globals.root, arguments.id()?)?;
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(refused(format!("container with id {} is not running", record.id)));
    }
    if record.no_cgroup {
        return Err(refused(format!(
            "container with id {} has no cgroup that counts: it was made without root",
            record.id
        )));
    }
    if arguments.is("stats") {
        line(&record, "stats", Some(stats(&record.cgroup()?)?))?;
        return Ok(0);
    }
    let Some(process) = record.process()? else {
        return Err(refused(format!("container with id {} is not running", record.id)));
    };
    follow(&record, &process, interval)
}

/// Until the container ends, or nobody reads any more.
fn follow(record: &Record, process: &OwnedFd, interval: Duration) -> Result<i32, OciError> {
    let cgroup = record.cgroup()?;
    let oom = cgroup.oom_events()?;
    let mut kills = cgroup.oom_kills()?;
    let mut next = Instant::now() + interval;
    loop {
        let mut polled = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if let Some(oom) = &oom {
            polled.push(PollFd::new(oom.as_fd(), PollFlags::POLLIN));
        }
        let left = next.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result.map_err(io::Error::from).map_err(step("wait for events"))?,
        };
        let is = |index: usize| {
            polled
                .get(index)
                .and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        let (ended, woken) = (is(0), is(1));
        if let (true, Some(oom)) = (woken, &oom) {
            let mut count = [0; 8];
            sys::fd::read(oom.as_fd(), &mut count).map_err(step("read the count of events"))?;
        }
        if ended {
            return Ok(0);
        }
        // The event also fires when the group goes, and v2 has none: the counter tells.
        let now = cgroup.oom_kills()?;
        if now > kills || (woken && cgroup.exists()) {
            kills = now;
            if !line(record, "oom", None)? {
                return Ok(0);
            }
        }
        if Instant::now() >= next {
            next += interval;
            if !line(record, "stats", Some(stats(&cgroup)?))? {
                return Ok(0);
            }
        }
    }
}

/// False once nobody reads.
fn line(record: &Record, kind: &str, data: Option<Value>) -> Result<bool, OciError> {
    let mut event = json!({ "type": kind, "id": record.id });
    if let Some(data) = data {
        event["data"] = data;
    }
    match writeln!(io::stdout(), "{event}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(step("write an event")(error)),
    }
}

/// A duration as `1m30s`, `5s` or `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            "us" => Duration::from_micros(1),
            _ => return None,
        };
        whole = whole.checked_add(one.checked_mul(number)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "5", "s", "5x", "-1s", "99999999999s", "5s\u{e4}"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }
}
