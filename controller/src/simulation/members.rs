//! Who keeps the members: as an operator does it, with tokens, joining and removing, while everything else goes on.

use std::collections::BTreeMap;

use rpc::v1::join_client::JoinClient;
use rpc::v1::{CreateTokenRequest, JoinMemberRequest, MembersRequest, RemoveMemberRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use super::client::Client;
use super::member::Machine;
use crate::raft::{Member, MemberId};

/// How many members a cluster is to have, one after the other.
const SIZES: [usize; 3] = [1, 3, 5];
/// As many tries to see that a member has its vote: then it is left to get it by itself.
const LOOKS_MAX: u32 = 40;

/// What becomes of the machines.
#[derive(Debug)]
pub(super) enum Order {
    /// A member has joined: its process begins, on empty disks.
    Start { id: MemberId },
    /// It burns down, with its disks. It is still among the members.
    Lose { id: MemberId },
    /// It was removed: its process ends, and nobody asks it any more.
    Retire { id: MemberId },
}

/// The operator of the members.
pub(super) struct Keeper {
    client: Client,
    orders: mpsc::Sender<Order>,
    /// Those that joined and were not removed.
    members: BTreeMap<String, MemberId>,
    joined: u64,
}

impl Keeper {
    /// Of a cluster with this first member.
    pub(super) fn new(client: Client, orders: mpsc::Sender<Order>, first: (&str, MemberId)) -> Self {
        Self {
            client,
            orders,
            members: BTreeMap::from([(first.0.to_owned(), first.1)]),
            joined: 1,
        }
    }

    /// Changes the members again and again. What is begun is brought to its end also after the time is over.
    pub(super) async fn run(mut self, until: Instant) {
        while Instant::now() < until {
            self.client.rest(300, 4000).await;
            let size = SIZES[self.client.random.below(3) as usize];
            if self.members.len() >= 3 && self.client.random.below(3) == 0 {
                self.replace_a_lost_one().await;
            } else if size != self.members.len() {
                self.resize(size, until).await;
            }
        }
    }

    /// Until there are so many, or the time is over.
    pub(super) async fn resize(&mut self, size: usize, until: Instant) {
        while self.members.len() != size && Instant::now() < until {
            match self.members.len() < size {
                true => self.add().await,
                false => {
                    let name = self.any();
                    self.remove(&name).await;
                }
            }
        }
    }

    fn any(&mut self) -> String {
        let which = self.client.random.below(self.members.len() as u64) as usize;
        self.members.keys().nth(which).cloned().expect("one of them")
    }

    /// With three or more, all of which vote, the others are most of them, so that this is to harm nobody.
    async fn replace_a_lost_one(&mut self) {
        let ids: Vec<MemberId> = self.members.values().copied().collect();
        for id in ids {
            if !self.votes(id).await {
                return;
            }
        }
        let name = self.any();
        let id = self.members[&name];
        self.order(Order::Lose { id }).await;
        self.client.rest(0, 3000).await;
        self.remove(&name).await;
        self.add().await;
    }

    async fn order(&self, order: Order) {
        self.client.world.network.note(format_args!("{order:?}"));
        self.orders
            .send(order)
            .await
            .expect("the story goes on until this is done");
    }

    /// With a token, as `bulkhead-controller join` does.
    async fn add(&mut self) {
        self.joined += 1;
        let name = format!("c{}", self.joined);
        let id = loop {
            if let Some(id) = self.join(&name).await {
                break id;
            }
            self.client.rest(20, 300).await;
        };
        self.order(Order::Start { id }).await;
        self.members.insert(name, id);
        for _ in 0..LOOKS_MAX {
            if self.votes(id).await {
                return;
            }
            self.client.rest(100, 400).await;
        }
    }

    async fn join(&mut self, name: &str) -> Option<MemberId> {
        let wanted = CreateTokenRequest {
            role: "member".to_owned(),
            name: name.to_owned(),
            ..CreateTokenRequest::default()
        };
        let member = self.client.any_member();
        let mut api = self.client.api(member);
        let made = self.client.within(api.create_token(wanted)).await.ok()?;
        let Member {
            name,
            address,
            peer_address,
        } = Machine::member(name);
        let asked = JoinMemberRequest {
            token: made.token,
            name: name.clone(),
            address,
            peer_address,
            schema_level: state::SCHEMA_LEVEL,
        };
        let member = self.client.any_member();
        let mut joins = JoinClient::new(self.client.link(member));
        match self.client.within(joins.join_member(asked)).await {
            Ok(answer) => Some(answer.member_id),
            // An earlier answer was lost, and nobody knows its number.
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_for_good(&name).await;
                None
            }
            Err(_) => None,
        }
    }

    async fn votes(&mut self, id: MemberId) -> bool {
        let member = self.client.any_member();
        let mut api = self.client.api(member);
        let Ok(answer) = self.client.within(api.members(MembersRequest {})).await else {
            return false;
        };
        let voter = |role: &str| matches!(role, "leader" | "follower");
        answer
            .members
            .iter()
            .any(|member| member.id == id && voter(&member.role))
    }

    /// And its process ends a little later.
    async fn remove(&mut self, name: &str) {
        self.remove_for_good(name).await;
        let id = self.members.remove(name).expect("it joined");
        self.client.rest(0, 2000).await;
        self.order(Order::Retire { id }).await;
    }

    /// Asks until it is done, or was by an earlier call whose answer was lost.
    async fn remove_for_good(&mut self, name: &str) {
        let request = RemoveMemberRequest {
            name: name.to_owned(),
            force: false,
        };
        loop {
            let member = self.client.any_member();
            let mut api = self.client.api(member);
            match self.client.within(api.remove_member(request.clone())).await {
                Ok(_) => break,
                Err(status) if status.code() == Code::NotFound => break,
                Err(_) => self.client.rest(50, 500).await,
            }
        }
        self.client
            .world
            .network
            .note(format_args!("{name} is no member any more"));
    }
}
