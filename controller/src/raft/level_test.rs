//! Members of two versions in one cluster: what the older one does not know is not written before it is upgraded.

use std::time::Duration;

use proto::state::v1::command;
use proto::state::v1::{Operation, Put, RaiseLevel, Transaction, operation};
use proto::v1::{Object, ObjectMeta, Pod, PodSpec, object};
use state::{SCHEMA_LEVEL, SCHEMA_LEVEL_MIN};

use super::cluster_test::{Cluster, applied, open_dirs, write};
use super::*;

/// A pod that only the newer version knows all of.
fn newer() -> proto::state::v1::Command {
    let pod = Pod {
        metadata: Some(ObjectMeta {
            name: "newer".to_owned(),
            namespace: "default".to_owned(),
            uid: "uid-newer".to_owned(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(true),
            ..PodSpec::default()
        }),
        ..Pod::default()
    };
    let put = operation::Operation::Put(Put {
        object: Some(Object {
            object: Some(object::Object::Pod(pod)),
        }),
    });
    let transaction = Transaction {
        operations: vec![Operation { operation: Some(put) }],
        ..Transaction::default()
    };
    command(transaction)
}

fn command(transaction: Transaction) -> proto::state::v1::Command {
    proto::state::v1::Command {
        kind: Some(command::Kind::Transaction(transaction)),
        ..write("newer")
    }
}

fn raise() -> proto::state::v1::Command {
    proto::state::v1::Command {
        request_id: "request-raise".to_owned(),
        kind: Some(command::Kind::RaiseLevel(RaiseLevel { level: SCHEMA_LEVEL })),
        ..write("raise")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_member_does_not_know_is_written_only_once_it_was_upgraded() {
    let mut cluster = Cluster::new(1000);
    cluster.levels.insert(3, SCHEMA_LEVEL_MIN);
    let running = cluster.start_three().await;
    assert_eq!(running[2].node.progress().schema_level, SCHEMA_LEVEL_MIN);
    applied(running[0].node.propose(write("t1")).await.unwrap());
    let refused = running[0].node.propose(newer()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Level { .. }), "{refused}");
    assert!(refused.to_string().contains("ctl cluster members"), "{refused}");

    // The upgrade.
    for member in running {
        member.kill().await;
    }
    cluster.levels.clear();
    let mut running = Vec::new();
    for id in 1..=3 {
        running.push(cluster.start(id).await);
    }
    applied(running[0].node.propose(raise()).await.unwrap());
    for member in &running {
        assert_eq!(member.node.read().await.unwrap().level(), SCHEMA_LEVEL);
    }
    // The state decides by itself now; there is no namespace for the pod.
    let reply = running[0].node.propose(newer()).await.unwrap();
    assert!(format!("{reply:?}").contains("namespace default"), "{reply:?}");

    // And no way back: the older version does not go on with what it can't read.
    for member in running {
        member.kill().await;
    }
    cluster.levels.insert(3, SCHEMA_LEVEL_MIN);
    let _others = [cluster.start(1).await, cluster.start(2).await];
    let (log, snapshots) = open_dirs(&cluster.tmp.path().join("3")).await;
    let cause = match cluster.start_on(3, log, snapshots).await {
        Err(cause) => cause.to_string(),
        Ok(older) => {
            let ended = tokio::time::timeout(Duration::from_secs(20), older.node.ended()).await;
            ended.expect("it ends")
        }
    };
    assert!(cause.contains("install the newer one"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_know_is_what_the_oldest_knows_and_nobody_can_tell_while_one_is_away() {
    let mut cluster = Cluster::new(1000);
    cluster.levels.insert(2, SCHEMA_LEVEL_MIN);
    let mut running = cluster.start_three().await;
    let leader = running[0].node.clone();
    assert_eq!(leader.common_level().await, Some(SCHEMA_LEVEL_MIN));
    assert_eq!(leader.schema_level(), SCHEMA_LEVEL);
    running.pop().unwrap().kill().await;
    let gone = async {
        while leader.common_level().await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
    gone.expect("nobody answers for it");
}
