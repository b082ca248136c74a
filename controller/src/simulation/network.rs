//! A simulated network, in the place of TCP, TLS and HTTP/2: what one host calls of another is delayed, overtaken, held up,
//! broken off and repeated as a seed decides.
//!
//! As connections have it, the frames of one call stay in order and none of them is lost alone: a way that is cut holds
//! them back, and whoever waits too long gives the call up. Then nobody knows what arrived. A call that its caller drops is
//! dropped at its other end too, a little later and wherever it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::raft::types::Runtime;
use crate::security::listen::Caller;
use crate::simulated::{self, Random};

/// A machine: members have their number, agents and clients higher ones.
pub(super) type Host = u64;
/// Agents' numbers begin above this; members' are places in the log and stay below.
pub(super) const AGENTS: Host = 1_000_000;
/// Clients' numbers begin above this.
pub(super) const CLIENTS: Host = 2_000_000;

/// Who waits for a host that says nothing gives up after this time, as the keepalive of HTTP/2 does.
const GIVE_UP: Duration = Duration::from_secs(12);
/// Frames of a call under way in one direction; then its sender waits.
const WINDOW: usize = 64;
/// Calls that do no harm when a message comes twice. Others a connection never repeats.
const REPEATABLE: [&str; 4] = ["/Vote", "/PreVote", "/ReadIndex", "/RenewLeases"];

/// Which of a member's two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Members,
    Api,
}

/// How bad it is, for each message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Least and longest usual delay in milliseconds.
    pub(super) delay_ms: (u64, u64),
    /// Of a thousand: much later than usual.
    pub(super) late: u64,
    /// Of a thousand: the call breaks off here.
    pub(super) broken: u64,
    /// Of a thousand: comes twice, where that does no harm.
    pub(super) repeated: u64,
}

/// Clones are the same network.
#[derive(Clone)]
pub(super) struct Network {
    shared: Arc<Mutex<Shared>>,
    /// Something about ways or hosts has changed.
    changed: watch::Sender<()>,
}

struct Shared {
    random: Random,
    weather: Weather,
    hosts: BTreeMap<Host, Life>,
    /// Nothing passes from the one to the other.
    cut: BTreeSet<(Host, Host)>,
    began: Instant,
    trace: String,
}

/// A host from one start to its end.
struct Life {
    number: u64,
    lives: bool,
    /// What it answers on its ports, as far as they are open.
    serves: BTreeMap<Port, Routes>,
    /// It ended without a word: nothing says so to whoever waits for it.
    silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    Cut,
    Ended { silent: bool },
}

impl Network {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        let shared = Shared {
            random: Random::new(seed),
            weather,
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            began: Instant::now(),
            trace: String::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            changed: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder panics")
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// A host begins a life, whose number it gives. It serves nothing yet.
    pub(super) fn begin(&self, host: Host) -> u64 {
        let mut shared = self.lock();
        let number = shared.hosts.get(&host).map_or(1, |life| life.number + 1);
        let life = Life {
            number,
            lives: true,
            serves: BTreeMap::new(),
            silent: false,
        };
        let before = shared.hosts.insert(host, life);
        drop(shared);
        drop(before); // with services, whose ends may call in here
        number
    }

    /// What it answers on a port from now on.
    pub(super) fn serve(&self, host: Host, port: Port, routes: Routes) {
        if let Some(life) = self.lock().hosts.get_mut(&host) {
            life.serves.insert(port, routes);
        }
    }

    /// Its life ends: of what it still tries to say nothing arrives.
    pub(super) fn end(&self, host: Host, silent: bool) {
        let mut shared = self.lock();
        let served = shared.hosts.get_mut(&host).map(|life| {
            (life.lives, life.silent) = (false, silent);
            std::mem::take(&mut life.serves)
        });
        drop(shared);
        drop(served);
        self.changed.send_replace(());
    }

    /// From now on nothing passes on these ways.
    pub(super) fn cut(&self, ways: impl IntoIterator<Item = (Host, Host)>) {
        self.lock().cut.extend(ways);
        self.changed.send_replace(());
    }

    /// These ways are open.
    pub(super) fn open(&self, ways: &[(Host, Host)]) {
        self.lock().cut.retain(|way| !ways.contains(way));
        self.changed.send_replace(());
    }

    /// Every way is open.
    pub(super) fn heal(&self) {
        self.lock().cut.clear();
        self.changed.send_replace(());
    }

    /// Notes what happened.
    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        let mut shared = self.lock();
        let at = shared.began.elapsed().as_micros();
        writeln!(shared.trace, "{at} {what}").expect("a String takes everything");
    }

