//! Clients: they write, read and watch at any member, ask again elsewhere, and tell the history what they were told.

use std::future::Future;

use model::object;
use proto::state::v1::{DeleteOp, Key};
use proto::v1::{ConfigMap, Object, ObjectMeta};
use rpc::v1::api_client::ApiClient;
use rpc::v1::{ApplyItem, ApplyRequest, DeleteRequest, GetRequest, ListRequest, WatchRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use super::history::{Told, VALUE, Watched, named_value, version};
use super::member::{World, caller};
use super::network::{Host, Link, Port};
use crate::security::identity::{ADMINS, Identity};
use crate::security::new_uuid;
use crate::simulated::Random;

/// Names of the ConfigMaps that clients write: few, so that they meet.
const NAMES: u64 = 5;
/// A write is asked for this often, each time at another member, before its fate is left open.
const TRIES: u64 = 5;

/// One client.
pub(super) struct Client {
    pub(super) world: World,
    host: Host,
    life: u64,
    pub(super) random: Random,
    written: u64,
}

impl Client {
    pub(super) fn new(world: &World, host: Host, random: &mut Random) -> Self {
        Self {
            world: world.clone(),
            host,
            life: world.network.begin(host),
            random: Random::new(random.next()),
            written: 0,
        }
    }

    pub(super) fn any_member(&mut self) -> Host {
        self.world.endpoints.any(&mut self.random)
    }

    pub(super) fn link(&self, member: Host) -> Link {
        let me = caller(Identity::User {
            name: "admin".to_owned(),
            groups: vec![ADMINS.to_owned()],
        });
        self.world
            .network
            .link((self.host, self.life), member, Port::Api, me)
    }

    pub(super) fn api(&self, member: Host) -> ApiClient<Link> {
        ApiClient::new(self.link(member))
    }

    pub(super) async fn rest(&mut self, from: u64, to: u64) {
        let pause = self.random.millis(from, to);
        tokio::time::sleep(pause).await;
    }

    pub(super) async fn within<T>(
        &mut self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let patience = self.random.millis(300, 4000);
        match tokio::time::timeout(patience, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the client waits no longer")),
        }
    }

    /// Writes and reads until the time is over.
    pub(super) async fn run(mut self, until: Instant) {
        while Instant::now() < until {
            self.rest(5, 150).await;
            match self.random.below(100) {
                0..40 => self.write(1).await,
                40..50 => self.write(2).await,
                50..60 => self.delete().await,
                60..80 => self.get().await,
                80..90 => {
                    self.list(false).await;
                }
                _ => {
                    self.list(true).await;
                }
            }
        }
    }

    fn name(&mut self) -> String {
        format!("m{}", self.random.below(NAMES))
    }

    async fn write(&mut self, count: u64) {
        let first = self.random.below(NAMES);
        self.written += 1;
        let (host, written) = (self.host, self.written);
        let values: Vec<(String, String)> = (0..count)
            .map(|more| {
                (
                    format!("m{}", (first + more) % NAMES),
                    format!("{host}.{written}.{more}"),
                )
            })
            .collect();
        let mode = if self.random.below(4) == 0 {
            "CREATE"
        } else {
            "APPLY"
        };
        let items = values.iter().map(|(name, value)| ApplyItem {
            object: Some(config_map(name, value)),
            mode: mode.to_owned(),
            ..Default::default()
        });
        let request = ApplyRequest {
            items: items.collect(),
            request_id: new_uuid(),
            ..Default::default()
        };
        self.world.history.tries(&values);
        let began = self.world.history.moment();
        for tried in 0..TRIES {
            let member = self.any_member();
            let mut api = self.api(member);
            match self.within(api.apply(request.clone())).await {
                Ok(answer) => {
                    let revision = answer.revision;
                    return self.told(began, Told::Wrote { values, revision });
                }
                // With an earlier try under way it may still happen, once what it was refused for has changed.
                Err(status) if refused(&status) && tried == 0 => {
                    return self.told(began, Told::Refused { values });
                }
                Err(status) if refused(&status) => return,
                Err(_) => self.rest(5, 100).await,
            }
        }
    }

    async fn delete(&mut self) {
        let name = self.name();
        let target = DeleteOp {
            key: Some(key("ConfigMap", "default", &name)),
            ..DeleteOp::default()
        };
        let request = DeleteRequest {
            targets: vec![target],
            dry_run: false,
            request_id: new_uuid(),
        };
        let began = self.world.history.moment();
        for _ in 0..TRIES {
            let member = self.any_member();
            let mut api = self.api(member);
            match self.within(api.delete(request.clone())).await {
                Ok(answer) => {
                    let revision = answer.revision;
                    return self.told(began, Told::Deleted { name, revision });
                }
                Err(status) if refused(&status) => return,
                Err(_) => self.rest(5, 100).await,
            }
        }
    }

    async fn get(&mut self) {
        let name = self.name();
        let request = GetRequest {
            key: Some(key("ConfigMap", "default", &name)),
            stale: false,
        };
        let member = self.any_member();
        let mut api = self.api(member);
        let began = self.world.history.moment();
        let found = match self.within(api.get(request)).await {
            Ok(found) => named_value(&found).map(|(_, value)| (version(&found), value)),
            Err(status) if status.code() == Code::NotFound => None,
            Err(_) => return,
        };
        self.told(began, Told::Read { name, found });
    }

    /// All ConfigMaps; gives the revision of the list.
    async fn list(&mut self, stale: bool) -> Option<u64> {
        let member = self.any_member();
        let life = self.world.network.life(member);
        let request = ListRequest {
            kind: "ConfigMap".to_owned(),
            stale,
            ..ListRequest::default()
        };
        let mut api = self.api(member);
        let began = self.world.history.moment();
        let list = self.within(api.list(request)).await.ok()?;
        let revision = list.revision;
        let told = Told::Listed {
            revision,
            found: list.items.iter().filter_map(named_value).collect(),
            stale: stale.then_some((member, life)),
        };
        self.told(began, told);
        Some(revision)
    }

    pub(super) fn told(&self, began: u64, told: Told) {
        self.world
            .network
            .note(format_args!("{} was told {told:?}", self.host));
        self.world.history.told(self.host, began, told);
    }

    /// Watches all ConfigMaps, going on at another member when a watch breaks off, until it has seen the revision that
    /// `goal` names.
    pub(super) async fn watch(mut self, goal: watch::Receiver<Option<u64>>) {
        loop {
            let from = loop {
                match self.list(false).await {
                    Some(revision) => break revision,
                    None => self.rest(50, 200).await,
                }
            };
            let mut watched = Watched {
                from,
                shown: Vec::new(),
                upto: from,
            };
            let lists_again = self.follow(&mut watched, &goal).await;
            self.world.history.watched(watched);
            if !lists_again {
                return;
            }
        }
    }

    /// True when what comes next is no longer kept: list again.
    async fn follow(&mut self, watched: &mut Watched, goal: &watch::Receiver<Option<u64>>) -> bool {
        loop {
            let request = WatchRequest {
                kind: "ConfigMap".to_owned(),
                revision: watched.upto,
                ..WatchRequest::default()
            };
            let member = self.any_member();
            let mut api = self.api(member);
            let Ok(mut events) = self.within(api.watch(request)).await else {
                self.rest(50, 200).await;
                continue;
            };
            // Now and then it goes elsewhere without a reason.
            let leaves = Instant::now() + self.random.millis(500, 12_000);
            loop {
                if goal.borrow().is_some_and(|goal| watched.upto >= goal) {
                    return false;
                }
                match tokio::time::timeout_at(leaves, events.message()).await {
                    Ok(Ok(Some(event))) => {
                        let object = event.object.filter(|_| event.r#type != "BOOKMARK");
                        watched.upto = watched.upto.max(event.revision);
                        watched
                            .shown
                            .extend(object.map(|object| (event.revision, event.r#type, object)));
                    }
                    Ok(Err(status)) if status.code() == Code::OutOfRange => return true,
                    Ok(Ok(None) | Err(_)) | Err(_) => break,
                }
            }
        }
    }
}

/// It was decided, and against the call.
fn refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
    )
}

pub(super) fn key(kind: &str, namespace: &str, name: &str) -> Key {
    Key {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

pub(super) fn meta(name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        ..ObjectMeta::default()
    })
}

fn config_map(name: &str, value: &str) -> Object {
    object::from(ConfigMap {
        metadata: meta(name),
        data: [(VALUE.to_owned(), value.to_owned())].into(),
        ..ConfigMap::default()
    })
}
