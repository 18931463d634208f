/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the self-tests of MVAS share: the ioctls as functions, and *targets*,
 * children that run functions of ours on request, in their own memory.
 *
 * All helpers return -errno where the system call failed, so that a test states
 * the error that it expects.
 */
#ifndef VAS_TEST_H
#define VAS_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/swap.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/vas.h>

#include "kselftest_harness.h"
/* Emulated machines are slow, with KASAN above all. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 600

#define KiB	1024UL
#define MiB	(1024 * KiB)
#define GiB	(1024 * MiB)
#define PAGE	4096UL
#define HUGE	(2 * MiB)

/* Free in every process of ours, and aligned to all sizes of page table. */
#define BASE	(1UL << 40)

typedef unsigned long ulong;

#include "vas_proc.h"

/* For rounds of stress: there are fewer where they would last longer than the test may. */
static inline bool may_go_on(time_t begun)
{
	return time(NULL) - begun < TEST_TIMEOUT_DEFAULT / 3;
}

static inline long ret_errno(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* --- /dev/vas --- */

static inline int vas_session(void)
{
	return ret_errno(open("/dev/vas", O_RDWR | O_CLOEXEC));
}

/* A new VAS, named after the test and the process; its id to *id. */
static inline int vas_create(int session, const char *name, unsigned int mode,
			     uint64_t *id)
{
	struct vas_create arg = { .mode = mode };
	int fd;

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	fd = ret_errno(ioctl(session, VAS_IOC_CREATE, &arg));
	if (id)
		*id = arg.id;
	return fd;
}

static inline int vas_open(int session, uint64_t id, const char *name,
			   unsigned int access)
{
	struct vas_open arg = { .id = id, .access = access };

	if (name)
		snprintf(arg.name, sizeof(arg.name), "%s", name);
	return ret_errno(ioctl(session, VAS_IOC_OPEN, &arg));
}

static inline int vas_commit(int session)
{
	return ret_errno(ioctl(session, VAS_IOC_COMMIT));
}

static inline int pidfd_of(pid_t pid)
{
	return ret_errno(syscall(SYS_pidfd_open, pid, 0));
}

static inline int vas_capture(int vas, pid_t pid, unsigned int flags,
			      struct vas_capture *out)
{
	struct vas_capture arg = { .pidfd = pidfd_of(pid), .flags = flags };
	int ret;

	if (arg.pidfd < 0)
		return arg.pidfd;
	ret = ret_errno(ioctl(vas, VAS_IOC_CAPTURE, &arg));
	close(arg.pidfd);
	if (out)
		*out = arg;
	return ret;
}

/* Only what lies in a range. */
static inline int vas_capture_range(int vas, pid_t pid, ulong start, ulong len)
{
	struct vas_capture arg = {
		.pidfd = pidfd_of(pid), .start = start, .len = len,
	};
	int ret = ret_errno(ioctl(vas, VAS_IOC_CAPTURE, &arg));

	close(arg.pidfd);
	return ret;
}

/* As @arg says, to @pid. */
static inline int vas_attach_as(int vas, pid_t pid, struct vas_attach *arg)
{
	int ret;

	arg->pidfd = pidfd_of(pid);
	if (arg->pidfd < 0)
		return arg->pidfd;
	ret = ret_errno(ioctl(vas, VAS_IOC_ATTACH, arg));
	close(arg->pidfd);
	return ret;
}

static inline int vas_attach(int vas, pid_t pid, ulong src, ulong len,
			     ulong dst, struct vas_attach *out)
{
	struct vas_attach arg = { .src = src, .len = len, .dst = dst };
	int ret = vas_attach_as(vas, pid, &arg);

	if (out)
		*out = arg;
	return ret;
}

static inline int vas_stat(int vas, struct vas_stat *out)
{
	return ret_errno(ioctl(vas, VAS_IOC_STAT, out));
}

static inline int vas_delete(int vas, unsigned int flags)
{
	struct vas_delete arg = { .flags = flags };

	return ret_errno(ioctl(vas, VAS_IOC_DELETE, &arg));
}

static inline int vas_usage(int vas, struct vas_usage *out)
{
	return ret_errno(ioctl(vas, VAS_IOC_USAGE, out));
}

static inline int vas_set_label(int vas, const char *label)
{
	struct vas_label arg = {};

	snprintf(arg.label, sizeof(arg.label), "%s", label);
	return ret_errno(ioctl(vas, VAS_IOC_SET_LABEL, &arg));
}

/* "" also where it fails. */
static inline const char *vas_get_label(int vas)
{
	static struct vas_label arg;

	return ioctl(vas, VAS_IOC_GET_LABEL, &arg) ? "" : arg.label;
}

/* The range that holds addr; its .end is 0 if there is none. */
static inline struct vas_range vas_range_at(int vas, ulong addr)
{
	struct vas_range range = {};
	struct vas_ranges arg = {
		.start = addr, .ranges = (ulong)&range, .count = 1,
	};

	if (ioctl(vas, VAS_IOC_RANGES, &arg) || !arg.count || range.start > addr)
		range.end = 0;
	return range;
}

/* --- Targets --- */

struct target {
	pid_t pid;
	int fd;
};

typedef long (*target_fn)(ulong a, ulong b, ulong c);

struct target_call {
	target_fn fn;
	ulong arg[3];
};

static inline void target_loop(int fd)
{
	struct target_call call;

	while (read(fd, &call, sizeof(call)) == sizeof(call)) {
		long ret = call.fn(call.arg[0], call.arg[1], call.arg[2]);

		if (write(fd, &ret, sizeof(ret)) != sizeof(ret))
			break;
	}
	_exit(0);
}

/*
 * Until it is in read(3): so a call leaves its stack, which may be captured and replaced,
 * as it found it.  Not for ever: it may be gone.
 */
static inline void target_wait(const struct target *t)
{
	char path[64], text[16] = "";

	snprintf(path, sizeof(path), "/proc/%d/syscall", t->pid);
	for (int i = 0; i < 1000 && strncmp(text, "0 0x3 ", 6); i++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = read(fd, text, sizeof(text));

		close(fd);
		if (n < 6)
			return;
		if (i > 10)
			usleep(1000);
	}
}

/*
 * A child that waits for calls; it dies with this process at the latest.  It is
 * returned once it has let go of the files that it was born with, so that a
 * file that the test closes is closed.
 */
static inline struct target target_new(void)
{
	struct target t;
	int fds[2];
	char ready;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds))
		abort();
	fflush(NULL);
	t.pid = fork();
	if (t.pid < 0)
		abort();
	if (!t.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Nothing of the test's, above all no VAS. */
		dup2(fds[1], 3);
		close_range(4, ~0U, 0);
		if (write(3, "", 1) == 1)
			target_loop(3);
		_exit(1);
	}
	close(fds[1]);
	t.fd = fds[0];
	if (read(t.fd, &ready, 1) != 1)
		abort();
	target_wait(&t);
	return t;
}

