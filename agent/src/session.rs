//! The agent's one session: it goes out to whichever controller answers, says what the node has, takes what is to be there,
//! and brings back what became of it.
//!
//! Nothing depends on a session lasting: what is desired is in the ledger before a pod's actor hears of it, and each new
//! session begins with everything that is to be said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::NodeStatus;
use rpc::v1::node_client::NodeClient;
use rpc::v1::{
    AgentMessage, ControllerMessage, EventReports, Heartbeat, Hello, PodReports, Welcome, agent_message,
    controller_message,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::calls::Calls;
use crate::health::Health;
use crate::ledger::LedgerError;
use crate::link::{Link, random};
use crate::node::{ClusterFacts, Node};
use crate::node_status::NodeStatuses;
use crate::pods::Pods;

/// How long a controller may take to answer a Hello, including the search for one that accepts.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// Pauses after a session that did not come about or ended: the first and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Messages that wait to be sent. Reports are gathered while it is full, so more would only be older.
const OUTGOING_MAX: usize = 4;
/// Events of one message.
const EVENTS_MAX: usize = 64;
/// How often the node's own state is looked at, and how often it is told though nothing changed (as a kubelet).
const NODE_LOOK: Duration = Duration::from_secs(10);
const NODE_TELL: Duration = Duration::from_secs(300);
/// How often all pods are reported though nothing changed, the first time after a quarter of it: a report that an earlier
/// session left under way at a controller that was cut off may have come last.
const PODS_TELL: Duration = Duration::from_secs(60);
/// After a heartbeat that was not granted the next one comes after this part of the time between them.
const REFUSED_PART: u64 = 4;
/// Heartbeats without an answer of which the time is kept; a session without any ends long before.
const SENT_MAX: usize = 256;
/// Heartbeats as a controller may ask for them.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("failed to set up a channel")]
    Tls(#[from] rpc::tls::TlsError),
    #[error("{}", .0.message())]
    Refused(Status),
    #[error("no answer within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    #[error("the controller sent nothing, or something else, instead of a welcome")]
    NoWelcome,
    #[error("the controller closed it")]
    Closed,
    #[error("no lease was granted for {} ms: the controller does not reach a leader", .0.as_millis())]
    NoLease(Duration),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the controller said something of the cluster that cannot be: {0}")]
    Facts(String),
    #[error("a task of this agent failed")]
    Task(#[from] tokio::task::JoinError),
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// How a session ended without a failure.
enum End {
    /// The certificate was renewed: on with the new one at once.
    Renewed,
}

/// What a session works with.
pub(crate) struct Session {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) link: Arc<Link>,
    pub(crate) calls: Calls,
    pub(crate) statuses: NodeStatuses,
    pub(crate) facts: watch::Sender<Option<ClusterFacts>>,
    pub(crate) peers: watch::Sender<Vec<rpc::v1::Peer>>,
    /// Until when what must not run twice may run here, in milliseconds since the machine started.
    pub(crate) lease: watch::Sender<u64>,
    pub(crate) health: Arc<Health>,
}

impl Session {
    /// Sessions one after the other, until the task is dropped.
    pub(crate) async fn run(mut self) {
        let mut failures: u32 = 0;
        let mut first = random() as usize % 1024; // nodes spread over the controllers
        let mut said = String::new();
        loop {
            let mut welcomed = false;
            let ended = self.once(first, &mut welcomed).await;
            self.health.disconnected();
            if welcomed {
                failures = 0;
                said.clear();
            }
            match ended {
                Ok(End::Renewed) => continue,
                Err(error) => {
                    let cause = runtime::monitor::chain(&error);
                    // Once for each cause, not once for each try.
                    if said != cause {
                        tracing::warn!(cause, "no session with a controller; trying again");
                        said = cause;
                    }
                }
            }
            first = first.wrapping_add(1);
            tokio::time::sleep(pause(failures, random())).await;
            failures = failures.saturating_add(1);
        }
    }

    async fn once(&mut self, first: usize, welcomed: &mut bool) -> Result<End, SessionError> {
        let mut identity = self.link.changes();
        let certificate = identity.borrow_and_update().certificate.clone();
        let channel = self.link.channel(first)?;
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let hello = self.hello().await?;
        let mut told = hello.node.clone();
        let greeting = message(agent_message::Message::Hello(hello));
        outgoing.try_send(greeting).map_err(|_| SessionError::Closed)?; // new, so it has room
        let mut client = NodeClient::new(channel.clone());
        let opening = async {
            let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
            let welcome = inbound.message().await?.and_then(|message| message.message);
            match welcome {
                Some(controller_message::Message::Welcome(welcome)) => Ok((inbound, welcome)),
                _ => Err(SessionError::NoWelcome),
            }
        };
        let opened = tokio::time::timeout(HELLO_TIMEOUT, opening).await;
        let (mut inbound, welcome) = opened.map_err(|_| SessionError::Silent)??;
        self.welcome(&welcome).await?;
        *welcomed = true;
        self.health.connected();
        tracing::info!("in session with a controller");
        self.pods.report_all();

        let beat = u64::from(welcome.heartbeat_ms).clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
        let lease = Duration::from_millis(u64::from(welcome.lease_ms).max(2 * beat));
        let mut beats = interval(Duration::from_millis(beat));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(NODE_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tells = interval_at(Instant::now() + PODS_TELL / 4, PODS_TELL);
        tells.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = Sent::new(welcome.lease_ms);
        let mut granted = Instant::now();
        let mut told_at = Instant::now();
        let mut sequence = 0;
        let mut beat_due = false;
        let mut node_due: Option<NodeStatus> = None;
        let mut events_due = true;
        loop {
            let reports_due = self.pods.has_reports();
            let something = beat_due || reports_due || events_due || node_due.is_some();
            tokio::select! {
                biased;
                received = next(&mut inbound) => match received? {
                    controller_message::Message::Heartbeat(reply) => {
                        let until_ms = sent.answered(reply.sequence);
                        if reply.granted {
                            granted = Instant::now();
                            self.health.granted();
                            // What came before this is with the actors already.
                            self.lease.send_if_modified(|lease| {
                                let later = until_ms.filter(|until| until > lease);
                                later.inspect(|until| *lease = *until).is_some()
                            });
                        } else {
                            // Nobody leads just now, or the node is to be called ready first: both pass soon.
                            beats.reset_after(Duration::from_millis(beat / REFUSED_PART));
                        }
                    }
                    controller_message::Message::Desired(desired) => self.desired(desired).await?,
                    controller_message::Message::Open(open) => self.calls.open(channel.clone(), open),
                    controller_message::Message::Welcome(welcome) => self.welcome(&welcome).await?,
                },
                permit = outgoing.reserve(), if something => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if beat_due {
                        beat_due = false;
                        sequence += 1;
                        sent.note(sequence, sys::time::boottime_ms());
                        permit.send(message(agent_message::Message::Heartbeat(Heartbeat { sequence })));
                    } else if reports_due {
                        let pods = self.pods.take_reports();
                        if !pods.is_empty() {
                            permit.send(message(agent_message::Message::Pods(PodReports { pods })));
                        }
                    } else if let Some(status) = node_due.take() {
                        permit.send(message(agent_message::Message::Node(status)));
                    } else {
                        let events = self.node.events.take(EVENTS_MAX);
                        events_due = !events.is_empty();
                        if events_due {
                            permit.send(message(agent_message::Message::Events(EventReports { events })));
                        }
                    }
                }
                _ = beats.tick() => {
                    if granted.elapsed() > lease {
                        return Err(SessionError::NoLease(lease));
                    }
                    beat_due = true;
                }
                () = self.pods.reported() => {}
                () = self.node.events.filled() => events_due = true,
                _ = tells.tick() => self.pods.report_all(),
                _ = looks.tick() => {
                    let status = self.statuses.look().await;
                    if told.as_ref() != Some(&status) || told_at.elapsed() >= NODE_TELL {
                        told = Some(status.clone());
                        told_at = Instant::now();
                        node_due = Some(status);
                    }
                }
                changed = identity.changed() => {
                    let renewed = changed.is_ok() && identity.borrow_and_update().certificate != certificate;
                    if renewed {
                        return Ok(End::Renewed);
                    }
                }
            }
        }
    }

    async fn hello(&mut self) -> Result<Hello, SessionError> {
        Ok(Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema_level: proto::SCHEMA_LEVEL,
            revision: self.node.ledger.revision()?,
            pods: self.pods.held(),
            node: Some(self.statuses.look().await),
            address: self.node.settings.node_address.to_string(),
        })
    }

    /// Takes over what is true of the cluster.
    async fn welcome(&self, welcome: &Welcome) -> Result<(), SessionError> {
        let facts = facts(welcome).map_err(SessionError::Facts)?;
        if self.facts.borrow().as_ref() != Some(&facts) {
            let node = self.node.clone();
            let kept = facts.clone();
            // In the ledger first: addresses are handed out from there.
            tokio::task::spawn_blocking(move || node.ledger.put_facts(&kept)).await??;
            self.facts.send_replace(Some(facts));
        }
        if !welcome.endpoints.is_empty()
            && let Err(error) = self
                .link
                .update(|identity| identity.endpoints = welcome.endpoints.clone())
        {
            tracing::warn!(
                cause = runtime::monitor::chain(&error),
                "failed to note where controllers are"
            );
        }
        Ok(())
    }

    /// What is to be here: to the ledger, then to the actors.
    async fn desired(&self, desired: rpc::v1::Desired) -> Result<(), SessionError> {
        let change = self.pods.change(desired);
        tracing::debug!(
            revision = change.revision,
            pods = change.pods.len(),
            removed = change.removed.len(),
            "a change of what is desired"
        );
        let node = self.node.clone();
        let change =
            tokio::task::spawn_blocking(move || node.ledger.commit(&change).map(|()| change)).await??;
        if let Some(peers) = &change.peers {
            self.peers.send_replace(peers.clone());
        }
        self.pods.apply(change);
        Ok(())
    }
}

/// Heartbeats of one session that have no answer yet, with when they were sent: a lease counts from there, as the leader can
/// only have heard it later.
struct Sent {
    lease_ms: u64,
    /// By sequence; milliseconds since the machine started.
    at: BTreeMap<u64, u64>,
}

impl Sent {
    fn new(lease_ms: u32) -> Self {
        Self {
            lease_ms: lease_ms.into(),
            at: BTreeMap::new(),
        }
    }

    fn note(&mut self, sequence: u64, now_ms: u64) {
        self.at.insert(sequence, now_ms);
        if self.at.len() > SENT_MAX {
            self.at.pop_first();
        }
    }

    /// Until when the lease lasts that this heartbeat asked for; none for one that was never sent. Earlier ones are answered
    /// with it.
    fn answered(&mut self, sequence: u64) -> Option<u64> {
        let sent = self.at.remove(&sequence);
        self.at.retain(|other, _| *other > sequence);
        sent.map(|at| at.saturating_add(self.lease_ms))
    }
}

async fn next(
    inbound: &mut Streaming<ControllerMessage>,
) -> Result<controller_message::Message, SessionError> {
    loop {
        match inbound.message().await? {
            Some(ControllerMessage {
                message: Some(message),
            }) => return Ok(message),
            Some(_) => tracing::debug!("a controller said something that this agent does not know"),
            None => return Err(SessionError::Closed),
        }
    }
}

fn message(message: agent_message::Message) -> AgentMessage {
    AgentMessage {
        message: Some(message),
    }
}

fn facts(welcome: &Welcome) -> Result<ClusterFacts, String> {
    let range = |text: &str| text.parse().map_err(|error| format!("`{text}`: {error}"));
    Ok(ClusterFacts {
        pod_range: range(&welcome.pod_cidr)?,
        cluster_range: range(&welcome.cluster_pod_cidr)?,
        domain: welcome.cluster_domain.clone(),
    })
}

/// Pause after so many failures in a row: doubling, and between half and all of it.
fn pause(failures: u32, random: u32) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_are_spread() {
        assert_eq!(pause(0, 0), PAUSE_FIRST / 2);
        assert_eq!(pause(0, u32::MAX), PAUSE_FIRST);
        assert_eq!(pause(1, u32::MAX), PAUSE_FIRST * 2);
        for failures in [10, 100, u32::MAX] {
            assert_eq!(pause(failures, u32::MAX), PAUSE_MAX);
            assert!(pause(failures, 7) >= PAUSE_MAX / 2);
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_the_heartbeat_that_was_granted() {
        let mut sent = Sent::new(6000);
        for (sequence, at) in [(1, 100), (2, 2100), (3, 4100)] {
            sent.note(sequence, at);
        }
        assert_eq!(sent.answered(2), Some(8100));
        assert_eq!(sent.answered(2), None, "once");
        assert_eq!(sent.answered(1), None, "it was answered with the second");
        assert_eq!(sent.answered(4), None, "never sent");
        for sequence in 5..1000 {
            sent.note(sequence, sequence);
        }
        assert!(sent.at.len() <= SENT_MAX);
        assert_eq!(sent.answered(999), Some(6999));
    }

    #[test]
    fn facts_are_read_or_refused_with_the_text() {
        let welcome = Welcome {
            pod_cidr: "10.244.1.0/24".to_owned(),
            cluster_pod_cidr: "10.244.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            ..Welcome::default()
        };
        assert_eq!(facts(&welcome).unwrap().pod_range.prefix_len(), 24);
        let broken = Welcome {
            pod_cidr: "ten".to_owned(),
            ..welcome
        };
        assert!(facts(&broken).unwrap_err().contains("`ten`"));
    }
}
