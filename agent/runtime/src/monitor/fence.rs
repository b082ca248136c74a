//! The fence of a pod that must not run twice: its containers run only while somebody moves their end on, and end by
//! themselves when nobody does, whatever became of the agent.
//!
//! Times are milliseconds since the machine started, the time in which it slept included.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use sys::time::{KillTimer, TimerFd, boottime_ms};

use super::container::Owned;
use super::protocol::Reply;
use super::request::failed;
use super::server::Server;
use crate::spec::FenceSpec;

/// How long after SIGKILL to send it again.
const KILL_AGAIN_MS: u64 = 200;
/// How long after the time for SIGKILL the kernel kills the monitor, and with it what it is the parent of: a monitor that
/// starts or removes something else meanwhile, hangs or was stopped does not do it itself.
const LAST_RESORT_MS: u64 = 1_000;

/// What is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Containers are to be asked to end.
    End,
    /// What is left is to be killed.
    Kill,
}

/// Until when containers may run, and what follows. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Limit {
    grace_ms: u64,
    /// Containers may run until then; 0: nobody has said so yet.
    until: u64,
    /// They have been asked to end.
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    /// What is left then is killed. What was told to end is not told otherwise: another pod may wait for exactly that.
    kill_at: u64,
    /// When to kill, next.
    next: u64,
}

impl Limit {
    /// Never earlier than it was.
    fn renew(&mut self, until: u64) {
        self.until = self.until.max(until);
    }

    fn may_start(&self, now: u64) -> bool {
        self.ending.is_none() && now < self.until
    }

    /// What is due, if something runs. Each answer is to be carried out.
    fn due(&mut self, runs: bool, now: u64) -> Due {
        if !runs {
            self.ending = None;
            return Due::Nothing;
        }
        let begins = self.ending.is_none() && now >= self.until;
        if begins {
            let kill_at = self.kill_at();
            self.ending = Some(Ending {
                kill_at,
                next: kill_at,
            });
        }
        match &mut self.ending {
            Some(ending) if now >= ending.next => {
                ending.next = now + KILL_AGAIN_MS;
                Due::Kill
            }
            Some(_) if begins => Due::End,
            _ => Due::Nothing,
        }
    }

    fn kill_at(&self) -> u64 {
        match self.ending {
            Some(ending) => ending.kill_at,
            None => self.until.saturating_add(self.grace_ms),
        }
    }

    /// When something is due next, if something runs.
    fn next(&self) -> u64 {
        self.ending.map_or(self.until, |ending| ending.next)
    }
}

/// A pod's fence, with its timers.
#[derive(Debug)]
pub(super) struct Fence {
    limit: Limit,
    timer: TimerFd,
    last_resort: KillTimer,
}

impl Fence {
    pub(super) fn new(spec: FenceSpec) -> io::Result<Self> {
        Ok(Fence {
            limit: Limit {
                grace_ms: spec.grace_ms,
                ..Limit::default()
            },
            timer: TimerFd::new()?,
            last_resort: KillTimer::new()?,
        })
    }

    /// Readable when something is due.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn arm(&self, runs: bool) -> io::Result<()> {
        let at = |at: u64| runs.then_some(at);
        self.last_resort
            .set(at(self.limit.kill_at().saturating_add(LAST_RESORT_MS)))?;
        self.timer.set(at(self.limit.next()))
    }
}

impl Server {
    /// Containers of the pod may run until then.
    pub(super) fn renew(&mut self, until_ms: u64) -> Reply {
        let Some(fence) = &mut self.fence else {
            return failed(
                "NotFenced",
                "the pod was not started as one that must not run twice",
            );
        };
        fence.limit.renew(until_ms);
        self.tick_fence();
        Reply::Done
    }

    /// Why nothing may start now. If it may, the kernel watches over its end already while it starts.
    pub(super) fn refuse_start(&self) -> Option<Reply> {
        let fence = self.fence.as_ref()?;
        if !fence.limit.may_start(boottime_ms()) {
            let message = "the pod must not run twice, and no controller has confirmed its node lately";
            return Some(failed(FENCED, message));
        }
        let armed = fence.arm(true).err();
        armed.map(|error| failed("CreateContainerError", format!("failed to set a timer: {error}")))
    }

