//! The leader's loop: what follows from the state is proposed until nothing follows.
//!
//! It runs on the member that leads and stops with its leadership. Each pass looks at a state in which the proposals of the
//! pass before are applied: first `state::plan`, then `state::schedule` over what came of it. A pass begins when the state
//! or a lease has changed, and once a second.

mod told;

use std::time::Duration;

use futures_util::{StreamExt, stream};
use proto::state::v1::command_reply::Reply;
use proto::state::v1::{Command, CommandReply, RaiseLevel, StatusBatch, command};
use state::plan::Lease;
use state::{State, plan, schedule};
use tokio::time::Instant;

use crate::clock;
use crate::events::Events;
use crate::figures::Figures;
use crate::leases::Leases;
use crate::raft::{Node, ProposeError};
use crate::security::new_uuid;
use crate::session::node_key;

/// Some steps wait for a time, so the plan is asked at least this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// Commands of one pass under way at a time: they share the disks' syncs, and enter the log in their order.
const PROPOSALS_MAX: usize = 32;
/// After a refusal the next pass waits, twice as long each time: what is out of date passes, what isn't must not spin.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
/// Longest such wait.
const REFUSED_PAUSE_MAX: Duration = INTERVAL;
/// After a command of which nothing is known.
const FAILED_PAUSE: Duration = Duration::from_millis(200);
/// How often members are asked what they can apply while some know less than this one.
const LEVEL_INTERVAL: Duration = Duration::from_secs(5);
/// Deciding may take half of one processor: a pass that took longer than this is followed by a rest as long as itself.
const QUICK: Duration = Duration::from_millis(5);

/// The loop with what it needs.
pub(crate) struct Drive {
    pub(crate) node: Node,
    pub(crate) leases: Leases,
    pub(crate) events: Events,
    pub(crate) figures: Figures,
}

/// What came of one pass.
#[derive(Debug, Default)]
struct Pass {
    /// How long deciding took.
    decided: Duration,
    proposed: usize,
    refused: usize,
    /// Of some proposal it is not known whether it will be applied.
    unknown: bool,
}

impl Drive {
    /// Runs while this member leads, again and again, until consensus ends.
    pub(crate) async fn run(self) {
        let mut leadership = self.node.leadership();
        loop {
            let term = match leadership.wait_for(|now| now.is_me).await {
                Ok(now) => now.term,
                Err(_) => return,
            };
            let mut deposed = leadership.clone();
            self.leases.begin();
            let ended = tokio::select! {
                biased;
                ended = deposed.wait_for(|now| !now.is_me || now.term != term) => ended.is_err(),
                () = self.lead(term) => true,
            };
            self.leases.end();
            self.figures.follow();
            if ended {
                return;
            }
        }
    }

