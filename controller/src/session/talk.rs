//! One session, from the agent's Hello to its end.
//!
//! Nothing is queued for an agent but what it is about to read: while it is slow, changes of the state only move marks, and it
//! gets one difference to the newest state when it reads on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use model::object;
use proto::v1::Node as NodeObject;
use rpc::v1::agent_message::Message as Up;
use rpc::v1::controller_message::Message as Down;
use rpc::v1::{AgentMessage, ControllerMessage, Desired, Heartbeat, HeartbeatReply, Hello, Open, Welcome};
use state::State;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::desired::{Known, Peers};
use super::registry::{Inbox, Marks};
use super::{Desk, dispatch, endpoints, node_key, read, reported};
use crate::clock;
use crate::leases::{HEARTBEAT, LEASE};
use crate::security::identity::Authenticated;
use crate::security::unix_now;

/// The Hello is there when the agent opens the session.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent that takes no message for this time is dropped: it starts over with what it has.
const STALLED_MAX: Duration = Duration::from_secs(10);
/// An agent that says nothing for this time is gone, whatever its connection says.
const SILENT_MAX: Duration = Duration::from_secs(3 * LEASE.as_secs());
/// The leader has renewed no lease for this time: another member may reach it.
const UNGRANTED_MAX: Duration = Duration::from_secs(2 * LEASE.as_secs());
/// Calls that wait behind other messages; more stay with the registry, which refuses beyond its own limit.
const OPENS_MAX: usize = 16;
/// Batches of events that one agent may send in a minute: it gathers them for a second or more.
const EVENT_BATCHES_MAX: u32 = 120;
/// For that count.
const MINUTE: Duration = Duration::from_secs(60);

type Outbox = mpsc::Sender<Result<ControllerMessage, Status>>;

/// Talks with the agent of node `name` until either side ends it.
pub(super) async fn serve(
    desk: Desk,
    name: String,
    authenticated: Arc<Authenticated>,
    inbound: Streaming<AgentMessage>,
    outbox: Outbox,
) {
    let talked = match begin(desk, name.clone(), authenticated, inbound).await {
        Ok(mut talk) => {
            tracing::info!(node = name, address = %talk.agent.address, "a session has begun");
            talk.run(&outbox).await
        }
        Err(status) => Err(status),
    };
    match talked {
        Ok(()) => tracing::info!(node = name, "a session was ended by the agent"),
        Err(status) => {
            tracing::info!(node = name, %status, "a session has ended");
            let told = tokio::time::timeout(STALLED_MAX, outbox.send(Err(status))).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::debug!(node = name, "the agent did not hear why");
            }
        }
    }
}

struct Talk {
    desk: Desk,
    name: String,
    /// The node as it was when the session began.
    object: NodeObject,
    agent: reported::Agent,
    authenticated: Arc<Authenticated>,
    inbound: Streaming<AgentMessage>,
    inbox: Inbox,
    peers: watch::Receiver<Arc<Peers>>,
    seen: Marks,
    known: Known,
    /// What goes next, in order.
    parts: VecDeque<Desired>,
    replies: VecDeque<Down>,
    opens: VecDeque<Open>,
    /// The heartbeat that is on its way to the leader, and the newest that came meanwhile.
    renewal: Option<(u64, oneshot::Receiver<bool>)>,
    waiting: Option<u64>,
    /// A heartbeat that was granted, and whether what the state wants was compared since: the agent hears of it once it knows
    /// all that was decided before.
    granted: Option<(u64, bool)>,
    granted_at: Instant,
    heard_at: Instant,
    sent_at: Instant,
    event_batches: (Instant, u32),
}

