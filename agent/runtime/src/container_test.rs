use super::*;

/// A helper that ends with this exit code and is not reaped yet.
fn helper(code: i32) -> i32 {
    let args = CloneArgs {
        flags: 0,
        exit_signal: libc::SIGCHLD,
        cgroup: None,
    };
    process::spawn(args, || code).unwrap()
}

fn explain() -> Explain {
    Explain::default()
}

#[test]
fn a_process_that_speaks_before_its_helper_is_heard() {
    let (ours, theirs) = socket::seqpacket_pair().unwrap();
    for record in [Record::Exec, Record::Pid(4711)] {
        record.send(theirs.as_fd()).unwrap();
    }
    let mut early = VecDeque::new();
    let pid = introduced(&ours, helper(0), &explain(), &mut early).unwrap();
    assert_eq!(pid, 4711);
    assert!(matches!(early.make_contiguous(), [(Record::Exec, None)]));
}

#[test]
fn a_helper_that_ends_without_a_word_has_died() {
    let (ours, theirs) = socket::seqpacket_pair().unwrap();
    drop(theirs);
    let mut early = VecDeque::new();
    let died = introduced(&ours, helper(3), &explain(), &mut early).unwrap_err();
    assert!(matches!(died, StartError::Died { code: 3 }), "{died}");
}

#[test]
fn a_process_without_a_helpers_word_is_not_waited_for() {
    // The process still holds its end of the socket.
    let (ours, theirs) = socket::seqpacket_pair().unwrap();
    Record::Hooks.send(theirs.as_fd()).unwrap();
    let mut early = VecDeque::new();
    let died = introduced(&ours, helper(9), &explain(), &mut early).unwrap_err();
    assert!(matches!(died, StartError::Died { code: 9 }), "{died}");
}
