// SPDX-License-Identifier: GPL-2.0
/* Memory attaches at another address, and is captured where mremap moved it. */
#include "vas_pair.h"

FIXTURE(moved)
{
	int session, fd;
	struct target t, u;
};

FIXTURE_VARIANT(moved)
{
	ulong delta;
	bool huge;
};

FIXTURE_VARIANT_ADD(moved, by_1_GiB) { .delta = GiB };
FIXTURE_VARIANT_ADD(moved, by_a_few_pages) { .delta = GiB + 3 * PAGE };
FIXTURE_VARIANT_ADD(moved, downwards) { .delta = -GiB };
FIXTURE_VARIANT_ADD(moved, huge_by_1_GiB) { .delta = GiB, .huge = true };
FIXTURE_VARIANT_ADD(moved, huge_by_a_few_pages) {
	.delta = GiB + 3 * PAGE, .huge = true,
};

FIXTURE_SETUP(moved)
{
	self->session = vas_session();
	self->fd = vas_create(self->session, "moved", 0600, NULL);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	self->u = target_new();
}

FIXTURE_TEARDOWN(moved)
{
	target_kill(&self->t);
	target_kill(&self->u);
}

TEST_F(moved, memory_attaches_at_another_address)
{
	target_fn map = variant->huge ? t_map_huge : t_map;
	ulong dst = BASE + variant->delta, len = 6 * MiB + 7 * PAGE;

	ASSERT_EQ(0, tcall(&self->t, map, BASE, len, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, len, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, map, dst, len, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, dst + MiB, 2 * MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, len, dst, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_moved, dst, len, BASE));
	EXPECT_EQ(len / KiB, smaps_value(self->u.pid, dst, "Rss"));
	if (variant->huge && !(variant->delta % HUGE)) {
		EXPECT_EQ(6 * 1024, smaps_value(self->u.pid, dst, "AnonHugePages"));
	}
	/* rmap knows the new place: swap it out and in again. */
	target_kill(&self->t);
	close(self->fd);
	close(self->session);
	self->t = target_new();
	EXPECT_EQ(0, tcall(&self->u, t_madvise, dst, len, MADV_PAGEOUT));
	EXPECT_EQ(0, tcall(&self->u, t_check_moved, dst, len, BASE));
	EXPECT_EQ(0, tcall(&self->u, t_fill, dst, len, 3));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, dst, len, 0));
}

static long t_mremap(ulong addr, ulong len, ulong to)
{
	return mremap((void *)addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		      to) == MAP_FAILED ? -errno : 0;
}

TEST_F(vas, memory_moved_by_mremap_is_captured_where_it_is)
{
	ulong to = BASE + 3 * GiB + 5 * PAGE;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_mremap, BASE, MiB, to));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(0, vas_range_at(self->fd, BASE).end);
	ASSERT_EQ(0, tcall(&self->u, t_map, to, MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, to, MiB, to, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_moved, to, MiB, BASE));
	/* And again from there: captured, moved back, attached. */
	ASSERT_EQ(0, tcall(&self->u, t_mremap, to, MiB, BASE));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
}

/* With borders in the middle of pages of 2 MiB. */
TEST_F(vas, a_range_is_captured_and_nothing_else)
{
	struct vas_capture arg = {
		.pidfd = pidfd_of(self->t.pid), .start = BASE + MiB, .len = 4 * MiB,
	};
	struct vas_range range;

	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, 8 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 8 * MiB, 1));
	ASSERT_EQ(0, ioctl(self->fd, VAS_IOC_CAPTURE, &arg));
	EXPECT_EQ(1, arg.vmas);
	EXPECT_EQ(4 * MiB / PAGE, arg.pages);
	EXPECT_EQ(0, vas_range_at(self->fd, BASE).end);
	range = vas_range_at(self->fd, BASE + 2 * MiB);
	EXPECT_EQ(BASE + MiB, range.start);
	EXPECT_EQ(BASE + 5 * MiB, range.end);

	ASSERT_EQ(0, tcall(&self->t, t_check, BASE, 8 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 8 * MiB, 2));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 8 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + MiB, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + 5 * MiB, 3 * MiB, 0));
	close(arg.pidfd);
}

TEST_HARNESS_MAIN
