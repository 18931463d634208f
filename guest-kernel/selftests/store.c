// SPDX-License-Identifier: GPL-2.0
/*
 * Drained, evicted, and back from the store; or, without a store, refused.
 * Each test that needs the store is skipped where there is none.
 */
#include <dirent.h>
#include <sys/time.h>

#include "vas_pair.h"

#define ALL_FLAGS	(VAS_ACCESS_READ | VAS_ACCESS_WRITE)

static bool has_store(int session)
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
static const char *snap_name(const char *what)
{
	static char name[VAS_NAME_MAX];
	struct timeval now;

	gettimeofday(&now, NULL);
	snprintf(name, sizeof(name), "st-%s-%ld.%06ld", what, now.tv_sec, now.tv_usec);
	return name;
}

static int drain(int session, const char *name, const int *fds, int count,
		 unsigned int flags)
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

static int drain_one(int session, const char *name, int fd)
{
	return drain(session, name, &fd, 1, VAS_DRAIN_SYNC);
}

static int evict(int fd, uint64_t *pages)
{
	struct vas_evict arg = {};
	int ret = ret_errno(ioctl(fd, VAS_IOC_EVICT, &arg));

	if (pages)
		*pages = arg.pages;
	return ret;
}

static int load(int session, const char *name, uint64_t *ids, uint32_t *count)
{
	struct vas_store_load arg = { .ids = (ulong)ids, .count = *count };
	int ret;

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	ret = ret_errno(ioctl(session, VAS_IOC_STORE_LOAD, &arg));
	*count = arg.count;
	return ret;
}

static int store_delete(int session, const char *name)
{
	struct vas_store_delete arg = {};

	snprintf(arg.name, sizeof(arg.name), "%s", name);
	return ret_errno(ioctl(session, VAS_IOC_STORE_DELETE, &arg));
}

/* 1: the store has it, in *out; 0: not; or -errno.  One by one: paging, too. */
static int store_find(int session, const char *name,
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

static uint32_t store_state(int fd)
{
	struct vas_stat st = {};

	return vas_stat(fd, &st) ? ~0U : st.store;
}

TEST_F(vas, without_a_store_all_of_it_is_refused)
{
	struct vas_store_snapshot one;
	uint32_t count = 0;

	if (has_store(self->session))
		SKIP(return, "there is a store");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-EOPNOTSUPP, drain_one(self->session, "x", self->fd));
	EXPECT_EQ(-EOPNOTSUPP, evict(self->fd, NULL));
	EXPECT_EQ(-EOPNOTSUPP, load(self->session, "x", NULL, &count));
	EXPECT_EQ(-EOPNOTSUPP, store_delete(self->session, "x"));
	EXPECT_EQ(-EOPNOTSUPP, store_find(self->session, "x", &one));
	EXPECT_EQ(VAS_STORE_HOT, store_state(self->fd));
}

TEST_F(vas, bad_arguments_are_refused)
{
	struct vas_drain d = { .name = "x", .count = 1 };
	struct vas_evict e = { .flags = 1 };
	struct vas_store_list list = { .reserved = 1 };
	struct vas_store_load l = { .name = "x", .flags = 1 };
	struct vas_store_delete del = { .name = "x", .flags = 1 };
	void *bad = (void *)8;
	int ro;

	d.flags = 2;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.flags = 0;
	d.reserved[1] = 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.reserved[1] = 0;
	d.count = 0;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.count = VAS_DRAIN_MAX + 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.count = 1;
	strcpy(d.name, "_b");		/* a VAS may be called so */
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	strcpy(d.name, "a/b");
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	memset(d.name, 'a', sizeof(d.name));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_EVICT, &e)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_LIST, &list)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_LOAD, &l)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_DELETE, &del)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_EVICT, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_LIST, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_LOAD, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_DELETE, bad)));
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->session, VAS_IOC_EVICT, &e)));
	ro = vas_open(self->session, 0, "pair", VAS_ACCESS_READ);
	EXPECT_EQ(-EBADF, evict(ro, NULL));
	close(ro);
}

