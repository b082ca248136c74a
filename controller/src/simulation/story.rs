//! One simulated cluster from its beginning to its end: it is made, lives through whatever the seed has in store while
//! clients write, read and watch, and has to come to rest as it was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{Kind, object};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{ClusterSettings, Command, NodeJoin, StatusBatch};
use proto::v1::object::Object as Any;
use proto::v1::{Node as NodeObject, ObjectMeta};
use state::{SCHEMA_LEVEL, SCHEMA_LEVEL_MIN, State, invariant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::agent;
use super::check;
use super::client::Client;
use super::fence::Monitors;
use super::history::History;
use super::member::{Ended, Endpoints, Machine, World};
use super::members::{Keeper, Order};
use super::misfortune::Fortune;
use super::network::{CLIENTS, Host, Network, Weather};
use crate::raft::{MemberId, Node};
use crate::security::ca::Authority;
use crate::security::new_uuid;
use crate::simulated::{self, Random};
use crate::store::sim::Fault;

/// Before and after trouble.
const CALM: Weather = Weather {
    delay_ms: (1, 3),
    late: 0,
    broken: 0,
    repeated: 0,
};
/// How long trouble lasts, and how long a cluster may take to come to rest afterwards.
const TROUBLE_S: (u64, u64) = (15, 30);
const REST_MAX: Duration = Duration::from_secs(120);
/// How long making a cluster may take.
const BEGIN_MAX: Duration = Duration::from_secs(60);
/// Longest a controller's process is away.
const AWAY_MS_MAX: u64 = 6000;
/// Longest an agent is: well beyond its lease, so that its node is lost.
const AGENT_AWAY_MS_MAX: u64 = 16_000;
const WRITERS: u64 = 4;
const WATCHERS: u64 = 2;
const NODES: u64 = 4;
/// The first member; later ones get their numbers as they join.
const FIRST: (&str, MemberId) = ("c1", 1);
/// The client that changes the members.
const KEEPER: Host = CLIENTS + 1;
/// Longest that a misfortune waits for its moment.
const AIM_MAX: Duration = Duration::from_millis(400);

/// What came of a seed.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) violations: Vec<String>,
    pub(super) trace: String,
    /// Calls that were answered, changes of objects, processes that ended, terms that had a leader.
    pub(super) calls: usize,
    pub(super) changes: usize,
    pub(super) ended: usize,
    pub(super) led: usize,
}

pub(super) struct Story {
    pub(super) world: World,
    pub(super) random: Random,
    /// Those of the members: also of one that has not got its vote yet, not of one that is lost or was removed.
    pub(super) machines: BTreeMap<MemberId, Machine>,
    pub(super) nodes: Vec<agent::Node>,
    /// How many clients there are, with numbers from the first on.
    pub(super) clients: u64,
    ended: mpsc::Receiver<Ended>,
    order: mpsc::Sender<Order>,
    orders: mpsc::Receiver<Order>,
    /// When machines and agents start again.
    starts: BTreeMap<Host, Instant>,
    ends: usize,
    /// What new machines know: at first less, where a cluster is to be upgraded.
    level: u32,
    /// Members looked from the beginning whether a pod has room where it is bound.
    has_room: bool,
}

pub(super) async fn tell(seed: u64, authority: Arc<Authority>) -> Told {
    let mut story = Story::new(seed, authority);
    let changes_members = story.random.below(2) == 0;
    let sizes: &[usize] = if changes_members { &[1, 3, 5] } else { &[3, 3, 5] };
    let size = sizes[story.random.below(3) as usize];
    story
        .world
        .network
        .note(format_args!("{size} members, changing: {changes_members}"));
    let keeper = match story.begin(size).await {
        Ok(keeper) => keeper,
        Err(why) => {
            story.world.history.violated(why);
            return story.end();
        }
    };
    // Whoever joins from now on is of the new version, and machines get it one by one as they start again.
    story.level = SCHEMA_LEVEL;
    let until = Instant::now() + story.random.millis(1000 * TROUBLE_S.0, 1000 * TROUBLE_S.1);
    let (goal, goals) = watch::channel(None);
    let (mut clients, watchers) = story.begin_clients(until, &goals);
    if changes_members {
        clients.push(story.world.network.spawn(KEEPER, keeper.run(until)));
    }
    story.trouble(until).await;
    if let Err(why) = story.rest(clients, watchers, &goal).await {
        story.world.history.violated(why);
    }
    story.end()
}