async fn begin(
    desk: Desk,
    name: String,
    authenticated: Arc<Authenticated>,
    mut inbound: Streaming<AgentMessage>,
) -> Result<Talk, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(Up::Hello(hello)) = first.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message has to be Hello"));
    };
    let agent = reported::Agent {
        address: reported::check_address(&hello)?,
        schema_level: hello.schema_level,
    };
    let opening = desk.openings.clone().acquire_owned().await;
    // What an agent was told is acknowledged: a state that is behind it would undo what it has done.
    let state = read(&desk.node).await?;
    if state.revision() < hello.revision {
        return Err(Status::unavailable(format!(
            "the agent knows revision {}, this controller only {}",
            hello.revision,
            state.revision()
        )));
    }
    reported::check_level(&hello, state.level_needed_on(&name))?;
    let object = state.get(&node_key(&name)).and_then(object::into::<NodeObject>);
    let object = object.ok_or_else(|| dispatch::deleted(&name))?;
    let Hello {
        revision, pods, node, ..
    } = hello;
    let now = Instant::now();
    let mut talk = Talk {
        inbox: desk.sessions.enter(&name)?,
        peers: desk.peers.clone(),
        seen: Marks::default(),
        known: Known::new(revision, pods),
        parts: VecDeque::new(),
        replies: VecDeque::from([Down::Welcome(welcome(&desk, &state, &object))]),
        opens: VecDeque::new(),
        renewal: None,
        waiting: None,
        granted: None,
        granted_at: now,
        heard_at: now,
        sent_at: now,
        event_batches: (now, 0),
        desk,
        name,
        object,
        agent,
        authenticated,
        inbound,
    };
    // The marks count from `enter` on: what is in the state by now is in this first difference.
    talk.compare(true);
    drop(opening);
    let status = reported::node_status(node.unwrap_or_default(), agent, state.level());
    talk.desk.reports.node(&talk.name, status);
    // A Hello is as good as a heartbeat: the node is ready at once. Nobody waits for the answer.
    drop(talk.desk.renewals.renew(&talk.name));
    Ok(talk)
}

fn welcome(desk: &Desk, state: &State, object: &NodeObject) -> Welcome {
    let settings = state.settings().cloned().unwrap_or_default();
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    Welcome {
        heartbeat_ms: millis(HEARTBEAT),
        lease_ms: millis(LEASE),
        pod_cidr: object
            .spec
            .as_ref()
            .map(|spec| spec.pod_cidr.clone())
            .unwrap_or_default(),
        cluster_pod_cidr: settings.pod_cidr,
        cluster_domain: settings.cluster_domain,
        endpoints: endpoints(&desk.node),
    }
}

impl Talk {
    async fn run(&mut self, outbox: &Outbox) -> Result<(), Status> {
        loop {
            self.tell_granted();
            let ready = self.has_next();
            if !ready {
                self.sent_at = Instant::now();
            }
            let opens_room = self.opens.len() < OPENS_MAX;
            let compare = self.parts.is_empty();
            let renewing = self.renewal.is_some();
            let renewal = async {
                match &mut self.renewal {
                    Some((_, granted)) => granted.await.unwrap_or(false),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                end = &mut self.inbox.end => {
                    return Err(end.unwrap_or_else(|_| Status::unavailable("this controller is stopping")));
                }
                permit = outbox.reserve(), if ready => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = next(&mut self.replies, &mut self.opens, &mut self.parts) {
                        permit.send(Ok(ControllerMessage { message: Some(message) }));
                    }
                    self.sent_at = Instant::now();
                }
                () = tokio::time::sleep_until(self.sent_at + STALLED_MAX), if ready => {
                    return Err(Status::resource_exhausted("the agent takes no messages"));
                }
                Some(open) = self.inbox.opens.recv(), if opens_room => self.opens.push_back(open),
                granted = renewal, if renewing => self.renewed(granted)?,
                changed = self.inbox.marks.changed(), if compare => {
                    if changed.is_err() {
                        return Err(Status::unavailable("this controller is stopping"));
                    }
                    self.compare(false);
                }
                changed = self.peers.changed(), if compare => {
                    if changed.is_err() {
                        return Err(Status::unavailable("this controller is stopping"));
                    }
                    self.compare(false);
                }
                message = self.inbound.message() => match message? {
                    Some(AgentMessage { message: Some(message) }) => self.hear(message)?,
                    Some(AgentMessage { message: None }) => {
                        return Err(Status::invalid_argument("an empty message, or one of a newer agent"));
                    }
                    None => return Ok(()),
                },
                () = outbox.closed() => return Ok(()),
                () = tokio::time::sleep_until(self.heard_at + SILENT_MAX) => {
                    return Err(Status::deadline_exceeded("the agent is silent"));
                }
            }
        }
    }

