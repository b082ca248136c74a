//! The nodes as the scheduler sees them in one run: what is there, what is free.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::Node;

use super::{NodeReason, tell};
use crate::conditions;
use crate::level;
use crate::quantity::{Requests, amount, bytes, cpu};
use crate::record::Template;
use crate::store::State;

/// Pods a node takes when it does not say (Kubernetes' default).
const PODS: i64 = 110;

/// Why a node does not take a pod: the first that applies, in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Misfit {
    Memory,
    Cpu,
    Pods,
    Port { protocol: String, port: i32 },
    Label { key: String, value: String },
    Cordoned,
    Older,
    NotReady,
}

/// All nodes, by name.
pub(super) struct Table<'a> {
    pub(super) slots: Vec<Slot<'a>>,
}

/// One node.
pub(super) struct Slot<'a> {
    pub(super) name: &'a str,
    node: &'a Node,
    ready: bool,
    cordoned: bool,
    /// Schema level of its agent.
    level: u32,
    cpu: i64,
    memory: i64,
    cpu_used: i64,
    memory_used: i64,
    pods_max: i64,
    /// Pods that are on it.
    pub(super) pods: i64,
    ports: BTreeSet<(String, i32)>,
}

impl<'a> Table<'a> {
    pub(super) fn of(state: &'a State) -> Table<'a> {
        let slots = state
            .nodes()
            .filter_map(|node| Some(Slot::of(state, node, &node.metadata.as_ref()?.name)));
        Table {
            slots: slots.collect(),
        }
    }

    /// Nodes that the pod can be on at all: the one that it names, or every one.
    fn candidates(&self, template: &Template) -> impl Iterator<Item = &Slot<'a>> {
        let named = template
            .spec()
            .map(|spec| spec.node_name.clone())
            .unwrap_or_default();
        self.slots
            .iter()
            .filter(move |slot| named.is_empty() || slot.name == named)
    }

    /// How many nodes the reasons are about.
    pub(super) fn considered(&self, template: &Template) -> usize {
        self.candidates(template).count()
    }

    /// Why they do not take it, by reason.
    pub(super) fn reasons(&self, template: &Template) -> Vec<NodeReason> {
        let mut groups: BTreeMap<Misfit, Vec<&Slot>> = BTreeMap::new();
        for slot in self.candidates(template) {
            if let Some(misfit) = slot.misfit(template) {
                groups.entry(misfit).or_default().push(slot);
            }
        }
        if groups.is_empty() && self.considered(template) == 0 {
            let named = template.spec().map_or("", |spec| spec.node_name.as_str());
            let message = match named {
                "" => "no node has joined".to_owned(),
                named => format!("node {named}, which the pod asks for, does not exist"),
            };
            return vec![NodeReason {
                nodes: Vec::new(),
                message,
            }];
        }
        groups
            .into_iter()
            .map(|(misfit, slots)| NodeReason {
                message: tell(&misfit, &slots, template),
                nodes: slots.iter().map(|slot| slot.name.to_owned()).collect(),
            })
            .collect()
    }
}

impl<'a> Slot<'a> {
    pub(super) fn of(state: &State, node: &'a Node, name: &'a str) -> Slot<'a> {
        let none = BTreeMap::new();
        let status = node.status.as_ref();
        let has = status.map_or(&none, |status| &status.allocatable);
        let mut slot = Slot {
            name,
            node,
            ready: status.is_some_and(|status| conditions::holds(&status.conditions, "Ready")),
            cordoned: node.spec.as_ref().is_some_and(|spec| spec.unschedulable),
            level: level::of_node(node),
            cpu: amount(has, "cpu", cpu).unwrap_or(0),
            memory: amount(has, "memory", bytes).unwrap_or(0),
            cpu_used: 0,
            memory_used: 0,
            pods_max: amount(has, "pods", bytes).unwrap_or(PODS),
            pods: 0,
            ports: BTreeSet::new(),
        };
        // Pods on their way out still hold what they have.
        for (_, pod) in state.pod_records_on(name).filter(|(_, pod)| !pod.status.finished) {
            slot.take(&pod.template.requests);
        }
        slot
    }

    pub(super) fn take(&mut self, requests: &Requests) {
        self.cpu_used = self.cpu_used.saturating_add(requests.cpu);
        self.memory_used = self.memory_used.saturating_add(requests.memory);
        self.pods += 1;
        self.ports.extend(requests.ports.iter().cloned());
    }

    pub(super) fn free_cpu(&self) -> i64 {
        self.cpu.saturating_sub(self.cpu_used)
    }

    pub(super) fn free_memory(&self) -> i64 {
        self.memory.saturating_sub(self.memory_used)
    }

    /// How much of the node is asked for, in thousandths of CPU and of memory together.
    pub(super) fn used(&self) -> i128 {
        let share = |used: i64, all: i64| i128::from(used) * 1000 / i128::from(all.max(1));
        share(self.cpu_used, self.cpu) + share(self.memory_used, self.memory)
    }

    /// Whether the pod may be here, and fits.
    pub(super) fn takes(&self, template: &Template) -> bool {
        let named = template.spec().map_or("", |spec| spec.node_name.as_str());
        (named.is_empty() || named == self.name) && self.misfit(template).is_none()
    }

    pub(super) fn misfit(&self, template: &Template) -> Option<Misfit> {
        let requests = &template.requests;
        let spec = template.spec();
        let named = spec.map_or("", |spec| spec.node_name.as_str());
        if !self.ready {
            return Some(Misfit::NotReady);
        }
        if spec.is_some_and(|spec| level::of_pod(spec) > self.level) {
            return Some(Misfit::Older);
        }
        // Who names a node gets it, cordoned or not, as in Kubernetes.
        if self.cordoned && named != self.name {
            return Some(Misfit::Cordoned);
        }
        let labels = self.node.metadata.as_ref().map(|meta| &meta.labels);
        let wanted = spec.into_iter().flat_map(|spec| &spec.node_selector);
        for (key, value) in wanted {
            if labels.and_then(|labels| labels.get(key)) != Some(value) {
                return Some(Misfit::Label {
                    key: key.clone(),
                    value: value.clone(),
                });
            }
        }
        if let Some((protocol, port)) = requests.ports.iter().find(|port| self.ports.contains(*port)) {
            return Some(Misfit::Port {
                protocol: protocol.clone(),
                port: *port,
            });
        }
        if requests.memory > self.free_memory() && requests.memory > 0 {
            return Some(Misfit::Memory);
        }
        if requests.cpu > self.free_cpu() && requests.cpu > 0 {
            return Some(Misfit::Cpu);
        }
        (self.pods >= self.pods_max).then_some(Misfit::Pods)
    }
}
