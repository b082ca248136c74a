//! Calls about one pod that its node carries out: logs, exec, inspect, describe.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use model::{Kind, object};
use proto::v1::{Pod, PodSpec};
use rpc::v1::carry_up::Frame as Up;
use rpc::v1::exec_input::Input;
use rpc::v1::exec_output::Output;
use rpc::v1::{
    CarryDown, CarryUp, DescribeResponse, ExecInput, ExecOutput, InspectResponse, LogChunk, LogsRequest,
    PodRef, carry_down, open,
};
use state::rbac::Who;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::admit::{self, Asker};
use super::delete::missing;
use super::status::{Reason, refused_one};
use super::{Service, access};
use crate::calls::Call;

/// A client says within this time what its call is about.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A node answers a question within this time: it reads a few files.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a pod is.
#[derive(Clone, Debug)]
struct Place {
    node: String,
    uid: String,
}

/// The node that has the pod, if it is one that can be asked about.
fn place(pod: &Pod, container: &str) -> Result<Place, Status> {
    let meta = pod.metadata.clone().unwrap_or_default();
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let known = || spec.init_containers.iter().chain(&spec.containers);
    if !container.is_empty() && !known().any(|it| it.name == container) {
        let names: Vec<&str> = known().map(|it| it.name.as_str()).collect();
        let message = format!(
            "pod {} has no container {container}; it has {}",
            meta.name,
            names.join(", ")
        );
        return Err(refused_one(Reason::NotFound, message));
    }
    let conditions = pod.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let scheduled = conditions.iter().find(|it| it.r#type == "PodScheduled");
    if spec.node_name.is_empty() || scheduled.is_none_or(|it| it.status != "True") {
        let because = match scheduled.map(|it| it.message.as_str()) {
            None | Some("") => String::new(),
            Some(message) => format!(": {message}"),
        };
        return Err(Status::failed_precondition(format!(
            "pod {0} is on no node yet{because}; `ctl why pod/{0}` tells more",
            meta.name
        )));
    }
    Ok(Place {
        node: spec.node_name.clone(),
        uid: meta.uid,
    })
}

impl Service {
    async fn place(&self, reference: Option<&PodRef>) -> Result<Place, Status> {
        let reference = reference.ok_or_else(|| Status::invalid_argument("the call names no pod"))?;
        let (_, key) = super::key(Some(&object::key_of(
            Kind::Pod,
            &reference.namespace,
            &reference.name,
        )))?;
        let state = self.state().await?;
        let pod = state.get(&key).and_then(object::into::<Pod>);
        let pod = pod.ok_or_else(|| missing(Kind::Pod, &key))?;
        place(&pod, &reference.container)
    }

    pub(super) async fn do_logs(
        &self,
        who: &Who,
        request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<LogChunk, Status>>, Status> {
        if request.tail_lines < -1 {
            return Err(Status::invalid_argument(
                "tailLines is -1 for all, or a number of lines",
            ));
        }
        let place = self.place(request.pod.as_ref()).await?;
        let call = self
            .calls
            .open(who, &place.node, open::Call::Logs(request), &place.uid)
            .await?;
        let Call { down, up } = call;
        drop(down); // nothing more follows
        let chunks = stream::unfold(Some(up), |up| async move {
            let mut up = up?;
            match up.recv().await? {
                Ok(CarryUp {
                    frame: Some(Up::Logs(chunk)),
                }) => Some((Ok(chunk), Some(up))),
                Ok(other) => Some((Err(unexpected(&other)), None)),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(chunks.boxed())
    }

    pub(super) async fn do_inspect(&self, who: &Who, request: PodRef) -> Result<InspectResponse, Status> {
        let place = self.place(Some(&request)).await?;
        match self
            .ask(who, &place.node, open::Call::Inspect(request), &place.uid)
            .await?
        {
            Up::Inspect(answer) => Ok(answer),
            other => Err(unexpected(&CarryUp { frame: Some(other) })),
        }
    }

    pub(super) async fn do_describe(&self, who: &Who, request: PodRef) -> Result<DescribeResponse, Status> {
        let place = self.place(Some(&request)).await?;
        match self
            .ask(who, &place.node, open::Call::Describe(request), &place.uid)
            .await?
        {
            Up::Describe(answer) => Ok(answer),
            other => Err(unexpected(&CarryUp { frame: Some(other) })),
        }
    }

    /// A question that one frame answers.
    pub(super) async fn ask(
        &self,
        who: &Who,
        node: &str,
        call: open::Call,
        pod_uid: &str,
    ) -> Result<Up, Status> {
        let Call { down, mut up } = self.calls.open(who, node, call, pod_uid).await?;
        drop(down);
        match tokio::time::timeout(ANSWER_TIMEOUT, up.recv()).await {
            Ok(Some(Ok(CarryUp { frame: Some(frame) }))) => Ok(frame),
            Ok(Some(Ok(CarryUp { frame: None }))) => Err(unexpected(&CarryUp::default())),
            Ok(Some(Err(status))) => Err(status),
            Ok(None) => Err(Status::unavailable(format!(
                "node {node} ended the call without an answer"
            ))),
            Err(_) => Err(Status::unavailable(format!(
                "node {node} did not answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            ))),
        }
    }

    pub(super) async fn do_exec(
        &self,
        asker: Asker,
        mut input: Streaming<ExecInput>,
    ) -> Result<BoxStream<'static, Result<ExecOutput, Status>>, Status> {
        let first = tokio::time::timeout(START_TIMEOUT, input.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("the call did not say what to run in time"))??;
        let Some(Input::Start(start)) = first.and_then(|first| first.input) else {
            return Err(Status::invalid_argument(
                "the first message of an exec is `start`",
            ));
        };
        if start.command.is_empty() {
            return Err(Status::invalid_argument("the call names no command"));
        }
        let call = open::Call::Exec(start.clone());
        let needs = access::of_pod(&call, start.pod.as_ref())?;
        let admitted = self
            .admit(admit::Call::writes("Exec"), asker, |_| Ok(needs))
            .await?;
        let opened = self.open_exec(&admitted.who, start.pod.as_ref(), call).await;
        let Call { down, up } = admitted.done(opened).await?;
        let (broken, breaks) = oneshot::channel();
        tokio::spawn(feed(input, down, broken));
        let output = Outputs {
            up,
            breaks: Some(breaks),
        };
        Ok(stream::unfold(Some(output), Outputs::next).boxed())
    }

    async fn open_exec(&self, who: &Who, pod: Option<&PodRef>, call: open::Call) -> Result<Call, Status> {
        let place = self.place(pod).await?;
        self.calls.open(who, &place.node, call, &place.uid).await
    }
}

/// What comes back from a program, and what breaks the call from the client's side.
struct Outputs {
    up: mpsc::Receiver<Result<CarryUp, Status>>,
    breaks: Option<oneshot::Receiver<Status>>,
}

impl Outputs {
    async fn next(output: Option<Self>) -> Option<(Result<ExecOutput, Status>, Option<Self>)> {
        let mut output = output?;
        loop {
            let broken = async {
                match &mut output.breaks {
                    Some(breaks) => breaks.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                frame = output.up.recv() => return match frame? {
                    Ok(CarryUp { frame: Some(Up::Exec(frame)) }) => {
                        let last = matches!(frame.output, Some(Output::End(_)));
                        Some((Ok(frame), (!last).then_some(output)))
                    }
                    Ok(other) => Some((Err(unexpected(&other)), None)),
                    Err(status) => Some((Err(status), None)),
                },
                broken = broken => match broken {
                    Ok(status) => return Some((Err(status), None)),
                    Err(_) => output.breaks = None, // the input ended well
                },
            }
        }
    }
}

/// Passes a client's input on, as fast as the node takes it. Its end is passed on too; a broken input breaks the call.
async fn feed(
    mut input: Streaming<ExecInput>,
    down: mpsc::Sender<CarryDown>,
    broken: oneshot::Sender<Status>,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = down.closed() => return,
            message = input.message() => message,
        };
        let failed = match message {
            Ok(Some(ExecInput {
                input: Some(Input::Start(_)),
            })) => Status::invalid_argument("an exec is started once"),
            Ok(Some(message)) => {
                let frame = CarryDown {
                    frame: Some(carry_down::Frame::Exec(message)),
                };
                if down.send(frame).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => return,
            Err(status) => status,
        };
        if broken.send(failed).is_err() {
            tracing::trace!("the client has left");
        }
        // The node hears first that the client is gone, not that its input ended.
        down.closed().await;
        return;
    }
}

/// A frame of another call: only a bug of the node sends one.
pub(super) fn unexpected(frame: &CarryUp) -> Status {
    tracing::warn!(
        empty = frame.frame.is_none(),
        "a node answered with a frame of another call"
    );
    Status::internal("the node's answer is none to this call")
}

#[cfg(test)]
mod tests {
    use proto::v1::{Condition, Container, ObjectMeta, PodStatus};
    use rpc::v1::ExecEnd;
    use tonic::Code;

    use super::*;

    fn pod(node: &str, scheduled: &str, message: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: "web".to_owned(),
                uid: "uid-web".to_owned(),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                node_name: node.to_owned(),
                containers: vec![Container {
                    name: "main".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            status: Some(PodStatus {
                conditions: vec![Condition {
                    r#type: "PodScheduled".to_owned(),
                    status: scheduled.to_owned(),
                    message: message.to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_on_no_node_can_not_be_asked_and_says_why() {
        let refused = place(&pod("", "False", "0 of 1 nodes fit"), "").unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(
            refused.message().contains("0 of 1 nodes fit"),
            "{}",
            refused.message()
        );
        // It asks for a node and is not on it yet.
        assert!(place(&pod("n1", "False", ""), "").is_err());
        let found = place(&pod("n1", "True", ""), "main").unwrap();
        assert_eq!((found.node.as_str(), found.uid.as_str()), ("n1", "uid-web"));
    }

    #[test]
    fn a_container_that_is_not_there_is_answered_with_those_that_are() {
        let refused = place(&pod("n1", "True", ""), "other").unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("it has main"), "{}", refused.message());
    }

    #[tokio::test]
    async fn an_exec_ends_with_its_last_frame_or_with_what_broke_it() {
        let frame = |output| {
            Ok(CarryUp {
                frame: Some(Up::Exec(ExecOutput { output: Some(output) })),
            })
        };
        let (send, up) = mpsc::channel(4);
        let (broken, breaks) = oneshot::channel();
        send.send(frame(Output::Stdout(b"hi".to_vec()))).await.unwrap();
        send.send(frame(Output::End(ExecEnd::default()))).await.unwrap();
        drop(broken); // its input ended
        let output = Outputs {
            up,
            breaks: Some(breaks),
        };
        let all: Vec<_> = stream::unfold(Some(output), Outputs::next).collect().await;
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(Result::is_ok));

        let (_send, up) = mpsc::channel(4);
        let (broken, breaks) = oneshot::channel();
        broken.send(Status::invalid_argument("twice")).unwrap();
        let output = Outputs {
            up,
            breaks: Some(breaks),
        };
        let all: Vec<_> = stream::unfold(Some(output), Outputs::next).collect().await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap_err().code(), Code::InvalidArgument);
    }
}
