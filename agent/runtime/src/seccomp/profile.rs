//! The default profile: a list of what is allowed. What the kernel knows to be dangerous answers EPERM, all else, newer
//! calls included, ENOSYS, upon which programs fall back.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// Allowed to every container.
const ALLOWED: &str = "accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown chown32 \
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close \
    close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake \
    futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
    getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid \
    gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc \
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat \
    listen listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise membarrier memfd_create \
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
    newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free \
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 \
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max \
    sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 \
    setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 \
    setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area \
    set_tid_address setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigpending sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat \
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed to those who have a capability.
const BY_CAPABILITY: [(Capability, &str); 11] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysPacct, "acct"),
    (
        Capability::SysPtrace,
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    (Capability::SysRawio, "ioperm iopl"),
    (
        Capability::SysNice,
        "get_mempolicy mbind move_pages set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Refused with EPERM unless a capability allows them; the others that are not listed answer ENOSYS.
const REFUSED: &str = "acct add_key adjtimex bpf chroot clock_adjtime clock_adjtime64 clock_settime clock_settime64 \
    create_module delete_module fanotify_init finit_module get_kernel_syms get_mempolicy init_module ioperm iopl kcmp \
    kexec_file_load kexec_load keyctl lookup_dcookie mbind mount move_pages nfsservctl open_by_handle_at \
    perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace query_module \
    quotactl quotactl_fd reboot request_key set_mempolicy setdomainname sethostname setns settimeofday stime swapoff \
    swapon sysfs _sysctl syslog umount umount2 unshare uselib userfaultfd ustat vhangup vm86 vm86old";

/// Domains of personality(2) that programs use: Linux, Linux 32 bit, both without address randomisation, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// Socket families: unix, IPv4, IPv6, netlink, packet (which takes NET_RAW besides). The others are kernel code that
/// hardly any program needs (AF_ALG and AF_VSOCK among them). `socketcall`, which hides the family in memory, is refused.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: [u64; 7] = [
    0x2_0000,
    0x200_0000,
    0x400_0000,
    0x800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names)
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(if args.is_empty() { None } else { Some(args) });
    rule
}

fn argument(value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op);
    let argument = match value_two {
        Some(value_two) => argument.value_two(value_two),
        None => argument,
    };
    argument.build().expect("every field has a default")
}

/// The default profile for a container with these capabilities.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut allowed: Vec<&str> = ALLOWED.split_whitespace().collect();
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(&capability) {
            allowed.extend(names.split_whitespace());
        }
    }
    allowed.sort_unstable();
    allowed.dedup();
    let refused = REFUSED
        .split_whitespace()
        .filter(|name| !allowed.contains(name))
        .map(str::to_owned)
        .collect();
    let mut rules = vec![
        rule(
            allowed.iter().map(|name| (*name).to_owned()).collect(),
            LinuxSeccompAction::ScmpActAllow,
            None,
            vec![],
        ),
        rule(refused, LinuxSeccompAction::ScmpActErrno, Some(EPERM), vec![]),
    ];
    let allow = LinuxSeccompAction::ScmpActAllow;
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    for persona in PERSONALITIES {
        rules.push(rule(
            vec!["personality".into()],
            allow,
            None,
            vec![argument(persona, None, equal)],
        ));
    }
    for family in FAMILIES {
        rules.push(rule(
            vec!["socket".into()],
            allow,
            None,
            vec![argument(family, None, equal)],
        ));
    }
    if !allowed.contains(&"clone") {
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        let all = NAMESPACES.iter().sum();
        rules.push(rule(
            vec!["clone".into()],
            allow,
            None,
            vec![argument(all, Some(0), masked)],
        ));
        // clone3 hides its flags in memory: not listed, so ENOSYS, upon which the C library takes clone.
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(architectures()))
        .set_flags(None)
        .set_syscalls(Some(rules));
    profile
}

/// The native architecture and those whose programs its kernel runs too: a filter for one alone would let the others by.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchNative]
    }
}