    async fn lead(&self, term: u64) {
        // A new leader first has to have applied all that was committed before it.
        while let Err(cause) = self.node.read().await {
            tracing::info!(%cause, "the new leader waits for most of the members");
            tokio::time::sleep(FAILED_PAUSE).await;
        }
        let mut applied = self.node.applied();
        let mut pause = REFUSED_PAUSE;
        let mut levels_asked = None;
        loop {
            let began = Instant::now();
            let state = applied.borrow_and_update().state.clone();
            let lately = levels_asked.is_some_and(|asked: Instant| asked.elapsed() < LEVEL_INTERVAL);
            if state.level() < self.node.schema_level() && !lately {
                levels_asked = Some(began);
                self.raise_level(&state).await;
            }
            let pass = self.pass(&state, term).await;
            if pass.proposed > 0 {
                tracing::debug!(revision = state.revision(), ?pass, "a pass of the leader's loop");
            }
            if pass.unknown && !self.barrier().await {
                return;
            }
            if pass.refused > 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(REFUSED_PAUSE_MAX);
            } else {
                pause = REFUSED_PAUSE;
            }
            if pass.decided > QUICK {
                tokio::time::sleep(pass.decided).await;
            }
            let next = self
                .leases
                .next_end()
                .map_or(began + INTERVAL, |end| end.min(began + INTERVAL));
            tokio::select! {
                biased;
                // What changed no object (a refusal, say) is no reason to look again.
                moved = applied.wait_for(|applied| applied.state.revision() != state.revision()) => {
                    if moved.is_err() {
                        return;
                    }
                }
                () = self.leases.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Lets the cluster write what every member can apply: after the last one was upgraded.
    async fn raise_level(&self, state: &State) {
        let Some(level) = self
            .node
            .common_level()
            .await
            .filter(|level| *level > state.level())
        else {
            return;
        };
        let raise = Command {
            request_id: new_uuid(),
            time: Some(clock::timestamp(clock::now_ms())),
            kind: Some(command::Kind::RaiseLevel(RaiseLevel { level })),
            ..Default::default()
        };
        match self.node.propose(raise).await {
            Ok(_) => tracing::info!(
                level,
                "every controller knows this schema level: it is in use from now on"
            ),
            Err(cause) => {
                tracing::warn!(%cause, level, "the schema level was not raised; this is tried again")
            }
        }
    }

    async fn pass(&self, state: &State, term: u64) -> Pass {
        let mut pass = Pass::default();
        let world = self.leases.world(plan::nodes(state), clock::now_ms());
        let lost = |(name, lease): &(&String, &Lease)| {
            matches!(lease, Lease::Lost { .. }) && state.contains(&node_key(name))
        };
        let lost = world.leases.iter().filter(lost).count();
        let misses = world
            .leases
            .values()
            .any(|lease| matches!(lease, Lease::Lost { .. }));
        let planned = {
            let state = state.clone();
            decide(&mut pass, move || plan::commands(&state, clock::now_ms(), &world)).await
        };
        let mut state = state.clone();
        if let Some(commands) = planned
            && !commands.is_empty()
        {
            // Whose state has what a later leader committed does not decide by its own leases any more.
            if misses && !self.node.leads_in(term).await {
                pass.refused += 1;
                return pass;
            }
            self.propose(&state, commands, &mut pass).await;
            if pass.unknown {
                return pass;
            }
            state = self.node.stale();
        }
        let placed = {
            let state = state.clone();
            decide(&mut pass, move || schedule::commands(&state, clock::now_ms())).await
        };
        let (commands, unplaced) = placed.unwrap_or_default();
        self.figures.pass(lost, unplaced.len());
        self.propose(&state, commands, &mut pass).await;
        pass
    }

    /// Proposes in order; each answer comes once its command is applied here.
    async fn propose(&self, before: &State, commands: Vec<Command>, pass: &mut Pass) {
        pass.proposed += commands.len();
        let proposals = commands.into_iter().map(|command| async move {
            let answer = self.node.propose(command.clone()).await;
            (command, answer)
        });
        let mut answers = stream::iter(proposals).buffered(PROPOSALS_MAX);
        while let Some((command, answer)) = answers.next().await {
            match answer.map(|CommandReply { reply }| reply) {
                Ok(Some(Reply::Applied(_))) => {
                    self.events
                        .record(told::events(before, &command, clock::now_ms()))
                }
                Ok(Some(Reply::Refused(refused))) => {
                    tracing::debug!(
                        reason = refused.reason,
                        message = refused.message,
                        "a step was out of date"
                    );
                    pass.refused += 1;
                }
                Ok(None) => pass.refused += 1,
                Err(cause @ ProposeError::TooLarge { .. }) => {
                    tracing::error!(%cause, "a step of the leader's loop can't be proposed");
                    pass.refused += 1;
                }
                Err(cause) => {
                    tracing::info!(%cause, "a step of the leader's loop was not confirmed");
                    pass.unknown = true;
                }
            }
        }
    }

    /// After a proposal of which nothing is known: returns true when nothing of before can still be applied, since what
    /// follows it in the log was. False when consensus has ended.
    async fn barrier(&self) -> bool {
        loop {
            tokio::time::sleep(FAILED_PAUSE).await;
            let nothing = Command {
                request_id: new_uuid(),
                time: Some(clock::timestamp(clock::now_ms())),
                kind: Some(command::Kind::Status(StatusBatch::default())),
                ..Default::default()
            };
            match self.node.propose(nothing).await {
                Ok(_) => return true,
                Err(ProposeError::Stopped { cause }) => {
                    tracing::info!(cause, "the leader's loop ends");
                    return false;
                }
                Err(cause) => tracing::info!(%cause, "the leader's loop waits"),
            }
        }
    }
}

/// Decides off the async threads: over a large cluster it takes a while. None when that failed.
async fn decide<T: Send + 'static>(pass: &mut Pass, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let timed = move || {
        let began = Instant::now();
        (work(), began.elapsed())
    };
    match crate::blocking(timed).await {
        Ok((decided, took)) => {
            pass.decided += took;
            Some(decided)
        }
        Err(cause) => {
            tracing::error!(error = %cause, "the leader's loop failed to decide");
            pass.refused += 1;
            None
        }
    }
}