TEST_F(vas, what_cannot_be_drained_or_evicted_is_refused)
{
	struct vas_drain arg = { .name = "x", .count = 1 };
	uint64_t ids[] = { 0, 1UL << 60 };
	const char *name = snap_name("refuse");

	NEED_STORE(self->session);
	arg.ids = (ulong)&ids[0];
	EXPECT_EQ(-ENOENT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	arg.ids = (ulong)&ids[1];
	EXPECT_EQ(-ENOENT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	arg.ids = 8;
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	EXPECT_EQ(-ENODATA, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-ENODATA, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-ENOENT, evict(self->fd, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-EALREADY, drain_one(self->session, "other", self->fd));
	EXPECT_EQ(VAS_STORE_STORED, store_state(self->fd));
	EXPECT_EQ(0, store_delete(self->session, name));
	EXPECT_EQ(-ENOENT, store_delete(self->session, name));
}

/* 8 MiB of huge pages, 3 MiB of small ones with a hole of 1 MiB, 1 MiB read-only. */
#define SMALL	(BASE + 16 * MiB)
#define ONLY	(BASE + 32 * MiB)

static long t_workload(ulong seed, ulong b, ulong c)
{
	return t_map_huge(BASE, 8 * MiB, RW) ?: t_fill(BASE, 8 * MiB, seed) ?:
	       t_map(SMALL, 4 * MiB, RW) ?: t_fill(SMALL, MiB, seed) ?:
	       t_fill(SMALL + 2 * MiB, 2 * MiB, seed) ?:
	       t_map(ONLY, MiB, RW) ?: t_fill(ONLY, MiB, seed) ?:
	       t_mprotect(ONLY, MiB, PROT_READ);
}

static long t_map_all(ulong a, ulong b, ulong c)
{
	return t_map(BASE, 8 * MiB, RW) ?: t_map(SMALL, 4 * MiB, RW) ?:
	       t_map(ONLY, MiB, PROT_READ);
}

static long t_check_all(ulong seed, ulong b, ulong c)
{
	return t_check(BASE, 8 * MiB, seed) + t_check(SMALL, MiB, seed) +
	       t_check_zero(SMALL + MiB, MiB, 0) +
	       t_check(SMALL + 2 * MiB, 2 * MiB, seed) + t_check(ONLY, MiB, seed);
}

static int attach_all(int fd, struct target *u)
{
	return vas_attach(fd, u->pid, BASE, 8 * MiB, BASE, NULL) ?:
	       vas_attach(fd, u->pid, SMALL, 4 * MiB, SMALL, NULL) ?:
	       vas_attach(fd, u->pid, ONLY, MiB, ONLY, NULL);
}

TEST_F(vas, memory_comes_back_from_the_store)
{
	const char *name = snap_name("back");
	struct vas_store_snapshot snap;
	struct vas_stat hot, st;
	struct vas_range range;
	uint64_t pages;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &hot));
	EXPECT_EQ(VAS_STORE_HOT, hot.store);
	range = vas_range_at(self->fd, SMALL);
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STORE_STORED, st.store);
	EXPECT_EQ(hot.pages, st.drained_pages);
	EXPECT_EQ(hot.pages, st.pages);
	EXPECT_EQ(0, st.drain_error);
	ASSERT_EQ(1, store_find(self->session, name, &snap));
	EXPECT_EQ(hot.huge_pages, snap.blocks * 512);
	EXPECT_EQ(hot.pages, snap.blocks * 512 + snap.packed_pages);

	/* The task goes on, with its own memory. */
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_EQ(0, tcall(&self->t, t_fill, SMALL, MiB, 2));
	ASSERT_EQ(0, evict(self->fd, &pages));
	EXPECT_EQ(hot.pages, pages);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 2));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE + MiB, 7 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_check, SMALL, MiB, 2));
	EXPECT_EQ(0, tcall(&self->t, t_check, SMALL + 2 * MiB, 2 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, 8 * MiB, 3));

	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STORE_COLD, st.store);
	EXPECT_EQ(0, st.pages);
	EXPECT_EQ(0, st.swap_pages);
	EXPECT_EQ(hot.bytes, st.bytes);
	EXPECT_EQ(range.pages, vas_range_at(self->fd, SMALL).pages);
	EXPECT_EQ(VAS_RANGE_HUGE, vas_range_at(self->fd, BASE).flags);
	EXPECT_STREQ("cold", read_file(vas_sysfs(st.id, "store")));
	ASSERT_EQ(0, evict(self->fd, &pages));
	EXPECT_EQ(0, pages);

	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(self->fd, &self->u));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STORE_STORED, st.store);
	EXPECT_EQ(hot.pages, st.pages);
	EXPECT_EQ(hot.huge_pages, st.huge_pages);
	EXPECT_EQ(8 * 1024, smaps_value(self->u.pid, BASE, "AnonHugePages"));

	/* What the restored task writes is its own, also in the store. */
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 4));
	EXPECT_EQ(0, tcall(&self->u, t_fill, SMALL, 4 * MiB, 4));
	ASSERT_EQ(0, evict(self->fd, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, 4));
	EXPECT_EQ(0, tcall(&self->u, t_check, SMALL, 4 * MiB, 4));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(self->fd, &self->t));
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
	/* And it is ordinary memory: captured again, at another address. */
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE + GiB + PAGE, 8 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE + GiB + PAGE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_moved, BASE + GiB + PAGE, 8 * MiB, BASE));
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, eviction_and_attach_over_and_over)
{
	const char *name = snap_name("rounds");
	long before = 0;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	for (int i = 0; i < 20; i++) {
		target_kill(&self->u);
		self->u = target_new();
		ASSERT_EQ(0, evict(self->fd, NULL));
		if (i == 3)
			before = meminfo("MemAvailable");
		ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
		ASSERT_EQ(0, attach_all(self->fd, &self->u));
		ASSERT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
		ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 4 * MiB, i));
	}
	target_kill(&self->u);
	self->u = target_new();
	ASSERT_EQ(0, evict(self->fd, NULL));
	/*
	 * 16 rounds of 12 MiB each.  What is being reported to the host, 128 MiB
	 * at most, is not free for that moment.
	 */
	for (int i = 0; i < 100 && meminfo("MemAvailable") < before - 64 * 1024; i++)
		usleep(100000);
	EXPECT_LT(before - 64 * 1024, meminfo("MemAvailable"));
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, what_a_tree_shares_is_stored_once)
{
	int fds[2] = { self->fd, vas_create(self->session, "child", 0600, NULL) };
	struct target v = target_new();
	const char *name = snap_name("tree");
	struct vas_store_snapshot snap;
	struct vas_stat a, b;
	pid_t pid;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, 8 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 8 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_map, SMALL, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, SMALL, 4 * MiB, 1));
	pid = tcall(&self->t, t_fork, 0, 0, 0);
	ASSERT_LT(0, pid);
	ASSERT_EQ(0, tcall(&self->t, t_child_fill, SMALL, MiB, 2));
	ASSERT_EQ(0, vas_capture(fds[0], self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_capture(fds[1], pid, 0, NULL));
	ASSERT_EQ(0, drain(self->session, name, fds, 2, VAS_DRAIN_SYNC));
	ASSERT_EQ(1, store_find(self->session, name, &snap));
	EXPECT_EQ(4, snap.blocks);
	ASSERT_EQ(0, vas_stat(fds[0], &a));
	ASSERT_EQ(0, vas_stat(fds[1], &b));
	/* 3 MiB of small pages, and more that a fork leaves shared, are once. */
	EXPECT_LE(snap.packed_pages + 3 * MiB / PAGE,
		  a.pages - a.huge_pages + b.pages - b.huge_pages);
	ASSERT_EQ(0, evict(fds[0], NULL));
	ASSERT_EQ(0, evict(fds[1], NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, tcall(&v, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, vas_attach(fds[0], self->u.pid, BASE, 32 * MiB, BASE, NULL));
	ASSERT_EQ(0, vas_attach(fds[1], v.pid, BASE, 32 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, SMALL, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, 8 * MiB, 1));
	EXPECT_EQ(0, tcall(&v, t_check, SMALL, MiB, 2));
	EXPECT_EQ(0, tcall(&v, t_check, SMALL + MiB, 3 * MiB, 1));
	target_kill(&v);
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, swapped_memory_is_drained)
{
	const char *name = snap_name("swap");
	struct vas_stat st;

	NEED_STORE(self->session);
	if (!kernel_has("/sys/block/zram0"))
		SKIP(return, "no zram");
	swap_off();
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, 16 * MiB, MADV_PAGEOUT));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_LT(8 * MiB / PAGE, st.swap_pages);
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_LE(16 * MiB / PAGE, st.drained_pages);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 16 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 2));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 16 * MiB, BASE, NULL));
	/* What came from the store is swapped like any other. */
	ASSERT_EQ(0, tcall(&self->u, t_madvise, BASE, 16 * MiB, MADV_PAGEOUT));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 16 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 16 * MiB, 2));
	EXPECT_EQ(0, store_delete(self->session, name));
	swap_off();
}

