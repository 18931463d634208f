// SPDX-License-Identifier: GPL-2.0
/*
 * Drained, evicted, and back from the store.  Skipped where there is none.
 */
#include "vas_store.h"

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

	NEED_STORE(self->session);
	if (!kernel_has("/sys/kernel/mm/ksm/run"))
		SKIP(return, "no KSM");
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill_same, BASE, MiB, 0));
	ASSERT_TRUE(ksm_merges("pages_sharing", 250));
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

TEST_F(vas, pressure_turns_it_cold)
{
	const char *name = snap_name("pressure");

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_EQ(VAS_STORE_HOT, store_state(self->fd));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	/* As long as a task maps all of it, that would free nothing. */
	for (int i = 0; i < 5; i++)
		ASSERT_EQ(0, write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_EQ(VAS_STORE_STORED, store_state(self->fd));
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
	target_kill(&self->t);
	self->t = target_new();
	for (int i = 0; i < 20 && store_state(self->fd) != VAS_STORE_COLD; i++)
		ASSERT_EQ(0, write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
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

/*
 * Has a target take what is available, but for @left, from BASE on.  What others
 * gave up a moment ago may be available only now.  All of it has content: pages of
 * zeroes that are part of huge ones are given up under pressure (shrink_underused).
 */
static void take_all_but(struct target *t, ulong left)
{
	ulong end = BASE;

	for (int i = 0; i < 20; i++) {
		long more = (meminfo("MemAvailable") * KiB - left) & -HUGE;

		if (more > 0 && !tcall(t, t_populate, end, more, 0) &&
		    !tcall(t, t_fill, end, more, 1))
			end += more;
		usleep(100 * 1000);
	}
}

#define WANTED	(256 * MiB)

/* What is stored makes room for what is asked for. */
TEST_F(vas, a_cold_one_takes_the_memory_of_another)
{
	char name[VAS_NAME_MAX];
	const char *other;
	int fd;

	NEED_STORE(self->session);
	if (meminfo("MemTotal") > 8 * 1024 * 1024)
		SKIP(return, "takes long with so much memory");
	swap_off();
	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, WANTED, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, WANTED, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	strcpy(name, snap_name("wanted"));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));

	write_file("/proc/sys/vm/overcommit_memory", "1");
	take_all_but(&self->t, 128 * MiB);
	fd = vas_create(self->session, "other", 0600, NULL);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	other = snap_name("other");
	ASSERT_EQ(0, drain_one(self->session, other, fd));
	EXPECT_EQ(VAS_STORE_STORED, store_state(fd));

	ASSERT_EQ(0, tcall(&self->u, t_map_huge, BASE, WANTED, RW));
	EXPECT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, WANTED, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, WANTED, 1));
	EXPECT_EQ(VAS_STORE_STORED, store_state(self->fd));
	EXPECT_EQ(VAS_STORE_COLD, store_state(fd));
	ASSERT_EQ(0, vas_delete(fd, 0));
	EXPECT_EQ(0, store_delete(self->session, name));
	EXPECT_EQ(0, store_delete(self->session, other));
	write_file("/proc/sys/vm/overcommit_memory", "0");
}

TEST_HARNESS_MAIN