    fn reply(&mut self, sequence: u64, granted: bool) {
        let reply = HeartbeatReply { sequence, granted };
        self.replies.push_back(Down::Heartbeat(reply));
    }

    /// A grant goes behind what was decided before it: by a grant an agent starts what must not run twice, and a pod that was
    /// replaced meanwhile must not be among that.
    fn tell_granted(&mut self) {
        while let Some((sequence, compared)) = self.granted
            && self.parts.is_empty()
        {
            if compared {
                self.granted = None;
                self.reply(sequence, true);
            } else {
                self.granted = Some((sequence, true));
                self.compare(false);
            }
        }
    }

    fn has_next(&self) -> bool {
        !(self.replies.is_empty() && self.opens.is_empty() && self.parts.is_empty())
    }

    /// Looks for what the agent does not know yet.
    fn compare(&mut self, first: bool) {
        let marks = *self.inbox.marks.borrow_and_update();
        let peers = self.peers.borrow_and_update().clone();
        let used_changed = first || marks.used != self.seen.used;
        self.seen = marks;
        let state = self.desk.node.stale();
        let parts = self.known.difference(&state, &self.name, &peers, used_changed);
        self.parts.extend(parts);
    }

    fn hear(&mut self, message: Up) -> Result<(), Status> {
        self.heard_at = Instant::now();
        match message {
            Up::Hello(_) => return Err(Status::invalid_argument("a session has one Hello")),
            Up::Heartbeat(Heartbeat { sequence }) => {
                // A session outlives the certificate that it began with, unless somebody looks.
                if let Err(ended) = self.authenticated.current(unix_now()) {
                    return Err(Status::unauthenticated(ended.to_string()));
                }
                match self.renewal {
                    Some(_) => self.waiting = Some(sequence),
                    None => self.renew(sequence),
                }
            }
            Up::Pods(reports) => {
                let own = reported::pods(reports.pods, &self.known);
                self.desk.reports.pods(&self.name, own);
            }
            Up::Node(status) => {
                let level = self.desk.node.applied().borrow().state.level();
                let status = reported::node_status(status, self.agent, level);
                self.desk.reports.node(&self.name, status);
            }
            Up::Events(reports) => self.events(reports.events),
        }
        Ok(())
    }

    fn events(&mut self, events: Vec<proto::v1::Event>) {
        let (since, count) = &mut self.event_batches;
        if since.elapsed() >= MINUTE {
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
        if *count > EVENT_BATCHES_MAX {
            tracing::debug!(
                node = self.name,
                "an agent sends events too often; some are dropped"
            );
            return;
        }
        let state = self.desk.node.stale();
        let now = clock::timestamp(clock::now_ms());
        let own = reported::events(events, &self.known, &state, &self.object, now);
        self.desk.events.record(own);
    }

    fn renew(&mut self, sequence: u64) {
        self.renewal = Some((sequence, self.desk.renewals.renew(&self.name)));
    }

    /// The leader has answered; the heartbeats that came meanwhile go together.
    fn renewed(&mut self, granted: bool) -> Result<(), Status> {
        if let Some((sequence, _)) = self.renewal.take() {
            match self.granted {
                // One that is about to be told is not made to wait behind what has changed since.
                Some((_, true)) if granted => {}
                _ if granted => self.granted = Some((sequence, false)),
                _ => self.reply(sequence, false),
            }
        }
        if granted {
            self.granted_at = Instant::now();
        } else if self.granted_at.elapsed() > UNGRANTED_MAX {
            return Err(Status::unavailable("this controller does not reach the leader"));
        }
        if let Some(sequence) = self.waiting.take() {
            self.renew(sequence);
        }
        Ok(())
    }
}

/// Short messages go before long ones.
fn next(
    replies: &mut VecDeque<Down>,
    opens: &mut VecDeque<Open>,
    parts: &mut VecDeque<Desired>,
) -> Option<Down> {
    let reply = replies.pop_front();
    let open = || opens.pop_front().map(Down::Open);
    reply
        .or_else(open)
        .or_else(|| parts.pop_front().map(Down::Desired))
}
