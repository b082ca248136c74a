//! An allocator for tests, which shows that nothing between clone and exec allocates: a child that does is ended.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::{fd, process};

/// The system's allocator, but in a child of `process::spawn` every call ends the process with SIGABRT. There the lock of
/// the allocator may be held by a thread of the parent's, which the child does not have: it would wait for ever.
///
/// `#[global_allocator]` of a test program makes all containers that it starts a proof.
#[derive(Debug)]
pub struct NotInChildren;

fn check() {
    if process::is_spawned() {
        fd::complain(b"a child of process::spawn allocated or freed memory\n");
        process::abort();
    }
}

// SAFETY: every call goes to the system's allocator with what it was given; the check before allocates nothing and either
// returns or ends the process.
unsafe impl GlobalAlloc for NotInChildren {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: our caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::NotInChildren;
    use crate::process::{self, CloneArgs, Ended};

    #[global_allocator]
    static ALLOCATOR: NotInChildren = NotInChildren;

    fn ended(body: impl FnOnce() -> i32) -> Ended {
        let args = CloneArgs {
            exit_signal: libc::SIGCHLD,
            ..CloneArgs::default()
        };
        let pid = process::spawn(args, body).unwrap();
        process::wait_pid(pid).unwrap()
    }

    #[test]
    fn a_child_that_allocates_or_frees_is_ended() {
        let kept = String::from("of the parent");
        assert_eq!(ended(|| 0), Ended::Exited(0));
        assert_eq!(
            ended(|| i32::from(std::hint::black_box(vec![0u8; 10]).is_empty())),
            Ended::Signaled(libc::SIGABRT)
        );
        let freed = kept.clone();
        assert_eq!(
            ended(move || {
                drop(freed);
                0
            }),
            Ended::Signaled(libc::SIGABRT)
        );
        assert_eq!(kept.len(), 13);
    }
}
