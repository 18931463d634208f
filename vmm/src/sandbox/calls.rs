// SPDX-License-Identifier: GPL-2.0-only
//! Which system calls a thread may make: seccomp filters.
//!
//! A call is here because the role's code, the standard library or glibc makes it once the guest
//! runs. What a call may not be is checked where its numbers tell; paths and addresses cannot be,
//! they are memory.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Role;

/// Of linux/kvm.h: `_IO(0xae, 0x80)`, and `_IOR(0xae, 0x81, struct kvm_regs)`.
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// Not in libc yet.
const SYS_CACHESTAT: c_long = 451;

/// Every thread.
const ALL: &[c_long] = &[
    // The allocator; stacks of threads that end; the page of zeroes in place of a missing one.
    // (mmap and mprotect have conditions.)
    SYS_brk,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    // How many arenas the allocator makes; keys of hash maps.
    SYS_sched_getaffinity,
    SYS_getrandom,
    // Locks, channels, joining; time where the vDSO cannot tell it.
    SYS_futex,
    SYS_sched_yield,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_restart_syscall,
    // Files that are open: events, logs, pipes.
    SYS_read,
    SYS_write,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_fstat,
    SYS_ftruncate,
    SYS_close,
    // Signals, and the ends of threads, of the process, and of aborts.
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_sigaltstack,
    SYS_getpid,
    SYS_gettid,
    SYS_exit,
    SYS_exit_group,
];

/// Threads that open, replace and remove files (fcntl has a condition).
const PATHS: &[c_long] = &[
    SYS_openat,
    SYS_lseek,
    SYS_rename,
    SYS_renameat,
    SYS_unlink,
    SYS_unlinkat,
    SYS_getdents64,
    SYS_flock,
];

/// Threads that change the snapshot store.
const STORE: &[c_long] = &[SYS_fallocate, SYS_linkat, SYS_statfs];

const COMMAND: &[c_long] = &[
    SYS_poll,
    // Sessions with the guest's agent (socket has a condition).
    SYS_connect,
    SYS_recvfrom,
    SYS_sendto,
    SYS_sendmsg,
    SYS_setsockopt,
    SYS_getsockopt,
    SYS_shutdown,
    SYS_pipe2,
    // Detached, it leaves standard output and errors.
    SYS_dup2,
    // The thread that waits for the guest's agent (clone has a condition).
    SYS_set_robust_list,
    SYS_rseq,
];

const COUNTERS: &[c_long] = &[SYS_poll, SYS_accept4, SYS_setsockopt, SYS_sendto];

const DEVICES: &[c_long] = &[
    SYS_epoll_wait,
    SYS_epoll_ctl,
    SYS_timerfd_settime,
    // Guest memory from and to streams.
    SYS_readv,
    SYS_sendmsg,
    // Streams of vsock.
    SYS_accept4,
    SYS_recvfrom,
    SYS_sendto,
    SYS_shutdown,
];

/// Guest memory from and to the image; flushes (fallocate has a condition).
const DISK: &[c_long] = &[SYS_preadv, SYS_pwritev, SYS_fdatasync];

/// A driver starts and stops its device by a register.
const VCPU: &[c_long] = &[SYS_epoll_ctl, SYS_timerfd_settime];

const SNAPSHOTS: &[c_long] = &[SYS_epoll_wait, SYS_pwritev, SYS_CACHESTAT];

