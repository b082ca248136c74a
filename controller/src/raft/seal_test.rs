//! What somebody finds who has the disk of a member, but not its keys.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use openraft::async_runtime::watch::WatchReceiver;

use super::cluster_test::{Cluster, applied, arrives, large_write};

const SECRET: &str = "correct-horse-battery-staple";
const SNAPSHOT_ENTRIES: u64 = 20;

/// The text itself, and what of its base64 does not hang on what is around it, for each of three alignments.
fn needles(secret: &str) -> Vec<Vec<u8>> {
    let encoded = (0..3).map(|skipped| {
        let rest = &secret.as_bytes()[skipped..];
        BASE64.encode(&rest[..rest.len() / 3 * 3]).into_bytes()
    });
    encoded.chain([secret.as_bytes().to_vec()]).collect()
}

/// Names of the files below `path` that contain one of the needles; how many bytes were looked at.
fn grep(path: &Path, needles: &[Vec<u8>]) -> (Vec<String>, usize) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let (inside, more) = grep(&path, needles);
            found.extend(inside);
            bytes += more;
            continue;
        }
        let content = std::fs::read(&path).unwrap();
        let used = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes += used; // segments are filled with zeros ahead
        for needle in needles {
            if content[..used]
                .windows(needle.len())
                .any(|window| window == &needle[..])
            {
                found.push(path.display().to_string());
            }
        }
    }
    (found, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_found_in_a_data_directory() {
    let mut cluster = Cluster::new(SNAPSHOT_ENTRIES);
    let first = cluster.start(1).await;
    first.node.initialize(cluster.member(1)).await.unwrap();
    for i in 0..3 * SNAPSHOT_ENTRIES {
        let reply = first
            .node
            .propose(large_write(&format!("{SECRET}-{i}"), 2000))
            .await;
        applied(reply.unwrap());
    }
    let mut metrics = first.node.raft().metrics();
    let purged = async {
        while metrics.borrow_watched().purged.is_none() {
            metrics.changed().await.unwrap();
        }
    };
    purged.await; // so there is a snapshot, and the next member needs it
    let second = cluster.start(2).await;
    first.node.add_learner(2, cluster.member(2)).await.unwrap();
    arrives(&second, &format!("{SECRET}-1")).await;
    assert!(second.node.snapshots().current().is_some(), "it got a snapshot");
    second.kill().await;
    first.kill().await;

    for member in ["1", "2"] {
        let path = cluster.tmp.path().join(member);
        assert!(path.join("snapshots/snapshot").exists());
        let (found, bytes) = grep(&path, &needles(SECRET));
        assert_eq!(found, Vec::<String>::new(), "member {member}");
        assert!(bytes > 60_000, "there was something to find: {bytes}");
        assert!(grep(&path, &[vec![b'x'; 32]]).0.is_empty(), "the values");
    }
    // And the search is one that finds.
    std::fs::write(
        cluster.tmp.path().join("1/control"),
        BASE64.encode(format!("a{SECRET}")),
    )
    .unwrap();
    assert_eq!(grep(cluster.tmp.path(), &needles(SECRET)).0.len(), 1);
}
