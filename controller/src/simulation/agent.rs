//! Agents: each holds a session with some member, runs its node's pods after a while, renews its lease and reports. What it
//! was told outlives it, as an agent's ledger does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proto::v1::{Condition, NodeStatus, Pod, PodStatus, Quantity};
use rpc::v1::agent_message::Message as Up;
use rpc::v1::controller_message::Message as Down;
use rpc::v1::node_client::NodeClient;
use rpc::v1::{AgentMessage, Desired, Heartbeat, HeldPod, Hello, PodReport, PodReports};
use state::SCHEMA_LEVEL;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::fence::{Clock, deployment_of};
use super::member::{World, caller};
use super::network::{AGENTS, Host, Port};
use crate::security::identity::Identity;
use crate::simulated::Random;

/// CPUs that each node has: few, so that pods wait for room.
pub(super) const CPUS: &str = "3";
/// As the controllers want it.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Without an answer for this time the agent goes to another member.
const SILENT_MAX: Duration = Duration::from_secs(7);
/// After so many heartbeats it reports all of its pods, as an agent does, though not so often: a report that an earlier session
/// left under way at a member that was cut off may come last (seed 58 showed it).
const REPORT_ALL: u64 = 8;
/// Longest that a pod goes on that is no longer to be here.
const REMOVED_MAX: Duration = Duration::from_secs(2);
/// When a pod that must not run twice is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
const CONNECT_MAX: Duration = Duration::from_secs(3);
const QUEUE: usize = 64;

#[derive(Clone, Debug)]
enum Phase {
    /// Runs from then on.
    Starting(Instant),
    Running,
    /// Gone from then on.
    Stopping(Instant),
    Gone,
}

#[derive(Clone, Debug)]
struct Held {
    version: String,
    phase: Phase,
    /// Of a pod that must not run twice: its Deployment.
    fenced: Option<String>,
}

/// What a node's disk keeps.
#[derive(Default)]
struct Ledger {
    revision: u64,
    pods: BTreeMap<String, Held>,
}

/// A node. Its agent comes and goes.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) host: Host,
    ledger: Arc<Mutex<Ledger>>,
    clock: Clock,
    agent: Option<JoinHandle<()>>,
}

impl Node {
    pub(super) fn new(number: u64, random: &mut Random) -> Self {
        Self {
            name: format!("n{number}"),
            host: AGENTS + number,
            ledger: Arc::default(),
            // As wrong as a kernel lets it be (adjtimex(2)).
            clock: Clock {
                per_mille: 900 + random.below(201) as u32,
            },
            agent: None,
        }
    }

    pub(super) fn start(&mut self, world: &World, random: &mut Random) {
        let agent = Agent {
            world: world.clone(),
            name: self.name.clone(),
            host: self.host,
            life: world.network.begin(self.host),
            ledger: self.ledger.clone(),
            clock: self.clock,
            random: Random::new(random.next()),
        };
        self.agent = Some(world.network.spawn(self.host, agent.run()));
    }

    /// Its agent ends; its pods go on.
    pub(super) fn kill(&mut self, world: &World, silent: bool) {
        if let Some(agent) = self.agent.take() {
            world.network.end(self.host, silent);
            agent.abort();
        }
    }

    /// Its machine goes down, and comes up again with what the ledger keeps.
    pub(super) fn reboot(&mut self, world: &World) {
        self.kill(world, true);
        world.monitors.reboot(&self.name);
    }

    pub(super) fn runs(&self) -> bool {
        self.agent.is_some()
    }

    /// Uids of the pods that it has, in order.
    pub(super) fn pods(&self) -> Vec<String> {
        let ledger = self.ledger.lock().expect("no holder panics");
        ledger.pods.keys().cloned().collect()
    }
}

struct Agent {
    world: World,
    name: String,
    host: Host,
    life: u64,
    ledger: Arc<Mutex<Ledger>>,
    clock: Clock,
    random: Random,
}

