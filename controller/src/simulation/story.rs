//! One simulated cluster from its beginning to its end: it is made, lives through whatever the seed has in store while
//! clients write, read and watch, and has to come to rest as it was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{Kind, object};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{ClusterSettings, Command, NodeJoin};
use proto::v1::object::Object as Any;
use proto::v1::{Node as NodeObject, ObjectMeta};
use state::{SCHEMA_LEVEL, State, invariant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::agent;
use super::check;
use super::client::Client;
use super::history::History;
use super::member::{Ended, Machine, World};
use super::network::{Host, Network, Weather};
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
/// Longest a process is away.
const AWAY_MS_MAX: u64 = 6000;
const CLIENTS: u64 = 3;
const WATCHERS: u64 = 2;
const NODES: u64 = 4;

/// What came of a seed.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) violations: Vec<String>,
    pub(super) trace: String,
    /// Calls that were answered, changes of objects, processes that ended.
    pub(super) calls: usize,
    pub(super) changes: usize,
    pub(super) ended: usize,
}

struct Story {
    world: World,
    random: Random,
    machines: BTreeMap<MemberId, Machine>,
    nodes: Vec<agent::Node>,
    ended: mpsc::Receiver<Ended>,
    /// When machines and agents start again.
    starts: BTreeMap<Host, Instant>,
    ends: usize,
}

pub(super) async fn tell(seed: u64, authority: Arc<Authority>) -> Told {
    let mut story = Story::new(seed, authority);
    let members = story.machines.len() as u64;
    story.world.network.note(format_args!("{members} members"));
    if let Err(why) = story.begin().await {
        story.world.history.violated(why);
        return story.end();
    }
    let until = Instant::now() + story.random.millis(1000 * TROUBLE_S.0, 1000 * TROUBLE_S.1);
    let (goal, goals) = watch::channel(None);
    let (clients, watchers) = story.clients(members, until, &goals);
    story.trouble(until).await;
    if let Err(why) = story.rest(clients, watchers, &goal).await {
        story.world.history.violated(why);
    }
    story.end()
}

impl Story {
    fn new(seed: u64, authority: Arc<Authority>) -> Self {
        let mut random = Random::new(seed);
        let members = if random.below(3) == 0 { 5 } else { 3 };
        let (ends, ended) = mpsc::channel(64);
        let world = World {
            network: Network::new(random.next(), CALM),
            history: History::default(),
            authority,
            ended: ends,
            snapshots: (20 + random.below(200), 10 + random.below(60)),
        };
        let machines = (1..=members)
            .map(|id| (id, Machine::new(id, &mut random)))
            .collect();
        Self {
            world,
            random,
            machines,
            nodes: (1..=NODES)
                .map(|number| agent::Node::new(number, members))
                .collect(),
            ended,
            starts: BTreeMap::new(),
            ends: 0,
        }
    }

    fn node(&self, id: MemberId) -> Option<Node> {
        self.machines.get(&id)?.node()
    }