/// The leader is heard by all and hears nobody: how long it takes until another member has a write acknowledged.
pub(super) async fn deafen_the_leader(seed: u64, authority: Arc<Authority>) -> Result<Duration, String> {
    let mut story = Story::new(seed, authority);
    story.begin(3).await?;
    let leader = story.leader().ok_or("nobody leads")?;
    let others: Vec<MemberId> = story
        .machines
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    let network = &story.world.network;
    network.cut(others.iter().map(|other| (*other, leader)));
    let began = Instant::now();
    let other = story.node(others[0]).ok_or("a member does not run")?;
    let writing = async move { write(&other, Body::Status(StatusBatch::default())).await };
    let written = network.spawn(others[0], writing).await;
    written.map_err(|cause| cause.to_string())??;
    Ok(began.elapsed())
}

impl Story {
    fn new(seed: u64, authority: Arc<Authority>) -> Self {
        let mut random = Random::new(seed);
        let (ends, ended) = mpsc::channel(64);
        let (order, orders) = mpsc::channel(1);
        let world = World {
            network: Network::new(random.next(), CALM),
            history: History::default(),
            monitors: Monitors::default(),
            authority,
            ended: ends,
            snapshots: (20 + random.below(200), 10 + random.below(60)),
            endpoints: Endpoints::default(),
            busy: Duration::from_millis([0, 20, 300, 1500][random.below(4) as usize]),
        };
        let level = match random.below(3) {
            0 => SCHEMA_LEVEL_MIN,
            _ => SCHEMA_LEVEL,
        };
        let nodes = (1..=NODES).map(|number| agent::Node::new(number, &mut random));
        Self {
            has_room: level == SCHEMA_LEVEL,
            level,
            nodes: nodes.collect(),
            world,
            random,
            machines: BTreeMap::new(),
            clients: 0,
            ended,
            order,
            orders,
            starts: BTreeMap::new(),
            ends: 0,
        }
    }

    pub(super) fn node(&self, id: MemberId) -> Option<Node> {
        self.machines.get(&id)?.node()
    }

