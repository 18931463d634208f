/* SPDX-License-Identifier: GPL-2.0 */
/* For tracers that guard what they trace. */
#ifndef VAS_GUARD_H
#define VAS_GUARD_H

#include <sys/ptrace.h>
#include <sys/user.h>

#include "vas_test.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP	(1 << 21)
#endif

static inline long guard_bytes(int session, pid_t tid, void *addr, uint32_t len)
{
	struct vas_guard arg = {
		.tid = tid, .addr = (ulong)addr, .len = len,
	};

	return ret_errno(ioctl(session, VAS_IOC_GUARD, &arg));
}

/* Seizes a task, and stops it as CRIU does: signals on their way are let through. */
static inline void seize(pid_t pid, ulong options)
{
	int status;

	ptrace(PTRACE_SEIZE, pid, 0, options);
	ptrace(PTRACE_INTERRUPT, pid, 0, 0);
	while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status) &&
	       status >> 16 != PTRACE_EVENT_STOP)
		ptrace(PTRACE_CONT, pid, 0, WSTOPSIG(status));
}

static inline int exit_status(pid_t pid)
{
	int status = -1;

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
