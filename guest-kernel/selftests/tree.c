// SPDX-License-Identifier: GPL-2.0
/*
 * What tasks share stays shared, over generations, and when others are gone; and
 * how much that is can be told.
 */
#include "vas_pair.h"

#define PFN(entry)	((entry) & ((1ULL << 55) - 1))

TEST_F(vas, parent_and_child_still_share_after_a_restore)
{
	int fd2 = vas_create(self->session, "child", 0600, NULL);
	struct target v = target_new();
	pid_t pid;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 2 * MiB, 1));
	pid = tcall(&self->t, t_fork, 0, 0, 0);
	ASSERT_LT(0, pid);
	ASSERT_EQ(0, tcall(&self->t, t_child_fill, BASE, MiB, 2));

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_capture(fd2, pid, 0, NULL));
	target_kill(&self->t);	/* the child goes with it */

	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, tcall(&v, t_map, BASE, 2 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 2 * MiB, BASE, NULL));
	ASSERT_EQ(0, vas_attach(fd2, v.pid, BASE, 2 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 2 * MiB, 1));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, MiB, 2));
	EXPECT_EQ(0, tcall(&v, t_check, BASE + MiB, MiB, 1));
	EXPECT_NE(PFN(pagemap(self->u.pid, BASE)), PFN(pagemap(v.pid, BASE)));
	EXPECT_EQ(PFN(pagemap(self->u.pid, BASE + MiB)), PFN(pagemap(v.pid, BASE + MiB)));

	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 2 * MiB, 3));
	EXPECT_EQ(0, tcall(&v, t_check, BASE + MiB, MiB, 1));
	target_kill(&v);
	self->t = target_new();
}

TEST_F(vas, a_restored_task_forks_and_is_captured_again_for_generations)
{
	int fd = self->fd;
	char name[32];

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	for (int i = 0; i < 30; i++) {
		struct target u;

		ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
		target_kill(&self->t);
		u = target_new();
		ASSERT_EQ(0, tcall(&u, t_map, BASE, MiB, RW));
		ASSERT_EQ(0, vas_attach(fd, u.pid, BASE, MiB, BASE, NULL));
		if (i % 2)		/* also with the older VAS gone */
			ASSERT_EQ(0, vas_delete(fd, 0));
		close(fd);
		ASSERT_LT(0, tcall(&u, t_fork, 0, 0, 0));
		ASSERT_EQ(0, tcall(&u, t_child_fill, BASE, MiB, 2));
		ASSERT_EQ(0, tcall(&u, t_check, BASE, MiB, 1));
		ASSERT_EQ(0, tcall(&u, t_fill, BASE + (i % 256) * PAGE, PAGE, 1));
		self->t = u;
		snprintf(name, sizeof(name), "generation-%d", i);
		fd = vas_create(self->session, name, 0600, NULL);
		ASSERT_GE(fd, 0);
	}
}

TEST_F(vas, a_task_captures_itself_and_rolls_itself_back)
{
	ASSERT_EQ(0, t_map(BASE, 4 * MiB, RW));
	ASSERT_EQ(0, t_fill(BASE, 4 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, getpid(), 0, NULL));
	ASSERT_EQ(0, t_fill(BASE, 4 * MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, getpid(), BASE, 4 * MiB, BASE, NULL));
	EXPECT_EQ(0, t_check(BASE, 4 * MiB, 1));
}

TEST_F(vas, memory_outlives_the_vas_that_it_shares)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 4 * MiB, 1));
	target_kill(&self->t);
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 4 * MiB, 3));
	self->t = target_new();
}

/* Own and shared pages of a VAS, in that order, are what is expected? */
static bool usage_is(int fd, ulong own, ulong shared)
{
	struct vas_usage usage = { -1, -1 };
	int err = vas_usage(fd, &usage);

	if (!err && usage.own_pages == own && usage.shared_pages == shared)
		return true;
	printf("# usage: %d, own %llu, shared %llu\n", err, usage.own_pages,
	       usage.shared_pages);
	return false;
}

TEST_F(vas, usage_tells_what_would_be_free_without_it)
{
	ASSERT_TRUE(usage_is(self->fd, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 3 * MiB, 1));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, 4 * MiB));
	EXPECT_TRUE(usage_is(self->fd, 0, 768));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_TRUE(usage_is(self->fd, 256, 512));
	target_kill(&self->t);
	EXPECT_TRUE(usage_is(self->fd, 768, 0));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_TRUE(usage_is(self->fd, 0, 768));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 2 * MiB, 3));
	EXPECT_TRUE(usage_is(self->fd, 512, 256));
	self->t = target_new();
}

TEST_F(vas, usage_counts_a_huge_page_as_one)
{
	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	ASSERT_EQ(4096, smaps_value(self->t.pid, BASE, "AnonHugePages"));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, 4 * MiB));
	EXPECT_TRUE(usage_is(self->fd, 0, 1024));
	/* The task has copied one page, and maps the others of its huge page. */
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, PAGE, 2));
	EXPECT_TRUE(usage_is(self->fd, 0, 1024));
	ASSERT_EQ(0, tcall(&self->t, t_munmap, BASE, 2 * MiB, 0));
	EXPECT_TRUE(usage_is(self->fd, 512, 512));
	target_kill(&self->t);
	EXPECT_TRUE(usage_is(self->fd, 1024, 0));
	self->t = target_new();
}

TEST_HARNESS_MAIN
