//! What goes wrong. Each seed has its own mixture: what never comes in one comes often in another.

use model::Kind;
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Bind, Command, Operation, Transaction};
use proto::v1::object::Object as Any;
use state::{State, schedule};

use super::network::{CLIENTS, Host, Weather};
use super::story::Story;
use crate::clock;
use crate::raft::MemberId;
use crate::simulated::{self, Random};
use crate::store::sim::Fault;

type Misfortune = fn(&mut Story);

const MISFORTUNES: [Misfortune; 18] = [
    Story::end_one,
    Story::end_many,
    Story::crash_at_a_write,
    Story::fail_a_write,
    Story::fill_a_disk,
    Story::slow_a_disk,
    Story::keep_busy,
    Story::isolate,
    Story::estrange,
    Story::split,
    Story::one_way,
    Story::jump,
    Story::hand_over,
    Story::hand_over_and_lose_touch,
    Story::place_late,
    Story::end_an_agent,
    Story::reboot_a_node,
    Story::cut_off_a_node,
];
/// How often each of them comes in a seed, against the others.
const SHARES: [u64; 4] = [0, 1, 2, 6];

/// Pods that are placed a second time at once.
const REBOUND_MAX: usize = 3;

/// The mixture of a seed.
pub(super) struct Fortune {
    shares: [u64; MISFORTUNES.len()],
}

impl Fortune {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            shares: MISFORTUNES.map(|_| SHARES[random.below(4) as usize]),
        }
    }

    /// One of them; or, every fifth time, all ways are open again.
    pub(super) fn strike(&mut self, story: &mut Story) {
        let all: u64 = self.shares.iter().sum();
        if all == 0 || story.random.below(5) == 0 {
            return story.open_ways();
        }
        let mut which = story.random.below(all);
        for (misfortune, share) in MISFORTUNES.iter().zip(self.shares) {
            match which.checked_sub(share) {
                Some(rest) => which = rest,
                None => return misfortune(story),
            }
        }
    }
}

