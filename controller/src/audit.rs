//! The audit log: a JSON line for each write and each refusal, with who asked for it, and never a value.
//!
//! One thread writes the file; calls hand their lines over through a bounded queue. Where the disk is too slow a call waits
//! a second for room, and then its line is lost, which is counted and said in the process's own log: an audit log that
//! stops the API would be a way to stop the API. Lines are not synced one by one: a machine that loses power loses the last
//! ones, a process that is killed loses those of the queue.

mod file;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use serde::Serialize;
use state::rbac::Access;
use tokio::sync::mpsc;

use crate::clock;
use file::File;
pub(crate) use file::{FILE_BYTES_MAX, FILES_MAX};

/// Lines on their way to the writer: half a second of writes at the API's full rate.
const QUEUE_MAX: usize = 4096;
/// How long a call waits for room in it.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// Objects named in one line; of the others only their number.
const OBJECTS_MAX: usize = 100;
/// Longest text of a line: names come from callers.
const TEXT_BYTES_MAX: usize = 512;

/// Takes lines; clones go to the same file.
#[derive(Clone)]
pub(crate) struct Audit {
    member: Arc<str>,
    lines: mpsc::Sender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// One call.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    time: String,
    /// The controller that was asked.
    member: String,
    user: String,
    groups: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    call: String,
    objects: Vec<Touched>,
    /// Objects that are not named.
    #[serde(skip_serializing_if = "is_zero")]
    more_objects: usize,
    /// allowed or refused.
    decision: &'static str,
    /// Why it was refused.
    #[serde(rename = "reason", skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
    /// How it ended, as a code of gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<String>,
    #[serde(rename = "requestID", skip_serializing_if = "String::is_empty")]
    pub(crate) request_id: String,
    /// Whether it is noted also when it was allowed.
    #[serde(skip)]
    pub(crate) noted: bool,
}

/// What was to be done with what.
#[derive(Debug, Serialize)]
pub(crate) struct Touched {
    verb: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

impl Touched {
    pub(crate) fn of(access: &Access) -> Self {
        Self {
            verb: cut(&access.verb),
            group: cut(&access.group),
            resource: cut(&access.resource),
            namespace: cut(&access.namespace),
            name: cut(&access.name),
        }
    }
}

impl Entry {
    pub(crate) fn new(call: &str, user: &str, groups: &[String], address: Option<SocketAddr>) -> Self {
        Self {
            user: cut(user),
            groups: groups.iter().take(OBJECTS_MAX).map(|group| cut(group)).collect(),
            address,
            call: cut(call),
            ..Self::default()
        }
    }

    /// What it is about.
    pub(crate) fn touches(&mut self, objects: impl Iterator<Item = Touched>) {
        for object in objects {
            if self.objects.len() < OBJECTS_MAX {
                self.objects.push(object);
            } else {
                self.more_objects += 1;
            }
        }
    }
}

impl Audit {
    /// Forgets every line: for a world without a file system.
    #[cfg(all(test, feature = "simulation"))]
    pub(crate) fn nowhere() -> Self {
        let (lines, mut queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(async move { while queue.recv().await.is_some() {} });
        Self {
            member: "simulated".into(),
            lines,
            lost: Arc::default(),
        }
    }

    /// Goes on with the file in this directory, which is made.
    pub(crate) fn open(directory: &Path, member: &str) -> io::Result<Self> {
        let file = File::open(directory, FILE_BYTES_MAX, FILES_MAX)?;
        let (lines, queue) = mpsc::channel(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(file, queue, &counted))?;
        Ok(Self {
            member: member.into(),
            lines,
            lost,
        })
    }

    /// Lines that were lost since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes a call; waits a bounded time for room.
    pub(crate) async fn record(&self, entry: Entry) {
        let Some(line) = self.line(entry) else { return };
        if self.lines.send_timeout(line, ROOM_TIMEOUT).await.is_err() {
            self.lose("the writer is too slow");
        }
    }

    /// Notes a call of somebody who is not let in, if there is room: nobody waits for them.
    pub(crate) fn record_stranger(&self, entry: Entry) {
        let Some(line) = self.line(entry) else { return };
        if self.lines.try_send(line).is_err() {
            self.lose("the writer is too slow");
        }
    }

    fn line(&self, mut entry: Entry) -> Option<Vec<u8>> {
        entry.time = clock::text(clock::now_ms());
        entry.member = self.member.as_ref().to_owned();
        entry.decision = if entry.refused.is_some() {
            "refused"
        } else {
            "allowed"
        };
        entry.refused = entry.refused.map(|reason| cut(&reason));
        match serde_json::to_vec(&entry) {
            Ok(mut line) => {
                line.push(b'\n');
                Some(line)
            }
            Err(cause) => {
                tracing::error!(error = %cause, "a line of the audit log can't be written");
                self.lose("it has no JSON form");
                None
            }
        }
    }

    fn lose(&self, why: &str) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(lost, why, "a line of the audit log was lost");
    }
}

/// The writer's thread, until the last sender is gone.
fn write(mut file: File, mut queue: mpsc::Receiver<Vec<u8>>, lost: &AtomicU64) {
    let mut lines = Vec::new();
    // Few system calls when many lines come.
    while queue.blocking_recv_many(&mut lines, QUEUE_MAX) > 0 {
        if let Err(cause) = file.append(&lines) {
            let lost = lost.fetch_add(lines.len() as u64, Ordering::Relaxed) + lines.len() as u64;
            tracing::error!(error = %cause, lost, "the audit log can't be written: lines were lost");
        }
        lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_says_who_did_what_and_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(directory.path(), "c1").unwrap();
        let mut entry = Entry::new("Apply", "ann", &["devs".to_owned()], None);
        let access = Access::to("create", model::Kind::Secret, "shop", "db");
        entry.touches(std::iter::repeat_n(access, OBJECTS_MAX + 2).map(|access| Touched::of(&access)));
        entry.outcome = Some("Ok".to_owned());
        audit.record(entry).await;
        let mut refused = Entry::new("Get", &"x".repeat(10_000), &[], None);
        refused.refused = Some("user x may not".to_owned());
        audit.record_stranger(refused);
        let path = directory.path().join("audit.log");
        let lines = loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.lines().count() == 2 {
                break text;
            }
            tokio::task::yield_now().await;
        };
        let lines: Vec<serde_json::Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["user"], "ann");
        assert_eq!(lines[0]["decision"], "allowed");
        assert_eq!(lines[0]["objects"][0]["name"], "db");
        assert_eq!(lines[0]["objects"].as_array().unwrap().len(), OBJECTS_MAX);
        assert_eq!(lines[0]["moreObjects"], 2);
        assert_eq!(lines[1]["decision"], "refused");
        assert_eq!(lines[1]["user"].as_str().unwrap().len(), TEXT_BYTES_MAX);
        assert_eq!(audit.lost(), 0);
    }

    #[tokio::test]
    async fn a_writer_that_stands_still_holds_nobody_for_long_and_what_is_lost_is_counted() {
        let (lines, _queue) = mpsc::channel(1);
        let audit = Audit {
            member: "c1".into(),
            lines,
            lost: Arc::default(),
        };
        let entry = || Entry::new("Apply", "ann", &[], None);
        audit.record(entry()).await;
        audit.record_stranger(entry());
        assert_eq!(audit.lost(), 1);
        tokio::time::timeout(20 * ROOM_TIMEOUT, audit.record(entry()))
            .await
            .unwrap();
        assert_eq!(audit.lost(), 2);
    }
}
