/* SPDX-License-Identifier: GPL-2.0 */
/* The usual fixture: an empty VAS, and two targets. */
#ifndef VAS_PAIR_H
#define VAS_PAIR_H

#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(vas)
{
	int session;
	int fd;
	struct target t;	/* what is captured */
	struct target u;	/* what is attached to */
};

FIXTURE_SETUP(vas)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "pair", 0600, NULL);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	self->u = target_new();
}

FIXTURE_TEARDOWN(vas)
{
	target_kill(&self->t);
	target_kill(&self->u);
}

static inline long t_map_huge(ulong addr, ulong len, ulong prot)
{
	return t_map(addr, len, prot) ?: t_madvise(addr, len, MADV_HUGEPAGE);
}

static inline uint64_t pagemap(pid_t pid, ulong addr)
{
	uint64_t entry = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pread(fd, &entry, 8, addr / PAGE * 8) != 8)
		entry = 0;
	close(fd);
	return entry;
}

/* Memory that KSM can merge. */
static inline long t_fill_same(ulong addr, ulong len, ulong unused)
{
	memset((void *)addr, 0x5a, len);
	return t_madvise(addr, len, MADV_MERGEABLE);
}

static inline long t_check_same(ulong addr, ulong len, ulong unused)
{
	long bad = 0;

	for (ulong p = addr; p < addr + len; p += 8)
		bad += *(uint64_t *)p != 0x5a5a5a5a5a5a5a5aUL;
	return bad;
}

/* Has KSM work until it counts more than so many pages of a kind. */
static inline bool ksm_merges(const char *counter, long pages)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", counter);
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "0");
	write_file("/sys/kernel/mm/ksm/pages_to_scan", "10000");
	write_file("/sys/kernel/mm/ksm/run", "1");
	for (int i = 0; i < 600; i++) {
		if (strtol(read_file(path), NULL, 10) > pages)
			return true;
		usleep(100000);
	}
	return false;
}

/* A target's own child. */
static struct target child __attribute__((unused));

static inline long t_fork(ulong a, ulong b, ulong c)
{
	child = target_new();
	return child.pid;
}

static inline long t_child_fill(ulong addr, ulong len, ulong seed)
{
	return tcall(&child, t_fill, addr, len, seed);
}

#endif /* VAS_PAIR_H */