TEST_F(vas, merged_memory_is_stored_once)
{
	const char *name = snap_name("ksm");
	struct vas_store_snapshot snap;
	struct vas_stat st;
	int i;

	NEED_STORE(self->session);
	if (!kernel_has("/sys/kernel/mm/ksm/run"))
		SKIP(return, "no KSM");
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill_same, BASE, MiB, 0));
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "0");
	write_file("/sys/kernel/mm/ksm/pages_to_scan", "10000");
	ASSERT_EQ(0, write_file("/sys/kernel/mm/ksm/run", "1"));
	for (i = 0; i < 600; i++) {
		if (strtol(read_file("/sys/kernel/mm/ksm/pages_sharing"), NULL, 10) > 250)
			break;
		usleep(100000);
	}
	ASSERT_LT(i, 600);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(1, store_find(self->session, name, &snap));
	EXPECT_GT(st.pages - 200, snap.packed_pages);
	ASSERT_EQ(0, evict(self->fd, NULL));
	EXPECT_EQ(0, write_file("/sys/kernel/mm/ksm/run", "2"));
	target_kill(&self->t);
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_same, BASE, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, store_delete(self->session, name));
	self->t = target_new();
	write_file("/sys/kernel/mm/ksm/run", "0");
}

TEST_F(vas, deleting_a_vas_gives_its_drain_up)
{
	struct vas_store_snapshot snap;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 64 * MiB, 1));
	for (int i = 0; i < 6; i++) {
		const char *name = snap_name("gone");
		struct vas_stat st;
		int fds[2];

		fds[0] = vas_create(self->session, "keep", 0600, NULL);
		fds[1] = vas_create(self->session, "gone", 0600, NULL);
		ASSERT_EQ(0, vas_capture(fds[0], self->t.pid, 0, NULL));
		ASSERT_EQ(0, vas_capture(fds[1], self->t.pid, 0, NULL));
		ASSERT_EQ(0, drain(self->session, name, fds, 2, 0));
		usleep(i * 20000);
		ASSERT_EQ(0, vas_delete(fds[1], 0));
		close(fds[1]);
		do {
			usleep(10000);
			ASSERT_EQ(0, vas_stat(fds[0], &st));
		} while (st.store == VAS_STORE_DRAINING);
		if (st.store == VAS_STORE_HOT) {
			EXPECT_EQ(ECANCELED, st.drain_error);
			EXPECT_EQ(0, st.drained_pages);
			EXPECT_EQ(0, store_find(self->session, name, &snap));
			/* It is whole, and its name free, for another try. */
			ASSERT_EQ(0, drain_one(self->session, name, fds[0]));
			ASSERT_EQ(0, vas_stat(fds[0], &st));
			EXPECT_EQ(0, st.drain_error);
		}
		EXPECT_EQ(VAS_STORE_STORED, st.store);
		EXPECT_EQ(1, store_find(self->session, name, &snap));
		EXPECT_EQ(0, store_delete(self->session, name));
		ASSERT_EQ(0, vas_delete(fds[0], 0));
		close(fds[0]);
	}
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 64 * MiB, 1));
}

