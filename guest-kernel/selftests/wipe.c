// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that a copy must not get: droppable, which nobody gets, and what is to
 * be wiped on fork, which clones do not get.
 */
#include "vas_pair.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif

static int attach_whole(int fd, pid_t pid, unsigned int flags)
{
	struct vas_attach arg = { .flags = flags };

	return vas_attach_as(fd, pid, &arg);
}

/* The flags of memory that mmap(MAP_DROPPABLE) made. */
static bool is_droppable(pid_t pid, ulong addr)
{
	return vm_flag(pid, addr, " dp") && vm_flag(pid, addr, " wf") &&
	       vm_flag(pid, addr, " dd") && vm_flag(pid, addr, " nr") &&
	       !vm_flag(pid, addr, " ac");
}

/* --- Droppable --- */

TEST_F(vas, droppable_memory_comes_back_droppable_and_empty)
{
	struct vas_range range;

	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	range = vas_range_at(self->fd, BASE);
	EXPECT_EQ(BASE + MiB, range.end);
	EXPECT_EQ(0, range.pages);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));

	/* What CRIU makes there is ordinary memory. */
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 9));
	EXPECT_FALSE(is_droppable(self->u.pid, BASE));
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_TRUE(is_droppable(self->u.pid, BASE));
	EXPECT_EQ(0, smaps_value(self->u.pid, BASE, "Rss"));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 3));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 3));
	/* It is dropped, not swapped, when its memory is wanted: sooner or later all. */
	for (int i = 0; i < 100; i++) {
		/* Brings to the LRU what other CPUs still have in their batches. */
		write_file("/proc/sys/vm/compact_memory", "1");
		ASSERT_EQ(0, tcall(&self->u, t_madvise, BASE, MiB, MADV_PAGEOUT));
		EXPECT_EQ(0, smaps_value(self->u.pid, BASE, "Swap"));
		if (!tcall(&self->u, t_check_zero, BASE, MiB, 0))
			break;
	}
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, MiB, 0));
}

TEST_F(vas, droppable_memory_that_was_never_written_is_noted_too)
{
	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE, MiB, RW));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_TRUE(is_droppable(self->u.pid, BASE));
}

/* Memory, droppable memory, memory: for the target, one VMA of all three. */
TEST_F(vas, its_neighbours_keep_their_memory)
{
	int source;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE + MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + 2 * MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 3 * MiB, 1));
	source = map_count(self->t.pid);
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 3 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 3 * MiB, 9));
	ASSERT_EQ(source - 2, map_count(self->u.pid));
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_EQ(source, map_count(self->u.pid));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + MiB, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 2 * MiB, MiB, 1));
	EXPECT_FALSE(vm_flag(self->u.pid, BASE, " dp"));
	EXPECT_TRUE(is_droppable(self->u.pid, BASE + MiB));
	EXPECT_FALSE(vm_flag(self->u.pid, BASE + 2 * MiB, " dp"));
}

TEST_F(vas, a_part_elsewhere_is_droppable_there)
{
	ulong to = BASE + GiB + PAGE;

	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE + MiB, 2 * MiB));
	EXPECT_EQ(0, vas_range_at(self->fd, BASE).end);
	EXPECT_EQ(BASE + 3 * MiB, vas_range_at(self->fd, BASE + MiB).end);
	ASSERT_EQ(0, tcall(&self->u, t_map, to, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, to, 4 * MiB, 9));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE + MiB, MiB, to + MiB, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, to, MiB, 9));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, to + MiB, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, to + 2 * MiB, 2 * MiB, 9));
	EXPECT_TRUE(is_droppable(self->u.pid, to + MiB));
	EXPECT_FALSE(vm_flag(self->u.pid, to + 2 * MiB, " dp"));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, to, 4 * MiB, 0));
}

/* What is dropped counts as neither locked nor committed memory. */
TEST_F(vas, a_locked_target_is_no_longer_locked_or_committed)
{
	long committed, mlocked = meminfo("Mlocked"), size;

	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	committed = meminfo("Committed_AS");
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_mlock, BASE, 64 * MiB, 0));
	ASSERT_EQ(64 * 1024, pid_status(self->u.pid, "VmLck"));
	size = pid_status(self->u.pid, "VmSize");
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_EQ(0, pid_status(self->u.pid, "VmLck"));
	EXPECT_EQ(size, pid_status(self->u.pid, "VmSize"));
	EXPECT_TRUE(is_droppable(self->u.pid, BASE));
	EXPECT_FALSE(vm_flag(self->u.pid, BASE, " lo"));
	EXPECT_GE(committed + 512, meminfo("Committed_AS"));
	EXPECT_GE(mlocked + 512, meminfo("Mlocked"));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, BASE, 64 * MiB, 0));
	EXPECT_GE(512, labs(committed - meminfo("Committed_AS")));
}

