//! Which agents are heard. The leader holds a lease for each node, in memory only: heartbeats never enter the log.
//!
//! An agent's heartbeat arrives at the member that holds its session; [`Renewals`] gathers those of a member and renews them
//! at the leader, many in one call. [`Leases`] is what the leader makes of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rpc::v1::RenewLeasesRequest;
use rpc::v1::relay_client::RelayClient;
use state::State;
use state::plan::{Lease, World};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::raft::Node;

/// How often an agent is to be heard: three times in a lease, so that one lost heartbeat costs nothing.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a node counts as there after its last heartbeat.
pub(crate) const LEASE: Duration = Duration::from_secs(6);
const _: () = assert!(
    LEASE.as_millis() as i64 / 4 + 2_500 <= state::plan::FENCE_MARGIN_MS,
    "what must not run twice has ended when it is replaced"
);
/// A renewal that takes longer than until the next heartbeat is of no use to it, and neither is a leader that can't say
/// within this time that it leads.
const RENEW_TIMEOUT: Duration = HEARTBEAT;
/// Renewals that wait at one member: one for each session there can be; those beyond are not granted.
const RENEWALS_MAX: usize = 16_384;
/// Names in one call.
const BATCH_MAX: usize = 4096;

/// Since when a node is known, and whether its agent has been heard since this member leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Not yet: it may be alive and have been heard by the leader before.
    NotSince(Instant),
    /// Its last heartbeat.
    At(Instant),
}

impl Heard {
    fn end(self) -> Instant {
        match self {
            Self::NotSince(at) | Self::At(at) => at + LEASE,
        }
    }
}

/// What a leader knows of agents, as values of time come in.
#[derive(Debug)]
struct Table {
    /// When this member began to lead.
    began: Instant,
    /// Whether the plan has asked since: nodes that turn up later have joined later.
    asked: bool,
    nodes: BTreeMap<String, Heard>,
}

impl Table {
    fn new(began: Instant) -> Self {
        Self {
            began,
            asked: false,
            nodes: BTreeMap::new(),
        }
    }

    /// Whether a node has become live that was not.
    fn renew(&mut self, nodes: Vec<String>, now: Instant) -> bool {
        let mut news = false;
        for node in nodes {
            let before = self.nodes.insert(node, Heard::At(now));
            news |= !matches!(before, Some(Heard::At(at)) if now < at + LEASE);
        }
        news
    }

    /// The leases of the nodes that there are; others are forgotten. A node that this leader has not heard yet is missing
    /// until a full lease has passed since it could have been.
    fn world<'a>(&mut self, nodes: impl Iterator<Item = &'a str>, now: Instant, now_ms: i64) -> World {
        let mut there = BTreeMap::new();
        let mut world = World::default();
        let unheard = Heard::NotSince(if self.asked { now } else { self.began });
        self.asked = true;
        for name in nodes {
            let heard = *self.nodes.get(name).unwrap_or(&unheard);
            there.insert(name.to_owned(), heard);
            let end = heard.end();
            let lease = match heard {
                Heard::At(_) if now < end => Lease::Live,
                Heard::NotSince(_) if now < end => continue,
                Heard::At(_) | Heard::NotSince(_) => {
                    let past_ms = i64::try_from((now - end).as_millis()).unwrap_or(i64::MAX);
                    Lease::Lost {
                        since: now_ms.saturating_sub(past_ms),
                        past_ms,
                    }
                }
            };
            world.leases.insert(name.to_owned(), lease);
        }
        self.nodes = there;
        world
    }

    /// When the next lease ends.
    fn next_end(&self, now: Instant) -> Option<Instant> {
        let ends = self.nodes.values().map(|heard| heard.end());
        ends.filter(|end| *end > now).min()
    }
}

/// The leader's leases; empty while another member leads. Clones are the same ones.
#[derive(Clone, Default)]
pub(crate) struct Leases {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// None while this member does not lead.
    leading: Mutex<Option<Table>>,
    changed: Notify,
}

impl Leases {
    fn leading(&self) -> MutexGuard<'_, Option<Table>> {
        self.inner.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This member leads from now on: nothing is known of any node.
    pub(crate) fn begin(&self) {
        *self.leading() = Some(Table::new(Instant::now()));
    }

    /// It leads no more.
    pub(crate) fn end(&self) {
        *self.leading() = None;
    }