    /// As an operator makes it: one member, then more, then nodes.
    async fn begin(&mut self, size: usize) -> Result<Keeper, String> {
        let (name, id) = FIRST;
        self.carry_out(Order::Start { id });
        let started = async {
            loop {
                match self.node(id) {
                    Some(node) => return node,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let started = tokio::time::timeout(BEGIN_MAX, started).await;
        let first = started.map_err(|_| "the first member does not start".to_owned())?;
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let making = async move {
            first
                .initialize(Machine::member(name))
                .await
                .map_err(|cause| cause.to_string())?;
            let settings = ClusterSettings {
                cluster_id: "simulated".to_owned(),
                pod_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/16".to_owned(),
                cluster_domain: "cluster.local".to_owned(),
                node_prefix: 24,
            };
            write(&first, Body::Settings(settings)).await?;
            for name in names {
                let metadata = ObjectMeta {
                    name,
                    uid: new_uuid(),
                    ..ObjectMeta::default()
                };
                let node = NodeObject {
                    metadata: Some(metadata),
                    ..NodeObject::default()
                };
                write(&first, Body::NodeJoin(NodeJoin { node: Some(node) })).await?;
            }
            Ok::<(), String>(())
        };
        let made = self.world.network.spawn(id, making);
        made.await.map_err(|cause| cause.to_string())??;
        let client = Client::new(&self.world, KEEPER, &mut self.random);
        let mut keeper = Keeper::new(client, self.order.clone(), FIRST);
        let end = Instant::now() + BEGIN_MAX;
        let growing = self.world.network.spawn(KEEPER, async move {
            keeper.resize(size, end).await;
            keeper
        });
        while !growing.is_finished() {
            if Instant::now() > end {
                return Err(format!("{size} members did not come together"));
            }
            self.pass_time(Instant::now() + Duration::from_millis(10)).await;
        }
        for node in &mut self.nodes {
            node.start(&self.world, &mut self.random);
        }
        growing.await.map_err(|cause| cause.to_string())
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start { id } => {
                let mut machine = Machine::new(id, self.level, &mut self.random);
                machine.set_latency(Duration::from_millis(2));
                simulated::set_busy(id, self.world.busy);
                machine.start(&self.world);
                self.machines.insert(id, machine);
                self.world.endpoints.add(id);
            }
            Order::Lose { id } => self.take_away(id),
            Order::Retire { id } => {
                self.take_away(id);
                self.world.endpoints.forget(id);
            }
        }
    }

    fn take_away(&mut self, id: MemberId) {
        self.starts.remove(&id);
        if let Some(mut machine) = self.machines.remove(&id) {
            machine.crash(&self.world, false);
        }
    }

    fn begin_clients(
        &mut self,
        until: Instant,
        goals: &watch::Receiver<Option<u64>>,
    ) -> (Vec<JoinHandle<()>>, Vec<JoinHandle<()>>) {
        let mut host = KEEPER;
        let mut client = |random: &mut Random| {
            host += 1;
            (host, Client::new(&self.world, host, random))
        };
        let mut clients = Vec::new();
        for _ in 0..WRITERS {
            let (at, client) = client(&mut self.random);
            clients.push(self.world.network.spawn(at, client.run(until)));
        }
        let (at, operator) = client(&mut self.random);
        clients.push(self.world.network.spawn(at, operator.operate(until)));
        let (at, other) = client(&mut self.random);
        let names = self.nodes.iter().map(|node| node.name.clone()).collect();
        clients.push(self.world.network.spawn(at, other.disturb(names, until)));
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            let (at, watcher) = client(&mut self.random);
            watchers.push(self.world.network.spawn(at, watcher.watch(goals.clone())));
        }
        self.clients = host - CLIENTS;
        (clients, watchers)
    }

    /// One misfortune after the other, some of them when it hurts.
    async fn trouble(&mut self, until: Instant) {
        let mut fortune = Fortune::new(&mut self.random);
        self.bad_weather();
        while Instant::now() < until {
            let next = (Instant::now() + self.random.millis(50, 2500)).min(until);
            self.pass_time(next).await;
            if self.random.below(2) == 0 {
                self.pass_time_until_pods_wait(until).await;
            }
            fortune.strike(self);
        }
    }

    /// Until the leader has pods that are to get a node: that is on its way then.
    async fn pass_time_until_pods_wait(&mut self, until: Instant) {
        let until = until.min(Instant::now() + AIM_MAX);
        while Instant::now() < until {
            let leader = self.leader().and_then(|id| self.node(id));
            if leader.is_some_and(|leader| leader.stale().pod_versions_on("").next().is_some()) {
                return;
            }
            self.pass_time(Instant::now() + Duration::from_millis(2)).await;
        }
    }

    /// Until then: what has ended is taken away, and starts again when its time comes.
    async fn pass_time(&mut self, until: Instant) {
        loop {
            let start = self.starts.values().min().copied().unwrap_or(until).min(until);
            tokio::select! {
                biased;
                ended = self.ended.recv() => {
                    if let Some((id, life, why)) = ended {
                        self.has_ended(id, life, &why);
                    }
                }
                order = self.orders.recv() => {
                    if let Some(order) = order {
                        self.carry_out(order);
                    }
                }
                () = tokio::time::sleep_until(start) => {
                    self.start_again();
                    if Instant::now() >= until {
                        return;
                    }
                }
            }
        }
    }

    /// A process that can't go on ends; its machine starts it again.
    fn has_ended(&mut self, id: MemberId, life: u64, why: &str) {
        let Some(machine) = self.machines.get(&id).filter(|machine| machine.is_life(life)) else {
            return;
        };
        self.world.network.note(format_args!("{id}.{life} ends: {why}"));
        // What a crash or a full disk leaves is never damage.
        let faulty = machine.disks().iter().any(|disk| disk.fault() != Fault::None);
        if why.contains("damaged") || !faulty {
            self.world.history.violated(format!("member {id} ends: {why}"));
        }
        self.crash(id, false);
    }

    pub(super) fn crash(&mut self, host: Host, silent: bool) {
        self.ends += 1;
        self.world
            .network
            .note(format_args!("{host} ends, silent: {silent}"));
        let away = match self.machines.get_mut(&host) {
            Some(machine) => {
                machine.crash(&self.world, silent);
                AWAY_MS_MAX
            }
            None => {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.host == host) {
                    node.kill(&self.world, silent);
                }
                AGENT_AWAY_MS_MAX
            }
        };
        let back = Instant::now() + self.random.millis(0, away);
        self.starts.insert(host, back);
    }

