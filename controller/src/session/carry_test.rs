//! Calls that agents carry out, whichever member is asked.

use rpc::v1::agent_message::Message as Up;
use rpc::v1::controller_message::Message as Down;
use rpc::v1::{
    CallError, CarryDown, CarryUp, Heartbeat, ImportInput, ImportStart, LogChunk, LogsRequest, carry_down,
    carry_up, import_input, open,
};
use state::rbac::{ADMINS, Who};
use tokio::sync::mpsc;
use tonic::{Code, Streaming};

use super::cluster_test::{Agent, Controller, cluster, find_pod, frame, pod};
use crate::calls::Call;

fn logs() -> open::Call {
    open::Call::Logs(LogsRequest::default())
}

fn admin() -> Who {
    Who::authenticated("admin", &[ADMINS.to_owned()])
}

fn chunk(text: &str) -> carry_up::Frame {
    carry_up::Frame::Logs(LogChunk {
        data: text.as_bytes().to_vec(),
    })
}

/// A call from `asked` to the agent of n1, with what the agent got.
async fn begun(
    asked: &Controller,
    agent: &mut Agent,
    call: open::Call,
) -> (Call, mpsc::Sender<CarryUp>, Streaming<CarryDown>) {
    let opening = async {
        let open = agent.open().await;
        assert_eq!((open.pod_uid.as_str(), open.call.as_ref()), ("p", Some(&call)));
        agent.carry(&open.call_id).await
    };
    let admin = admin();
    let (call, (up, down)) = tokio::join!(asked.parts.calls.open(&admin, "n1", call.clone(), "p"), opening);
    (call.unwrap(), up, down)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_reach_a_node_whichever_controller_is_asked() {
    let (ca, controllers) = cluster(2).await;
    let (mut agent, _, _) = Agent::begin(&ca, &controllers[1], "n1").await;
    // Heartbeats that arrive at a follower are renewed at the leader.
    agent.say(Up::Heartbeat(Heartbeat { sequence: 1 })).await;
    loop {
        if let Down::Heartbeat(reply) = agent.next().await {
            assert!(reply.granted);
            break;
        }
    }
    for asked in &controllers {
        // Both directions, then a good end of the client's, then of the node's.
        let (mut call, up, mut down) =
            begun(asked, &mut agent, open::Call::ImportImage(ImportStart::default())).await;
        let data = carry_down::Frame::ImportImage(ImportInput {
            input: Some(import_input::Input::Data(b"archive".to_vec())),
        });
        call.down
            .send(CarryDown {
                frame: Some(data.clone()),
            })
            .await
            .unwrap();
        assert_eq!(down.message().await.unwrap().unwrap().frame, Some(data));
        drop(call.down);
        assert!(down.message().await.unwrap().is_none());
        up.send(frame(chunk("done"))).await.unwrap();
        drop(up);
        assert_eq!(call.up.recv().await.unwrap().unwrap().frame, Some(chunk("done")));
        assert!(call.up.recv().await.is_none());

        // The client leaves.
        let (call, up, mut down) = begun(asked, &mut agent, logs()).await;
        drop(call);
        assert_eq!(down.message().await.unwrap_err().code(), Code::Cancelled);
        drop(up);

        // The call fails at the node.
        let (mut call, up, _down) = begun(asked, &mut agent, logs()).await;
        let error = CallError {
            code: Code::NotFound as i32,
            message: "no such container".to_owned(),
        };
        up.send(frame(carry_up::Frame::Error(error))).await.unwrap();
        let status = call.up.recv().await.unwrap().unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "no such container")
        );
        assert!(call.up.recv().await.is_none());

        // What the node says last arrives, and then an end.
        for _ in 0..20 {
            let (mut call, up, mut down) = begun(asked, &mut agent, logs()).await;
            for _ in 0..3 {
                up.send(frame(chunk("line"))).await.unwrap();
            }
            drop(up);
            assert!(down.message().await.unwrap().is_none());
            for _ in 0..3 {
                assert_eq!(call.up.recv().await.unwrap().unwrap().frame, Some(chunk("line")));
            }
            assert!(call.up.recv().await.is_none());
        }

        let absent = asked
            .parts
            .calls
            .open(&admin(), "n2", logs(), "")
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(absent.code(), Code::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_can_not_take_a_call_of_another() {
    let (ca, controllers) = cluster(1).await;
    let controller = &controllers[0];
    let (mut agent, _, _) = Agent::begin(&ca, controller, "n1").await;
    let (thief, _, _) = Agent::begin(&ca, controller, "n2").await;
    let admin = admin();
    let (call, stolen) = tokio::join!(controller.parts.calls.open(&admin, "n1", logs(), ""), async {
        let open = agent.open().await;
        let (_up, mut down) = thief.carry(&open.call_id).await;
        let stolen = down.message().await;
        let (up, down) = agent.carry(&open.call_id).await;
        up.send(frame(chunk("mine"))).await.unwrap();
        (stolen, up, down)
    });
    assert_eq!(stolen.0.unwrap_err().code(), Code::NotFound);
    let answer = call.unwrap().up.recv().await.unwrap().unwrap();
    assert_eq!(answer.frame, Some(chunk("mine")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_another_controller_passes_on_is_authorised_again() {
    let (ca, controllers) = cluster(2).await;
    let (agent, ..) = Agent::begin(&ca, &controllers[1], "n1").await;
    let passing = &controllers[0];
    passing.put(pod("web")).await;
    let found = |state: &state::State| find_pod(state, "web");
    let uid = controllers[1]
        .until("the pod is there", found)
        .await
        .metadata
        .unwrap()
        .uid;
    let stranger = Who::authenticated("stranger", &[]);
    // As if the first check had let it through.
    let refused = passing
        .parts
        .calls
        .open(&stranger, "n1", logs(), &uid)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("get pods/log web"),
        "{}",
        refused.message()
    );
    drop(agent);
}
