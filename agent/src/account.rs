//! Tokens of service accounts, asked of the controllers for the pods of this node.

use std::sync::Arc;
use std::time::Duration;

use rpc::v1::node_client::NodeClient;
use rpc::v1::{PodTokenRequest, PodTokenResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::link::{Link, random};

/// Pods that wait to be asked for; more wait in their own tasks.
const WAITING_MAX: usize = 16;
/// Questions under way: a node that starts has many pods at once, and controllers many nodes.
const UNDER_WAY_MAX: usize = 8;
/// How long a controller may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a pod is given.
pub(crate) struct Given {
    pub(crate) token: String,
    /// How long it is good, from when it was asked for.
    pub(crate) life: Duration,
    /// The cluster's CA, PEM.
    pub(crate) ca: String,
}

/// Why a pod is given none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotGiven {
    pub(crate) reason: String,
    /// The pod has ended: there will be none.
    pub(crate) for_good: bool,
}

/// One pod's question.
pub(crate) struct Asked {
    pub(crate) pod_uid: String,
    pub(crate) answer: oneshot::Sender<Result<Given, NotGiven>>,
}

impl From<String> for NotGiven {
    fn from(reason: String) -> Self {
        Self {
            reason,
            for_good: false,
        }
    }
}

/// Where pods ask; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Accounts(mpsc::Sender<Asked>);

impl Accounts {
    /// And what is to be answered.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (sender, asked) = mpsc::channel(WAITING_MAX);
        (Self(sender), asked)
    }

    /// A token for a pod.
    pub(crate) async fn ask(&self, pod_uid: &str) -> Result<Given, NotGiven> {
        let (answer, answered) = oneshot::channel();
        let pod_uid = pod_uid.to_owned();
        let stopping = || NotGiven::from("the agent is stopping".to_owned());
        let sent = self.0.send(Asked { pod_uid, answer }).await;
        sent.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Passes questions on to a controller until the task is dropped.
pub(crate) async fn answer(link: Arc<Link>, mut asked: mpsc::Receiver<Asked>) {
    let mut identity = link.changes();
    let mut channel = None;
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            // A renewed certificate needs a new channel.
            Ok(()) = identity.changed() => channel = None,
            Some(ended) = under_way.join_next() => match ended {
                Ok(true) => {}
                // On with another controller: this one may have no leader.
                Ok(false) => channel = None,
                Err(error) => tracing::error!(%error, "a question for a token ended badly"),
            },
            Some(next) = asked.recv(), if under_way.len() < UNDER_WAY_MAX => {
                let open = match channel.take() {
                    Some(open) => Ok(open),
                    None => link.channel(random() as usize),
                };
                let ca = identity.borrow().ca.clone();
                match open {
                    Ok(open) => {
                        channel = Some(open.clone());
                        under_way.spawn(ask_for(open, ca, next));
                    }
                    Err(error) => give(next.answer, Err(runtime::monitor::chain(&error).into())),
                }
            }
            else => return,
        }
    }
}

/// Whether a controller answered that could.
async fn ask_for(channel: Channel, ca: String, asked: Asked) -> bool {
    let mut client = NodeClient::new(channel);
    let call = client.pod_token(PodTokenRequest {
        pod_uid: asked.pod_uid,
    });
    let mut answered = true;
    let given = match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(answer)) => {
            let PodTokenResponse { token, life_seconds } = answer.into_inner();
            Ok(Given {
                token,
                life: Duration::from_secs(u64::from(life_seconds)),
                ca,
            })
        }
        Ok(Err(status)) => {
            answered = ![Code::Unavailable, Code::Unimplemented].contains(&status.code());
            Err(NotGiven {
                reason: status.message().to_owned(),
                for_good: status.code() == Code::FailedPrecondition,
            })
        }
        Err(_) => {
            answered = false;
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(format!("no controller gave a token within {seconds} s").into())
        }
    };
    give(asked.answer, given);
    answered
}

fn give(answer: oneshot::Sender<Result<Given, NotGiven>>, given: Result<Given, NotGiven>) {
    if answer.send(given).is_err() {
        tracing::debug!("the pod that asked for a token is gone");
    }
}