TEST_F(vas, memory_is_not_put_where_it_would_be_dropped)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 2 * MiB, 1));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_map_droppable, BASE + MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 2 * MiB, 9));
	EXPECT_EQ(-EBUSY, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 2 * MiB, 9));
}

/* Restored, captured, restored: into what CRIU made, and into what is droppable. */
TEST_F(vas, it_is_droppable_in_the_second_generation_too)
{
	int fd2 = vas_create(self->session, "second", 0600, NULL);
	struct target v = target_new();

	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, BASE, MiB, RW));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, vas_capture_range(fd2, self->u.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&v, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, attach_whole(fd2, v.pid, 0));
	EXPECT_TRUE(is_droppable(v.pid, BASE));
	EXPECT_EQ(0, tcall(&v, t_check_zero, BASE, MiB, 0));
	ASSERT_EQ(0, attach_whole(fd2, self->t.pid, 0));
	EXPECT_TRUE(is_droppable(self->t.pid, BASE));
	ASSERT_EQ(0, attach_whole(fd2, self->u.pid, VAS_ATTACH_CLONE));
	EXPECT_TRUE(is_droppable(self->u.pid, BASE));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, MiB, 0));
	target_kill(&v);
}

/* --- Wiped on fork --- */

/* 1 MiB of memory, 1 MiB that is wiped on fork. */
static long t_wipe(ulong addr, ulong b, ulong c)
{
	return t_map(addr, 2 * MiB, RW) ?: t_fill(addr, 2 * MiB, 1) ?:
	       t_madvise(addr + MiB, MiB, MADV_WIPEONFORK);
}

static long t_child_check_zero(ulong addr, ulong len, ulong c)
{
	return tcall(&child, t_check_zero, addr, len, 0);
}

TEST_F(vas, what_is_wiped_on_fork_comes_back_and_is_wiped_on_fork)
{
	ASSERT_EQ(0, tcall(&self->t, t_wipe, BASE, 0, 0));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 2 * MiB, 1));
	EXPECT_FALSE(vm_flag(self->u.pid, BASE, " wf"));
	EXPECT_TRUE(vm_flag(self->u.pid, BASE + MiB, " wf"));
	EXPECT_FALSE(vm_flag(self->u.pid, BASE + MiB, " dp"));
	ASSERT_LT(0, tcall(&self->u, t_fork, 0, 0, 0));
	EXPECT_EQ(0, tcall(&self->u, t_child_check_zero, BASE + MiB, MiB, 0));
	EXPECT_EQ(256, tcall(&self->u, t_child_check_zero, BASE, MiB, 0));
}

TEST_F(vas, a_clone_gets_it_empty)
{
	struct vas_attach arg = { .flags = VAS_ATTACH_CLONE };

	ASSERT_EQ(0, tcall(&self->t, t_wipe, BASE, 0, 0));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 2 * MiB, 9));
	ASSERT_EQ(0, vas_attach_as(self->fd, self->u.pid, &arg));
	EXPECT_EQ(2, arg.vmas);
	EXPECT_EQ(MiB / PAGE, arg.pages);
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + MiB, MiB, 0));
	EXPECT_TRUE(vm_flag(self->u.pid, BASE + MiB, " wf"));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE + MiB, MiB, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + MiB, MiB, 2));
	/* The VAS still has it, for the one that goes on. */
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 2 * MiB, 1));
}

/* It stays committed and locked memory: it may be written. */
TEST_F(vas, what_a_clone_gets_empty_is_accounted)
{
	long committed;

	ASSERT_EQ(0, tcall(&self->t, t_wipe, BASE, 0, 0));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_mlock, BASE, 2 * MiB, 0));
	committed = meminfo("Committed_AS");
	ASSERT_EQ(0, attach_whole(self->fd, self->u.pid, VAS_ATTACH_CLONE));
	EXPECT_EQ(2048, pid_status(self->u.pid, "VmLck"));
	EXPECT_TRUE(vm_flag(self->u.pid, BASE + MiB, " ac"));
	EXPECT_GE(512, labs(committed - meminfo("Committed_AS")));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, BASE, 2 * MiB, 0));
	EXPECT_EQ(0, pid_status(self->u.pid, "VmLck"));
}

TEST_HARNESS_MAIN