impl Story {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.world.network.note(what);
    }

    fn any_member(&mut self) -> MemberId {
        let which = self.random.below(self.machines.len() as u64) as usize;
        *self.machines.keys().nth(which).expect("one of them")
    }

    /// Who leads, or thinks so.
    pub(super) fn leader(&self) -> Option<MemberId> {
        let leads = |id: &&MemberId| {
            self.node(**id)
                .is_some_and(|node| node.leadership().borrow().is_me)
        };
        self.machines.keys().find(leads).copied()
    }

    /// The one that leads, more often than not.
    fn victim(&mut self) -> MemberId {
        match self.leader() {
            Some(leader) if self.random.below(2) == 0 => leader,
            _ => self.any_member(),
        }
    }

    fn end_one(&mut self) {
        let (id, silent) = (self.victim(), self.random.below(2) == 0);
        self.crash(id, silent);
    }

    /// Many at once, now and then all.
    fn end_many(&mut self) {
        let ids: Vec<MemberId> = self.machines.keys().copied().collect();
        for id in ids {
            if self.random.below(3) > 0 {
                self.crash(id, true);
            }
        }
    }

    fn crash_at_a_write(&mut self) {
        self.fault(|disk, more| Fault::CrashAt(disk + more));
    }

    fn fail_a_write(&mut self) {
        self.fault(|disk, more| Fault::FailAt(disk + more));
    }

    fn fill_a_disk(&mut self) {
        self.fault(|_, more| Fault::Capacity((64 << 10) * (1 + more % 8)));
    }

    fn fault(&mut self, fault: impl Fn(u64, u64) -> Fault) {
        let id = self.victim();
        let (which, more) = (self.random.below(3), self.random.below(60));
        let Some(machine) = self.machines.get(&id).filter(|machine| machine.runs()) else {
            return;
        };
        let disk = machine.disks()[usize::from(which == 0)];
        let fault = fault(disk.operations(), more);
        self.note(format_args!("a disk of {id}: {fault:?}"));
        disk.set_fault(fault);
    }

    fn slow_a_disk(&mut self) {
        let (id, max) = (self.victim(), self.random.millis(1, 400));
        self.note(format_args!("{id} has a disk that takes {max:?}"));
        if let Some(machine) = self.machines.get(&id) {
            machine.set_latency(max);
        }
    }

    /// What it has to think about takes long.
    fn keep_busy(&mut self) {
        let (id, max) = (self.victim(), self.random.millis(1, 2000));
        self.note(format_args!("{id} takes {max:?} to decide"));
        simulated::set_busy(id, max);
    }

    fn everyone(&self) -> Vec<Host> {
        let agents = self.nodes.iter().map(|node| node.host);
        let clients = CLIENTS + 1..=CLIENTS + self.clients;
        self.machines
            .keys()
            .copied()
            .chain(agents)
            .chain(clients)
            .collect()
    }

    /// Of these others nobody is heard by it, or hears it, or both.
    fn cut(&mut self, host: Host, others: Vec<Host>) {
        let (inward, outward) = [(true, true), (true, false), (false, true)][self.random.below(3) as usize];
        self.note(format_args!(
            "{host} is cut off from {others:?}, inward {inward}, outward {outward}"
        ));
        let others = others.into_iter().filter(|other| *other != host);
        let ways = others.flat_map(|other| {
            let into = inward.then_some((other, host));
            let out = outward.then_some((host, other));
            into.into_iter().chain(out)
        });
        self.world.network.cut(ways);
    }

    fn isolate(&mut self) {
        let (id, everyone) = (self.victim(), self.everyone());
        self.cut(id, everyone);
    }

    /// From the other members alone: agents and clients reach it as before.
    fn estrange(&mut self) {
        let (id, members) = (self.victim(), self.machines.keys().copied().collect());
        self.cut(id, members);
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
        self.note(format_args!("split: {side:?}"));
        self.world.network.cut(ways);
    }

    fn one_way(&mut self) {
        let (from, to) = (self.any_member(), self.any_member());
        self.note(format_args!("cut from {from} to {to}"));
        self.world.network.cut([(from, to)]);
    }

    fn open_ways(&mut self) {
        self.note(format_args!("every way is open"));
        self.world.network.heal();
        self.bad_weather();
    }

    pub(super) fn bad_weather(&mut self) {
        let slow = [3, 10, 40][self.random.below(3) as usize];
        let weather = Weather {
            delay_ms: (1, slow),
            late: [0, 5, 30][self.random.below(3) as usize],
            broken: [0, 1, 8][self.random.below(3) as usize],
            repeated: 50,
        };
        self.note(format_args!("{weather:?}"));
        self.world.network.set_weather(weather);
    }

    fn jump(&mut self) {
        let (id, by) = (self.victim(), self.random.below(20_000) as i64 - 8000);
        self.note(format_args!("the clock of {id} jumps by {by} ms"));
        simulated::jump(id, by);
    }

    fn hand_over(&mut self) {
        let Some(leader) = self.leader() else { return };
        let to = self.any_member();
        let Some(node) = self.node(leader) else { return };
        self.note(format_args!("{leader} hands over to {to}"));
        let work = async move { node.transfer_leadership(to).await };
        drop(self.world.network.spawn(leader, work));
    }

    /// The leader hands over and hears for a while of nothing that follows: what it has decided meanwhile comes late.
    fn hand_over_and_lose_touch(&mut self) {
        let Some(leader) = self.leader() else { return };
        self.hand_over();
        let (after, lasts) = (self.random.millis(0, 60), self.random.millis(300, 9000));
        let deaf_only = self.random.below(2) == 0;
        let others = self.machines.keys().copied().filter(|id| *id != leader);
        let ways: Vec<(Host, Host)> = others
            .flat_map(|other| {
                let out = (!deaf_only).then_some((leader, other));
                out.into_iter().chain([(other, leader)])
            })
            .collect();
        let network = self.world.network.clone();
        let losing = async move {
            tokio::time::sleep(after).await;
            network.note(format_args!("cut for {lasts:?}: {ways:?}"));
            network.cut(ways.iter().copied());
            tokio::time::sleep(lasts).await;
            network.note(format_args!("open again: {ways:?}"));
            network.open(&ways);
        };
        drop(self.world.network.spawn(0, losing));
    }

    /// What a leader decided about the pods that wait now comes when another one, or the same, has decided already.
    fn place_late(&mut self) {
        let (Some(leader), by) = (self.leader(), self.any_member()) else {
            return;
        };
        let (Some(node), Some(speaker)) = (self.node(leader), self.node(by)) else {
            return;
        };
        let (then, late) = (node.stale(), self.random.millis(50, 4000));
        let network = self.world.network.clone();
        let speaking = async move {
            let (commands, _) = schedule::commands(&then, clock::now_ms());
            tokio::time::sleep(late).await;
            // Placing is deterministic: who decides later on much the same comes to the same. A leader of before may have known
            // other nodes.
            let elsewhere = elsewhere(&speaker.stale());
            let (waiting, bound) = (commands.len(), elsewhere.len());
            network.note(format_args!(
                "late by {late:?}: {waiting} placements, {bound} of what is bound"
            ));
            for command in commands.into_iter().chain(elsewhere) {
                if let Err(cause) = speaker.propose(command).await {
                    network.note(format_args!("a late placement is not confirmed: {cause}"));
                }
            }
        };
        drop(self.world.network.spawn(by, speaking));
    }

    fn end_an_agent(&mut self) {
        let which = self.random.below(self.nodes.len() as u64) as usize;
        let (host, silent) = (self.nodes[which].host, self.random.below(2) == 0);
        self.crash(host, silent);
    }

    /// Nothing runs on it until its agent has begun again.
    fn reboot_a_node(&mut self) {
        let which = self.random.below(self.nodes.len() as u64) as usize;
        self.nodes[which].reboot(&self.world);
        self.crash(self.nodes[which].host, true);
    }

    /// Its pods go on; nobody hears of them.
    fn cut_off_a_node(&mut self) {
        let which = self.random.below(self.nodes.len() as u64) as usize;
        let (host, members) = (self.nodes[which].host, self.machines.keys().copied().collect());
        self.cut(host, members);
    }
}

/// Places some pods that are bound on other nodes than theirs.
fn elsewhere(state: &State) -> Vec<Command> {
    let pods = state.list(Kind::Pod, None, None).filter_map(|object| {
        let key = model::object::key(&object);
        let Some(Any::Pod(pod)) = object.object else {
            return None;
        };
        let (meta, bound) = (pod.metadata?, pod.spec?.node_name);
        let mut others = state
            .nodes()
            .filter_map(|node| Some(&node.metadata.as_ref()?.name));
        let other = others.find(|name| **name != bound)?.clone();
        (!bound.is_empty()).then_some(Bind {
            pod: Some(key),
            uid: meta.uid,
            node: other,
        })
    });
    let commands = pods.take(REBOUND_MAX).map(|bind| Command {
        time: Some(clock::timestamp(clock::now_ms())),
        kind: Some(Body::Transaction(Transaction {
            operations: vec![Operation {
                operation: Some(Op::Bind(bind)),
            }],
            ..Transaction::default()
        })),
        ..Command::default()
    });
    commands.collect()
}
