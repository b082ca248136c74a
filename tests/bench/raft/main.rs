//! Writes, reads and watches a second of three controllers against three members of etcd, on this machine in one run: TLS with
//! client certificates on both sides, every acknowledged write on the disks of a majority, each through its public API.
//!
//! etcd is given a key with a value; a controller a ConfigMap with the value in it, which is read, defaulted, validated and
//! versioned as every object is. Clients are spread over the three members of each. One generator speaks to both.

mod bulkhead;
mod etcd;
mod load;

use std::time::Duration;

use load::{Figures, Load, Peer};
use tests::can_run;

/// Connections that many clients share, as in etcd's own benchmark.
const CONNECTIONS_MAX: usize = 100;
const CLIENTS: [usize; 3] = [1, 64, 1000];
const VALUE_BYTES: [usize; 2] = [256, 1024];
/// Each configuration is measured so often, the two in turn.
const ROUNDS: usize = 2;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(3);
/// Who watches everything while 64 clients write.
const WATCHERS: usize = 100;
/// Of etcd's writes a second; of its memory.
const WRITES_BUDGET: f64 = 2.0;
const MEMORY_BUDGET: f64 = 0.1;

fn main() -> anyhow::Result<()> {
    if !can_run("raft", &["ip", "nft", "openssl", "etcd"]) {
        return Ok(());
    }
    let ours = bulkhead::Members::up()?;
    let theirs = etcd::Members::up(ours.directory())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let peers = (ours.peers(CONNECTIONS_MAX)?, theirs.peers(CONNECTIONS_MAX).await?);
        theirs.ready(&peers.1).await?;
        println!(
            "{:<28}{:>10}{:>10}{:>8}   p50 ms, p99 ms: ours, etcd's",
            "", "ours", "etcd", "ratio"
        );
        for bytes in VALUE_BYTES {
            for clients in CLIENTS {
                let what = format!("writes, {bytes} B, {clients} clients");
                let budget = (clients > 1).then_some(WRITES_BUDGET);
                compare(&what, &Load::Write { bytes }, clients, &peers, budget).await?;
            }
        }
        for clients in CLIENTS {
            let what = format!("linearizable reads, {clients}");
            compare(&what, &Load::Read, clients, &peers, None).await?;
        }
        let fan_out = [
            load::fan_out(&peers.0, WATCHERS, MEASURED).await?,
            load::fan_out(&peers.1, WATCHERS, MEASURED).await?,
        ];
        println!(
            "{:<28}{:>10.0}{:>10.0}{:>8.2}",
            format!("watch events, {WATCHERS} watchers"),
            fan_out[0],
            fan_out[1],
            fan_out[0] / fan_out[1]
        );
        let memory = [ours.memory_mib()?, theirs.memory_mib()?];
        println!(
            "{:<28}{:>10.0}{:>10.0}{:>8.2}   (budget {MEMORY_BUDGET})",
            "MiB of the largest member",
            memory[0],
            memory[1],
            memory[0] / memory[1]
        );
        anyhow::Ok(())
    })
}

async fn compare(
    what: &str,
    load: &Load,
    clients: usize,
    peers: &(Vec<Peer>, Vec<Peer>),
    budget: Option<f64>,
) -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for _ in 0..ROUNDS {
        ours.add(load::run(&peers.0, load, clients, WARM_UP, MEASURED).await?);
        theirs.add(load::run(&peers.1, load, clients, WARM_UP, MEASURED).await?);
    }
    let budget = budget
        .map(|budget| format!("   (budget {budget})"))
        .unwrap_or_default();
    let ms = |figures: &mut Figures| (figures.percentile_ms(0.5), figures.percentile_ms(0.99));
    let ((a50, a99), (b50, b99)) = (ms(&mut ours), ms(&mut theirs));
    println!(
        "{what:<28}{:>10.0}{:>10.0}{:>8.2}   {a50:.1} {a99:.1}, {b50:.1} {b99:.1}{budget}",
        ours.per_second(),
        theirs.per_second(),
        ours.per_second() / theirs.per_second(),
    );
    Ok(())
}