/* Writers and attaches meanwhile see and change nothing of it. */
TEST_F(vas, a_drain_is_of_what_was_captured)
{
	const char *name = snap_name("busy");

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, 32 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + GiB, 32 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 32 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, 32 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 32 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE + GiB, 32 * MiB, RW));
	ASSERT_EQ(0, drain(self->session, name, &self->fd, 1, 0));
	for (int i = 2; i < 6; i++) {
		ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 32 * MiB, i));
		ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, 32 * MiB, i));
		ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 2 * GiB, BASE, NULL));
		ASSERT_EQ(0, tcall(&self->u, t_fill, BASE + GiB, 32 * MiB, i));
	}
	while (store_state(self->fd) == VAS_STORE_DRAINING)
		usleep(10000);
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 2 * GiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 32 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + GiB, 32 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE + GiB, 32 * MiB, 5));
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, a_snapshot_is_loaded_by_another_session)
{
	const char *name = snap_name("load");
	uint64_t ids[4] = {};
	uint32_t count = 4;
	struct vas_stat st;
	int s2 = vas_session(), s3, fd;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-EEXIST, load(s2, name, ids, &count));
	count = 4;
	EXPECT_EQ(-ENOENT, load(s2, "nobody", ids, &count));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	target_kill(&self->t);
	self->t = target_new();

	count = 0;		/* not asked for ids */
	ASSERT_EQ(0, load(s2, name, NULL, &count));
	EXPECT_EQ(1, count);
	fd = vas_open(s2, 0, "pair", ALL_FLAGS);
	ASSERT_LE(0, fd);
	close(fd);
	close(s2);		/* not committed: gone */
	s3 = vas_session();
	EXPECT_EQ(-ENOENT, vas_open(s3, 0, "pair", ALL_FLAGS));

	count = 4;
	ASSERT_EQ(0, load(s3, name, ids, &count));
	EXPECT_EQ(1, count);
	fd = vas_open(s3, ids[0], NULL, ALL_FLAGS);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, vas_stat(fd, &st));
	EXPECT_STREQ("pair", st.name);
	EXPECT_EQ(0600, st.mode);
	EXPECT_EQ(VAS_STORE_COLD, st.store);
	EXPECT_EQ(VAS_STATE_TRANSIENT, st.state);
	EXPECT_EQ(0, st.pages);
	ASSERT_EQ(0, vas_commit(s3));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(fd, &self->u));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 2));
	ASSERT_EQ(0, evict(fd, NULL));
	ASSERT_EQ(0, tcall(&self->t, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(fd, &self->t));
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, 2));
	ASSERT_EQ(0, vas_delete(fd, 0));
	EXPECT_EQ(0, store_delete(s3, name));
}

