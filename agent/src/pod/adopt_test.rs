//! What the next agent makes of a pod, with the real runtime.

use std::sync::Arc;
use std::time::Instant;

use proto::v1::{ConfigMapVolumeSource, Volume};
use tokio::sync::watch;

use super::monitor::Client;
use super::real_test::{Ground, PATIENCE, delete, in_own_network, is_ready, pod, settings_map, until};
use super::{Desired, spawn};
use crate::configs::Configs;

#[test]
fn a_pod_that_nobody_wants_any_more_is_ended_by_the_next_agent() {
    in_own_network("a_pod_that_nobody_wants", |program| async move {
        let ground = Ground::new(program).await;
        let wanted = pod("exec sleep 1000");
        let (sender, handle) = ground.start(&wanted);
        until(&handle, "running", |status| status.phase == "Running").await;
        drop(sender);
        handle.join().await;
        let uid = wanted.metadata.as_ref().unwrap().uid.clone();
        let (_sender, receiver) = watch::channel(Desired::default());
        let handle = spawn(Arc::clone(&ground.node), uid, receiver);
        let mut report = handle.report();
        let gone = tokio::time::timeout(PATIENCE, report.wait_for(|report| report.gone));
        gone.await.unwrap().unwrap();
        ground.end();
    });
}

#[test]
fn a_pod_whose_volumes_were_not_there_yet_gets_them_of_the_next_agent() {
    in_own_network("a_pod_whose_volumes_were_not", |program| async move {
        let ground = Ground::new(program).await;
        let mut wanted = pod("exec sleep 1000");
        if let Some(spec) = &mut wanted.spec {
            spec.volumes.push(Volume {
                name: "late".into(),
                config_map: Some(ConfigMapVolumeSource {
                    name: "late".into(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            });
            model::default::pod_spec(spec);
        }
        let (sender, handle) = ground.start(&wanted);
        let uid = &wanted.metadata.as_ref().unwrap().uid;
        let directory = ground.node.settings.monitor_dir(uid);
        let began = Instant::now();
        while Client::connect(&directory).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "no monitor answers");
            tokio::task::yield_now().await;
        }
        drop(sender);
        handle.join().await;

        // The next agent finds a monitor without a run, and a volume that can be made now.
        let etc = directory.join("etc");
        if etc.exists() {
            std::fs::remove_dir_all(&etc).unwrap(); // as when the first one was killed a moment earlier
        }
        let (sender, handle) = ground.start(&wanted);
        sender.send_modify(|desired| {
            desired.configs = Arc::new(Configs::new(
                [("default/late".to_owned(), settings_map("green"))].into(),
            ));
        });
        until(&handle, "ready", is_ready).await;
        delete(&sender, handle).await;
        ground.end();
    });
}
