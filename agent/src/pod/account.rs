//! The token of a pod's service account: three files in each container, renewed while the pod is here.
//!
//! They are a volume like that of a Secret (a tmpfs, replaced at once, read-only), whose content comes from a controller when
//! it is asked for. Like Secrets they are in the ledger of no node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{Pod, SecretVolumeSource, Volume, VolumeMount};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::actor::Actor;
use crate::account::{Accounts, Given, NotGiven};
use crate::link::random;

/// Its volume; no manifest can have one of this name, which is no DNS label.
pub(super) const VOLUME: &str = "serviceaccount.token";
/// Where programs look for it (Kubernetes, "Accessing the Kubernetes API from a Pod").
const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The clock of the wall is looked at this often: it may be set, and sleep does not count the time of a suspended machine.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Between questions that were refused: the first pause and the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A pod that starts waits so long for the first answer, before it says that it waits.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// The files by name, or why there are none.
pub(super) type Content = Result<Arc<BTreeMap<String, Vec<u8>>>, String>;

/// Whether a pod gets a token: the controller has decided where the pod does not say it itself.
pub(super) fn is_asked(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| spec.automount_service_account_token == Some(true))
}

/// The pod with the volume and its mounts, if it asks for a token. A container that has something of its own there keeps it,
/// as in Kubernetes.
pub(super) fn with_volume(pod: Arc<Pod>) -> Arc<Pod> {
    if !is_asked(&pod) {
        return pod;
    }
    let mut pod = Arc::unwrap_or_clone(pod);
    let Some(spec) = &mut pod.spec else {
        return Arc::new(pod);
    };
    spec.volumes.retain(|volume| volume.name != VOLUME);
    spec.volumes.push(Volume {
        name: VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: VOLUME.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    for container in spec.init_containers.iter_mut().chain(&mut spec.containers) {
        if container
            .volume_mounts
            .iter()
            .any(|mount| mount.mount_path == PATH)
        {
            continue;
        }
        container.volume_mounts.push(VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: PATH.to_owned(),
            read_only: true,
            ..Default::default()
        });
    }
    Arc::new(pod)
}

impl Actor {
    /// Begins to ask for a token, if the pod wants one.
    pub(super) fn keep_account(&mut self, pod: &Pod) {
        if !is_asked(pod) || self.account.is_some() {
            return;
        }
        let namespace = pod.metadata.as_ref().map(|meta| meta.namespace.clone());
        self.account = Some(Keeper::start(
            self.node.accounts.clone(),
            self.uid.clone(),
            namespace.unwrap_or_default(),
            Arc::clone(&self.view.wake),
        ));
    }
}

/// Has a token for one pod, and a new one before it ends; until it is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    content: watch::Receiver<Option<Content>>,
    _task: AbortOnDropHandle<()>,
}