    /// Everything that happened.
    pub(super) fn trace(&self) -> String {
        self.lock().trace.clone()
    }

    /// The channel of a host in this life to another one.
    pub(super) fn link(&self, from: (Host, u64), to: Host, port: Port, caller: Caller) -> Link {
        Link {
            network: self.clone(),
            from,
            to,
            port,
            caller,
        }
    }

    /// The number of its life, also when that has ended.
    pub(super) fn life(&self, host: Host) -> u64 {
        self.lock().hosts.get(&host).map_or(0, |life| life.number)
    }

    fn way(&self, from: (Host, u64), to: (Host, u64)) -> Way {
        let shared = self.lock();
        for (host, number) in [from, to] {
            match shared.hosts.get(&host) {
                Some(life) if life.number == number && life.lives => {}
                Some(life) => {
                    return Way::Ended {
                        silent: life.silent && life.number == number,
                    };
                }
                None => return Way::Ended { silent: false },
            }
        }
        match shared.cut.contains(&(from.0, to.0)) {
            true => Way::Cut,
            false => Way::Open,
        }
    }

    fn delay(&self) -> Duration {
        let mut shared = self.lock();
        let weather = shared.weather;
        let (least, longest) = weather.delay_ms;
        match shared.random.per_mille(weather.late) {
            true => shared.random.millis(longest, 40 * longest + 40),
            false => shared.random.millis(least, longest),
        }
    }

    fn breaks(&self) -> bool {
        let mut shared = self.lock();
        let chance = shared.weather.broken;
        shared.random.per_mille(chance)
    }

    fn repeats(&self, path: &str) -> bool {
        let mut shared = self.lock();
        let chance = shared.weather.repeated;
        REPEATABLE.iter().any(|call| path.ends_with(call)) && shared.random.per_mille(chance)
    }

    /// Runs it as a task of this host.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        host: Host,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let seed = self.lock().random.next();
        simulated::as_host(host, || tokio::spawn(Runtime::scope(seed, work)))
    }
}

/// What one host calls another by.
#[derive(Clone)]
pub(super) struct Link {
    network: Network,
    from: (Host, u64),
    to: Host,
    port: Port,
    caller: Caller,
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().carry(request))
    }
}

fn broken() -> Status {
    Status::unavailable("the simulated connection is broken")
}

impl Link {
    async fn carry(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let network = self.network.clone();
        let to = (self.to, network.life(self.to));
        let call = Call {
            network: network.clone(),
            caller: self.from,
            callee: to,
            path: request.uri().path().to_owned().into(),
            ended: watch::Sender::new(false),
        };
        // From here on: whoever drops this, or the answer's body, leaves.
        let leaving = Leaving(call.clone());
        call.spawn(self.from.0, call.clone().supervise());
        let answer = async {
            call.pass(self.from, to).await?;
            // Else the connection is refused.
            let routes = network
                .lock()
                .hosts
                .get(&self.to)?
                .serves
                .get(&self.port)?
                .clone();
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(self.caller.clone());
            let body = match network.repeats(&call.path) {
                true => call.repeat(&parts, body, routes.clone()).await?,
                false => Body::new(StreamBody::new(call.stream(body, self.from, to))),
            };
            let (answer, answered) = oneshot::channel();
            let handling = call
                .clone()
                .handle(routes, Request::from_parts(parts, body), answer);
            call.spawn(self.to, handling);
            answered.await.ok()
        };
        let answer = call.unless_ended(answer).await.flatten();
        let (parts, body) = answer.ok_or_else(broken)?;
        let frames = body.map(move |frame| {
            let _with_it = &leaving;
            frame
        });
        Ok(Response::from_parts(parts, Body::new(StreamBody::new(frames))))
    }
}

type Frames = ReceiverStream<Result<Frame<Bytes>, Status>>;
type End = (Host, u64);

/// One call, from its request to the end of its answer.
#[derive(Clone)]
struct Call {
    network: Network,
    caller: End,
    callee: End,
    path: Arc<str>,
    /// It broke off, or its caller left.
    ended: watch::Sender<bool>,
}

/// The caller's end.
struct Leaving(Call);

impl Drop for Leaving {
    fn drop(&mut self) {
        let call = self.0.clone();
        if tokio::runtime::Handle::try_current().is_err() {
            return; // the simulation ends
        }
        let delay = call.network.delay();
        call.clone().spawn(call.caller.0, async move {
            tokio::time::sleep(delay).await;
            call.ended.send_replace(true);
        });
    }
}

impl Call {
    fn spawn(&self, host: Host, work: impl Future<Output = ()> + Send + 'static) {
        self.network.spawn(host, work);
    }