    /// As an operator makes it: one member, then more, then nodes.
    async fn begin(&mut self) -> Result<(), String> {
        for machine in self.machines.values_mut() {
            machine.set_latency(Duration::from_millis(2));
            machine.start(&self.world);
        }
        let ids: Vec<MemberId> = self.machines.keys().copied().collect();
        let mut nodes = Vec::new();
        for id in &ids {
            let started = async {
                loop {
                    match self.node(*id) {
                        Some(node) => return node,
                        None => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            };
            let started = tokio::time::timeout(Duration::from_secs(5), started).await;
            nodes.push(started.map_err(|_| format!("member {id} does not start"))?);
        }
        let first = nodes[0].clone();
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let making = async move {
            first
                .initialize(Machine::member(1))
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
            for id in ids.into_iter().skip(1) {
                let learner = first.add_learner(id, Machine::member(id)).await;
                learner.map_err(|cause| cause.to_string())?;
                first.promote(id).await.map_err(|cause| cause.to_string())?;
            }
            Ok::<(), String>(())
        };
        let made = self.world.network.spawn(1, making);
        made.await.map_err(|cause| cause.to_string())??;
        for node in &mut self.nodes {
            node.start(&self.world, &mut self.random);
        }
        Ok(())
    }

    fn clients(
        &mut self,
        members: u64,
        until: Instant,
        goals: &watch::Receiver<Option<u64>>,
    ) -> (Vec<JoinHandle<()>>, Vec<JoinHandle<()>>) {
        let mut host = 200;
        let mut client = |random: &mut Random| {
            host += 1;
            (host, Client::new(&self.world, host, members, random))
        };
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let (host, client) = client(&mut self.random);
            clients.push(self.world.network.spawn(host, client.run(until)));
        }
        let (host, operator) = client(&mut self.random);
        let names = self.nodes.iter().map(|node| node.name.clone()).collect();
        clients.push(self.world.network.spawn(host, operator.operate(names, until)));
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            let (host, watcher) = client(&mut self.random);
            watchers.push(self.world.network.spawn(host, watcher.watch(goals.clone())));
        }
        (clients, watchers)
    }

