//! The task of one pod: observe, plan, execute, report; and wait until something changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{Container, Pod};
use rpc::v1::PodReport;
use runtime::monitor::protocol::PodState;
use runtime::spec::{ContainerSpec, SandboxSpec};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Desired;
use super::backoff::Backoff;
use super::fence::Keeper;
use super::files::Paths;
use super::image::{Fetched, ImageFailure};
use super::monitor::{Client, MonitorError};
use super::plan::{self, Next, Observed, Sandbox, Step, Stop, Wanted};
use super::probe::Results;
use super::record::Record;
use super::view::View;
use super::volume::Volumes;
use super::{account, evict, isolation, spec};
use crate::configs::Configs;
use crate::image::Image;
use crate::ledger::Slot;
use crate::node::Node;

/// How often isolation is read back.
const INSPECT_EVERY_MS: i64 = 60_000;
/// Longest wait without a look at the clock, which may have been set.
const WAIT_MS_MAX: i64 = 60_000;
/// Grace of a pod that is to go without a word about how: what follows it elsewhere waits for nobody.
const REMOVED_GRACE_MS: i64 = 2_000;
/// How long a look for a change of the pod's state lasts.
const STATE_WAIT: Duration = Duration::from_secs(240);
/// After a step for one container failed: soon, as its deadline may be near; not at once, as a loop would be hot.
pub(super) const TEND_AGAIN_MS: i64 = 1_000;

/// Why a step failed, in the words of an event.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The pod's monitor.
#[derive(Debug)]
pub(super) enum Monitor {
    Absent,
    /// Says when it answers, or why it does not.
    Starting(oneshot::Receiver<Result<(), MonitorError>>),
    Up {
        state: PodState,
        states: watch::Receiver<Heard>,
        /// Of a pod that must not run twice.
        keeper: Option<Keeper>,
        _watcher: AbortOnDropHandle<()>,
    },
    Dead,
}

/// What a monitor last said.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    State(PodState),
    Gone,
}

/// What is known of a container beside its record.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) image: Fetched,
    pub(super) pull: Backoff,
    /// It could not be made.
    pub(super) unmade: Option<(String, String)>,
    pub(super) make: Backoff,
    /// As its present run was started.
    pub(super) spec: Option<Arc<ContainerSpec>>,
    pub(super) probes: Option<Probes>,
    /// Its layers were refused to be idmapped.
    pub(super) shifted: bool,
}

/// Probes of a run.
#[derive(Debug)]
pub(super) struct Probes {
    pub(super) results: watch::Receiver<Results>,
    pub(super) _task: Option<AbortOnDropHandle<()>>,
}

/// An image that came, or did not: for the container of this name, which asked for this reference.
pub(super) type Arrival = (String, String, Result<Image, ImageFailure>);

/// Pulls of one pod at once: as many as containers are asked for before the first one is taken in.
const ARRIVALS_MAX: usize = 64;

/// One pod.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) node: Arc<Node>,
    pub(super) uid: String,
    desired: watch::Receiver<Desired>,
    report: watch::Sender<PodReport>,
    pub(super) view: Arc<View>,
    pub(super) paths: Paths,
    /// As last wanted.
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) configs: Arc<Configs>,
    /// Of a pod that asks for a token.
    pub(super) account: Option<account::Keeper>,
    pub(super) record: Record,
    /// What the ledger has of it.
    pub(super) saved: Vec<u8>,
    pub(super) slot: Option<Slot>,
    pub(super) sandbox: Option<Arc<SandboxSpec>>,
    pub(super) monitor: Monitor,
    /// Its network was attached by this agent.
    pub(super) attached: bool,
    /// Something of it may stand in the node's network.
    pub(super) traces: bool,
    pub(super) volumes: bool,
    pub(super) files: bool,
    pub(super) trouble: Option<Trouble>,
    pub(super) backoff: Backoff,
    pub(super) tend_at: Option<i64>,
    pub(super) live: BTreeMap<String, Live>,
    pub(super) strays_killed: BTreeMap<String, i64>,
    pub(super) arrivals: (mpsc::Sender<Arrival>, mpsc::Receiver<Arrival>),
    pub(super) inspect_at: i64,
    pub(super) measuring: evict::Measuring,
}

