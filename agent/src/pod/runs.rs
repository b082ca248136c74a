//! Carrying out the plan's steps for single containers.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use proto::v1::Container;
use runtime::monitor::NEEDS_COPY;
use runtime::monitor::protocol::{ContainerState, Exit};
use tokio_util::task::AbortOnDropHandle;

use super::actor::{Actor, Monitor, Trouble, now};
use super::container::{self, Build, BuildError, Built};
use super::execute::{blocking, trouble};
use super::fence;
use super::files;
use super::image::{self, Fetched, Look};
use super::monitor::MonitorError;
use super::record::{self, End, Run, Stopping};
use crate::image::Image;

/// How much of a termination message is taken; Kubernetes' own limit.
const MESSAGE_BYTES_MAX: u64 = 4_096;
/// Exit code of a program that could not be started; Kubernetes' own.
const START_ERROR: i32 = 128;
/// Exit code of one that ended well when its node was not confirmed in time: as by SIGTERM.
const FENCED_WELL: i32 = 128 + libc::SIGTERM;
/// Exit code of a container whose end nobody saw.
const UNKNOWN: i32 = 137;

impl Actor {
    fn one(&self, index: usize) -> Result<Container, Trouble> {
        let found = self.containers().into_iter().nth(index);
        found.map(|(_, container)| container).ok_or_else(|| Trouble {
            reason: "Failed",
            message: "the pod has no such container".to_owned(),
        })
    }

    pub(super) fn event(&self, kind: &str, reason: &str, message: String) {
        if let Some(pod) = &self.pod {
            self.node.events.record(pod, kind, reason, message);
        }
    }

    /// Looks for a container's image; pulls it in the background.
    pub(super) fn fetch(&mut self, index: usize) {
        let (Some(pod), Ok(container)) = (self.pod.clone(), self.one(index)) else {
            return;
        };
        let found = image::look(&self.node, &pod, &container.image, &container.image_pull_policy);
        let live = self.live.entry(container.name.clone()).or_default();
        match found {
            Look::Here(image) => {
                live.pull.reset();
                live.image = Fetched::Here(Arc::new(*image));
            }
            Look::Failed(failure) => {
                live.pull.failed(now());
                let (reason, message) = (failure.reason, failure.message.clone());
                live.image = Fetched::Failed(failure);
                self.event("Warning", "Failed", message);
                self.event("Warning", "Failed", format!("Error: {reason}"));
            }
            Look::Pull => {
                let (node, arrivals) = (Arc::clone(&self.node), self.arrivals.0.clone());
                let (name, reference) = (container.name.clone(), container.image.clone());
                let task = tokio::spawn(async move {
                    let result = image::pull(&node, &pod, &reference).await;
                    // The receiver is gone when the pod is: nobody asks any more.
                    drop(arrivals.send((name, reference, result)).await);
                });
                let _task = AbortOnDropHandle::new(task);
                live.image = Fetched::Pulling { _task };
            }
        }
    }

    pub(super) async fn start(&mut self, index: usize) -> Result<(), Trouble> {
        let container = self.one(index)?;
        let number = self.record.container(&container.name).next;
        let id = record::run_id(&container.name, number);
        let Some(image) = self.image_of(&container) else {
            return Ok(()); // it was taken away since: the plan asks for it again
        };
        let lowers = match self.lowers(&container, &image).await? {
            Ok(lowers) => lowers,
            Err(message) => {
                self.unmade(&container, "CreateContainerError", message);
                return Ok(());
            }
        };
        let built = match self.build(&container, &image, lowers, number).await? {
            Ok(built) => built,
            Err(error) => {
                self.unmade(&container, error.reason(), runtime::monitor::chain(&error));
                return Ok(());
            }
        };
        for key in &built.skipped {
            let message = format!("Key {key} is not the name of a variable and was left out");
            self.event("Warning", "InvalidEnvironmentVariableNames", message);
        }
        let begun = now();
        let spec = Arc::new(built.spec.clone());
        let answer = match self.client().await {
            Ok(mut client) => client.start(built.spec).await,
            Err(error) => Err(error),
        };
        drop(built.held);
        match answer {
            Ok(state) => {
                let started_ms = state
                    .containers
                    .iter()
                    .find(|run| run.id == id)
                    .map_or(begun, |run| run.started_ms);
                if let Monitor::Up { state: known, .. } = &mut self.monitor
                    && state.revision > known.revision
                {
                    *known = state;
                }
                self.started(&container, &image, number, started_ms, built.stop_signal, spec);
                Ok(())
            }
            Err(MonitorError::Failed { reason, message }) => {
                self.refused(&container, &image, number, begun, &reason, message)
                    .await
            }
            Err(error) if error.is_gone() => {
                self.monitor = Monitor::Dead;
                Ok(())
            }
            Err(error) => Err(trouble("Failed", "failed to start a container")(&error)),
        }
    }

