//! What a snapshot of a large state costs a client that writes meanwhile: its slowest write, against the slowest while none
//! is made.
//!
//! One controller, so that what is seen is the member's own: on this machine the snapshots of three would be made at once
//! by two processors. The state is of ConfigMaps, as large as one of 150,000 pods.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rpc::v1::ApplyRequest;
use rpc::v1::api_client::ApiClient;
use tests::access::config_map;
use tests::{Access, Cluster, can_run, kernel};
use tonic::transport::Channel;

/// The state: so many ConfigMaps of so many bytes, 48 MiB.
const OBJECTS: usize = 2_400;
const BYTES: usize = 20 << 10;
/// Of one call.
const BATCH: usize = 20;
/// Snapshots that are waited for. One comes each 20,000 entries, and each write is an entry.
const SNAPSHOTS: usize = 1;
/// How often it is looked whether one is being made; a shorter one is not seen.
const LOOK: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(600);
/// Of a write while a snapshot is made.
const BUDGET_MS: f64 = 50.0;

#[derive(Clone, Copy)]
struct Span {
    from: Instant,
    to: Instant,
}

impl Span {
    fn ms(self) -> f64 {
        self.to.duration_since(self.from).as_secs_f64() * 1e3
    }

    fn meets(self, other: Span) -> bool {
        self.from < other.to && other.from < self.to
    }
}

fn main() -> anyhow::Result<()> {
    if !can_run("stall", &["ip", "nft"]) {
        return Ok(());
    }
    let cluster = Cluster::up(1, 1);
    let access = Access::of(&cluster);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut api = runtime.block_on(async { access.channel(0).map(ApiClient::new) })?;
    runtime.block_on(fill(&mut api))?;

    let arguments = kernel::command_line(cluster.process("controller-1").pid);
    let data = arguments.iter().skip_while(|word| *word != "--data-dir").nth(1);
    let data = Path::new(data.context("a controller is told where its data is")?);
    let directory = data.join("snapshots");
    ensure!(
        !making(&directory)?,
        "a snapshot is made before anything is written"
    );
    let (snapshots, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let writes = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut since = None;
            while !over.load(Ordering::Relaxed) {
                match (making(&directory)?, since) {
                    (true, None) => since = Some(Instant::now()),
                    (false, Some(from)) => {
                        let to = Instant::now();
                        snapshots
                            .lock()
                            .expect("nobody panics with it")
                            .push(Span { from, to });
                        since = None;
                    }
                    _ => {}
                }
                thread::sleep(LOOK);
            }
            anyhow::Ok(())
        });
        let made = || snapshots.lock().expect("nobody panics with it").len();
        let writes = runtime.block_on(write_until(&mut api, || made() >= SNAPSHOTS));
        over.store(true, Ordering::Relaxed);
        looking.join().expect("it does not panic")?;
        writes
    })?;

    let snapshots = snapshots.into_inner()?;
    let (during, quiet): (Vec<Span>, Vec<Span>) = writes
        .into_iter()
        .partition(|write| snapshots.iter().any(|snapshot| snapshot.meets(*write)));
    let longest = slowest(&snapshots);
    println!(
        "snapshot               {} of {} MiB, the longest {longest:.0} ms: {} writes meanwhile, {:.1} ms in the median, {:.1} \
         at worst (budget {BUDGET_MS}); without one {:.1}, {:.1} at worst",
        snapshots.len(),
        (OBJECTS * BYTES) >> 20,
        during.len(),
        median(&during),
        slowest(&during),
        median(&quiet),
        slowest(&quiet),
    );
    Ok(())
}

/// Whether a snapshot is being made: it has another name until it is whole.
fn making(directory: &Path) -> anyhow::Result<bool> {
    for file in fs::read_dir(directory)? {
        if file?.file_name().to_string_lossy().ends_with(".snapshot.tmp") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn slowest(spans: &[Span]) -> f64 {
    spans.iter().map(|span| span.ms()).fold(0.0, f64::max)
}

fn median(spans: &[Span]) -> f64 {
    let mut all: Vec<f64> = spans.iter().map(|span| span.ms()).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn fill(api: &mut ApiClient<Channel>) -> anyhow::Result<()> {
    for batch in 0..OBJECTS / BATCH {
        let names = (0..BATCH).map(|number| format!("large-{}", batch * BATCH + number));
        apply(api, names, &"x".repeat(BYTES)).await?;
    }
    Ok(())
}

async fn write_until(api: &mut ApiClient<Channel>, done: impl Fn() -> bool) -> anyhow::Result<Vec<Span>> {
    let begin = Instant::now();
    let mut writes = Vec::new();
    while !done() {
        ensure!(
            begin.elapsed() < PATIENCE,
            "no snapshot after {} writes",
            writes.len()
        );
        let from = Instant::now();
        let value = format!("{:?}", begin.elapsed());
        apply(api, std::iter::once("small".to_owned()), &value).await?;
        writes.push(Span {
            from,
            to: Instant::now(),
        });
    }
    Ok(writes)
}

async fn apply(
    api: &mut ApiClient<Channel>,
    names: impl Iterator<Item = String>,
    value: &str,
) -> anyhow::Result<()> {
    let request = ApplyRequest {
        items: names.map(|name| config_map(&name, value.to_owned())).collect(),
        ..Default::default()
    };
    let answer = api.apply(request).await?.into_inner();
    ensure!(answer.results.iter().all(|result| result.outcome != "unchanged"));
    Ok(())
}