    fn start_again(&mut self) {
        let now = Instant::now();
        let due: Vec<Host> = self
            .starts
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(host, _)| *host)
            .collect();
        for host in due {
            self.starts.remove(&host);
            self.world.network.note(format_args!("{host} starts"));
            match self.machines.get_mut(&host) {
                Some(machine) if !machine.runs() => {
                    machine.level = self.level;
                    machine.start(&self.world);
                }
                Some(_) => {}
                None => {
                    if let Some(node) = self
                        .nodes
                        .iter_mut()
                        .find(|node| node.host == host && !node.runs())
                    {
                        node.start(&self.world, &mut self.random);
                    }
                }
            }
        }
    }

    /// The trouble is over: everyone gets their answers, and all is as it was asked for.
    async fn rest(
        &mut self,
        clients: Vec<JoinHandle<()>>,
        watchers: Vec<JoinHandle<()>>,
        goal: &watch::Sender<Option<u64>>,
    ) -> Result<(), String> {
        self.world.network.note(format_args!("the trouble is over"));
        self.world.network.heal();
        self.world.network.set_weather(CALM);
        for (id, machine) in &self.machines {
            machine.set_latency(Duration::from_millis(2));
            simulated::set_busy(*id, Duration::ZERO);
        }
        // A disk that is still to fail, or failed where nobody had to stop for it, is whole once its machine starts again.
        // Whoever still has the old version gets the new one.
        let fails = |machine: &&Machine| {
            machine.level < self.level || machine.disks().iter().any(|disk| disk.fault() != Fault::None)
        };
        let failing: Vec<MemberId> = self
            .machines
            .values()
            .filter(fails)
            .map(|machine| machine.id)
            .collect();
        for id in failing {
            self.crash(id, false);
        }
        let began = Instant::now();
        let finished = |tasks: &[JoinHandle<()>]| tasks.iter().all(JoinHandle::is_finished);
        let mut settled = None;
        while settled.is_none() || !finished(&watchers) {
            if began.elapsed() > REST_MAX {
                return Err(format!(
                    "after {REST_MAX:?} of calm: clients done: {}, watchers done: {}, {}",
                    finished(&clients),
                    finished(&watchers),
                    self.unsettled().err().unwrap_or_default()
                ));
            }
            self.pass_time(Instant::now() + Duration::from_millis(200)).await;
            settled = self.unsettled().ok().filter(|_| finished(&clients));
            if settled.is_some() && goal.borrow().is_none() {
                let maps = self
                    .world
                    .history
                    .last_of(|object| matches!(object.object, Some(Any::ConfigMap(_))));
                goal.send_replace(Some(maps));
            }
        }
        for task in clients.into_iter().chain(watchers) {
            task.await.map_err(|cause| cause.to_string())?;
        }
        let Some(state) = settled else { return Ok(()) };
        invariant::check(&state).map_err(|violation| violation.to_string())
    }

    /// The state of all members, when they agree and everything is as it is to be; else what is not.
    fn unsettled(&self) -> Result<State, String> {
        let mut states = Vec::new();
        for id in self.machines.keys() {
            let node = self
                .node(*id)
                .ok_or_else(|| format!("member {id} does not run"))?;
            if node.leadership().borrow().leader.is_none() {
                return Err(format!("member {id} knows no leader"));
            }
            let members = node.members();
            if !node.settled() || !members.iter().all(|member| member.voter) {
                return Err(format!(
                    "to member {id} a change of the members is not done: {members:?}"
                ));
            }
            if !members.iter().map(|member| &member.id).eq(self.machines.keys()) {
                return Err(format!(
                    "the members are to be {:?}, and member {id} has {members:?}",
                    self.machines.keys()
                ));
            }
            states.push((*id, node.stale()));
        }
        let (first, state) = &states[0];
        if state.level() < self.level {
            return Err(format!(
                "schema level {} is in use yet, all know {}",
                state.level(),
                self.level
            ));
        }
        let bytes: Vec<Vec<u8>> = state.encode().collect();
        for (id, other) in &states[1..] {
            if other.revision() != state.revision() {
                return Err(format!(
                    "member {id} is at revision {}, member {first} at {}",
                    other.revision(),
                    state.revision()
                ));
            }
            if !other.encode().eq(bytes.iter().cloned()) {
                return Err(format!("members {first} and {id} have different states"));
            }
        }
        for deployment in state.list(Kind::Deployment, None, None) {
            let name = object::display(&deployment).to_string();
            let Some(Any::Deployment(it)) = deployment.object else {
                continue;
            };
            let wanted = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = it.status.unwrap_or_default();
            if (status.ready_replicas, status.replicas, status.updated_replicas) != (wanted, wanted, wanted) {
                return Err(format!("{name} is to have {wanted} replicas: {status:?}"));
            }
        }
        for node in &self.nodes {
            let mut wanted: Vec<String> = state
                .pod_versions_on(&node.name)
                .map(|(uid, _)| uid.to_owned())
                .collect();
            wanted.sort();
            if node.pods() != wanted {
                return Err(format!("{} has {:?}, not {wanted:?}", node.name, node.pods()));
            }
        }
        Ok(state.clone())
    }

    fn end(self) -> Told {
        let whole = self.world.history.whole();
        let mut violations = self.world.history.violations();
        violations.extend(check::violations(&whole, self.has_room));
        Told {
            violations,
            trace: self.world.network.trace(),
            calls: whole.calls.len(),
            changes: whole.changes.len(),
            ended: self.ends,
            led: self.world.history.terms(),
        }
    }
}

async fn write(node: &Node, kind: Body) -> Result<(), String> {
    let command = Command {
        request_id: new_uuid(),
        time: Some(crate::clock::timestamp(crate::clock::now_ms())),
        kind: Some(kind),
        ..Default::default()
    };
    let answer = node.propose(command).await.map_err(|cause| cause.to_string())?;
    match answer.reply {
        Some(Reply::Applied(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