    fn image_of(&self, container: &Container) -> Option<Arc<Image>> {
        match &self.live.get(&container.name)?.image {
            Fetched::Here(image) => Some(Arc::clone(image)),
            _ => None,
        }
    }

    /// The image's layers, or copies with the pod's own ids where the kernel cannot map them.
    async fn lowers(
        &self,
        container: &Container,
        image: &Arc<Image>,
    ) -> Result<Result<Vec<PathBuf>, String>, Trouble> {
        let refused = self.live.get(&container.name).is_some_and(|live| live.shifted);
        let shifted = refused || !self.node.idmapped_mounts;
        let Some(ids) = self.slot.and_then(|slot| slot.ids).filter(|_| shifted) else {
            return Ok(Ok(image.layers.clone()));
        };
        let (node, layers) = (Arc::clone(&self.node), image.layers.clone());
        blocking(move || {
            let shift = |layer: &PathBuf| node.images.shifted(layer, ids.start, ids.count);
            let copies: Result<Vec<PathBuf>, _> = layers.iter().map(shift).collect();
            copies.map_err(|error| runtime::monitor::chain(&error))
        })
        .await
    }

    async fn build(
        &self,
        container: &Container,
        image: &Arc<Image>,
        lowers: Vec<PathBuf>,
        number: u32,
    ) -> Result<Result<Built, BuildError>, Trouble> {
        let pod = self.pod()?;
        let (node, uid) = (Arc::clone(&self.node), self.uid.clone());
        let (container, image) = (container.clone(), Arc::clone(image));
        let (configs, paths) = (Arc::clone(&self.configs), self.paths.clone());
        let slot = self.slot.unwrap_or_default();
        blocking(move || {
            Build {
                settings: &node.settings,
                node_name: &node.name,
                uid: &uid,
                pod: &pod,
                container: &container,
                configs: &configs,
                image: &image,
                lowers,
                slot,
                number,
                paths: &paths,
            }
            .build()
        })
        .await
    }

    fn started(
        &mut self,
        container: &Container,
        image: &Image,
        number: u32,
        started_ms: i64,
        stop_signal: i32,
        spec: Arc<runtime::spec::ContainerSpec>,
    ) {
        let record = self.record.container(&container.name);
        record.next = number.saturating_add(1);
        record.current = Some(Run {
            number,
            started_ms,
            image_id: image::id(image),
            image: container.image.clone(),
            stop_signal,
            ..Run::default()
        });
        let live = self.live.entry(container.name.clone()).or_default();
        live.unmade = None;
        live.make.reset();
        live.spec = Some(spec);
        self.backoff.reset();
        self.trouble = None;
        self.inspect_at = 0;
        let id = record::run_id(&container.name, number);
        self.start_probes(container, &id, started_ms, None);
        self.take_in_probes();
        let name = &container.name;
        self.event("Normal", "Created", format!("Created container: {name}"));
        self.event("Normal", "Started", format!("Started container {name}"));
    }

    /// The monitor could not start a run; nothing of it is left there.
    async fn refused(
        &mut self,
        container: &Container,
        image: &Image,
        number: u32,
        begun: i64,
        reason: &str,
        message: String,
    ) -> Result<(), Trouble> {
        let id = record::run_id(&container.name, number);
        let live = self.live.entry(container.name.clone()).or_default();
        if reason == NEEDS_COPY && !live.shifted {
            live.shifted = true;
            return self.remove_run(&id).await;
        }
        if reason == fence::FENCED {
            // Its time was over meanwhile, or the others of the pod still end. No fault of the container.
            live.make.failed(now());
            live.unmade = Some((reason.to_owned(), fence::WAITS.to_owned()));
            return self.remove_run(&id).await;
        }
        if reason != "StartError" {
            let reason = match reason {
                "RunContainerError" => "RunContainerError",
                _ => "CreateContainerError",
            };
            self.unmade(container, reason, message);
            return self.remove_run(&id).await;
        }
        // The program: as if it had run and ended at once.
        self.event("Warning", "Failed", format!("Error: {message}"));
        live_reset(live_of(self, container));
        let end = End {
            number,
            code: START_ERROR,
            reason: "StartError".to_owned(),
            message,
            started_ms: begun,
            finished_ms: now(),
            image_id: image::id(image),
            ..End::default()
        };
        self.record.container(&container.name).end(end, now());
        self.told_of_end(container);
        self.save().await?;
        self.remove_run(&id).await
    }

