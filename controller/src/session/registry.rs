//! The sessions that agents hold with this member: one for each node, a newer one in place of the older.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rpc::v1::Open;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::calls::Call;
use crate::status::Reports;

/// Calls that wait to be told to one agent; it takes them faster than people make them.
const OPENS_MAX: usize = 64;
/// Calls of one node whose agent has not answered yet.
const CALLS_MAX: usize = 64;

/// What has changed since a session began, as counters: a session looks only at what moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Pods of this node.
    pub(super) pods: u64,
    /// ConfigMaps and Secrets, of any pod.
    pub(super) used: u64,
}

/// The sessions of this member; clones are the same ones.
#[derive(Clone)]
pub(crate) struct Sessions {
    inner: Arc<Mutex<Inner>>,
    reports: Reports,
}

#[derive(Default)]
struct Inner {
    /// Of the last session.
    number: u64,
    /// Why no session is taken any more.
    closed: Option<Status>,
    /// By node.
    open: BTreeMap<String, Entry>,
}

struct Entry {
    number: u64,
    marks: watch::Sender<Marks>,
    opens: mpsc::Sender<Open>,
    end: oneshot::Sender<Status>,
    calls: HashMap<String, oneshot::Sender<Call>>,
}

/// What a session hears from the rest of the member.
pub(super) struct Inbox {
    pub(super) marks: watch::Receiver<Marks>,
    pub(super) opens: mpsc::Receiver<Open>,
    /// It has to end, and why.
    pub(super) end: oneshot::Receiver<Status>,
    /// Takes the session out of the registry.
    _place: Place,
}

struct Place {
    sessions: Sessions,
    node: String,
    number: u64,
}