    /// None when the call ends first.
    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut ended = self.ended.subscribe();
        tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => None,
            done = work => Some(done),
        }
    }

    /// Ends the call once an end of it is gone, or a way was cut for too long.
    async fn supervise(self) {
        let mut changed = self.network.changed.subscribe();
        let mut since = None;
        loop {
            changed.borrow_and_update();
            let ways = [
                self.network.way(self.caller, self.callee),
                self.network.way(self.callee, self.caller),
            ];
            let patience = match ways.iter().find(|way| **way != Way::Open) {
                None => None,
                Some(Way::Ended { silent: false }) => Some(Instant::now() + self.network.delay()),
                Some(_) => Some(*since.get_or_insert_with(Instant::now) + GIVE_UP),
            };
            if patience.is_none() {
                since = None;
            }
            let over = async {
                match patience {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            let step = async {
                tokio::select! {
                    biased;
                    () = over => true,
                    changed = changed.changed() => changed.is_err(),
                }
            };
            match self.unless_ended(step).await {
                None => return,
                Some(true) => {
                    self.ended.send_replace(true);
                    return;
                }
                Some(false) => {}
            }
        }
    }

    /// One message passes, or never does.
    async fn pass(&self, from: End, to: End) -> Option<()> {
        tokio::time::sleep(self.network.delay()).await;
        self.arrive(from, to).await
    }

    async fn arrive(&self, from: End, to: End) -> Option<()> {
        let mut changed = self.network.changed.subscribe();
        while self.network.way(from, to) != Way::Open {
            changed.changed().await.ok()?;
        }
        if self.network.breaks() {
            self.ended.send_replace(true);
            return None;
        }
        Some(())
    }

    /// The callee's side: what it answers goes back.
    async fn handle(
        self,
        mut routes: Routes,
        request: Request<Body>,
        answer: oneshot::Sender<(http::response::Parts, Frames)>,
    ) {
        let Some(Ok(response)) = self.unless_ended(routes.call(request)).await else {
            return;
        };
        let (parts, body) = response.into_parts();
        let Some(Some(())) = self.unless_ended(self.pass(self.callee, self.caller)).await else {
            return;
        };
        let frames = self.stream(Body::new(body), self.callee, self.caller);
        if answer.send((parts, frames)).is_err() {
            self.ended.send_replace(true); // the caller left
        }
    }

    /// What comes of a body at the other end.
    fn stream(&self, mut body: Body, from: End, to: End) -> Frames {
        let (queue, mut queued) = mpsc::channel(WINDOW);
        let (frames, received) = mpsc::channel(WINDOW);
        let call = self.clone();
        self.spawn(from.0, async move {
            let mut due = Instant::now();
            while let Some(Some(frame)) = call.unless_ended(body.frame()).await {
                due = due.max(Instant::now() + call.network.delay());
                if call
                    .unless_ended(queue.send((due, frame)))
                    .await
                    .is_none_or(|sent| sent.is_err())
                {
                    return;
                }
            }
        });
        let call = self.clone();
        self.spawn(to.0, async move {
            let whole = call.unless_ended(async {
                while let Some((due, frame)) = queued.recv().await {
                    tokio::time::sleep_until(due).await;
                    call.arrive(from, to).await?;
                    call.trace(from, to, &frame);
                    if frames.send(frame).await.is_err() {
                        return None;
                    }
                }
                Some(())
            });
            if whole.await.flatten().is_none() && frames.send(Err(broken())).await.is_err() {
                call.ended.send_replace(true);
            }
        });
        ReceiverStream::new(received)
    }

    fn trace(&self, from: End, to: End, frame: &Result<Frame<Bytes>, Status>) {
        let data = frame.as_ref().ok().and_then(Frame::data_ref);
        let (len, crc) = data.map_or((0, 0), |data| (data.len(), crc32c::crc32c(data)));
        self.network.note(format_args!(
            "{} to {} {} {len} {crc:08x}",
            from.0, to.0, self.path
        ));
    }

    /// The request, which comes once more, later; that answer goes nowhere.
    async fn repeat(&self, parts: &http::request::Parts, body: Body, mut routes: Routes) -> Option<Body> {
        let bytes = body.collect().await.ok()?.to_bytes();
        let whole = || Body::new(Full::new(bytes.clone()));
        let again = Request::from_parts(parts.clone(), whole());
        let call = self.clone();
        self.spawn(self.callee.0, async move {
            tokio::time::sleep(call.network.delay() + call.network.delay()).await;
            if call.network.way(call.caller, call.callee) == Way::Open
                && let Ok(answer) = routes.call(again).await
            {
                call.network
                    .note(format_args!("{} twice: {}", call.path, answer.status()));
            }
        });
        Some(whole())
    }
}
