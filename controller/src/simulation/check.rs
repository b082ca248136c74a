//! Whether a history can be: one order of everything, in which each client was told the truth.
//!
//! The order is that of the revisions, which all members have to agree on. A call takes effect at one of them: a write at
//! its own, a read at any at which the state was what it told. Calls are taken in the order of their answers, and each
//! gets the first revision that is possible and not before those of the calls that were answered before it began. If
//! there is one for each, the history is linearizable, over all objects together; if not, it is not, as every later
//! revision would leave the calls after it less.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::object::Object as Any;
use proto::v1::{Object, Pod};

use super::history::{Call, Change, Told, Watched, Whole, named_value, version};
use super::network::Host;

/// Values of one ConfigMap by the revisions of its changes; None: deleted.
type Versions = BTreeMap<u64, Option<String>>;

struct Checks<'a> {
    whole: &'a Whole,
    maps: BTreeMap<String, Versions>,
    violations: Vec<String>,
}

/// Everything in it that can't be.
/// `has_room`: whether late commands could not fill a node beyond what it holds.
pub(super) fn violations(whole: &Whole, has_room: bool) -> Vec<String> {
    let mut maps: BTreeMap<String, Versions> = BTreeMap::new();
    for (revision, change) in &whole.changes {
        if let Some((name, value)) = named_value(&change.object) {
            let value = (change.kind != "DELETED").then_some(value);
            maps.entry(name).or_default().insert(*revision, value);
        }
    }
    let mut checks = Checks {
        whole,
        maps,
        violations: Vec::new(),
    };
    checks.no_gap();
    checks.each_write_once();
    checks.linearizable();
    checks.stale_lists_go_on();
    whole.watches.iter().for_each(|watched| checks.watch(watched));
    checks.pods(has_room);
    checks.violations
}

