//! A whole cluster without a machine: the leader's loop over the state, agents that report after a while, nodes that fall
//! silent and come back.

use std::collections::{BTreeMap, BTreeSet};

use proto::state::v1::Command;
use proto::v1::Pod;
use proto::v1::object::Object as Any;
use state::plan::{Lease, World};
use state::{State, invariant, plan, schedule};

use crate::support::*;

/// How long a lease is.
pub(crate) const LEASE_MS: i64 = 6000;
/// A step of the simulation.
const STEP_MS: i64 = 500;

pub(crate) struct Cluster {
    pub state: State,
    pub now: i64,
    /// Nodes whose agent is silent, with the time of the last word.
    silent: BTreeMap<String, i64>,
    /// Time from a pod's start to readiness, and from the word to its end.
    pub start_ms: i64,
    pub end_ms: i64,
    /// Images whose pods never get ready.
    pub broken: BTreeSet<String>,
    /// When agents first saw a pod, and when they saw it end.
    seen: BTreeMap<String, i64>,
    ending: BTreeMap<String, i64>,
}

impl Cluster {
    pub(crate) fn new(nodes: &[&str]) -> Cluster {
        let mut cluster = Cluster {
            state: cluster(),
            now: 1_000_000,
            silent: BTreeMap::new(),
            start_ms: 1000,
            end_ms: 0,
            broken: BTreeSet::new(),
            seen: BTreeMap::new(),
            ending: BTreeMap::new(),
        };
        for name in nodes {
            cluster.apply(&join(cluster.now, name));
            cluster.apply(&node_status(
                cluster.now,
                name,
                &[("cpu", "8"), ("memory", "16Gi"), ("pods", "110")],
            ));
        }
        cluster
    }

    /// Whether it was carried out.
    pub(crate) fn apply(&mut self, command: &Command) -> bool {
        let mut copy = self.state.clone();
        let outcome = self.state.apply(command);
        assert_eq!(copy.apply(command), outcome, "apply is deterministic");
        invariant::check(&self.state).unwrap();
        outcome.applied()
    }

    pub(crate) fn put(&mut self, object: proto::v1::Object) {
        let outcome = self.state.apply(&transaction(self.now, vec![put(object)]));
        applied(&outcome);
    }

    pub(crate) fn silence(&mut self, node: &str) {
        self.silent.insert(node.to_owned(), self.now);
    }

    pub(crate) fn wake(&mut self, node: &str) {
        self.silent.remove(node);
    }

    pub(crate) fn world(&self) -> World {
        let lease = |name: &str| match self.silent.get(name) {
            Some(last) if last + LEASE_MS <= self.now => Lease::Lost {
                since: last + LEASE_MS,
                past_ms: self.now - last - LEASE_MS,
            },
            _ => Lease::Live,
        };
        World {
            leases: plan::nodes(&self.state)
                .map(|name| (name.to_owned(), lease(name)))
                .collect(),
        }
    }

    /// One pass of the leader and of every agent. Whether anything happened.
    pub(crate) fn step(&mut self) -> bool {
        self.now += STEP_MS;
        let before = self.state.revision();
        for command in plan::commands(&self.state, self.now, &self.world()) {
            self.apply(&command);
        }
        for command in schedule::commands(&self.state, self.now).0 {
            assert!(self.apply(&command), "what was placed just now can be bound");
        }
        let names: Vec<String> = self
            .state
            .nodes()
            .map(|n| n.metadata.as_ref().unwrap().name.clone())
            .collect();
        for name in &names {
            if self.silent.contains_key(name) {
                continue;
            }
            let pods: Vec<Pod> = self.state.pods_on(name).collect();
            for pod in pods {
                self.agent(name, &pod);
            }
        }
        self.state.revision() != before
    }

    /// What an agent says of one of its pods.
    fn agent(&mut self, node: &str, pod: &Pod) {
        let metadata = pod.metadata.as_ref().unwrap();
        if metadata.deletion_timestamp.is_some() {
            let since = *self.ending.entry(metadata.uid.clone()).or_insert(self.now);
            if self.now < since + self.end_ms {
                return;
            }
            self.apply(&report_by_uid(self.now, &metadata.uid, node, None, true));
            return;
        }
        let seen = *self.seen.entry(metadata.uid.clone()).or_insert(self.now);
        let broken = self
            .broken
            .contains(&pod.spec.as_ref().unwrap().containers[0].image);
        let ready = self.now >= seen + self.start_ms && !broken;
        self.apply(&report_by_uid(
            self.now,
            &metadata.uid,
            node,
            Some(running(ready)),
            false,
        ));
    }

    /// Goes on until nothing happens for longer than anything waits.
    pub(crate) fn settle(&mut self, mut each: impl FnMut(&Cluster)) {
        let mut quiet = 0;
        for _ in 0..2000 {
            quiet = if self.step() { 0 } else { quiet + 1 };
            each(self);
            if quiet > 30 {
                return;
            }
        }
        panic!("the cluster never rests");
    }

    pub(crate) fn pods(&self) -> Vec<Pod> {
        let pods = self.state.list(model::Kind::Pod, None, None);
        pods.filter_map(|object| match object.object {
            Some(Any::Pod(pod)) => Some(pod),
            _ => None,
        })
        .collect()
    }

    /// Pods that are not on their way out, and those of them that are ready.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let pods = self.pods();
        let active = pods
            .iter()
            .filter(|pod| pod.metadata.as_ref().unwrap().deletion_timestamp.is_none());
        let ready = |pod: &&Pod| {
            let conditions = &pod.status.as_ref().unwrap().conditions;
            conditions
                .iter()
                .any(|condition| condition.r#type == "Ready" && condition.status == "True")
        };
        (active.clone().count(), active.filter(ready).count())
    }

    /// How many pods each node has.
    pub(crate) fn spread(&self) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for pod in self.pods() {
            *spread.entry(pod.spec.unwrap().node_name).or_default() += 1;
        }
        spread
    }

    pub(crate) fn images(&self) -> BTreeSet<String> {
        self.pods()
            .iter()
            .map(|pod| pod.spec.as_ref().unwrap().containers[0].image.clone())
            .collect()
    }
}