    /// Renews the leases of these nodes; false when this member does not lead. Ask [`Node::leads`] first: another leader
    /// waits one lease from its beginning on, and a renewal after that is not to be granted by the one before.
    pub(crate) fn renew(&self, nodes: Vec<String>) -> bool {
        let news = match self.leading().as_mut() {
            Some(table) => table.renew(nodes, Instant::now()),
            None => return false,
        };
        if news {
            self.inner.changed.notify_one();
        }
        true
    }

    /// For the plan; empty when this member does not lead.
    pub(crate) fn world<'a>(&self, nodes: impl Iterator<Item = &'a str>, now_ms: i64) -> World {
        match self.leading().as_mut() {
            Some(table) => table.world(nodes, Instant::now(), now_ms),
            None => World::default(),
        }
    }

    /// When a lease ends next, unless it is renewed.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.leading().as_ref()?.next_end(Instant::now())
    }

    /// Resolves once a node has become live since the last call.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

/// One heartbeat on its way to the leader.
pub(crate) struct Renewal {
    node: String,
    answer: oneshot::Sender<bool>,
}

/// Where sessions hand in their heartbeats.
#[derive(Clone)]
pub(crate) struct Renewals {
    queue: mpsc::Sender<Renewal>,
}

impl Renewals {
    /// With the end that [`forward`] takes.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Renewal>) {
        let (queue, renewals) = mpsc::channel(RENEWALS_MAX);
        (Self { queue }, renewals)
    }

    /// Begins to renew a node's lease; what comes back says whether the leader did. An end without an answer means no.
    pub(crate) fn renew(&self, node: &str) -> oneshot::Receiver<bool> {
        let (answer, granted) = oneshot::channel();
        let renewal = Renewal {
            node: node.to_owned(),
            answer,
        };
        if self.queue.try_send(renewal).is_err() {
            tracing::warn!(
                node,
                "too many heartbeats wait for the leader; this one is not granted"
            );
        }
        granted
    }
}

/// Renews at the leader whatever was handed in since the last call, until nobody can hand in more.
pub(crate) async fn forward(mut renewals: mpsc::Receiver<Renewal>, node: Node, leases: Leases) {
    let mut batch = Vec::new();
    while renewals.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut names: Vec<String> = batch.iter().map(|renewal| renewal.node.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let granted = renew_at_leader(&node, &leases, names).await;
        let state = if granted { known_since(&node).await } else { None };
        for renewal in batch.drain(..) {
            let granted = state.as_ref().is_some_and(|state| state.is_heard(&renewal.node));
            if renewal.answer.send(granted).is_err() {
                tracing::trace!(node = renewal.node, "the session has ended meanwhile");
            }
        }
    }
}

/// What was committed before the leader renewed leases. A node that is called lost in it is granted nothing yet: what must
/// not run twice may be on its way from there, and the node is called ready first. So is a node that was deleted. The session
/// tells its agent what is in this state before it tells of the grant, as `stale` is never older.
async fn known_since(node: &Node) -> Option<State> {
    match tokio::time::timeout(RENEW_TIMEOUT, node.read()).await {
        Ok(Ok(state)) => Some(state),
        Ok(Err(cause)) => {
            tracing::info!(%cause, "leases were renewed, but not what was decided before");
            None
        }
        Err(_) => {
            tracing::info!("leases were renewed, but what was decided before did not come in time");
            None
        }
    }
}