impl Keeper {
    /// Asks at once; `wake` is told of each new token.
    pub(super) fn start(accounts: Accounts, uid: String, namespace: String, wake: Arc<Notify>) -> Self {
        let (sender, content) = watch::channel(None);
        let task = tokio::spawn(keep(accounts, uid, namespace, sender, wake));
        Self {
            content,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Whether there is a token that was not looked at yet.
    pub(super) fn has_news(&mut self) -> bool {
        match self.content.has_changed() {
            Ok(true) => matches!(&*self.content.borrow_and_update(), Some(Ok(_))),
            Ok(false) | Err(_) => false,
        }
    }

    /// What there is, after a short while at the beginning.
    pub(super) async fn content(&mut self) -> Content {
        let first = self.content.wait_for(Option::is_some);
        let late = || Err("no controller has given a token yet".to_owned());
        match tokio::time::timeout(FIRST_WAIT, first).await {
            Ok(Ok(content)) => content.clone().unwrap_or_else(late),
            Ok(Err(_)) | Err(_) => late(),
        }
    }
}

async fn keep(
    accounts: Accounts,
    uid: String,
    namespace: String,
    content: watch::Sender<Option<Content>>,
    wake: Arc<Notify>,
) {
    let wall = || jiff::Timestamp::now().as_second();
    let mut pause = PAUSE_FIRST;
    let mut said = String::new();
    loop {
        let asked = wall();
        match accounts.ask(&uid).await {
            Ok(given) => {
                let due = due_after(given.life, random());
                content.send_replace(Some(Ok(Arc::new(files(given, &namespace)))));
                wake.notify_one();
                pause = PAUSE_FIRST;
                said.clear();
                while !is_due(asked, wall(), due) {
                    tokio::time::sleep(LOOK_INTERVAL.min(due)).await;
                }
            }
            Err(NotGiven { reason, for_good }) => {
                if said != reason {
                    tracing::warn!(uid, reason, "no new token for a pod; trying again");
                    said.clone_from(&reason);
                }
                content.send_if_modified(|known| {
                    // One that it has may be good for a while yet.
                    let waits = !matches!(known, Some(Ok(_)));
                    if waits {
                        *known = Some(Err(reason));
                    }
                    waits
                });
                if for_good {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// From 60 to 75 % of its life: with the next look at the clock before Kubernetes' 80, and not for all pods of a node at once.
fn due_after(life: Duration, random: u32) -> Duration {
    life * (600 + random % 150) / 1000
}

/// Also after the clock was set back to before the token was asked for.
fn is_due(asked: i64, now: i64, due: Duration) -> bool {
    u64::try_from(now - asked).map_or(true, |since| since >= due.as_secs())
}

fn files(given: Given, namespace: &str) -> BTreeMap<String, Vec<u8>> {
    [
        ("token", given.token),
        ("ca.crt", given.ca),
        ("namespace", namespace.to_owned()),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .into()
}

#[cfg(test)]
mod tests {
    use proto::v1::{Container, PodSpec};

    use super::*;

    fn pod(automount: Option<bool>, mounted: &str) -> Arc<Pod> {
        let mut mounts = Vec::new();
        if !mounted.is_empty() {
            mounts.push(VolumeMount {
                name: "own".to_owned(),
                mount_path: mounted.to_owned(),
                ..Default::default()
            });
        }
        let container = |name: &str, volume_mounts| Container {
            name: name.to_owned(),
            volume_mounts,
            ..Default::default()
        };
        Arc::new(Pod {
            spec: Some(PodSpec {
                automount_service_account_token: automount,
                init_containers: vec![container("init", Vec::new())],
                containers: vec![container("main", mounts)],
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn mounts(pod: &Pod) -> Vec<Vec<&str>> {
        let spec = pod.spec.as_ref().unwrap();
        let containers = spec.init_containers.iter().chain(&spec.containers);
        containers
            .map(|container| container.volume_mounts.iter().map(|mount| &*mount.name).collect())
            .collect()
    }

    #[test]
    fn each_container_of_a_pod_that_asks_has_the_files_unless_it_has_its_own_there() {
        for automount in [None, Some(false)] {
            let before = pod(automount, "");
            assert_eq!(with_volume(before.clone()), before);
        }
        let with = with_volume(pod(Some(true), "/data"));
        assert_eq!(mounts(&with), [vec![VOLUME], vec!["own", VOLUME]]);
        assert_eq!(with.spec.as_ref().unwrap().volumes.len(), 1);
        assert_eq!(with_volume(with.clone()), with, "a second time changes nothing");
        let own = with_volume(pod(Some(true), PATH));
        assert_eq!(mounts(&own), [vec![VOLUME], vec!["own"]]);
        assert!(model::name::dns1123_label(VOLUME).is_err());
    }

    #[test]
    fn a_token_is_renewed_before_four_fifths_of_its_life() {
        let life = Duration::from_secs(3600);
        assert_eq!(due_after(life, 0), Duration::from_secs(2160));
        assert!(due_after(life, 149) + LOOK_INTERVAL < life / 10 * 8);
        let due = Duration::from_secs(2160);
        assert!(!is_due(1000, 1000, due) && !is_due(1000, 3159, due));
        assert!(is_due(1000, 3160, due));
        assert!(is_due(1000, 999, due), "the clock was set back");
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_the_token_that_follows_takes_its_place() {
        let (accounts, mut asked) = Accounts::new();
        let wake = Arc::new(Notify::new());
        let mut keeper = Keeper::start(accounts, "u".to_owned(), "shop".to_owned(), wake.clone());
        let next = asked.recv().await.unwrap();
        assert_eq!(next.pod_uid, "u");
        let refusal = "serviceaccount \"x\" not found".to_owned();
        assert!(next.answer.send(Err(refusal.clone().into())).is_ok());
        assert_eq!(keeper.content().await, Err(refusal));
        assert!(!keeper.has_news());
        let next = asked.recv().await.unwrap();
        let given = Given {
            token: "t".to_owned(),
            life: Duration::from_secs(3600),
            ca: "CA".to_owned(),
        };
        assert!(next.answer.send(Ok(given)).is_ok());
        wake.notified().await;
        assert!(keeper.has_news() && !keeper.has_news());
        let files = keeper.content().await.unwrap();
        let file = |name: &str| std::str::from_utf8(&files[name]).unwrap();
        assert_eq!(
            (file("token"), file("ca.crt"), file("namespace")),
            ("t", "CA", "shop")
        );
        assert_eq!(files.len(), 3);
    }

    #[tokio::test]
    async fn nobody_asks_on_for_a_pod_that_has_ended() {
        let (accounts, mut asked) = Accounts::new();
        let wake = Arc::new(Notify::new());
        let mut keeper = Keeper::start(accounts, "u".to_owned(), "shop".to_owned(), wake);
        let next = asked.recv().await.unwrap();
        let refusal = NotGiven {
            reason: "pod web has ended".to_owned(),
            for_good: true,
        };
        assert!(next.answer.send(Err(refusal)).is_ok());
        assert!(asked.recv().await.is_none(), "nobody is left to ask");
        assert_eq!(keeper.content().await, Err("pod web has ended".to_owned()));
        assert!(!keeper.has_news());
    }
}