    /// A container could not be made: it is tried again, whatever its restart policy.
    fn unmade(&mut self, container: &Container, reason: &str, message: String) {
        self.event("Warning", "Failed", format!("Error: {message}"));
        let live = self.live.entry(container.name.clone()).or_default();
        live.make.failed(now());
        live.unmade = Some((reason.to_owned(), message));
        // Its layers may have been collected since it was looked up.
        live.image = Fetched::Wanted;
    }

    pub(super) async fn stop(&mut self, index: usize, grace_ms: i64, replaced: bool) -> Result<(), Trouble> {
        let container = self.one(index)?;
        let name = container.name.clone();
        let since_ms = self.record.ends_since().filter(|_| !replaced).unwrap_or_else(now);
        let Some(run) = self.record.container(&name).current.clone() else {
            return Ok(());
        };
        let changed = run.image != container.image;
        let dead = self
            .live
            .get(&name)
            .and_then(|live| live.probes.as_ref()?.results.borrow().dead.clone());
        let why = match (replaced, changed, dead) {
            (true, true, _) => format!("Container {name} definition changed, will be restarted"),
            (true, false, Some(dead)) => {
                let kind = dead.kind.to_lowercase();
                format!("Container {name} failed {kind} probe, will be restarted")
            }
            _ => format!("Stopping container {name}"),
        };
        self.event("Normal", "Killing", why);
        if grace_ms > 0 {
            let id = record::run_id(&name, run.number);
            let sent = match self.client().await {
                Ok(mut client) => client.signal(&id, run.stop_signal).await,
                Err(error) => Err(error),
            };
            self.unless_gone(sent)?;
        }
        if let Some(run) = &mut self.record.container(&name).current {
            run.stop = Some(Stopping {
                since_ms,
                grace_ms,
                killed_ms: None,
                replaced: replaced && changed,
            });
        }
        Ok(())
    }

    /// A monitor that has gone, and a run that it has not, need no signal any more.
    fn unless_gone(&mut self, result: Result<(), MonitorError>) -> Result<(), Trouble> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.is_gone() => {
                self.monitor = Monitor::Dead;
                Ok(())
            }
            Err(MonitorError::Failed { reason, .. }) if reason == "NoSuchContainer" => Ok(()),
            Err(error) => Err(trouble("FailedKillPod", "failed to end a container")(&error)),
        }
    }

    pub(super) async fn kill(&mut self, index: usize) -> Result<(), Trouble> {
        let name = self.one(index)?.name;
        let Some(number) = self
            .record
            .container(&name)
            .current
            .as_ref()
            .map(|run| run.number)
        else {
            return Ok(());
        };
        let killed = match self.client().await {
            Ok(mut client) => client.kill(&record::run_id(&name, number)).await,
            Err(error) => Err(error),
        };
        self.unless_gone(killed)?;
        if let Some(stop) = self
            .record
            .container(&name)
            .current
            .as_mut()
            .and_then(|run| run.stop.as_mut())
        {
            stop.killed_ms = Some(now());
        }
        Ok(())
    }

    pub(super) async fn kill_stray(&mut self, id: &str) -> Result<(), Trouble> {
        let killed = match self.client().await {
            Ok(mut client) => client.kill(id).await,
            Err(error) => Err(error),
        };
        self.unless_gone(killed)?;
        self.strays_killed.insert(id.to_owned(), now());
        Ok(())
    }

    pub(super) async fn remove_stray(&mut self, id: &str) -> Result<(), Trouble> {
        self.forget_run(id).await?;
        self.strays_killed.remove(id);
        self.remove_run(id).await
    }

    /// Takes an ended run out of the monitor.
    async fn forget_run(&mut self, id: &str) -> Result<(), Trouble> {
        if !matches!(self.monitor, Monitor::Up { .. }) {
            return Ok(());
        }
        let removed = match self.client().await {
            Ok(mut client) => client.remove(id).await,
            Err(error) => Err(error),
        };
        self.unless_gone(removed)?;
        if let Monitor::Up { state, .. } = &mut self.monitor {
            state.containers.retain(|run| run.id != id);
        }
        Ok(())
    }

    /// Records how a run ended, then removes what is left of it.
    pub(super) async fn collect(&mut self, index: usize) -> Result<(), Trouble> {
        let container = self.one(index)?;
        let name = container.name.clone();
        let Some(run) = self.record.container(&name).current.clone() else {
            return Ok(());
        };
        let id = record::run_id(&name, run.number);
        let message = self.paths.termination(&id);
        let words = blocking(move || last_words(&message)).await?;
        let end = match self.run_state(&id) {
            Some(ContainerState { exit: Some(exit), .. }) => ended(&run, exit, words),
            _ => End {
                number: run.number,
                code: UNKNOWN,
                reason: "ContainerStatusUnknown".to_owned(),
                message: "the pod's monitor ended, and the container with it".to_owned(),
                started_ms: run.started_ms,
                finished_ms: now(),
                image_id: run.image_id.clone(),
                ..End::default()
            },
        };
        self.record.container(&name).end(end, now());
        // Known for good before the monitor forgets it.
        self.save().await?;
        live_reset(live_of(self, &container));
        self.told_of_end(&container);
        self.forget_run(&id).await?;
        self.remove_run(&id).await
    }

    fn told_of_end(&self, container: &Container) {
        let Some(record) = self.record.containers.get(&container.name) else {
            return;
        };
        let policy = self.pod.as_ref().and_then(|pod| pod.spec.as_ref());
        if record.last().is_some_and(|end| end.reason == fence::FENCED) {
            let message = format!("Container {}: {}", container.name, fence::ENDED);
            self.event("Warning", fence::FENCED, message);
        }
        let never = policy.is_some_and(|spec| spec.restart_policy == "Never");
        let failed = record.last().is_some_and(|end| end.code != 0);
        if failed && !never && self.record.ends_since().is_none() && record.backoff.delay_ms > 0 {
            let message = format!(
                "Back-off {}s restarting failed container {}",
                record.backoff.delay_ms / 1_000,
                container.name
            );
            self.event("Warning", "BackOff", message);
        }
    }

    /// Removes a run's files, and logs older than those of the run before.
    async fn remove_run(&mut self, id: &str) -> Result<(), Trouble> {
        let (layer, spec) = (self.paths.run(id), self.paths.spec(id));
        let message = self.paths.termination(id);
        let old_log = record::parse_run_id(id).and_then(|(name, number)| {
            let pod = self.pod.as_ref()?;
            let logs = container::log_dir(&self.node.settings, pod, &self.uid, name);
            Some((logs, number.checked_sub(1)?))
        });
        let removed = blocking(move || -> Result<(), files::FileError> {
            files::remove_tree(&layer)?;
            files::remove_file(&spec)?;
            files::remove_file(&message)?;
            if let Some((logs, number)) = old_log {
                remove_logs(&logs, number)?;
            }
            Ok(())
        });
        let removed = removed.await?;
        removed.map_err(|error| trouble("Failed", "failed to remove what is left of a container")(&error))
    }
}

