//! One generator of load for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rpc::v1::api_client::ApiClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{bulkhead, etcd};

/// Keys of each client: it writes them in turn.
const KEYS: usize = 10;

/// A connection to a member.
#[derive(Clone)]
pub(crate) enum Peer {
    Bulkhead(ApiClient<Channel>),
    Etcd(Channel),
}

/// What a client does again and again.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// Writes a new value of this length.
    Write { bytes: usize },
    /// Reads a key, with everything that was acknowledged before.
    Read,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Figures {
    calls: u64,
    seconds: f64,
    latencies_us: Vec<u32>,
}

impl Figures {
    pub(crate) fn add(&mut self, other: Figures) {
        self.calls += other.calls;
        self.seconds += other.seconds;
        self.latencies_us.extend(other.latencies_us);
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    pub(crate) fn percentile_ms(&mut self, part: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * part) as usize;
        self.latencies_us
            .get(at)
            .map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    }
}

/// The key that a client writes in a round: the same for both.
pub(crate) fn key(client: usize, round: usize) -> String {
    format!("client-{client}-{}", round % KEYS)
}

/// Resident memory of the largest of these processes.
pub(crate) fn largest_mib(pids: impl Iterator<Item = i32>) -> anyhow::Result<f64> {
    let mut largest = 0_f64;
    for pid in pids {
        let status = tests::kernel::status(pid);
        let resident = status.get("VmRSS").context("it has ended")?;
        let kib: f64 = resident.trim_end_matches(" kB").parse()?;
        largest = largest.max(kib / 1024.0);
    }
    Ok(largest)
}

impl Peer {
    async fn write(&mut self, key: &str, value: String) -> anyhow::Result<()> {
        match self {
            Peer::Bulkhead(api) => bulkhead::write(api, key, value).await,
            Peer::Etcd(channel) => etcd::write(channel, key, value).await,
        }
    }

    async fn read(&mut self, key: &str) -> anyhow::Result<()> {
        match self {
            Peer::Bulkhead(api) => bulkhead::read(api, key).await,
            Peer::Etcd(channel) => etcd::read(channel, key).await,
        }
    }
}

/// As many clients as asked for, each with one call at a time. Any failed call fails the run.
pub(crate) async fn run(
    peers: &[Peer],
    load: &Load,
    clients: usize,
    warm_up: Duration,
    measured: Duration,
) -> anyhow::Result<Figures> {
    let begin = Instant::now() + warm_up;
    if matches!(load, Load::Read) {
        let value = format!("{begin:?}");
        peers[0].clone().write(&key(0, 0), value).await?;
    }
    let end = begin + measured;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (mut peer, load) = (peers[client % peers.len()].clone(), load.clone());
        tasks.spawn(async move {
            let mut figures = Figures::default();
            for round in 0.. {
                let started = Instant::now();
                if started >= end {
                    break;
                }
                match load {
                    // Never the same twice: a write that changes nothing costs nothing.
                    Load::Write { bytes } => {
                        let value = format!("{:0bytes$}", started.duration_since(begin - warm_up).as_nanos());
                        peer.write(&key(client, round), value).await?;
                    }
                    Load::Read => peer.read(&key(0, 0)).await?,
                }
                let now = Instant::now();
                if started >= begin && now <= end {
                    figures.calls += 1;
                    figures.latencies_us.push((now - started).as_micros().try_into()?);
                }
            }
            anyhow::Ok(figures)
        });
    }
    let mut all = Figures {
        seconds: measured.as_secs_f64(),
        ..Figures::default()
    };
    while let Some(ended) = tasks.join_next().await {
        let figures = ended??;
        all.calls += figures.calls;
        all.latencies_us.extend(figures.latencies_us);
    }
    Ok(all)
}

/// How many events a second reach watchers of everything while 64 clients write; and all of them have to.
pub(crate) async fn fan_out(peers: &[Peer], watchers: usize, measured: Duration) -> anyhow::Result<f64> {
    let seen = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut watching = JoinSet::new();
    for watcher in 0..watchers {
        let (peer, seen, over) = (peers[watcher % peers.len()].clone(), seen.clone(), over.clone());
        let mut events: Events = match peer {
            Peer::Bulkhead(api) => Events::Bulkhead(bulkhead::watch(api).await?),
            Peer::Etcd(channel) => Events::Etcd(etcd::watch(channel).await?),
        };
        watching.spawn(async move {
            loop {
                match events.next().await {
                    Ok(count) => seen.fetch_add(count, Ordering::Relaxed),
                    Err(_) if over.load(Ordering::Relaxed) => return Ok(()),
                    Err(cause) => return Err(cause),
                };
            }
        });
    }
    let before = (seen.load(Ordering::Relaxed), Instant::now());
    let writes = run(peers, &Load::Write { bytes: 256 }, 64, Duration::ZERO, measured).await?;
    let events = seen.load(Ordering::Relaxed) - before.0;
    let a_second = events as f64 / before.1.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    watching.abort_all();
    while let Some(ended) = watching.join_next().await {
        match ended {
            Ok(ended) => ended.context("a watch ended")?,
            Err(cause) if cause.is_cancelled() => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    if events == 0 {
        bail!("no watcher saw any of {} writes", writes.calls);
    }
    Ok(a_second)
}

enum Events {
    Bulkhead(tonic::Streaming<rpc::v1::WatchEvent>),
    Etcd(tonic::Streaming<etcd::WatchResponse>),
}

impl Events {
    async fn next(&mut self) -> anyhow::Result<u64> {
        match self {
            Events::Bulkhead(stream) => {
                let event = stream.message().await?.context("the stream ended")?;
                Ok(u64::from(event.r#type != "BOOKMARK"))
            }
            Events::Etcd(stream) => {
                let answer = stream.message().await?.context("the stream ended")?;
                Ok(answer.events.len() as u64)
            }
        }
    }
}
