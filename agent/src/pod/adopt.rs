//! What an actor finds when it begins, and what it sees of containers later: the record, the monitor, the files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use proto::v1::{Container, Pod};
use rpc::v1::ContainerEnd;
use runtime::monitor::SPEC;
use runtime::monitor::protocol::ContainerState;
use runtime::spec::{CgroupSpec, ContainerSpec, PidShare, SandboxSpec, Share};

use super::actor::{Actor, Live, Monitor, Probes, Trouble};
use super::fence;
use super::image::{self, Fetched};
use super::monitor;
use super::plan::{self, Image, Observed, Restart, State, Stopping, Stray, Wanted};
use super::record::{self, ContainerRecord, Record};
use super::status::{self, Fact, Facts};
use super::view::{ContainerHandle, Limited, RunningContainer};
use super::{container, probe};

/// What is read of a run's specification: its seccomp profile is the largest part.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes).ok()
}

impl Actor {
    /// Finds what an earlier agent left: the record and the slot, a monitor that answers, or the remains of one.
    pub(super) async fn adopt(&mut self) -> Result<(), Trouble> {
        let trouble = |error: &dyn std::error::Error| Trouble {
            reason: "FailedAdopt",
            message: format!("failed to look for the pod: {}", runtime::monitor::chain(error)),
        };
        self.slot = self
            .node
            .ledger
            .slot(&self.uid)
            .map_err(|error| trouble(&error))?;
        let kept = self
            .node
            .ledger
            .record(&self.uid)
            .map_err(|error| trouble(&error))?;
        if let Some(bytes) = kept {
            // A record that cannot be read costs counts and back-off, not the pod.
            match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) => self.record = record,
                Err(error) => tracing::error!(uid = self.uid, %error, "a pod's record is damaged"),
            }
            self.saved = bytes;
        }
        if self.record.seen_ms == 0 {
            self.record.seen_ms = super::actor::now();
        }
        self.files = self.paths.exist();
        if self.pod.is_none() {
            let bytes = fs::read(self.paths.pod()).unwrap_or_default();
            let pod = Pod::decode(&*bytes).ok().filter(|pod| pod.metadata.is_some());
            self.pod = pod.map(Arc::new);
        }
        self.traces = self.slot.is_some_and(|slot| slot.address.is_some());
        let path = self.paths.monitor.join(SPEC);
        if !path.exists() {
            return Ok(());
        }
        let sandbox = read_json(&path).unwrap_or_else(|| self.remains());
        self.set_sandbox(sandbox);
        if self.connect().await.is_ok() {
            let asked = self.pod.as_ref().is_some_and(|pod| fence::is_asked(pod));
            if asked
                && self
                    .sandbox
                    .as_ref()
                    .is_some_and(|sandbox| sandbox.fence.is_none())
            {
                tracing::info!(
                    uid = self.uid,
                    "ending a monitor that knows nothing of the pod's fence"
                );
                return self.shutdown().await;
            }
            // Whoever started a run had prepared them before; an agent that was killed between the two had not.
            self.volumes = matches!(&self.monitor, Monitor::Up { state, .. } if !state.containers.is_empty());
            self.adopt_runs();
            return Ok(());
        }
        // An agent that was killed while it started this monitor: it may be about to answer.
        for pid in monitor::processes(&self.paths.monitor).map_err(|error| trouble(&error))? {
            tracing::info!(uid = self.uid, pid, "ending a monitor that does not answer");
            let pid = nix::unistd::Pid::from_raw(pid);
            match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(trouble(&error)),
            }
        }
        self.monitor = Monitor::Dead;
        Ok(())
    }

    /// A sandbox of which only the name is known: enough to find its cgroup.
    pub(super) fn remains(&self) -> SandboxSpec {
        SandboxSpec {
            id: self.uid.clone(),
            hostname: None,
            users: None,
            network: Share::Host,
            ipc: Share::Host,
            pid: PidShare::Host,
            cgroup: CgroupSpec {
                path: self.node.settings.pod_cgroup(&self.uid),
                resources: Default::default(),
            },
            sysctls: Default::default(),
            fence: None,
        }
    }

    pub(super) fn set_sandbox(&mut self, sandbox: SandboxSpec) {
        let sandbox = Arc::new(sandbox);
        self.view.lock().sandbox = Some(Arc::clone(&sandbox));
        self.sandbox = Some(sandbox);
    }

    /// Runs that the monitor has: those of the record, or newer ones that an agent started just before its death.
    fn adopt_runs(&mut self) {
        let Monitor::Up { state, .. } = &self.monitor else {
            return;
        };
        let runs = state.containers.clone();
        for (_, container) in self.containers() {
            let newest = runs
                .iter()
                .filter_map(|run| match record::parse_run_id(&run.id) {
                    Some((name, number)) if name == container.name => Some((number, run)),
                    _ => None,
                })
                .max_by_key(|(number, _)| *number);
            let Some((number, run)) = newest else { continue };
            let record = self.record.container(&container.name);
            let known = record.current.as_ref().map(|current| current.number);
            if known.is_none_or(|known| known < number) && record.next <= number {
                record.next = number.saturating_add(1);
                record.current = Some(record::Run {
                    number,
                    started_ms: run.started_ms,
                    image: container.image.clone(),
                    stop_signal: libc::SIGTERM,
                    started: container.startup_probe.is_none(),
                    ..record::Run::default()
                });
            }
            let Some(current) = record.current.clone() else {
                continue;
            };
            let before = Some((current.started, current.ready));
            let spec: Option<ContainerSpec> = read_json(&self.paths.spec(&run.id));
            self.live.entry(container.name.clone()).or_default().spec = spec.map(Arc::new);
            if run.exit.is_none() {
                self.start_probes(&container, &run.id, run.started_ms, before);
            }
        }
    }

    /// Begins to probe a run.
    pub(super) fn start_probes(
        &mut self,
        container: &Container,
        run: &str,
        started_ms: i64,
        before: Option<(bool, bool)>,
    ) {
        let results = probe::at_start(container, before);
        let (sender, receiver) = tokio::sync::watch::channel(results);
        let task = match (&self.pod, probe::has_probes(container)) {
            (Some(pod), true) => {
                let host = self.node.settings.node_address;
                let address = match pod.spec.as_ref().is_some_and(|spec| spec.host_network) {
                    true => host,
                    false => self.slot.and_then(|slot| slot.address).unwrap_or(host),
                };
                let age = super::actor::now()
                    .saturating_sub(started_ms)
                    .max(0)
                    .unsigned_abs();
                let watch = probe::Watch {
                    node: Arc::clone(&self.node),
                    pod: Arc::clone(pod),
                    container: container.clone(),
                    target: probe::Target {
                        address: address.into(),
                        monitor: self.paths.monitor.clone(),
                        run: run.to_owned(),
                    },
                    results: sender,
                    wake: Arc::clone(&self.view.wake),
                    age: std::time::Duration::from_millis(age),
                };
                Some(tokio_util::task::AbortOnDropHandle::new(tokio::spawn(
                    watch.run(),
                )))
            }
            _ => None,
        };
        let live = self.live.entry(container.name.clone()).or_default();
        live.probes = Some(Probes {
            results: receiver,
            _task: task,
        });
    }

    /// A run in the monitor.
    pub(super) fn run_state(&self, id: &str) -> Option<&ContainerState> {
        match &self.monitor {
            Monitor::Up { state, .. } => state.containers.iter().find(|run| run.id == id),
            _ => None,
        }
    }

    /// Runs in the monitor that are none of the record's.
    pub(super) fn strays(&self, containers: &[(bool, Container)]) -> Vec<Stray> {
        let Monitor::Up { state, .. } = &self.monitor else {
            return Vec::new();
        };
        let current: Vec<String> = containers
            .iter()
            .filter_map(|(_, container)| {
                let run = self.record.containers.get(&container.name)?.current.as_ref()?;
                Some(record::run_id(&container.name, run.number))
            })
            .collect();
        let strays = state.containers.iter().filter(|run| !current.contains(&run.id));
        strays
            .map(|run| Stray {
                id: run.id.clone(),
                running: run.exit.is_none(),
                killed: self.strays_killed.get(&run.id).copied(),
            })
            .collect()
    }

    /// One container, in the plan's words.
    pub(super) fn observe_one(&self, init: bool, container: &Container, now_ms: i64) -> plan::Container {
        let default = ContainerRecord::default();
        let record = self.record.containers.get(&container.name).unwrap_or(&default);
        let live = self.live.get(&container.name);
        let retry_at = match live.and_then(|live| live.make.waits_until(now_ms)) {
            Some(at) => Some(at),
            None => record.backoff.waits_until(now_ms),
        };
        let mut must_stop = None;
        let state = match &record.current {
            Some(run) => {
                let id = record::run_id(&container.name, run.number);
                let runs = match &self.monitor {
                    Monitor::Up { .. } => self.run_state(&id).is_some_and(|run| run.exit.is_none()),
                    Monitor::Absent => false,
                    // Not known before the remains are removed.
                    Monitor::Starting(_) | Monitor::Dead => true,
                };
                if runs {
                    must_stop = self.must_stop(container, run, live);
                    State::Running {
                        stop: run.stop.as_ref().map(|stop| Stopping {
                            since: stop.since_ms,
                            grace: stop.grace_ms,
                            killed: stop.killed_ms,
                        }),
                    }
                } else {
                    State::Ended
                }
            }
            None => match record.last() {
                Some(end) if record.in_sandbox || !init => State::Finished {
                    ok: end.code == 0,
                    retry_at,
                },
                _ => State::New { retry_at },
            },
        };
        let image = match live.map(|live| (&live.image, &live.pull)) {
            None | Some((Fetched::Wanted, _)) => Image::Wanted,
            Some((Fetched::Pulling { .. }, _)) => Image::Pulling,
            Some((Fetched::Here(_), _)) => Image::Here,
            Some((Fetched::Failed(_), pull)) => Image::Failed {
                retry_at: pull.waits_until(now_ms).unwrap_or(now_ms),
            },
        };
        plan::Container {
            init,
            image,
            state,
            must_stop,
        }
    }

    /// The grace of a container that is to end while its pod goes on.
    fn must_stop(&self, container: &Container, run: &record::Run, live: Option<&Live>) -> Option<i64> {
        let default = Default::default();
        let pod_spec = self.pod.as_ref().and_then(|pod| pod.spec.as_ref());
        let own = super::spec::grace_ms(pod_spec.unwrap_or(&default));
        if run.image != container.image {
            return Some(own);
        }
        let probes = live.and_then(|live| live.probes.as_ref())?;
        let dead = probes.results.borrow().dead.clone()?;
        Some(dead.grace_ms.unwrap_or(own))
    }

    /// Tells the status, and shows others what they may see.
    pub(super) fn publish(&mut self, wanted: &Wanted, observed: &Observed, now_ms: i64) {
        let Some(pod) = self.pod.clone() else { return };
        self.show(&pod);
        let containers = self.containers();
        let finished = wanted.evicted.is_some() || plan::outcome(wanted.restart, observed).is_some();
        let initialized = observed
            .containers
            .iter()
            .filter(|container| container.init)
            .all(|container| matches!(container.state, State::Finished { ok: true, .. }));
        let facts: Vec<Fact> = containers
            .iter()
            .zip(&observed.containers)
            .map(|((_, container), seen)| Fact {
                init: seen.init,
                live: self.live_state(container, seen, wanted, finished, initialized, observed.may_start),
                image_id: self.image_id(&container.name),
            })
            .collect();
        let host_ip = self.node.settings.node_address.to_string();
        let own = self
            .slot
            .and_then(|slot| slot.address)
            .map(|address| address.to_string());
        let pod_ip = match wanted.network {
            false => Some(host_ip.clone()),
            true => own.filter(|_| self.record.addressed),
        };
        let verdict = self.view.verdict();
        let facts = Facts {
            uid: &self.uid,
            pod: &pod,
            containers: &facts,
            host_ip,
            pod_ip,
            verdict: verdict.as_ref(),
            restart: wanted.restart,
            now_ms,
        };
        let status = status::status(&facts, &mut self.record);
        self.send_report(status);
    }

    fn image_id(&self, name: &str) -> Option<String> {
        match &self.live.get(name)?.image {
            Fetched::Here(image) => Some(image::id(image)),
            _ => None,
        }
    }

    /// A container's state, in the status' words.
    fn live_state(
        &self,
        container: &Container,
        seen: &plan::Container,
        wanted: &Wanted,
        finished: bool,
        initialized: bool,
        may_start: bool,
    ) -> status::Live {
        let default = ContainerRecord::default();
        let record = self.record.containers.get(&container.name).unwrap_or(&default);
        if let Some(run) = &record.current {
            return status::Live::Running(run.clone());
        }
        let waits = |reason: &str, message: String, next_try: Option<i64>| status::Live::Waiting {
            reason: reason.to_owned(),
            message,
            next_try,
        };
        if let (State::Finished { ok, .. }, Some(end)) = (seen.state, record.last()) {
            let again = match wanted.restart {
                Restart::Never => false,
                Restart::OnFailure => !ok,
                Restart::Always => !(ok && seen.init),
            };
            if !again || finished || wanted.stop.is_some() {
                return status::Live::Ended(end.clone());
            }
        }
        let live = self.live.get(&container.name);
        if let Some(live) = live {
            if let Fetched::Failed(failure) = &live.image {
                let (reason, message) = image::waiting(&container.image, failure, &live.pull);
                return waits(&reason, message, Some(live.pull.retry_at_ms));
            }
            if let Some((reason, message)) = &live.unmade {
                return waits(reason, message.clone(), Some(live.make.retry_at_ms));
            }
        }
        if !seen.init && !initialized {
            return waits("PodInitializing", self.trouble_text(), None);
        }
        if !may_start {
            return waits(fence::FENCED, fence::WAITS.to_owned(), None);
        }
        if matches!(seen.state, State::Finished { .. }) && record.backoff.delay_ms > 0 {
            let message = back_off(record.backoff.delay_ms, record.backoff.retry_at_ms);
            return waits("CrashLoopBackOff", message, Some(record.backoff.retry_at_ms));
        }
        waits("ContainerCreating", self.trouble_text(), None)
    }

    fn trouble_text(&self) -> String {
        let trouble = self.trouble.as_ref();
        trouble.map(|trouble| trouble.message.clone()).unwrap_or_default()
    }

    fn show(&mut self, pod: &Pod) {
        let mut handles = Vec::new();
        let mut ends = Vec::new();
        let mut running = Vec::new();
        let containers = self.containers();
        // The first one is meant where none is named.
        let main_first = containers
            .iter()
            .filter(|(init, _)| !init)
            .chain(containers.iter().filter(|(init, _)| *init));
        for (_, container) in main_first {
            let record = self.record.containers.get(&container.name);
            let current = record.and_then(|record| record.current.as_ref());
            let newest = current
                .map(|run| run.number)
                .or(record.and_then(|record| record.last()).map(|end| end.number));
            let id = newest.map(|number| record::run_id(&container.name, number));
            let state = id.as_deref().and_then(|id| self.run_state(id));
            let pid = state.filter(|run| run.exit.is_none()).map(|run| run.pid);
            let spec = self.live.get(&container.name).and_then(|live| live.spec.clone());
            if let (Some(pid), Some(spec), Some(_)) = (pid.filter(|pid| *pid > 0), spec, current) {
                running.push(RunningContainer {
                    name: container.name.clone(),
                    pid,
                    spec,
                });
            }
            for end in record.iter().flat_map(|record| &record.ends) {
                ends.push(ContainerEnd {
                    container: container.name.clone(),
                    attempt: i32::try_from(end.number).unwrap_or(i32::MAX),
                    stderr_tail: end.stderr_tail.clone(),
                });
            }
            handles.push(ContainerHandle {
                name: container.name.clone(),
                monitor_dir: self.paths.monitor.clone(),
                id,
                run: newest,
                running: pid.is_some() && current.is_some(),
                previous: newest.and_then(|number| number.checked_sub(1)),
                log_dir: container::log_dir(&self.node.settings, pod, &self.uid, &container.name),
            });
        }
        let addressed = self.record.addressed && pod.spec.as_ref().is_none_or(|spec| !spec.host_network);
        let limited = addressed.then(|| Limited {
            uid: self.uid.clone(),
            bandwidth: super::spec::bandwidth(pod),
        });
        let mut seen = self.view.lock();
        if running.is_empty() {
            seen.verdict = None; // of containers that have ended
        }
        seen.containers = handles;
        seen.ends = ends;
        seen.running = running;
        seen.limited = limited;
    }
}

/// `back-off 2s restarting failed container; next try at 12:00:03` (UTC).
fn back_off(delay_ms: i64, retry_at_ms: i64) -> String {
    let seconds = delay_ms / 1_000;
    let at = jiff::Timestamp::from_millisecond(retry_at_ms).map(|at| at.strftime("%H:%M:%S").to_string());
    match at {
        Ok(at) => format!("back-off {seconds}s restarting failed container; next try at {at}"),
        Err(_) => format!("back-off {seconds}s restarting failed container"),
    }
}

#[cfg(test)]
mod tests {
    use super::back_off;

    #[test]
    fn a_back_off_tells_the_time_of_the_next_try() {
        assert_eq!(
            back_off(2_000, 43_203_000),
            "back-off 2s restarting failed container; next try at 12:00:03"
        );
    }
}