/// Removes the logs of runs before `number`.
fn remove_logs(directory: &std::path::Path, number: u32) -> Result<(), files::FileError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(files::failed("list", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(files::failed("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.split('.').next().and_then(|run| run.parse::<u32>().ok());
        if of.is_some_and(|of| of < number) {
            files::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn live_of<'a>(actor: &'a mut Actor, container: &Container) -> (&'a mut super::actor::Live, bool) {
    let always = container.image_pull_policy == "Always";
    (actor.live.entry(container.name.clone()).or_default(), always)
}

/// What belonged to the run that ended; an image that is always to be pulled is, before the next.
fn live_reset((live, always): (&mut super::actor::Live, bool)) {
    live.spec = None;
    live.probes = None;
    if always {
        live.image = Fetched::Wanted;
    }
}

fn ended(run: &Run, exit: &Exit, words: Option<String>) -> End {
    let oom = exit.oom.clone().filter(|_| exit.code != 0);
    let reason = match (&oom, exit.code) {
        _ if exit.fenced => fence::FENCED,
        (Some(_), _) => "OOMKilled",
        (None, 0) => "Completed",
        (None, _) => "Error",
    };
    let words = exit.fenced.then(|| fence::ENDED.to_owned()).or(words);
    // Ended before its time, it has not done its work, whatever it says.
    let code = match exit.code {
        0 if exit.fenced => FENCED_WELL,
        code => code,
    };
    // A good end needs no words but its own.
    let line = Some(exit.last_line.clone()).filter(|line| exit.code != 0 && !line.is_empty());
    End {
        number: run.number,
        code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message: words.or(line).unwrap_or_default(),
        started_ms: run.started_ms,
        finished_ms: exit.finished_ms,
        oom,
        memory_peak: exit.memory_peak,
        stderr_tail: exit.stderr_tail.clone(),
        image_id: run.image_id.clone(),
    }
}

/// The termination message, if the container left one. What it wrote is no more than text.
fn last_words(path: &std::path::Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
#[path = "runs_test.rs"]
mod tests;
