//! A backup of one member's cluster, and its way into another's.

use std::time::Duration;

use model::{Kind, object};
use proto::v1::object::Object as Any;
use proto::v1::{ConfigMap, Object, ObjectMeta, Secret};
use rpc::v1::backup_part::Part;
use rpc::v1::{ApplyItem, ApplyRequest, BackupEnd, BackupPart, BackupRequest, BackupStart, RestoreResponse};
use rpc::v1::{WatchRequest, api_server::Api};
use state::{REVISION_JUMP, State};
use tokio_stream::StreamExt;
use tonic::{Code, Response, Status};

use super::backup::BACKUPS_MAX;
use super::service_test::{One, by_admin};
use crate::security::ca::Subject;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn named(name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        ..Default::default()
    })
}

fn map(name: &str) -> Object {
    object::from(ConfigMap {
        metadata: named(name),
        data: [("key".to_owned(), "x".repeat(8_000))].into(),
        ..Default::default()
    })
}

async fn apply(one: &One, objects: Vec<Object>) {
    let items = objects.into_iter().map(|object| ApplyItem {
        object: Some(object),
        ..Default::default()
    });
    let request = ApplyRequest {
        items: items.collect(),
        ..Default::default()
    };
    one.service.apply(by_admin(request)).await.unwrap();
}

/// With a Secret and more than one part has room for.
async fn filled() -> One {
    let one = One::new().await;
    let secret = object::from(Secret {
        metadata: named("login"),
        data: [("password".to_owned(), b"zq9-hidden-zq9".to_vec())].into(),
        ..Default::default()
    });
    apply(&one, vec![secret]).await;
    for batch in 0..4 {
        apply(
            &one,
            (0..100)
                .map(|number| map(&format!("m{batch}-{number}")))
                .collect(),
        )
        .await;
    }
    one
}

async fn backup(one: &One) -> Vec<BackupPart> {
    let answer = one.service.backup(by_admin(BackupRequest {})).await.unwrap();
    let parts = answer.into_inner().collect::<Vec<_>>();
    let parts = tokio::time::timeout(PATIENCE, parts).await.unwrap();
    parts.into_iter().collect::<Result<_, _>>().unwrap()
}

async fn restore(one: &One, parts: Vec<BackupPart>) -> Result<RestoreResponse, Status> {
    let admin = Subject::Admin {
        name: "root".to_owned(),
    };
    let mut client = one.client(Some(admin)).await;
    client
        .restore(tokio_stream::iter(parts))
        .await
        .map(Response::into_inner)
}

fn start_of(parts: &[BackupPart]) -> &BackupStart {
    match &parts[0].part {
        Some(Part::Start(start)) => start,
        other => panic!("{other:?}"),
    }
}

fn objects(state: &State) -> Vec<Object> {
    let kinds = [Kind::ConfigMap, Kind::Secret, Kind::Namespace];
    kinds
        .into_iter()
        .flat_map(|kind| state.list(kind, None, None).collect::<Vec<_>>())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_one_cluster_is_the_state_of_another_afterwards() {
    let old = filled().await;
    let parts = backup(&old).await;
    assert!(parts.len() > 3, "{} parts", parts.len());
    let start = start_of(&parts).clone();
    let was = old.service.node.stale();
    assert_eq!(
        (start.cluster_id.as_str(), start.revision),
        ("the-cluster", was.revision())
    );
    let maps = start.counts.iter().find(|of| of.kind == "ConfigMap").unwrap();
    assert_eq!(maps.count, 400);

    let new = One::new().await;
    let request = WatchRequest {
        kind: "ConfigMap".to_owned(),
        revision: new.service.node.stale().revision(),
        ..Default::default()
    };
    let mut watch = new.service.watch(by_admin(request)).await.unwrap().into_inner();
    let answer = restore(&new, parts).await.unwrap();
    assert_eq!(answer.counts, start.counts);
    assert!(answer.revision >= start.revision + REVISION_JUMP);
    let is = new.service.node.stale();
    assert_eq!(objects(&is), objects(&was));
    let secret = is.list(Kind::Secret, None, None).next().unwrap();
    let Some(Any::Secret(secret)) = secret.object else {
        panic!("{secret:?}")
    };
    assert_eq!(secret.data["password"], b"zq9-hidden-zq9");
    // Neither a watch of before nor one that saw the old cluster's last change is shown anything wrong.
    let ended = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::OutOfRange);
    let request = WatchRequest {
        kind: "ConfigMap".to_owned(),
        revision: start.revision + 1_000,
        ..Default::default()
    };
    let mut watch = new.service.watch(by_admin(request)).await.unwrap().into_inner();
    let ended = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::OutOfRange);
    // And it is no longer empty.
    let again = restore(&new, backup(&old).await).await.unwrap_err();
    assert_eq!(again.code(), Code::Aborted);
    assert!(again.message().contains("not empty"), "{}", again.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_breaks_off_leaves_nothing_and_can_be_made_again() {
    let parts = backup(&filled().await).await;
    let new = One::new().await;
    let before = objects(&new.service.node.stale());
    let put_aside = || {
        let state = new.service.node.stale();
        state.encode().map(|chunk| chunk.len()).sum::<usize>() > 100_000
    };
    let count = parts.len();
    let end = |parts| BackupPart {
        part: Some(Part::End(BackupEnd { parts })),
    };
    let newer = BackupPart {
        part: Some(Part::Start(BackupStart {
            schema_level: state::SCHEMA_LEVEL + 1,
            ..Default::default()
        })),
    };
    for (what, sent, code) in [
        ("without an end", parts[..count - 1].to_vec(), Code::Aborted),
        ("without a start", parts[1..].to_vec(), Code::InvalidArgument),
        ("of a newer version", vec![newer], Code::FailedPrecondition),
        (
            "with a part missing",
            [&parts[..2], &parts[3..]].concat(),
            Code::InvalidArgument,
        ),
        (
            "with a part missing that nobody counts",
            [&parts[..2], &parts[3..count - 1], &[end(count as u64 - 3)]].concat(),
            Code::InvalidArgument,
        ),
        (
            "with a second start",
            vec![parts[0].clone(); 2],
            Code::InvalidArgument,
        ),
        (
            "that is empty",
            vec![parts[0].clone(), BackupPart::default()],
            Code::InvalidArgument,
        ),
    ] {
        let refused = restore(&new, sent).await.expect_err(what);
        assert_eq!(refused.code(), code, "{what}: {refused}");
        assert_eq!(objects(&new.service.node.stale()), before, "{what}");
        assert!(!put_aside(), "{what}: its parts are still there");
    }
    restore(&new, parts).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_backups_are_read_at_a_time() {
    let one = filled().await;
    let mut open = Vec::new();
    for _ in 0..BACKUPS_MAX {
        open.push(one.service.backup(by_admin(BackupRequest {})).await.unwrap());
    }
    let refused = one
        .service
        .backup(by_admin(BackupRequest {}))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(open.pop());
    // Its place is free once its task has found out.
    let freed = async {
        while one.service.backup(by_admin(BackupRequest {})).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed)
        .await
        .expect("the place of one that has left is free");
}