/// What libraries ask for by themselves and can do without: where they are and what is there,
/// for the trace of a panic; glibc's allocator, whether memory is overcommitted.
const WHERE: &[c_long] = &[
    SYS_getcwd,
    SYS_readlink,
    SYS_readlinkat,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_open,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters of a role, in the order in which they must be installed.
pub fn filters(role: Role) -> Result<Vec<SeccompFilter>, BackendError> {
    let filter =
        |rules, otherwise, action| SeccompFilter::new(rules, otherwise, action, TargetArch::x86_64);
    let refused = |errno: c_int| SeccompAction::Errno(errno.cast_unsigned());
    let mut filters = vec![filter(
        done_without(role)?,
        SeccompAction::Allow,
        refused(EACCES),
    )?];
    if role == Role::Command {
        // Its flags are in memory. glibc takes `clone` instead, which has them in a register.
        let clone3 = Rules::from([(SYS_clone3, Vec::new())]);
        filters.push(filter(clone3, SeccompAction::Allow, refused(ENOSYS))?);
    }
    filters.push(filter(
        allowed(role)?,
        SeccompAction::Trap,
        SeccompAction::Allow,
    )?);
    Ok(filters)
}

/// What fails with EACCES.
fn done_without(role: Role) -> Result<Rules, BackendError> {
    let mut rules: Rules = WHERE.iter().map(|call| (*call, Vec::new())).collect();
    if role.opens_nothing() {
        rules.insert(SYS_openat, Vec::new());
        // Of an open file they are allowed.
        let by_path = |flags| is_unset(flags, AT_EMPTY_PATH);
        rules.insert(SYS_statx, vec![SeccompRule::new(vec![by_path(2)?])?]);
        rules.insert(SYS_newfstatat, vec![SeccompRule::new(vec![by_path(3)?])?]);
    }
    if role == Role::Devices {
        // The guest asks for a stream to a socket of the host: there is none for it.
        rules.insert(SYS_socket, Vec::new());
    }
    Ok(rules)
}

/// What is allowed; all else ends the process.
fn allowed(role: Role) -> Result<Rules, BackendError> {
    let own: &[&[c_long]] = match role {
        Role::Command => &[PATHS, COMMAND],
        Role::Counters => &[PATHS, COUNTERS],
        Role::Devices => &[PATHS, STORE, DEVICES],
        Role::Disk => &[DISK],
        Role::Vcpu => &[VCPU],
        Role::Snapshots => &[PATHS, STORE, SNAPSHOTS],
    };
    let calls = ALL.iter().chain(own.iter().copied().flatten());
    let mut rules: Rules = calls.map(|call| (*call, Vec::new())).collect();
    // What fails with EACCES passes here: the stricter filter wins.
    let done_without = done_without(role)?.into_keys();
    rules.extend(done_without.map(|call| (call, Vec::new())));
    rules.extend([SYS_statx, SYS_newfstatat].map(|call| (call, Vec::new())));
    rules.extend(with_conditions(role)?);
    Ok(rules)
}

/// What is allowed with some arguments and not with others.
fn with_conditions(role: Role) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    // No code but what is there.
    for call in [SYS_mmap, SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![is_unset(2, PROT_EXEC)?])?]);
    }
    // An access that is nobody's fault but ours gets the default action: the end.
    let mortal = [SIGBUS, SIGSEGV, SIGABRT];
    rules.insert(SYS_rt_sigaction, one_of(0, mortal.map(number))?);
    // Threads of this process alone: kicks of vCPUs, aborts.
    let us = u64::from(std::process::id());
    rules.insert(SYS_tgkill, one_of(0, [us])?);
    // TCSETS for all: the terminal gets back its mode when the sandbox ends the process.
    let ioctls: &[u64] = match role {
        Role::Command => &[TCGETS, TCSETS, TCSETSW, TIOCGWINSZ, FIONBIO],
        Role::Devices => &[TCSETS, TIOCGWINSZ, FIONBIO],
        Role::Counters => &[TCSETS, FIONBIO],
        Role::Vcpu => &[TCSETS, KVM_RUN, KVM_GET_REGS],
        Role::Disk | Role::Snapshots => &[TCSETS],
    };
    rules.insert(SYS_ioctl, one_of(1, ioctls.iter().copied())?);
    // Not F_SETOWN, which has the kernel send signals.
    let fcntls: &[c_int] = match role {
        // Asked of each file that is closed, where assertions are on.
        Role::Disk | Role::Vcpu => &[F_GETFD],
        _ => &[F_GETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC],
    };
    rules.insert(SYS_fcntl, one_of(1, fcntls.iter().copied().map(number))?);
    if role == Role::Disk {
        // Discards and zeroes: never more blocks behind the end, or other bytes elsewhere.
        let empties = [FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE];
        let empties = empties.map(|way| number(way | FALLOC_FL_KEEP_SIZE));
        rules.insert(SYS_fallocate, one_of(1, empties)?);
    }
    if role == Role::Command {
        rules.insert(SYS_socket, one_of(0, [number(AF_UNIX)])?);
        let thread = number(CLONE_THREAD | CLONE_VM);
        let is_thread = condition(0, SeccompCmpOp::MaskedEq(thread), thread)?;
        rules.insert(SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
        rules.insert(SYS_clone3, Vec::new()); // ENOSYS
        rules.insert(SYS_prctl, one_of(0, [number(PR_SET_NAME)])?);
    }
    Ok(rules)
}

/// Numbers of libc that are not negative.
fn number(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn is_unset(argument: u8, flag: c_int) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(number(flag)), 0)
}

/// A rule for each value that an argument may have.
fn one_of(
    argument: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value| SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, value)?]);
    values.into_iter().map(rule).collect()
}