/// The time.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl Actor {
    pub(super) fn new(
        node: Arc<Node>,
        uid: String,
        desired: watch::Receiver<Desired>,
        report: watch::Sender<PodReport>,
        view: Arc<View>,
    ) -> Self {
        let paths = Paths::new(&node.settings, &uid);
        view.lock().layout = Some(Arc::new(node.layout.clone()));
        Self {
            node,
            uid,
            desired,
            report,
            view,
            paths,
            pod: None,
            configs: Arc::default(),
            account: None,
            record: Record::default(),
            saved: Vec::new(),
            slot: None,
            sandbox: None,
            monitor: Monitor::Absent,
            attached: false,
            traces: false,
            volumes: false,
            files: false,
            trouble: None,
            backoff: Backoff::default(),
            tend_at: None,
            live: BTreeMap::new(),
            strays_killed: BTreeMap::new(),
            arrivals: mpsc::channel(ARRIVALS_MAX),
            inspect_at: 0,
            measuring: evict::Measuring::default(),
        }
    }

    /// The pod's whole life on this node; returns when it is gone, or when the agent stops.
    pub(super) async fn run(mut self) {
        let mut cluster = self.node.cluster.clone();
        let mut network = self.node.network_changes();
        // What is there now is no change.
        cluster.mark_unchanged();
        network.mark_unchanged();
        let wake = Arc::clone(&self.view.wake);
        self.take_desired();
        // Until the ledger can be read nothing is known of the pod, and nothing is done.
        while let Err(trouble) = self.adopt().await {
            self.failed(None, trouble);
            let wait = self.backoff.delay_ms.unsigned_abs();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.take_desired(),
                    Err(_) => return,
                },
            }
        }
        loop {
            self.take_in().await;
            let now_ms = now();
            let wanted = self.wanted(now_ms);
            let observed = self.observe(&wanted, now_ms);
            self.publish(&wanted, &observed, now_ms);
            let wait = match plan::plan(&wanted, &observed, now_ms) {
                Next::Do(step) => {
                    if let Err(trouble) = self.execute(&step).await {
                        self.failed(Some(&step), trouble);
                    }
                    continue;
                }
                Next::Wait(until) => until,
                Next::Gone => {
                    self.report.send_modify(|report| report.gone = true);
                    return;
                }
            };
            if let Err(trouble) = self.save().await {
                self.failed(None, trouble);
            }
            let until = self.inspect(wait, now_ms);
            let until = self.watch_usage(&wanted, &observed, until, now_ms).await;
            let pause = until.saturating_sub(now()).clamp(0, WAIT_MS_MAX).unsigned_abs();
            tokio::select! {
                biased; // what is wanted comes first
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.take_desired(),
                    // The agent stops; its pods go on.
                    Err(_) => return,
                },
                () = wake.notified() => {}
                Some(arrival) = self.arrivals.1.recv() => self.arrived(arrival),
                Ok(()) = cluster.changed() => self.retry_soon(),
                Ok(()) = network.changed() => {
                    // A network that is replaced knows nothing of this pod.
                    self.attached = false;
                    self.retry_soon();
                }
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    /// Takes over what is wanted; what failed before may go well now.
    fn take_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        let configs_before = std::mem::replace(&mut self.configs, desired.configs);
        let before = self.pod.clone();
        if let Some(pod) = desired.pod.map(account::with_volume) {
            let spec = pod.spec.clone().unwrap_or_default();
            for container in spec.init_containers.iter().chain(&spec.containers) {
                let changed = before
                    .as_ref()
                    .and_then(|before| find(before, &container.name))
                    .is_some_and(|before| before.image != container.image);
                let live = self.live.entry(container.name.clone()).or_default();
                // A container that could not be made may be made of what has changed.
                live.make.retry_at_ms = 0;
                if changed {
                    live.image = Fetched::Wanted;
                    live.pull.reset();
                    live.make.reset();
                    self.record.container(&container.name).backoff.reset();
                }
            }
            let namespace = pod.metadata.as_ref().map(|meta| meta.namespace.clone());
            let namespace = namespace.unwrap_or_default();
            let shown = |configs| Volumes::shown(&spec, &namespace, configs);
            if shown(&configs_before) != shown(&self.configs) {
                self.volumes = false;
            }
            self.keep_account(&pod);
            if before.is_some_and(|before| spec::bandwidth(&before) != spec::bandwidth(&pod)) {
                self.attached = false;
            }
            self.pod = Some(pod);
        }
        self.retry_soon();
    }

    fn retry_soon(&mut self) {
        self.backoff.retry_at_ms = 0;
    }

    /// The pod is to go: it is being deleted, or no longer wanted at all.
    pub(super) fn wanted(&mut self, now_ms: i64) -> Wanted {
        let default = Default::default();
        let pod = self.pod.clone();
        let pod_spec = pod.as_ref().and_then(|pod| pod.spec.as_ref()).unwrap_or(&default);
        let meta = pod.as_ref().and_then(|pod| pod.metadata.as_ref());
        let own = spec::grace_ms(pod_spec);
        let removed = self.desired.borrow().pod.is_none();
        let grace = match meta.filter(|meta| meta.deletion_timestamp.is_some()) {
            _ if removed => Some(own.min(REMOVED_GRACE_MS)),
            Some(meta) => Some(
                meta.deletion_grace_period_seconds
                    .map_or(own, |seconds| i64::from(seconds).max(0) * 1_000),
            ),
            None => None,
        };
        let stop = grace.map(|grace| Stop {
            since: *self.record.stop_ms.get_or_insert(now_ms),
            grace,
        });
        if stop.is_none() {
            self.record.stop_ms = None;
        }
        Wanted {
            restart: spec::restart(pod_spec),
            network: !pod_spec.host_network,
            stop,
            evicted: self.record.evicted.as_ref().map(|evicted| Stop {
                since: evicted.since_ms,
                grace: own,
            }),
        }
    }

    /// Takes in what has happened since the last look.
    async fn take_in(&mut self) {
        while let Ok(arrival) = self.arrivals.1.try_recv() {
            self.arrived(arrival);
        }
        if let Monitor::Starting(ready) = &mut self.monitor {
            match ready.try_recv() {
                Ok(Ok(())) => {
                    if let Err(error) = self.connect().await {
                        self.sandbox_failed(&error);
                    }
                }
                Ok(Err(error)) => self.sandbox_failed(&error),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Closed) => self.monitor = Monitor::Dead,
            }
        }
        if let Monitor::Up { state, states, .. } = &mut self.monitor {
            let heard = states.borrow_and_update().clone();
            match heard {
                Heard::State(newer) if newer.revision > state.revision => *state = newer,
                Heard::State(_) => {}
                Heard::Gone => self.monitor = Monitor::Dead,
            }
        }
        if self.account.as_mut().is_some_and(account::Keeper::has_news) {
            self.volumes = false;
            self.retry_soon();
        }
        self.take_in_probes();
    }

    pub(super) fn take_in_probes(&mut self) {
        for (name, live) in &self.live {
            let Some(probes) = &live.probes else { continue };
            let Some(container) = self.record.containers.get_mut(name) else {
                continue;
            };
            if let Some(run) = &mut container.current {
                let results = probes.results.borrow();
                run.started = results.started;
                run.ready = results.ready;
            }
        }
    }

    fn sandbox_failed(&mut self, error: &MonitorError) {
        self.monitor = Monitor::Dead;
        let message = runtime::monitor::chain(error);
        self.failed(
            None,
            Trouble {
                reason: "FailedCreatePodSandBox",
                message: format!("Failed to create pod sandbox: {message}"),
            },
        );
    }

    fn arrived(&mut self, (name, reference, result): Arrival) {
        let wants = self
            .pod
            .as_ref()
            .and_then(|pod| find(pod, &name))
            .is_some_and(|container| container.image == reference);
        if !wants {
            return; // asked for before the image was changed
        }
        let live = self.live.entry(name).or_default();
        match result {
            Ok(image) => {
                live.pull.reset();
                live.image = Fetched::Here(Arc::new(image));
            }
            Err(failure) => {
                live.pull.failed(now());
                live.image = Fetched::Failed(failure);
            }
        }
    }

    /// Connects to the monitor and follows it.
    pub(super) async fn connect(&mut self) -> Result<(), MonitorError> {
        let mut client = Client::connect(&self.paths.monitor).await?;
        let state = client.state(None, Duration::ZERO).await?;
        let (sender, states) = watch::channel(Heard::State(state.clone()));
        let wake = Arc::clone(&self.view.wake);
        let mut seen = state.revision;
        let directory = self.paths.monitor.clone();
        let watcher = tokio::spawn(async move {
            loop {
                let heard = match client.state(Some(seen), STATE_WAIT).await {
                    Ok(state) if state.revision == seen => continue,
                    Ok(state) => {
                        seen = state.revision;
                        Heard::State(state)
                    }
                    Err(error) => {
                        tracing::debug!(directory = %directory.display(), %error, "a monitor's connection ended");
                        // Only who does not answer a new connection has ended.
                        match Client::connect(&directory).await {
                            Ok(fresh) => {
                                client = fresh;
                                continue;
                            }
                            Err(_) => Heard::Gone,
                        }
                    }
                };
                let gone = matches!(heard, Heard::Gone);
                sender.send_replace(heard);
                wake.notify_one();
                if gone {
                    return;
                }
            }
        });
        let fenced = self
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.fence.is_some());
        let keeper = fenced.then(|| {
            Keeper::start(
                self.paths.monitor.clone(),
                self.node.lease.clone(),
                self.desired.clone(),
                Arc::clone(&self.view.wake),
            )
        });
        self.monitor = Monitor::Up {
            state,
            states,
            keeper,
            _watcher: AbortOnDropHandle::new(watcher),
        };
        Ok(())
    }

    /// A step failed: it is told, and tried again later.
    pub(super) fn failed(&mut self, step: Option<&Step>, trouble: Trouble) {
        let now_ms = now();
        let Trouble { reason, message } = &trouble;
        tracing::warn!(uid = self.uid, ?step, reason, message, "a step of a pod failed");
        if let Some(pod) = &self.pod {
            self.node.events.record(pod, "Warning", reason, message.clone());
        }
        let of_container = matches!(
            step,
            Some(
                Step::Stop { .. }
                    | Step::Kill(_)
                    | Step::Collect(_)
                    | Step::KillStray(_)
                    | Step::RemoveStray(_)
            )
        );
        if of_container {
            self.tend_at = Some(now_ms.saturating_add(TEND_AGAIN_MS));
        } else {
            self.backoff.failed(now_ms);
            self.trouble = Some(trouble);
        }
    }

    /// Reads isolation back when it is time; until when to wait.
    fn inspect(&mut self, wait: Option<i64>, now_ms: i64) -> i64 {
        let latest = now_ms.saturating_add(WAIT_MS_MAX);
        if self.view.lock().running.is_empty() {
            return wait.unwrap_or(latest);
        }
        if self.inspect_at <= now_ms {
            self.inspect_at = now_ms.saturating_add(INSPECT_EVERY_MS);
            let (view, node) = (Arc::clone(&self.view), Arc::clone(&self.node));
            let uid = self.uid.clone();
            tokio::spawn(async move {
                if let Err(error) = isolation::inspect(&node, &view).await {
                    tracing::debug!(uid, %error, "isolation was not read back");
                }
            });
        }
        wait.unwrap_or(latest).min(self.inspect_at)
    }

    /// Puts the record into the ledger when it has changed.
    pub(super) async fn save(&mut self) -> Result<(), Trouble> {
        let ledger = |error: &dyn std::error::Error| Trouble {
            reason: "FailedLedger",
            message: format!(
                "failed to keep the pod's record: {}",
                runtime::monitor::chain(error)
            ),
        };
        let bytes = serde_json::to_vec(&self.record).map_err(|error| ledger(&error))?;
        if bytes == self.saved {
            return Ok(());
        }
        let (node, uid, kept) = (Arc::clone(&self.node), self.uid.clone(), bytes.clone());
        let put = tokio::task::spawn_blocking(move || node.ledger.put_record(&uid, &kept)).await;
        match put {
            Ok(Ok(())) => {
                self.saved = bytes;
                Ok(())
            }
            Ok(Err(error)) => Err(ledger(&error)),
            Err(error) => Err(ledger(&error)),
        }
    }

    pub(super) fn send_report(&self, status: proto::v1::PodStatus) {
        self.report.send_if_modified(|report| {
            let changed = report.status.as_ref() != Some(&status);
            if changed {
                report.status = Some(status);
            }
            changed
        });
    }

    /// Whether a monitor stands, in the plan's words.
    pub(super) fn sandbox_state(&self) -> Sandbox {
        match self.monitor {
            Monitor::Absent => Sandbox::Absent,
            Monitor::Starting(_) => Sandbox::Starting,
            Monitor::Up { .. } => Sandbox::Up,
            Monitor::Dead => Sandbox::Dead,
        }
    }

    /// Containers in the plan's order: init containers first.
    pub(super) fn containers(&self) -> Vec<(bool, Container)> {
        let Some(spec) = self.pod.as_ref().and_then(|pod| pod.spec.as_ref()) else {
            return Vec::new();
        };
        let init = spec.init_containers.iter().map(|one| (true, one.clone()));
        let main = spec.containers.iter().map(|one| (false, one.clone()));
        init.chain(main).collect()
    }

    /// What is there, in the plan's words.
    fn observe(&self, wanted: &Wanted, now_ms: i64) -> Observed {
        let containers = self.containers();
        Observed {
            slot: self.slot.is_some() || (wanted.stop.is_some() && !self.saved.is_empty()),
            sandbox: self.sandbox_state(),
            network: match wanted.ending() {
                Some(_) => self.traces,
                None => self.attached,
            },
            volumes: self.volumes,
            files: self.files,
            retry_at: self.backoff.waits_until(now_ms),
            tend_at: self.tend_at,
            may_start: match &self.monitor {
                Monitor::Up {
                    keeper: Some(keeper), ..
                } => keeper.may_start(),
                _ => true,
            },
            strays: self.strays(&containers),
            containers: containers
                .iter()
                .map(|(init, container)| self.observe_one(*init, container, now_ms))
                .collect(),
        }
    }
}

/// A container of a pod by its name.
pub(super) fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers
        .iter()
        .chain(&spec.containers)
        .find(|container| container.name == name)
}