    /// Ends what may run no longer.
    pub(super) fn tick_fence(&mut self) {
        let runs = self.containers.iter().any(Owned::is_running);
        let Some(fence) = &mut self.fence else { return };
        let due = fence.limit.due(runs, boottime_ms());
        let armed = fence.arm(runs);
        if due != Due::Nothing {
            eprintln!("no controller has confirmed the node in time: {due:?}");
            for container in self.containers.iter_mut().filter(|one| one.is_running()) {
                container.fence(due == Due::Kill);
            }
        }
        if let Err(error) = armed {
            eprintln!("failed to set a timer, so the pod ends: {error}");
            self.begin_end();
        }
    }
}

/// Why a container did not start, or ended.
pub const FENCED: &str = "Fenced";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(grace_ms: u64, until: u64) -> Limit {
        Limit {
            grace_ms,
            until,
            ending: None,
        }
    }

    #[test]
    fn nothing_starts_before_somebody_allows_it_and_nothing_is_due_while_nothing_runs() {
        let mut limit = limit(100, 0);
        assert!(!limit.may_start(5));
        assert_eq!(limit.due(false, 5), Due::Nothing);
        limit.renew(10);
        assert!(limit.may_start(9) && !limit.may_start(10));
    }

    #[test]
    fn what_runs_is_asked_to_end_and_killed_after_its_grace() {
        let mut limit = limit(100, 50);
        assert_eq!((limit.due(true, 49), limit.next()), (Due::Nothing, 50));
        assert_eq!((limit.due(true, 50), limit.next()), (Due::End, 150));
        assert_eq!(limit.due(true, 149), Due::Nothing);
        assert_eq!(limit.due(true, 150), Due::Kill);
        assert_eq!(limit.due(true, 151), Due::Nothing);
        assert_eq!(limit.due(true, 150 + KILL_AGAIN_MS), Due::Kill);
    }

    #[test]
    fn a_machine_that_slept_too_long_kills_at_once() {
        let mut limit = limit(100, 50);
        assert_eq!(limit.due(true, 5000), Due::Kill);
    }

    #[test]
    fn a_late_word_revives_nothing_and_allows_the_next_start() {
        let mut limit = limit(100, 50);
        assert_eq!(limit.due(true, 60), Due::End);
        limit.renew(10_000);
        assert!(!limit.may_start(70));
        assert_eq!((limit.due(true, 150), limit.kill_at()), (Due::Kill, 150));
        assert_eq!(limit.due(false, 160), Due::Nothing);
        assert!(limit.may_start(170));
    }

    #[test]
    fn an_earlier_time_takes_nothing_back() {
        let mut limit = limit(0, 50);
        limit.renew(20);
        assert_eq!(limit.due(true, 30), Due::Nothing);
        assert_eq!(limit.due(true, 50), Due::Kill, "without grace");
    }

    proptest! {
        /// However late and seldom it is asked: what runs began before a time that was allowed, and whatever runs longer than
        /// the grace period after that is being killed, by us or by the kernel.
        #[test]
        fn nothing_runs_beyond_the_grace_unkilled(
            grace in 0_u64..200,
            steps in prop::collection::vec((1_u64..150, prop::option::of(0_u64..300), any::<bool>()), 1..60),
        ) {
            let mut limit = limit(grace, 0);
            let (mut now, mut runs, mut allowed) = (0, false, 0);
            let mut ended_by: Option<u64> = None;
            for (pause, renewed, event) in steps {
                now += pause;
                if let Some(more) = renewed {
                    limit.renew(now + more);
                }
                if !runs && event && limit.may_start(now) {
                    runs = true;
                    ended_by = None;
                }
                if runs && ended_by.is_none() {
                    allowed = limit.until;
                }
                match limit.due(runs, now) {
                    Due::Nothing => {}
                    Due::End => {
                        prop_assert!(now >= allowed);
                        ended_by = Some(allowed + grace);
                    }
                    Due::Kill => {
                        prop_assert!(now >= allowed + grace);
                        runs = false;
                        prop_assert_eq!(limit.due(runs, now), Due::Nothing);
                    }
                }
                if runs {
                    prop_assert!(now < allowed + grace, "it should have been killed");
                    prop_assert_eq!(limit.kill_at(), allowed + grace);
                    prop_assert!(limit.next() > now);
                }
            }
        }
    }
}
