//! The clock that goes on while the machine sleeps (CLOCK_BOOTTIME), and timers by it. Times are milliseconds since the machine
//! started.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use crate::{cvt_int, own};

/// The time now.
pub fn boottime_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is ours and lives through the call.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    // clock_gettime(2): it fails for a bad pointer or a clock that there is not; this one there is since Linux 2.6.39.
    assert_eq!(ret, 0, "the kernel has a clock of the time since its start");
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Once, at this time; never for none. A time that is past comes at once (timer_settime(2), timerfd_settime(2)).
fn once(at_ms: Option<u64>) -> libc::itimerspec {
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let value = match at_ms {
        None => zero,
        // Zero would stop it.
        Some(at) => libc::timespec {
            tv_sec: (at / 1000).min(i64::MAX as u64) as libc::time_t,
            tv_nsec: ((at % 1000) as libc::c_long * 1_000_000).max(1),
        },
    };
    libc::itimerspec {
        it_interval: zero,
        it_value: value,
    }
}

/// A time as something to wait for in an epoll set; readable once it has come. Non-blocking, closed on exec.
#[derive(Debug)]
pub struct TimerFd(OwnedFd);

impl TimerFd {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: integers.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        own(fd.into()).map(TimerFd)
    }

    /// Sets it to this time, or to none. What came before is forgotten.
    pub fn set(&self, at_ms: Option<u64>) -> io::Result<()> {
        let value = once(at_ms);
        // SAFETY: `value` lives through the call; nothing is asked back.
        let ret = unsafe {
            libc::timerfd_settime(
                self.0.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const value,
                ptr::null_mut(),
            )
        };
        cvt_int(ret).map(drop)
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A time at which the kernel kills this process, whatever it does then: also one that hangs or was stopped.
#[derive(Debug)]
pub struct KillTimer(libc::timer_t);

impl KillTimer {
    /// One that is not set. It is not inherited by children, and ends with an exec (timer_create(2)).
    pub fn new() -> io::Result<Self> {
        // SAFETY: sigevent is plain integers and a union of such, for which zero is valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: `event` and `timer` are ours and live through the call.
        let ret = unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) };
        cvt_int(ret)?;
        Ok(KillTimer(timer))
    }

    /// Sets it to this time, or to none.
    pub fn set(&self, at_ms: Option<u64>) -> io::Result<()> {
        let value = once(at_ms);
        // SAFETY: the timer is of this process and not deleted before `self` is; `value` lives through the call.
        let ret =
            unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const value, ptr::null_mut()) };
        cvt_int(ret).map(drop)
    }
}

impl Drop for KillTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and nobody uses it after this.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::{Epoll, wait_readable};
    use std::time::Duration;

    #[test]
    fn a_timer_comes_when_it_is_set_and_not_when_it_is_not() {
        let timer = TimerFd::new().unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(timer.as_fd(), 7, true, false).unwrap();
        let before = boottime_ms();
        timer.set(Some(before + 30)).unwrap();
        let events = epoll.wait(Some(Duration::from_secs(10))).unwrap();
        assert_eq!((events.len(), events[0].token), (1, 7));
        assert!(boottime_ms() >= before + 30);
        timer.set(None).unwrap();
        assert!(!wait_readable(timer.as_fd(), Some(Duration::ZERO)).unwrap());
        timer.set(Some(0)).unwrap();
        assert!(
            wait_readable(timer.as_fd(), Some(Duration::from_secs(10))).unwrap(),
            "a past time"
        );
    }

    #[test]
    fn the_kernel_kills_who_does_not_move_the_time_on() {
        let child = crate::process::spawn(
            crate::process::CloneArgs {
                exit_signal: libc::SIGCHLD,
                ..Default::default()
            },
            || {
                let Ok(timer) = KillTimer::new() else { return 1 };
                let now = boottime_ms();
                let set = timer.set(Some(now + 50)).is_ok() && timer.set(None).is_ok();
                // Stopped, it does nothing by itself any more.
                if !set || timer.set(Some(boottime_ms() + 50)).is_err() {
                    return 2;
                }
                let stopped = crate::process::kill(crate::process::getpid(), libc::SIGSTOP);
                i32::from(stopped.is_err()) + 3
            },
        );
        let child = child.unwrap();
        let pidfd = crate::process::pidfd_open(child).unwrap();
        assert_eq!(
            crate::process::wait(std::os::fd::AsFd::as_fd(&pidfd)).unwrap(),
            crate::process::Ended::Signaled(libc::SIGKILL)
        );
    }
}