    /// One misfortune after the other.
    async fn trouble(&mut self, until: Instant) {
        self.bad_weather();
        while Instant::now() < until {
            let next = (Instant::now() + self.random.millis(50, 2500)).min(until);
            self.pass_time(next).await;
            self.misfortune();
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

    fn crash(&mut self, host: Host, silent: bool) {
        self.ends += 1;
        self.world
            .network
            .note(format_args!("{host} ends, silent: {silent}"));
        match self.machines.get_mut(&host) {
            Some(machine) => machine.crash(&self.world, silent),
            None => {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.host == host) {
                    node.kill(&self.world, silent);
                }
            }
        }
        let back = Instant::now() + self.random.millis(0, AWAY_MS_MAX);
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
                Some(machine) if !machine.runs() => machine.start(&self.world),
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

    fn any_member(&mut self) -> MemberId {
        1 + self.random.below(self.machines.len() as u64)
    }

    /// The one that leads, more often than not.
    fn victim(&mut self) -> MemberId {
        let leads = |id: &&MemberId| {
            self.node(**id)
                .is_some_and(|node| node.leadership().borrow().is_me)
        };
        let leader = self.machines.keys().find(leads).copied();
        match leader {
            Some(leader) if self.random.below(2) == 0 => leader,
            _ => self.any_member(),
        }
    }

    fn misfortune(&mut self) {
        let id = self.victim();
        match self.random.below(16) {
            0 | 1 => {
                let silent = self.random.below(2) == 0;
                self.crash(id, silent);
            }
            2 => {
                // Many at once, now and then all.
                for id in 1..=self.machines.len() as u64 {
                    if self.random.below(3) > 0 {
                        self.crash(id, true);
                    }
                }
            }
            3 => self.fault(id, |disk, more| Fault::CrashAt(disk + more)),
            4 => self.fault(id, |disk, more| Fault::FailAt(disk + more)),
            5 => self.fault(id, |_, more| Fault::Capacity((64 << 10) * (1 + more % 8))),
            6 => {
                let max = self.random.millis(1, 400);
                if let Some(machine) = self.machines.get(&id) {
                    self.world
                        .network
                        .note(format_args!("{id} has a disk that takes {max:?}"));
                    machine.set_latency(max);
                }
            }
            7 | 8 => self.isolate(id),
            9 => self.split(),
            10 => self.one_way(),
            11 | 12 => {
                self.world.network.note(format_args!("every way is open"));
                self.world.network.heal();
                self.bad_weather();
            }
            13 => {
                let host = if self.random.below(2) == 0 {
                    id
                } else {
                    self.any_member()
                };
                let by = self.random.below(20_000) as i64 - 8000;
                self.world
                    .network
                    .note(format_args!("the clock of {host} jumps by {by} ms"));
                simulated::jump(host, by);
            }
            14 => {
                let to = self.any_member();
                if let Some(node) = self.node(id) {
                    self.world.network.note(format_args!("{id} hands over to {to}"));
                    drop(
                        self.world
                            .network
                            .spawn(id, async move { node.transfer_leadership(to).await }),
                    );
                }
            }
            _ => {
                let host = 101 + self.random.below(NODES);
                let silent = self.random.below(2) == 0;
                self.crash(host, silent);
            }
        }
    }

    fn fault(&mut self, id: MemberId, fault: impl Fn(u64, u64) -> Fault) {
        let (which, more) = (self.random.below(3), self.random.below(60));
        let Some(machine) = self.machines.get(&id).filter(|machine| machine.runs()) else {
            return;
        };
        let disk = machine.disks()[usize::from(which == 0)];
        let fault = fault(disk.operations(), more);
        self.world.network.note(format_args!("a disk of {id}: {fault:?}"));
        disk.set_fault(fault);
    }

    fn everyone(&self) -> Vec<Host> {
        let agents = self.nodes.iter().map(|node| node.host);
        self.machines
            .keys()
            .copied()
            .chain(agents)
            .chain(201..=200 + CLIENTS + WATCHERS + 1)
            .collect()
    }

    /// Nobody is reached by it, or it reaches nobody, or both.
    fn isolate(&mut self, id: MemberId) {
        let (inward, outward) = [(true, true), (true, false), (false, true)][self.random.below(3) as usize];
        self.world.network.note(format_args!(
            "{id} is cut off, inward {inward}, outward {outward}"
        ));
        let others = self.everyone().into_iter().filter(|host| *host != id);
        let ways = others.flat_map(|host| {
            let into = inward.then_some((host, id));
            let out = outward.then_some((id, host));
            into.into_iter().chain(out)
        });
        self.world.network.cut(ways);
    }

    /// Two halves that do not hear each other.
    fn split(&mut self) {
        let everyone = self.everyone();
        let side: Vec<bool> = everyone.iter().map(|_| self.random.below(2) == 0).collect();
        let mut ways = Vec::new();
        for (from, one) in everyone.iter().zip(&side) {
            for (to, other) in everyone.iter().zip(&side) {
                if one != other {
                    ways.push((*from, *to));
                }
            }
        }
        self.world.network.note(format_args!("split: {side:?}"));
        self.world.network.cut(ways);
    }

    fn one_way(&mut self) {
        let (from, to) = (self.any_member(), self.any_member());
        self.world.network.note(format_args!("cut from {from} to {to}"));
        self.world.network.cut([(from, to)]);
    }

    fn bad_weather(&mut self) {
        let slow = [3, 10, 40][self.random.below(3) as usize];
        let weather = Weather {
            delay_ms: (1, slow),
            late: [0, 5, 30][self.random.below(3) as usize],
            broken: [0, 1, 8][self.random.below(3) as usize],
            repeated: 50,
        };
        self.world.network.note(format_args!("{weather:?}"));
        self.world.network.set_weather(weather);
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
        for machine in self.machines.values() {
            machine.set_latency(Duration::from_millis(2));
        }
        // A disk that is still to fail may do so; it is whole when its machine starts again.
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
            states.push((*id, node.stale()));
        }
        let (first, state) = &states[0];
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
        violations.extend(check::violations(&whole));
        Told {
            violations,
            trace: self.world.network.trace(),
            calls: whole.calls.len(),
            changes: whole.changes.len(),
            ended: self.ends,
        }
    }
}

async fn write(node: &Node, kind: Body) -> Result<(), String> {
    let command = Command {
        request_id: new_uuid(),
        time: Some(crate::clock::timestamp(crate::clock::now_ms())),
        level: SCHEMA_LEVEL,
        kind: Some(kind),
        ..Default::default()
    };
    let answer = node.propose(command).await.map_err(|cause| cause.to_string())?;
    match answer.reply {
        Some(Reply::Applied(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