TEST_F(vas, a_snapshot_that_was_removed_is_missed)
{
	const char *name = snap_name("removed");
	struct vas_stat st;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, store_delete(self->session, name));
	/* Not let go: nobody else has it. */
	EXPECT_EQ(-ENOENT, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STORE_HOT, st.store);
	EXPECT_EQ(0, st.drained_pages);
	/* Nor is one of the same name, that came later, it. */
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, store_delete(self->session, name));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	EXPECT_EQ(-ESTALE, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * MiB, 0));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
}

TEST_F(vas, pressure_turns_it_cold)
{
	const char *name = snap_name("pressure");

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_EQ(VAS_STORE_HOT, store_state(self->fd));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	for (int i = 0; i < 20 && store_state(self->fd) != VAS_STORE_COLD; i++)
		ASSERT_EQ(0, write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(self->fd, &self->u));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, store_delete(self->session, name));
}

static long t_populate(ulong addr, ulong len, ulong unused)
{
	return t_map_huge(addr, len, RW) ?:
	       t_madvise(addr, len, MADV_POPULATE_WRITE);
}

/* There is no swap: what does not fit must go to the store, or somebody dies. */
TEST_F(vas, memory_that_others_need_goes_to_the_store)
{
	const char *name = snap_name("need");
	ulong len;

	NEED_STORE(self->session);
	if (meminfo("MemTotal") > 8 * 1024 * 1024)
		SKIP(return, "takes long with so much memory");
	swap_off();
	ASSERT_EQ(0, tcall(&self->t, t_populate, BASE, 256 * MiB, 0));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	write_file("/proc/sys/vm/overcommit_memory", "1");
	len = (meminfo("MemAvailable") * KiB + 100 * MiB) & -HUGE;
	EXPECT_EQ(VAS_STORE_STORED, store_state(self->fd));
	EXPECT_EQ(0, tcall(&self->t, t_populate, BASE + GiB, len, 0));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 256 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 256 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 16 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + 16 * MiB, 240 * MiB, 0));
	EXPECT_EQ(0, store_delete(self->session, name));
	write_file("/proc/sys/vm/overcommit_memory", "0");
}

#define DRIVER	"/sys/bus/virtio/drivers/virtio-vas"

/* "virtioN"; "" if there is none. */
static const char *device_name(void)
{
	static char name[256];
	DIR *dir = opendir(DRIVER);
	struct dirent *entry;

	name[0] = 0;
	while (dir && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "virtio", 6))
			snprintf(name, sizeof(name), "%s", entry->d_name);
	if (dir)
		closedir(dir);
	return name;
}

