/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of the store share: its ioctls, and memory of all kinds. */
#ifndef VAS_STORE_H
#define VAS_STORE_H

#include <sys/time.h>

#include "vas_pair.h"

#define ALL_FLAGS	(VAS_ACCESS_READ | VAS_ACCESS_WRITE)

static inline bool has_store(int session)
{
	struct vas_info info = {};

	ioctl(session, VAS_IOC_INFO, &info);
	return info.features & VAS_FEATURE_STORE;
}

#define NEED_STORE(session)						\
	do {								\
		if (!has_store(session))				\
			SKIP(return, "no store");			\
	} while (0)

/* The store outlives this machine, so names are of this moment.  One at a time. */
static inline const char *snap_name(const char *what)
{
	static char name[VAS_NAME_MAX];
	struct timeval now;

	gettimeofday(&now, NULL);
	snprintf(name, sizeof(name), "st-%s-%ld.%06ld", what, now.tv_sec, now.tv_usec);
	return name;
}

static inline int drain(int session, const char *name, const int *fds,
			int count, unsigned int flags)
{
	struct vas_drain arg = { .count = count, .flags = flags };
	uint64_t ids[8];

	for (int i = 0; i < count; i++) {
		struct vas_stat st;

		if (vas_stat(fds[i], &st))
			return -EBADF;
		ids[i] = st.id;
	}
	arg.ids = (ulong)ids;
	snprintf(arg.name, sizeof(arg.name), "%s", name);
	return ret_errno(ioctl(session, VAS_IOC_DRAIN, &arg));
}

static inline int drain_one(int session, const char *name, int fd)
{
	return drain(session, name, &fd, 1, VAS_DRAIN_SYNC);
}

static inline int evict(int fd, uint64_t *pages)
{
	struct vas_evict arg = {};
	int ret = ret_errno(ioctl(fd, VAS_IOC_EVICT, &arg));

	if (pages)
		*pages = arg.pages;
	return ret;
}

static inline int load(int session, const char *name, uint64_t *ids,
		       uint32_t *count)
{
	struct vas_store_load arg = { .ids = (ulong)ids, .count = *count };
	int ret;

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	ret = ret_errno(ioctl(session, VAS_IOC_STORE_LOAD, &arg));
	*count = arg.count;
	return ret;
}

static inline int store_delete(int session, const char *name)
{
	struct vas_store_delete arg = {};

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	return ret_errno(ioctl(session, VAS_IOC_STORE_DELETE, &arg));
}

static inline int store_label(int session, const char *name,
			      const char *expected, const char *label)
{
	struct vas_store_label arg = {};

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	snprintf(arg.expected, sizeof(arg.expected), "%s", expected);
	snprintf(arg.label, sizeof(arg.label), "%s", label);
	return ret_errno(ioctl(session, VAS_IOC_STORE_LABEL, &arg));
}

/* 1: the store has it, in *out; 0: not; or -errno.  One by one: paging, too. */
static inline int store_find(int session, const char *name,
			     struct vas_store_snapshot *out)
{
	struct vas_store_list arg = { .snapshots = (ulong)out };

	for (;;) {
		arg.count = 1;
		if (ioctl(session, VAS_IOC_STORE_LIST, &arg))
			return -errno;
		if (!arg.count)
			return 0;
		if (!strcmp(out->name, name))
			return 1;
		arg.skip++;
	}
}

static inline uint32_t store_state(int fd)
{
	struct vas_stat st = {};

	return vas_stat(fd, &st) ? ~0U : st.store;
}

/* 8 MiB of huge pages, 3 MiB of small ones with a hole of 1 MiB, 1 MiB read-only. */
#define SMALL	(BASE + 16 * MiB)
#define ONLY	(BASE + 32 * MiB)

static inline long t_workload(ulong seed, ulong b, ulong c)
{
	return t_map_huge(BASE, 8 * MiB, RW) ?: t_fill(BASE, 8 * MiB, seed) ?:
	       t_map(SMALL, 4 * MiB, RW) ?: t_fill(SMALL, MiB, seed) ?:
	       t_fill(SMALL + 2 * MiB, 2 * MiB, seed) ?:
	       t_map(ONLY, MiB, RW) ?: t_fill(ONLY, MiB, seed) ?:
	       t_mprotect(ONLY, MiB, PROT_READ);
}

static inline long t_map_all(ulong a, ulong b, ulong c)
{
	return t_map(BASE, 8 * MiB, RW) ?: t_map(SMALL, 4 * MiB, RW) ?:
	       t_map(ONLY, MiB, PROT_READ);
}

static inline long t_check_all(ulong seed, ulong b, ulong c)
{
	return t_check(BASE, 8 * MiB, seed) + t_check(SMALL, MiB, seed) +
	       t_check_zero(SMALL + MiB, MiB, 0) +
	       t_check(SMALL + 2 * MiB, 2 * MiB, seed) + t_check(ONLY, MiB, seed);
}

static inline int attach_all(int fd, struct target *u)
{
	return vas_attach(fd, u->pid, BASE, 8 * MiB, BASE, NULL) ?:
	       vas_attach(fd, u->pid, SMALL, 4 * MiB, SMALL, NULL) ?:
	       vas_attach(fd, u->pid, ONLY, MiB, ONLY, NULL);
}

#endif /* VAS_STORE_H */
