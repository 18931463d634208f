// SPDX-License-Identifier: GPL-2.0
/*
 * A drain that does not fit into the store fails as a whole, and nothing else is
 * touched.  For a machine with a store of 96 MiB (mvasvm run --store-limit 96M):
 * who starts it says so with STORE_FULL=1.
 */
#include "vas_store.h"

#define HUGES	(16 * MiB)
#define SMALLS	(144 * MiB)

static long t_map_big(ulong a, ulong b, ulong c)
{
	return t_map_huge(BASE, HUGES, RW) ?:
	       t_map(BASE + GiB, SMALLS, RW) ?:
	       t_madvise(BASE + GiB, SMALLS, MADV_NOHUGEPAGE);
}

static long t_fill_big(ulong seed, ulong b, ulong c)
{
	return t_fill(BASE, HUGES, seed) ?: t_fill(BASE + GiB, SMALLS, seed);
}

static long t_check_big(ulong seed, ulong b, ulong c)
{
	return t_check(BASE, HUGES, seed) + t_check(BASE + GiB, SMALLS, seed);
}

/* Blocks are published and pages copied before the room ends. */
TEST_F(vas, what_does_not_fit_stays_in_memory)
{
	int small = vas_create(self->session, "small", 0600, NULL);
	struct target v = target_new();
	struct vas_store_snapshot snap;
	char first[VAS_NAME_MAX];
	const char *name;
	struct vas_stat st;

	if (!getenv("STORE_FULL"))
		SKIP(return, "not a machine with a small store");
	strcpy(first, snap_name("fits"));
	ASSERT_EQ(0, tcall(&v, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(small, v.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, first, small));
	ASSERT_EQ(0, evict(small, NULL));

	name = snap_name("full");
	ASSERT_EQ(0, tcall(&self->t, t_map_big, 0, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_fill_big, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	/* Again and again: what was given up does not use it up. */
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(-ENOSPC, drain_one(self->session, name, self->fd));
		ASSERT_EQ(0, vas_stat(self->fd, &st));
		EXPECT_EQ(VAS_STORE_HOT, st.store);
		EXPECT_EQ(ENOSPC, st.drain_error);
		EXPECT_EQ(0, st.drained_pages);
		EXPECT_EQ(0, store_find(self->session, name, &snap));
	}

	/* All of the memory is there, for the task and for another one. */
	EXPECT_EQ(0, tcall(&self->t, t_check_big, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_fill_big, 2, 0, 0));
	ASSERT_EQ(0, tcall(&self->u, t_map_big, 0, 0, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 2 * GiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_big, 1, 0, 0));

	/* And what was in the store before. */
	ASSERT_EQ(1, store_find(self->session, first, &snap));
	target_kill(&v);
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, attach_all(small, &v));
	EXPECT_EQ(0, tcall(&v, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, store_delete(self->session, first));
	target_kill(&v);
}

TEST_HARNESS_MAIN
