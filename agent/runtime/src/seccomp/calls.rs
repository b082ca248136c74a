//! The calls of the default profile, each group with its reason. `docs/seccomp.md` is made from these tables.

use oci_spec::runtime::Capability;

/// Calls, separated by spaces, and why they are in their table.
pub(super) type Group = (&'static str, &'static str);

/// Allowed to every container.
pub(super) const ALLOWED: [Group; 12] = [
    (
        "processes and signals, its own and those it may signal",
        "alarm execve execveat exit exit_group fork getcpu getpgid getpgrp getpid getppid getrusage getsid gettid \
         kill pause pidfd_open pidfd_send_signal process_mrelease restart_syscall rt_sigaction rt_sigpending \
         rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
         rt_tgsigqueueinfo setpgid setsid set_tid_address sigaltstack signalfd signalfd4 sigpending sigprocmask \
         sigreturn tgkill times tkill vfork wait4 waitid waitpid",
    ),
    (
        "threads and their locks",
        "arch_prctl futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list \
         get_thread_area membarrier modify_ldt rseq set_robust_list set_thread_area",
    ),
    (
        "who it is: capabilities decide what it may become",
        "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
         getresgid32 getresuid getresuid32 getuid getuid32 prctl setfsgid setfsgid32 setfsuid setfsuid32 setgid \
         setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
         setreuid32 setuid setuid32 umask",
    ),
    (
        "gives rights up",
        "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    ),
    (
        "its own memory",
        "brk madvise memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal \
         msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    ),
    (
        "sockets that it has; `socket` decides which there can be",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
         recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair",
    ),
    (
        "messages, semaphores, shared memory of its IPC namespace",
        "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
         mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
         semtimedop_time64 shmat shmctl shmdt shmget",
    ),
    (
        "reads clocks, waits, its own timers",
        "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
         getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime \
         timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
         timerfd_settime timerfd_settime64",
    ),
    (
        "scheduling and limits, its own or as capabilities allow",
        "getpriority getrlimit ioprio_get ioprio_set prlimit64 sched_getaffinity sched_getattr sched_getparam \
         sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval \
         sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
         sched_yield setpriority setrlimit ugetrlimit",
    ),
    (
        "waits for descriptors, moves data between them",
        "close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
         epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark fcntl fcntl64 \
         inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents \
         io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect pipe pipe2 poll ppoll ppoll_time64 \
         pselect6 pselect6_time64 select sendfile sendfile64 splice tee vmsplice",
    ),
    ("about the machine, nothing of others", "getrandom sysinfo uname"),
    (
        "files: their permissions and the mounts decide",
        "access chdir chmod chown chown32 creat faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir \
         fchmod fchmodat fchmodat2 fchown fchown32 fchownat fdatasync fgetxattr flistxattr flock fremovexattr \
         fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd \
         getdents getdents64 getxattr lchown lchown32 lgetxattr link linkat listxattr llistxattr _llseek \
         lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open \
         openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
         removexattr rename renameat renameat2 rmdir setxattr stat stat64 statfs statfs64 statx symlink symlinkat \
         sync sync_file_range syncfs truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes \
         write writev",
    ),
];

/// Refused with EPERM unless a capability allows them; the others that are not listed answer ENOSYS.
pub(super) const REFUSED: [Group; 10] = [
    (
        "the clock is the machine's",
        "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    ),
    (
        "brings code into the kernel",
        "bpf create_module delete_module finit_module get_kernel_syms init_module kexec_file_load kexec_load \
         query_module",
    ),
    (
        "namespaces and mounts are made by the runtime; new ones open much of the kernel to attack",
        "chroot mount pivot_root setns umount umount2 unshare",
    ),
    (
        "keys are not kept apart by namespaces",
        "add_key keyctl request_key",
    ),
    (
        "reads or changes other processes",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    (
        "opens files by number, past every mount and directory",
        "open_by_handle_at",
    ),
    (
        "changes or shows the whole machine",
        "acct fanotify_init lookup_dcookie perf_event_open quotactl quotactl_fd reboot setdomainname sethostname \
         swapoff swapon syslog vhangup",
    ),
    ("touches hardware", "ioperm iopl vm86 vm86old"),
    (
        "places memory, which is the node's to decide",
        "get_mempolicy mbind move_pages set_mempolicy",
    ),
    (
        "obsolete or a help to exploits; nothing needs it",
        "nfsservctl sysfs _sysctl uselib userfaultfd ustat",
    ),
];

/// Allowed to those who have a capability.
pub(super) const BY_CAPABILITY: [(Capability, &str); 12] = [
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
    (
        Capability::SysTime,
        "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
    (Capability::Perfmon, "perf_event_open"),
];