impl Checks<'_> {
    fn say(&mut self, what: String) {
        self.violations.push(what);
    }

    fn no_gap(&mut self) {
        let revisions: Vec<u64> = self.whole.changes.keys().copied().collect();
        let gaps = revisions.windows(2).filter(|pair| pair[0] + 1 != pair[1]);
        let gaps: Vec<String> = gaps
            .map(|pair| {
                format!(
                    "no member was seen to apply what is between revisions {} and {}",
                    pair[0], pair[1]
                )
            })
            .collect();
        self.violations.extend(gaps);
    }

    /// Values are never tried by two writes, so one that is there twice was written twice.
    fn each_write_once(&mut self) {
        let mut seen = BTreeSet::new();
        let mut wrong = Vec::new();
        for (name, versions) in &self.maps {
            for (revision, value) in versions {
                let Some(value) = value else { continue };
                let write = (name.clone(), value.clone());
                if !self.whole.tried.contains_key(&write) {
                    wrong.push(format!(
                        "nobody wrote {write:?}, which is there at revision {revision}"
                    ));
                }
                if !seen.insert(write.clone()) {
                    wrong.push(format!(
                        "{write:?} was written a second time at revision {revision}"
                    ));
                }
            }
        }
        for call in &self.whole.calls {
            if let Told::Refused { values } = &call.told {
                let done = values.iter().filter(|value| seen.contains(*value));
                wrong.extend(done.map(|value| format!("{value:?} was refused and then written: {call:?}")));
            }
        }
        self.violations.extend(wrong);
    }

    fn linearizable(&mut self) {
        let mut calls: Vec<&Call> = self.whole.calls.iter().collect();
        calls.sort_by_key(|call| call.ended);
        // The latest revision of the calls that were answered up to a moment.
        let mut known: BTreeMap<u64, u64> = BTreeMap::new();
        let mut latest = 0;
        for call in calls {
            let from = known
                .range(..call.began)
                .next_back()
                .map_or(0, |(_, revision)| *revision);
            match self.takes_effect(call, from) {
                Ok(None) => {}
                Ok(Some(revision)) => {
                    latest = latest.max(revision);
                    known.insert(call.ended, latest);
                }
                Err(why) => self.say(format!(
                    "{why} (what was acknowledged before is at {from}): {call:?}"
                )),
            }
        }
    }

    /// The first possible revision not before `from`; None for what may be out of date.
    fn takes_effect(&self, call: &Call, from: u64) -> Result<Option<u64>, String> {
        match &call.told {
            Told::Wrote { values, revision } => {
                if *revision <= from {
                    return Err(format!("a write at revision {revision} came too late"));
                }
                for (name, value) in values {
                    let mut versions = self.maps.get(name).into_iter().flatten();
                    let there = versions.any(|(at, there)| at <= revision && there.as_ref() == Some(value));
                    if !there {
                        return Err(format!("the acknowledged write of {value} to {name} is lost"));
                    }
                }
                Ok(Some(*revision))
            }
            Told::Deleted { name, revision } => match self.at(name, *revision) {
                None => Ok(Some((*revision).max(from))),
                Some(value) => Err(format!(
                    "{name} was deleted and is {value} at revision {revision}"
                )),
            },
            Told::Changed { revision } => Ok(Some((*revision).max(from))),
            Told::Refused { .. } => Ok(None),
            Told::Read { name, found } => self.read(name, found.as_ref(), from).map(Some),
            Told::Listed {
                revision,
                found,
                stale,
            } => {
                if self.all_at(*revision) != *found {
                    return Err(format!("the list is not what there was at revision {revision}"));
                }
                match stale {
                    Some(_) => Ok(None),
                    None if *revision < from => Err("the list is out of date".to_owned()),
                    None => Ok(Some(*revision)),
                }
            }
        }
    }

    fn read(&self, name: &str, found: Option<&(u64, String)>, from: u64) -> Result<u64, String> {
        let none = Versions::new();
        let versions = self.maps.get(name).unwrap_or(&none);
        match found {
            Some((version, value)) => {
                if versions.get(version).and_then(Option::as_ref) != Some(value) {
                    return Err(format!("{name} never was {value} with version {version}"));
                }
                match versions.range(version + 1..).next() {
                    Some((next, _)) if *next <= from => Err(format!(
                        "a read of {name} is out of date: version {version} was replaced at {next}"
                    )),
                    _ => Ok(from.max(*version)),
                }
            }
            None if self.at(name, from).is_none() => Ok(from),
            None => {
                let mut later = versions.range(from + 1..);
                let gone = later.find(|(_, value)| value.is_none());
                gone.map(|(revision, _)| *revision)
                    .ok_or_else(|| format!("a read did not find {name}, which was there"))
            }
        }
    }

    fn at(&self, name: &str, revision: u64) -> Option<&String> {
        let last = self.maps.get(name)?.range(..=revision).next_back();
        last?.1.as_ref()
    }

    fn all_at(&self, revision: u64) -> BTreeMap<String, String> {
        let there = self
            .maps
            .keys()
            .filter_map(|name| Some((name, self.at(name, revision)?)));
        there.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// One life of a member never goes back.
    fn stale_lists_go_on(&mut self) {
        let mut last: BTreeMap<(Host, (Host, u64)), u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for call in &self.whole.calls {
            if let Told::Listed {
                revision,
                stale: Some(member),
                ..
            } = &call.told
            {
                let before = last.insert((call.client, *member), *revision).unwrap_or(0);
                if *revision < before {
                    wrong.push(format!(
                        "member {member:?} went back from revision {before}: {call:?}"
                    ));
                }
            }
        }
        self.violations.extend(wrong);
    }

    /// Every change between its two revisions, once and in order.
    fn watch(&mut self, watched: &Watched) {
        let between = self
            .whole
            .changes
            .range(watched.from + 1..watched.upto.max(watched.from) + 1);
        let due: Vec<(u64, &str, &Object)> = between
            .filter(|(_, change)| matches!(change.object.object, Some(Any::ConfigMap(_))))
            .map(|(revision, change)| (*revision, change.kind.as_str(), &change.object))
            .collect();
        let shown: Vec<(u64, &str, &Object)> = watched
            .shown
            .iter()
            .map(|(revision, kind, object)| (*revision, kind.as_str(), object))
            .collect();
        if due == shown {
            return;
        }
        let differs = due.iter().zip(&shown).position(|(due, shown)| due != shown);
        let at = differs.unwrap_or(due.len().min(shown.len()));
        let (from, upto) = (watched.from, watched.upto);
        self.say(format!(
            "a watch from {from} to {upto} shows {:?} where {:?} is due",
            shown.get(at),
            due.get(at)
        ));
    }

    /// A pod has one node all its life, and no node has more than it can hold.
    fn pods(&mut self, has_room: bool) {
        let mut pods: BTreeMap<&str, &Pod> = BTreeMap::new();
        let mut holds: BTreeMap<&str, i64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (revision, Change { kind, object, last }) in &self.whole.changes {
            match &object.object {
                Some(Any::Pod(pod)) => {
                    let uid = pod.metadata.as_ref().map_or("", |meta| meta.uid.as_str());
                    let before = match kind.as_str() {
                        "DELETED" => pods.remove(uid),
                        _ => pods.insert(uid, pod),
                    };
                    let was = before.map_or("", node_of);
                    if !was.is_empty() && was != node_of(pod) {
                        wrong.push(format!(
                            "pod {uid} is bound to {} at revision {revision}, and was to {was}",
                            node_of(pod)
                        ));
                    }
                }
                Some(Any::Node(node)) => {
                    let name = node.metadata.as_ref().map_or("", |meta| meta.name.as_str());
                    let cpu = node
                        .status
                        .as_ref()
                        .and_then(|status| status.allocatable.get("cpu"));
                    holds.insert(name, cpu.map_or(0, |cpu| millis(&cpu.text)));
                }
                _ => continue,
            }
            if !last || !has_room {
                continue;
            }
            let mut asked: BTreeMap<&str, i64> = BTreeMap::new();
            for pod in pods.values().filter(|pod| counts(pod)) {
                *asked.entry(node_of(pod)).or_default() += requested(pod);
            }
            for (node, asked) in asked.into_iter().filter(|(node, _)| !node.is_empty()) {
                let holds = holds.get(node).copied().unwrap_or(0);
                if asked > holds {
                    wrong.push(format!(
                        "at revision {revision} pods ask {asked}m of node {node}, which has {holds}m"
                    ));
                }
            }
        }
        wrong.truncate(3); // one too many goes on for a while
        self.violations.extend(wrong);
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}

/// Its containers have not all ended for good.
fn counts(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
    !matches!(phase, "Succeeded" | "Failed")
}

fn requested(pod: &Pod) -> i64 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let cpu = containers.filter_map(|container| container.resources.as_ref()?.requests.get("cpu"));
    cpu.map(|cpu| millis(&cpu.text)).sum()
}

/// Of a CPU, as these simulations write it: whole ones, or thousandths.
fn millis(text: &str) -> i64 {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().expect("a number of ours"),
        None => 1000 * text.parse::<i64>().expect("a number of ours"),
    }
}

/// How new an object is, for whoever reads several.
pub(super) fn newest<'a>(objects: impl IntoIterator<Item = &'a Object>) -> u64 {
    objects.into_iter().map(version).max().unwrap_or(0)
}