impl Sessions {
    /// None yet; reports of a session that ends are dropped from `reports`.
    pub(crate) fn new(reports: Reports) -> Self {
        Self {
            inner: Arc::default(),
            reports,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where sessions hand in what agents report.
    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.inner().open.len()
    }

    /// A session begins; the node's older one ends.
    pub(super) fn enter(&self, node: &str) -> Result<Inbox, Status> {
        let mut inner = self.inner();
        if let Some(status) = &inner.closed {
            return Err(status.clone());
        }
        inner.number += 1;
        let number = inner.number;
        let (marks, marked) = watch::channel(Marks::default());
        let (opens, opened) = mpsc::channel(OPENS_MAX);
        let (end, ended) = oneshot::channel();
        let entry = Entry {
            number,
            marks,
            opens,
            end,
            calls: HashMap::new(),
        };
        self.reports.enter(node);
        if let Some(older) = inner.open.insert(node.to_owned(), entry) {
            finish(
                older,
                Status::aborted(format!("a newer session of node {node} has begun")),
            );
        }
        Ok(Inbox {
            marks: marked,
            opens: opened,
            end: ended,
            _place: Place {
                sessions: self.clone(),
                node: node.to_owned(),
                number,
            },
        })
    }

    /// Ends a node's session.
    pub(super) fn close(&self, node: &str, status: Status) {
        let mut inner = self.inner();
        if let Some(entry) = inner.open.remove(node) {
            self.reports.leave(node);
            finish(entry, status);
        }
    }

    /// Ends all of them; no new one is taken.
    pub(crate) fn close_all(&self, status: Status) {
        let mut inner = self.inner();
        for (node, entry) in std::mem::take(&mut inner.open) {
            self.reports.leave(&node);
            finish(entry, status.clone());
        }
        inner.closed = Some(status);
    }

    /// A pod of this node has changed.
    pub(super) fn mark_pods(&self, node: &str) {
        if let Some(entry) = self.inner().open.get(node) {
            entry.marks.send_modify(|marks| marks.pods += 1);
        }
    }

    /// A ConfigMap or a Secret has changed: who uses it finds out.
    pub(super) fn mark_used(&self) {
        for entry in self.inner().open.values() {
            entry.marks.send_modify(|marks| marks.used += 1);
        }
    }

    /// Anything may have changed.
    pub(super) fn mark_all(&self) {
        for entry in self.inner().open.values() {
            entry.marks.send_modify(|marks| {
                marks.pods += 1;
                marks.used += 1;
            });
        }
    }

    /// Asks a node's agent to open a call; `NOT_FOUND` when it has no session here. The answer comes by [`Sessions::take`].
    pub(crate) fn ask(&self, node: &str, open: Open) -> Result<oneshot::Receiver<Call>, Status> {
        let mut inner = self.inner();
        let entry = inner.open.get_mut(node);
        let entry = entry.ok_or_else(|| Status::not_found(format!("node {node} has no session here")))?;
        entry.calls.retain(|_, call| !call.is_closed());
        if entry.calls.len() >= CALLS_MAX {
            return Err(Status::resource_exhausted(format!(
                "too many calls wait for node {node}"
            )));
        }
        let call_id = open.call_id.clone();
        let sent = entry.opens.try_send(open);
        sent.map_err(|_| Status::unavailable(format!("node {node} does not take calls now")))?;
        let (call, carried) = oneshot::channel();
        entry.calls.insert(call_id, call);
        Ok(carried)
    }

    /// The one who waits for this call of this node; None when nobody does (any more).
    pub(super) fn take(&self, node: &str, call_id: &str) -> Option<oneshot::Sender<Call>> {
        self.inner().open.get_mut(node)?.calls.remove(call_id)
    }
}

fn finish(entry: Entry, status: Status) {
    if entry.end.send(status).is_err() {
        tracing::trace!("the session has ended by itself");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.sessions.inner();
        if inner
            .open
            .get(&self.node)
            .is_some_and(|entry| entry.number == self.number)
        {
            inner.open.remove(&self.node);
            self.sessions.reports.leave(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn open(call_id: &str) -> Open {
        Open {
            call_id: call_id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_newer_session_ends_the_older_and_outlives_its_end() {
        let sessions = Sessions::new(Reports::default());
        let mut older = sessions.enter("n1").unwrap();
        let mut newer = sessions.enter("n1").unwrap();
        assert_eq!(older.end.try_recv().unwrap().code(), Code::Aborted);
        drop(older);
        assert_eq!(sessions.count(), 1);
        assert!(newer.end.try_recv().is_err());
        drop(newer);
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_closed_member_takes_no_sessions() {
        let sessions = Sessions::new(Reports::default());
        let mut inbox = sessions.enter("n1").unwrap();
        sessions.close_all(Status::unavailable("stops"));
        assert_eq!(inbox.end.try_recv().unwrap().code(), Code::Unavailable);
        assert!(sessions.enter("n1").is_err());
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_call_belongs_to_its_node_alone_and_ends_with_the_session() {
        let sessions = Sessions::new(Reports::default());
        assert_eq!(sessions.ask("n1", open("a")).unwrap_err().code(), Code::NotFound);
        let mut inbox = sessions.enter("n1").unwrap();
        let _other = sessions.enter("n2").unwrap();
        let mut carried = sessions.ask("n1", open("a")).unwrap();
        assert_eq!(inbox.opens.try_recv().unwrap().call_id, "a");
        assert!(sessions.take("n2", "a").is_none());
        let _again = sessions.enter("n1").unwrap();
        assert!(matches!(
            carried.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
        assert!(sessions.take("n1", "a").is_none());
    }

    #[test]
    fn calls_that_wait_are_bounded_and_those_given_up_make_room() {
        let sessions = Sessions::new(Reports::default());
        let mut inbox = sessions.enter("n1").unwrap();
        let mut waiting = Vec::new();
        for index in 0..CALLS_MAX {
            waiting.push(sessions.ask("n1", open(&index.to_string())).unwrap());
            inbox.opens.try_recv().unwrap();
        }
        let refused = sessions.ask("n1", open("more")).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        waiting.pop();
        sessions.ask("n1", open("more")).unwrap();
    }
}
