//! What a pod needs next: pure, from what is wanted, what is there, and the time.
//!
//! Every step's effect shows in what is observed next, so no step is done twice and none relies on another having been
//! done. `execute` carries steps out; a property test below walks random histories.

/// Milliseconds since 1970.
pub(super) type Millis = i64;

/// How long after SIGKILL to send it again: a process in the kernel's hands goes later, but the signal must not be lost.
const KILL_AGAIN_MS: Millis = 10_000;

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// What is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) restart: Restart,
    /// A network of its own.
    pub(super) network: bool,
    /// It is to go.
    pub(super) stop: Option<Stop>,
    /// It broke a limit of its own: its containers end for good, the rest stays until it is to go.
    pub(super) evicted: Option<Stop>,
}

impl Wanted {
    /// All containers are to end: by what is sooner, when there are two reasons.
    pub(super) fn ending(&self) -> Option<Stop> {
        let reasons = self.stop.into_iter().chain(self.evicted);
        reasons.min_by_key(|stop| stop.since.saturating_add(stop.grace))
    }
}

/// An end that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) since: Millis,
    pub(super) grace: Millis,
}

/// What is.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Ids and addresses are allotted, or something of the pod is on the disk.
    pub(super) slot: bool,
    pub(super) sandbox: Sandbox,
    pub(super) network: bool,
    /// Volumes and files of the pod are there as wanted.
    pub(super) volumes: bool,
    /// Files of the pod are, or may be, on the disk.
    pub(super) files: bool,
    /// A step of the pod as a whole failed: not again before.
    pub(super) retry_at: Option<Millis>,
    /// A step for one container or stray failed: none of these before.
    pub(super) tend_at: Option<Millis>,
    /// The pod may run twice, or its monitor has been told that it may run now.
    pub(super) may_start: bool,
    /// Runs in the monitor that belong to no container as it is known.
    pub(super) strays: Vec<Stray>,
    /// Init containers in their order, then the others.
    pub(super) containers: Vec<Container>,
}

/// The monitor, which holds the pod's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sandbox {
    Absent,
    Starting,
    Up,
    /// The monitor has died; what it left is to be removed.
    Dead,
}

/// A run that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    pub(super) id: String,
    pub(super) running: bool,
    /// SIGKILL was sent, last.
    pub(super) killed: Option<Millis>,
}

/// A container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) init: bool,
    pub(super) image: Image,
    pub(super) state: State,
    /// It should end although the pod goes on: its image changed, or it is not alive. The grace that it has.
    pub(super) must_stop: Option<Millis>,
}

/// A container's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Image {
    /// Not asked for yet, or to be asked for again.
    Wanted,
    Pulling,
    Here,
    Failed {
        retry_at: Millis,
    },
}

/// Where a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Has not run, in this sandbox if it is an init container.
    New {
        retry_at: Option<Millis>,
    },
    Running {
        stop: Option<Stopping>,
    },
    /// Has ended; its end is to be recorded and its remains removed.
    Ended,
    /// Has ended, and all of that is done.
    Finished {
        ok: bool,
        retry_at: Option<Millis>,
    },
}

/// A running container that was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopping {
    pub(super) since: Millis,
    pub(super) grace: Millis,
    pub(super) killed: Option<Millis>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Allot,
    StartSandbox,
    PrepareVolumes,
    AttachNetwork,
    /// Looks for a container's image, here or in its registry; by its place in `containers`, as all below.
    FetchImage(usize),
    Start(usize),
    /// SIGTERM, or the image's own stop signal.
    Stop {
        container: usize,
        grace: Millis,
        replaced: bool,
    },
    Kill(usize),
    /// Records a container's end and removes what is left of the run.
    Collect(usize),
    KillStray(String),
    RemoveStray(String),
    DetachNetwork,
    /// Ends the monitor, which removes namespaces and groups.
    Shutdown,
    /// Removes what a dead monitor left.
    CleanUp,
    RemoveFiles,
    Release,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Do(Step),
    /// Nothing before this time, unless something changes.
    Wait(Option<Millis>),
    /// Nothing of the pod is left.
    Gone,
}