/* Runs fn(a, b, c) in the target; -ECONNRESET if it died of it. */
static inline long tcall(struct target *t, target_fn fn, ulong a, ulong b,
			 ulong c)
{
	struct target_call call = { fn, { a, b, c } };
	long ret;

	if (send(t->fd, &call, sizeof(call), MSG_NOSIGNAL) != sizeof(call) ||
	    read(t->fd, &ret, sizeof(ret)) != sizeof(ret))
		return -ECONNRESET;
	target_wait(t);
	return ret;
}

static inline void target_kill(struct target *t)
{
	kill(t->pid, SIGKILL);
	waitpid(t->pid, NULL, 0);
	close(t->fd);
}

/* --- What targets do --- */

/* mmap(MAP_FIXED), private anonymous. */
static inline long t_map(ulong addr, ulong len, ulong prot)
{
	void *p = mmap((void *)addr, len, prot, MAP_PRIVATE | MAP_ANONYMOUS |
		       MAP_FIXED_NOREPLACE, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE	0x08
#endif

static inline long t_map_droppable(ulong addr, ulong len, ulong prot)
{
	void *p = mmap((void *)addr, len, prot, MAP_DROPPABLE | MAP_ANONYMOUS |
		       MAP_FIXED_NOREPLACE, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

static inline uint64_t word_at(ulong addr, ulong seed)
{
	return (addr * 0x9e3779b97f4a7c15UL) ^ seed;
}

/* The first and the last word of every page, different everywhere. */
static inline long t_fill(ulong addr, ulong len, ulong seed)
{
	for (ulong p = addr; p < addr + len; p += PAGE) {
		*(uint64_t *)p = word_at(p, seed);
		*(uint64_t *)(p + PAGE - 8) = word_at(p + 1, seed);
	}
	return 0;
}

/* How many pages differ from t_fill() at the same address. */
static inline long t_check(ulong addr, ulong len, ulong seed)
{
	long bad = 0;

	for (ulong p = addr; p < addr + len; p += PAGE)
		bad += *(uint64_t *)p != word_at(p, seed) ||
		       *(uint64_t *)(p + PAGE - 8) != word_at(p + 1, seed);
	return bad;
}

/* The same, of a range that was filled at @was with seed 1. */
static inline long t_check_moved(ulong addr, ulong len, ulong was)
{
	long bad = 0;

	for (ulong p = 0; p < len; p += PAGE)
		bad += *(uint64_t *)(addr + p) != word_at(was + p, 1);
	return bad;
}

/* How many pages are not all zero where t_fill() would write. */
static inline long t_check_zero(ulong addr, ulong len, ulong unused)
{
	long bad = 0;

	for (ulong p = addr; p < addr + len; p += PAGE)
		bad += *(uint64_t *)p || *(uint64_t *)(p + PAGE - 8);
	return bad;
}

static inline long t_madvise(ulong addr, ulong len, ulong advice)
{
	return ret_errno(madvise((void *)addr, len, advice));
}

static inline long t_mprotect(ulong addr, ulong len, ulong prot)
{
	return ret_errno(mprotect((void *)addr, len, prot));
}

static inline long t_munmap(ulong addr, ulong len, ulong unused)
{
	return ret_errno(munmap((void *)addr, len));
}

static inline long t_mlock(ulong addr, ulong len, ulong unused)
{
	return ret_errno(mlock((void *)addr, len));
}

static inline long t_nop(ulong a, ulong b, ulong c)
{
	return 0;
}

#endif /* VAS_TEST_H */
