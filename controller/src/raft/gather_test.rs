//! Commands that are proposed together, through a follower and at the leader.

use futures_util::future::join_all;
use proto::state::v1::{CommandReply, command_reply};

use super::cluster_test::{Cluster, applied, large_write, write};

/// Commands at a time.
const COMMANDS: u64 = 200;

fn refused(reply: &CommandReply) -> bool {
    matches!(reply.reply, Some(command_reply::Reply::Refused(_)))
}

/// The same object again and again under other request ids: the first is applied, each other one refused by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_together_share_entries_and_each_gets_its_own_answer() {
    let (_cluster, nodes) = Cluster::three(10_000).await;
    for (round, node) in nodes.iter().enumerate() {
        let before = node.node.progress().last_log_index;
        let commands = (0..COMMANDS).map(|number| {
            let mut command = write(&format!("t{round}-{}", number / 2));
            command.request_id = format!("{round}-{number}");
            node.node.propose(command)
        });
        let replies: Vec<CommandReply> = join_all(commands).await.into_iter().map(Result::unwrap).collect();
        for pair in replies.chunks(2) {
            assert_eq!(pair.iter().filter(|reply| refused(reply)).count(), 1, "{pair:?}");
        }
        applied(node.node.propose(write(&format!("last-{round}"))).await.unwrap());
        let state = node.node.read().await.unwrap();
        assert!((0..COMMANDS / 2).all(|number| state.token(&format!("t{round}-{number}")).is_some()));
        let entries = node.node.progress().last_log_index - before;
        assert!(
            entries < COMMANDS / 4,
            "{entries} entries for {COMMANDS} commands"
        );
    }
}

/// More than one entry holds. In one thread, so that all of them wait before the first is taken up.
#[tokio::test]
async fn large_commands_among_small_ones_all_arrive() {
    let (_cluster, nodes) = Cluster::three(10_000).await;
    // The namespace that they all put is there from here on.
    applied(nodes[0].node.propose(large_write("first", 10)).await.unwrap());
    for (round, node) in nodes.iter().enumerate() {
        let commands = (0..72).map(|number| {
            let bytes = if number % 3 == 0 { 300 << 10 } else { 10 };
            node.node
                .propose(large_write(&format!("m{round}-{number}"), bytes))
        });
        join_all(commands)
            .await
            .into_iter()
            .for_each(|reply| applied(reply.unwrap()));
    }
}