/// The next step.
pub(super) fn plan(wanted: &Wanted, observed: &Observed, now: Millis) -> Next {
    let mut wait = Wait::default();
    if let Some(next) = tend(wanted, observed, now, &mut wait) {
        return next;
    }
    // The rest is for the pod as a whole; when it failed, it waits.
    if let Some(at) = observed.retry_at.filter(|at| *at > now) {
        wait.until(at);
        return wait.next();
    }
    if wanted.stop.is_some() {
        return end(observed, wait);
    }
    if wanted.evicted.is_some() || outcome(wanted.restart, observed).is_some() {
        return rest(observed, wait);
    }
    bring_up(wanted, observed, now, wait)
}

/// How a pod ended: all containers for good. None while something may still run.
pub(super) fn outcome(restart: Restart, observed: &Observed) -> Option<bool> {
    let (init, main): (Vec<&Container>, Vec<&Container>) =
        observed.containers.iter().partition(|container| container.init);
    let failed_init = init.iter().any(|container| {
        matches!(container.state, State::Finished { ok: false, .. }) && restart == Restart::Never
    });
    let main_started = main
        .iter()
        .any(|container| !matches!(container.state, State::New { .. }));
    if failed_init && !main_started {
        return Some(false);
    }
    let ends: Option<Vec<bool>> = main
        .iter()
        .map(|container| match container.state {
            State::Finished { ok, .. } if !again(restart, ok) => Some(ok),
            _ => None,
        })
        .collect();
    Some(ends?.into_iter().all(|ok| ok))
}

fn again(restart: Restart, ok: bool) -> bool {
    match restart {
        Restart::Always => true,
        Restart::OnFailure => !ok,
        Restart::Never => false,
    }
}

/// The earliest of several times.
#[derive(Clone, Copy, Debug, Default)]
struct Wait(Option<Millis>);

impl Wait {
    fn until(&mut self, at: Millis) {
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }

    fn next(self) -> Next {
        Next::Wait(self.0)
    }
}

/// What runs and should not, and what has ended: needs no step of the pod to have gone well.
fn tend(wanted: &Wanted, observed: &Observed, now: Millis, wait: &mut Wait) -> Option<Next> {
    if let Some(at) = observed.tend_at.filter(|at| *at > now) {
        wait.until(at);
        return None;
    }
    let up = observed.sandbox == Sandbox::Up;
    let ending = wanted.ending();
    for (index, container) in observed.containers.iter().enumerate() {
        match container.state {
            State::Running { stop } if up => {
                let pod = ending.map(|stop| stop.grace);
                let grace = match (pod, container.must_stop) {
                    (Some(pod), Some(own)) => Some(pod.min(own)),
                    (pod, own) => pod.or(own),
                };
                let replaced = pod.is_none();
                if let Some(next) = stop_one(index, stop, grace, replaced, ending, now, wait) {
                    return Some(Next::Do(next));
                }
            }
            // Only a monitor that answers, or that there is none, tells that it has ended.
            State::Ended if matches!(observed.sandbox, Sandbox::Up | Sandbox::Absent) => {
                return Some(Next::Do(Step::Collect(index)));
            }
            _ => {}
        }
    }
    if !up {
        return None;
    }
    for stray in &observed.strays {
        let id = stray.id.clone();
        if !stray.running {
            return Some(Next::Do(Step::RemoveStray(id)));
        }
        match again_at(stray.killed, now) {
            Some(at) => wait.until(at),
            None => return Some(Next::Do(Step::KillStray(id))),
        }
    }
    None
}

/// When SIGKILL is to be sent again; none for now.
fn again_at(killed: Option<Millis>, now: Millis) -> Option<Millis> {
    killed
        .map(|killed| killed.saturating_add(KILL_AGAIN_MS))
        .filter(|at| *at > now)
}

fn stop_one(
    index: usize,
    stop: Option<Stopping>,
    grace: Option<Millis>,
    replaced: bool,
    pod: Option<Stop>,
    now: Millis,
    wait: &mut Wait,
) -> Option<Step> {
    let grace = grace?;
    let Some(stopping) = stop else {
        return Some(Step::Stop {
            container: index,
            grace,
            replaced,
        });
    };
    // A pod's end counts from when it was asked for; its grace may have been shortened since, never stretched.
    let deadline = match pod {
        Some(pod) => {
            let own = stopping.since.saturating_add(stopping.grace);
            own.min(pod.since.saturating_add(pod.grace).max(stopping.since))
        }
        None => stopping.since.saturating_add(stopping.grace.min(grace)),
    };
    if now < deadline {
        wait.until(deadline);
        return None;
    }
    match again_at(stopping.killed, now) {
        Some(at) => {
            wait.until(at);
            None
        }
        None => Some(Step::Kill(index)),
    }
}