async fn renew_at_leader(node: &Node, leases: &Leases, names: Vec<String>) -> bool {
    let leadership = *node.leadership().borrow();
    let leader = match leadership.leader {
        None => return false,
        Some(leader) if leader == node.id() => {
            let leads = tokio::time::timeout(RENEW_TIMEOUT, node.leads()).await;
            return leads.unwrap_or(false) && leases.renew(names);
        }
        Some(leader) => leader,
    };
    let channel = match node.peer_channel(leader) {
        None => return false,
        Some(Ok(channel)) => channel,
        Some(Err(cause)) => {
            tracing::warn!(error = %cause, leader, "the leader's address can't be used");
            return false;
        }
    };
    let mut client = RelayClient::new(channel);
    let call = client.renew_leases(RenewLeasesRequest { nodes: names });
    match tokio::time::timeout(RENEW_TIMEOUT, call).await {
        Ok(Ok(answer)) => answer.into_inner().granted,
        Ok(Err(status)) => {
            tracing::info!(leader, %status, "the leader did not renew leases");
            false
        }
        Err(_) => {
            tracing::info!(leader, "the leader did not answer heartbeats in time");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    /// A leader's table with a clock that goes when it is told.
    struct Leader {
        table: Table,
        now: Instant,
    }

    impl Leader {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                table: Table::new(now),
                now,
            }
        }

        fn renew(&mut self, node: &str) -> bool {
            self.table.renew(vec![node.to_owned()], self.now)
        }

        fn world(&mut self, nodes: &[&str]) -> BTreeMap<String, Lease> {
            self.table.world(nodes.iter().copied(), self.now, NOW_MS).leases
        }

        fn advance(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }
    }

    const BOTH: &[&str] = &["n1", "n2"];

    #[test]
    fn a_new_leader_waits_a_full_lease_before_it_calls_a_node_lost() {
        let mut leader = Leader::new();
        leader.advance(5999);
        leader.renew("n1");
        assert_eq!(leader.world(BOTH), [("n1".to_owned(), Lease::Live)].into());
        leader.advance(1);
        let lost = Lease::Lost {
            since: NOW_MS,
            past_ms: 0,
        };
        let expected = [("n1".to_owned(), Lease::Live), ("n2".to_owned(), lost)];
        assert_eq!(leader.world(BOTH), expected.into());
    }

    #[test]
    fn a_node_is_lost_a_lease_after_its_last_heartbeat_and_live_at_the_next() {
        let mut leader = Leader::new();
        assert!(leader.renew("n1"));
        leader.advance(2000);
        assert!(!leader.renew("n1"), "it was live before");
        assert_eq!(leader.table.next_end(leader.now), Some(leader.now + LEASE));
        leader.advance(6500);
        let lost = Lease::Lost {
            since: NOW_MS - 500,
            past_ms: 500,
        };
        assert_eq!(leader.world(BOTH)["n1"], lost);
        assert_eq!(leader.world(&["n1"]).len(), 1);
        assert_eq!(leader.table.next_end(leader.now), None);
        assert!(leader.renew("n1"));
        assert_eq!(leader.world(BOTH)["n1"], Lease::Live);
    }

    #[test]
    fn a_node_that_joins_later_has_a_lease_to_be_heard() {
        let mut leader = Leader::new();
        leader.renew("n1");
        assert_eq!(leader.world(&["n1"]).len(), 1);
        for _ in 0..5 {
            leader.advance(2000);
            leader.renew("n1");
        }
        assert!(!leader.world(BOTH).contains_key("n2"));
        leader.advance(5999);
        assert!(!leader.world(BOTH).contains_key("n2"));
        leader.advance(1);
        assert!(matches!(leader.world(BOTH)["n2"], Lease::Lost { .. }));
        assert!(!leader.world(&["n1"]).contains_key("n2"), "it was deleted");
    }

    #[tokio::test]
    async fn who_does_not_lead_renews_nothing() {
        let leases = Leases::default();
        let renew = || leases.renew(vec!["n1".to_owned()]);
        let world = || leases.world(["n1"].into_iter(), NOW_MS).leases;
        assert!(!renew());
        leases.begin();
        assert!(renew());
        leases.changed().await;
        assert_eq!(world()["n1"], Lease::Live);
        leases.end();
        assert!(!renew());
        assert_eq!(world(), BTreeMap::new());
        leases.begin();
        assert_eq!(
            world(),
            BTreeMap::new(),
            "a new term knows nothing of the old one"
        );
    }

    proptest! {
        #[test]
        fn a_node_is_lost_exactly_when_it_was_silent_for_a_lease(beats in prop::collection::vec(0_u64..9000, 0..12)) {
            let began = Instant::now();
            let mut table = Table::new(began);
            let mut now = began;
            let mut last = None;
            for pause in beats {
                now += Duration::from_millis(pause);
                let since = last.unwrap_or(began);
                let lease = table.world(["n1"].into_iter(), now, NOW_MS).leases.get("n1").copied();
                match lease {
                    None => prop_assert!(last.is_none() && now < began + LEASE),
                    Some(Lease::Live) => prop_assert!(last.is_some() && now < since + LEASE),
                    Some(Lease::Lost { past_ms, .. }) => {
                        let past = Duration::from_millis(u64::try_from(past_ms).unwrap());
                        prop_assert_eq!(since + LEASE + past, now);
                    }
                }
                prop_assert_eq!(table.renew(vec!["n1".to_owned()], now), lease != Some(Lease::Live));
                last = Some(now);
            }
        }
    }
}