/* Whatever is on its way: it fails, nothing hangs, and nothing is lost. */
TEST_F(vas, the_device_goes_and_comes_back)
{
	const char *device = device_name();
	char name[VAS_NAME_MAX];
	int cold = vas_create(self->session, "cold", 0600, NULL);

	NEED_STORE(self->session);
	strcpy(name, snap_name("device"));
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(cold, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, cold));
	ASSERT_EQ(0, evict(cold, NULL));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + GiB, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, 64 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	for (int i = 0; i < 5; i++) {
		const char *other = snap_name("lost");
		struct vas_stat st;

		ASSERT_EQ(0, drain(self->session, other, &self->fd, 1, 0));
		usleep(i * 20000);
		ASSERT_EQ(0, write_file(DRIVER "/unbind", device));
		EXPECT_FALSE(has_store(self->session));
		do {
			usleep(10000);
			ASSERT_EQ(0, vas_stat(self->fd, &st));
		} while (st.store == VAS_STORE_DRAINING);
		if (st.store == VAS_STORE_HOT) {
			EXPECT_TRUE(st.drain_error == EIO || st.drain_error == ENODEV);
		}
		EXPECT_EQ(-EOPNOTSUPP, evict(self->fd, NULL));
		EXPECT_EQ(-ENODEV, vas_attach(cold, self->u.pid, BASE, 8 * MiB, BASE, NULL));
		EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * MiB, 0));
		ASSERT_EQ(0, write_file(DRIVER "/bind", device));
		EXPECT_TRUE(has_store(self->session));
		if (st.store != VAS_STORE_HOT)	/* it was done before */
			break;
	}
	ASSERT_EQ(0, attach_all(cold, &self->u));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE + GiB, 64 * MiB, 1));
	EXPECT_EQ(0, store_delete(self->session, name));
}

/* SIGKILL ends a wait for the store, at any moment; what was begun goes on. */
TEST_F(vas, a_killed_caller_leaves_nothing_behind)
{
	struct vas_store_snapshot snap;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	/* More than there are handles (64): none is left open. */
	for (int i = 0; i < 80; i++) {
		const char *name = snap_name("killed");
		int fd = vas_create(self->session, "killed", 0600, NULL);
		pid_t pid;

		ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
		pid = fork();
		if (!pid) {
			uint32_t count = 0;
			int s = vas_session();

			drain_one(s, name, fd);
			evict(fd, NULL);
			vas_attach(fd, self->u.pid, BASE, 8 * MiB, BASE, NULL);
			vas_delete(fd, VAS_DELETE_FORCE);
			load(s, name, NULL, &count);
			_exit(0);
		}
		usleep(i % 20 * 10000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		while (store_state(fd) == VAS_STORE_DRAINING)
			usleep(10000);
		vas_delete(fd, VAS_DELETE_FORCE);
		close(fd);
		if (store_find(self->session, name, &snap)) {
			EXPECT_EQ(0, store_delete(self->session, name));
		}
	}
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
}

#define CG	"/sys/fs/cgroup/mvas-store"

/* Who attaches a cold VAS pays for its pages, and a limit is an error. */
TEST_F(vas, a_fill_is_charged_and_may_fail)
{
	const char *name = snap_name("charge");
	char pid[16];
	long now;

	NEED_STORE(self->session);
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(CG, 0755) || !kernel_has(CG "/memory.current"))
		SKIP(return, "no memory cgroups");
	snprintf(pid, sizeof(pid), "%d", self->u.pid);
	ASSERT_EQ(0, write_file(CG "/cgroup.procs", pid));
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	now = strtol(read_file(CG "/memory.current"), NULL, 10);

	ASSERT_EQ(0, write_file(CG "/memory.max", "6M"));
	EXPECT_EQ(-ENOMEM, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * KiB, 0));
	EXPECT_GE(now + MiB, strtol(read_file(CG "/memory.current"), NULL, 10));
	ASSERT_EQ(0, write_file(CG "/memory.max", "max"));
	ASSERT_EQ(0, attach_all(self->fd, &self->u));
	EXPECT_LE(now + 11 * MiB, strtol(read_file(CG "/memory.current"), NULL, 10));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	target_kill(&self->u);
	ASSERT_EQ(0, evict(self->fd, NULL));
	EXPECT_GE(now + MiB, strtol(read_file(CG "/memory.current"), NULL, 10));
	self->u = target_new();
	EXPECT_EQ(0, store_delete(self->session, name));
	rmdir(CG);
}

TEST_HARNESS_MAIN