fn runs(observed: &Observed) -> bool {
    let containers = observed
        .containers
        .iter()
        .any(|container| matches!(container.state, State::Running { .. } | State::Ended));
    containers || !observed.strays.is_empty()
}

/// The pod is to go: the reverse of how it came.
fn end(observed: &Observed, wait: Wait) -> Next {
    match take_down(observed, wait) {
        Some(next) => next,
        None if observed.files => Next::Do(Step::RemoveFiles),
        None if observed.slot => Next::Do(Step::Release),
        None => Next::Gone,
    }
}

/// The pod has finished, or is evicted: nothing of it runs, its files and addresses stay until it is deleted.
fn rest(observed: &Observed, wait: Wait) -> Next {
    take_down(observed, wait).unwrap_or(Next::Wait(None))
}

/// None when neither monitor nor network are left.
fn take_down(observed: &Observed, wait: Wait) -> Option<Next> {
    match observed.sandbox {
        Sandbox::Starting => return Some(wait.next()),
        Sandbox::Dead => return Some(Next::Do(Step::CleanUp)),
        Sandbox::Up if runs(observed) => return Some(wait.next()),
        Sandbox::Up | Sandbox::Absent => {}
    }
    if observed.network {
        return Some(Next::Do(Step::DetachNetwork));
    }
    (observed.sandbox == Sandbox::Up).then_some(Next::Do(Step::Shutdown))
}

fn bring_up(wanted: &Wanted, observed: &Observed, now: Millis, mut wait: Wait) -> Next {
    if observed.sandbox == Sandbox::Dead {
        return Next::Do(Step::CleanUp);
    }
    if !observed.slot {
        return Next::Do(Step::Allot);
    }
    if observed.sandbox == Sandbox::Absent {
        // What stood in the network of the sandbox before.
        if observed.network {
            return Next::Do(Step::DetachNetwork);
        }
        return Next::Do(Step::StartSandbox);
    }
    // While the monitor makes its namespaces: images and volumes.
    for (index, container) in observed.containers.iter().enumerate() {
        if !is_due(wanted.restart, container) {
            continue;
        }
        match container.image {
            Image::Wanted => return Next::Do(Step::FetchImage(index)),
            Image::Failed { retry_at } if retry_at <= now => return Next::Do(Step::FetchImage(index)),
            Image::Failed { retry_at } => wait.until(retry_at),
            Image::Pulling | Image::Here => {}
        }
    }
    if !observed.volumes {
        return Next::Do(Step::PrepareVolumes);
    }
    if observed.sandbox == Sandbox::Starting {
        return wait.next();
    }
    if wanted.network && !observed.network {
        return Next::Do(Step::AttachNetwork);
    }
    for (index, container) in observed.containers.iter().enumerate() {
        if is_due(wanted.restart, container) {
            let retry_at = match container.state {
                State::New { retry_at } | State::Finished { retry_at, .. } => retry_at,
                State::Running { .. } | State::Ended => None,
            };
            match retry_at {
                Some(at) if at > now => wait.until(at),
                // Who waits for the monitor to be told is woken then.
                _ if container.image == Image::Here && observed.may_start => {
                    return Next::Do(Step::Start(index));
                }
                _ => {}
            }
        }
        // The next ones wait for an init container's good end.
        if container.init && !matches!(container.state, State::Finished { ok: true, .. }) {
            break;
        }
    }
    wait.next()
}

/// Whether a container is to be started, now or later.
fn is_due(restart: Restart, container: &Container) -> bool {
    match container.state {
        State::New { .. } => true,
        State::Finished { ok, .. } if container.init => !ok && restart != Restart::Never,
        State::Finished { ok, .. } => again(restart, ok),
        State::Running { .. } | State::Ended => false,
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