impl Agent {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no holder panics")
    }

    async fn run(mut self) {
        loop {
            let member = self.world.endpoints.any(&mut self.random);
            let why = self.session(member).await;
            self.world
                .network
                .note(format_args!("{} has no session at {member}: {why}", self.name));
            let pause = self.random.millis(50, 400);
            tokio::time::sleep(pause).await;
        }
    }

    async fn session(&mut self, member: Host) -> String {
        let me = caller(Identity::Node(self.name.clone()));
        let link = self
            .world
            .network
            .link((self.host, self.life), member, Port::Api, me);
        let (up, messages) = mpsc::channel(QUEUE);
        let mut client = NodeClient::new(link);
        if say(&up, Up::Hello(self.hello())).is_err() {
            return "its queue is full".to_owned();
        }
        let opened = tokio::time::timeout(CONNECT_MAX, client.session(ReceiverStream::new(messages))).await;
        let mut down = match opened {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return status.to_string(),
            Err(_) => return "it does not answer".to_owned(),
        };
        let mut heard = Instant::now();
        let mut beats = tokio::time::interval(HEARTBEAT);
        let mut sequence = 0;
        let mut sent = BTreeMap::new(); // heartbeats without an answer
        let mut all = true;
        loop {
            if let Err(why) = say(&up, Up::Pods(self.report(all))) {
                return why;
            }
            all = false;
            let next = self.next_step();
            tokio::select! {
                biased;
                message = down.message() => match message {
                    Ok(Some(message)) => match message.message {
                        Some(Down::Desired(desired)) => self.take(desired),
                        Some(Down::Heartbeat(reply)) => {
                            heard = Instant::now();
                            let at = sent.remove(&reply.sequence).filter(|_| reply.granted);
                            if let Some(at) = at {
                                self.world.history.granted(&self.name, at);
                                self.renew(at);
                            }
                        }
                        Some(Down::Welcome(_)) => heard = Instant::now(),
                        Some(Down::Open(_)) | None => {}
                    },
                    Ok(None) => return "it ended".to_owned(),
                    Err(status) => return status.to_string(),
                },
                _ = beats.tick() => {
                    sequence += 1;
                    all = sequence % REPORT_ALL == 0;
                    sent.insert(sequence, Instant::now());
                    if let Err(why) = say(&up, Up::Heartbeat(Heartbeat { sequence })) {
                        return why;
                    }
                }
                () = tokio::time::sleep_until(next) => {}
                () = tokio::time::sleep_until(heard + SILENT_MAX) => return "it is silent".to_owned(),
            }
        }
    }

    fn hello(&self) -> Hello {
        let ledger = self.ledger();
        let held = ledger.pods.iter().map(|(uid, held)| HeldPod {
            uid: uid.clone(),
            resource_version: held.version.clone(),
        });
        let allocatable = [("cpu", CPUS), ("memory", "8Gi"), ("pods", "110")].map(|(name, text)| {
            let quantity = Quantity {
                text: text.to_owned(),
            };
            (name.to_owned(), quantity)
        });
        Hello {
            version: "simulated".to_owned(),
            schema_level: SCHEMA_LEVEL,
            revision: ledger.revision,
            pods: held.collect(),
            node: Some(NodeStatus {
                allocatable: allocatable.into(),
                ..NodeStatus::default()
            }),
            address: format!("10.0.0.{}", self.host - AGENTS),
        }
    }

    /// Tells the monitors of the pods that are to be here.
    fn renew(&self, sent: Instant) {
        for (uid, held) in &self.ledger().pods {
            if let Some(deployment) = &held.fenced {
                let (monitors, name) = (&self.world.monitors, &self.name);
                monitors.renew(name, uid, deployment, self.clock, sent);
            }
        }
    }

    /// Takes what the controllers want of this node.
    fn take(&mut self, desired: Desired) {
        let (starts, stops) = (self.random.millis(50, 1500), self.random.millis(20, 800));
        let now = Instant::now();
        let mut ledger = self.ledger.lock().expect("no holder panics");
        let before: Vec<String> = ledger.pods.keys().cloned().collect();
        if desired.revision < ledger.revision {
            self.world.history.violated(format!(
                "{} knows revision {} and is told {}",
                self.name, ledger.revision, desired.revision
            ));
        }
        ledger.revision = ledger.revision.max(desired.revision);
        if desired.complete {
            ledger.pods.retain(|uid, _| desired.uids.contains(uid));
        }
        for uid in &desired.removed {
            ledger.pods.remove(uid);
        }
        // What is to go without a word is killed soon.
        for uid in before.iter().filter(|uid| !ledger.pods.contains_key(*uid)) {
            self.world.monitors.stop(&self.name, uid, now + REMOVED_MAX);
        }
        for pod in desired.pods {
            let (uid, version, ends) = facts(&pod);
            let bound = pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str());
            if bound != self.name {
                self.world
                    .history
                    .violated(format!("{} is told of pod {uid} of node {bound}", self.name));
            }
            if !ledger.pods.contains_key(&uid) {
                self.world.history.runs(&uid, &self.name);
            }
            let held = ledger.pods.entry(uid).or_insert(Held {
                version: String::new(),
                phase: Phase::Starting(now + starts),
                fenced: None,
            });
            held.fenced = deployment_of(&pod);
            held.version = version;
            if ends && matches!(held.phase, Phase::Starting(_) | Phase::Running) {
                held.phase = Phase::Stopping(now + stops);
            }
        }
    }

    /// When a pod comes to its next phase.
    fn next_step(&self) -> Instant {
        let ledger = self.ledger();
        let steps = ledger.pods.values().filter_map(|held| match held.phase {
            Phase::Starting(at) | Phase::Stopping(at) => Some(at),
            Phase::Running if held.fenced.is_some() => Some(Instant::now() + LOOK_AGAIN),
            Phase::Running | Phase::Gone => None,
        });
        steps.min().unwrap_or(Instant::now() + SILENT_MAX)
    }

    /// What a pod that must not run twice comes to instead of its next phase.
    fn fenced(&self, uid: &str, phase: &Phase, now: Instant) -> Option<Phase> {
        let (monitors, node) = (&self.world.monitors, &self.name);
        match phase {
            Phase::Starting(at) if *at <= now => {
                let runs = monitors.runs(node, uid).is_some();
                let started = runs || monitors.start(node, uid, &self.world.history);
                (!started).then_some(Phase::Starting(now + LOOK_AGAIN))
            }
            Phase::Running if monitors.runs(node, uid).is_none() => Some(Phase::Starting(now + LOOK_AGAIN)),
            Phase::Stopping(at) if *at <= now => {
                monitors.stop(node, uid, now);
                None
            }
            _ => None,
        }
    }

    /// What has come to its next phase, or everything.
    fn report(&self, all: bool) -> PodReports {
        let now = Instant::now();
        let mut ledger = self.ledger();
        let mut reports = Vec::new();
        for (uid, held) in &mut ledger.pods {
            let fenced = held
                .fenced
                .as_ref()
                .and_then(|_| self.fenced(uid, &held.phase, now));
            let next = match held.phase {
                _ if fenced.is_some() => fenced,
                Phase::Starting(at) if at <= now => Some(Phase::Running),
                Phase::Stopping(at) if at <= now => Some(Phase::Gone),
                _ => None,
            };
            let moved = next.is_some();
            if let Some(next) = next {
                held.phase = next;
            }
            if moved || all {
                reports.push(PodReport {
                    uid: uid.clone(),
                    status: Some(status(&held.phase)),
                    gone: matches!(held.phase, Phase::Gone),
                });
            }
        }
        PodReports { pods: reports }
    }
}

fn say(up: &mpsc::Sender<AgentMessage>, message: Up) -> Result<(), String> {
    if matches!(&message, Up::Pods(reports) if reports.pods.is_empty()) {
        return Ok(());
    }
    let message = AgentMessage {
        message: Some(message),
    };
    up.try_send(message)
        .map_err(|_| "it takes no messages".to_owned())
}

/// Uid, version, and whether it is to end.
fn facts(pod: &Pod) -> (String, String, bool) {
    let meta = pod.metadata.clone().unwrap_or_default();
    (meta.uid, meta.resource_version, meta.deletion_timestamp.is_some())
}

fn status(phase: &Phase) -> PodStatus {
    let (phase, ready) = match phase {
        Phase::Starting(_) => ("Pending", "False"),
        Phase::Running => ("Running", "True"),
        Phase::Stopping(_) => ("Running", "False"),
        Phase::Gone => ("Failed", "False"),
    };
    PodStatus {
        phase: phase.to_owned(),
        conditions: vec![Condition {
            r#type: "Ready".to_owned(),
            status: ready.to_owned(),
            ..Condition::default()
        }],
        ..PodStatus::default()
    }
}
