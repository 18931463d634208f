// SPDX-License-Identifier: GPL-2.0
/*
 * Many snapshots in the store, and a machine that is short of memory: they turn
 * cold before anybody dies of it, and all of them come back as they were.
 * For a small machine (mvasvm run --mem 512M): who starts it says how many by
 * STORE_MANY, at most 1000.
 */
#include <sys/resource.h>

#include "vas_store.h"

#define MOST	1000

struct many {
	int session;
	int count;
	int fds[MOST];
	char prefix[32];
};

/* Each eighth is a huge page, the others are of small ones. */
static ulong len_of(int n)
{
	return n % 8 ? 128 * KiB : HUGE;
}

static const char *name_of(struct many *many, int n)
{
	static char name[VAS_NAME_MAX];

	snprintf(name, sizeof(name), "%s-%d", many->prefix, n);
	return name;
}

static long t_make(ulong len, ulong seed, ulong unused)
{
	return t_map_huge(BASE, len, RW) ?: t_fill(BASE, len, seed);
}

static int make(struct many *many, int n)
{
	struct target t = target_new();
	int fd = vas_create(many->session, name_of(many, n), 0600, NULL);
	int err = fd < 0 ? fd :
		  tcall(&t, t_make, len_of(n), n, 0) ?:
		  vas_capture(fd, t.pid, 0, NULL) ?:
		  drain_one(many->session, name_of(many, n), fd);

	target_kill(&t);
	many->fds[n] = fd;
	return err;
}

/* Its memory as a new task sees it: how many pages are wrong, or -errno. */
static long wrong(struct many *many, int n)
{
	struct target u = target_new();
	long ret = tcall(&u, t_map_huge, BASE, len_of(n), RW) ?:
		   vas_attach(many->fds[n], u.pid, BASE, len_of(n), BASE, NULL) ?:
		   tcall(&u, t_check, BASE, len_of(n), n);

	target_kill(&u);
	return ret;
}

static int in_state(struct many *many, uint32_t state)
{
	int count = 0;

	for (int n = 0; n < many->count; n++)
		count += store_state(many->fds[n]) == state;
	return count;
}

/* Has a task take what is there, and @more; 0, or how that ended. */
static long press(ulong more)
{
	struct target t = target_new();
	ulong len = (meminfo("MemAvailable") * KiB + more) & -HUGE;
	long ret = tcall(&t, t_make, len, 1, 0);

	target_kill(&t);
	return ret;
}

FIXTURE(many) {
	struct many many;
};

FIXTURE_VARIANT(many) {
	bool swap;
};

FIXTURE_VARIANT_ADD(many, without_swap) {
};

FIXTURE_VARIANT_ADD(many, with_swap) {
	.swap = true,
};

FIXTURE_SETUP(many)
{
	struct rlimit files = { 2 * MOST, 2 * MOST };

	self->many.session = vas_session();
	ASSERT_LE(0, self->many.session);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &files));
	self->many.count = atoi(getenv("STORE_MANY") ?: "0");
	ASSERT_GE(MOST, self->many.count);
	strcpy(self->many.prefix, snap_name("many"));
	swap_off();
	write_file("/proc/sys/vm/overcommit_memory", "1");
}

FIXTURE_TEARDOWN(many)
{
	swap_off();
	write_file("/proc/sys/vm/overcommit_memory", "0");
}

TEST_F(many, pressure_loses_none)
{
	struct many *many = &self->many;
	long kills;

	NEED_STORE(many->session);
	if (!many->count)
		SKIP(return, "not a machine for it");
	if (variant->swap && swap_on())
		SKIP(return, "no zram");
	for (int n = 0; n < many->count; n++) {
		ASSERT_EQ(0, make(many, n)) TH_LOG("snapshot %d", n);
	}
	ASSERT_EQ(many->count, in_state(many, VAS_STORE_STORED) +
			       in_state(many, VAS_STORE_COLD));

	/* Two thirds of what they have are wanted, and what the swap has. */
	kills = proc_value("/proc/vmstat", "oom_kill");
	EXPECT_EQ(0, press(many->count * 240 * KiB + (variant->swap ? SWAP : 0)));
	EXPECT_EQ(kills, proc_value("/proc/vmstat", "oom_kill"));
	TH_LOG("%d of %d went", in_state(many, VAS_STORE_COLD), many->count);
	EXPECT_LT(0, in_state(many, VAS_STORE_COLD));

	for (int n = 0; n < many->count; n++) {
		EXPECT_EQ(0, wrong(many, n)) TH_LOG("snapshot %d", n);
		EXPECT_EQ(0, vas_delete(many->fds[n], 0));
		EXPECT_EQ(0, store_delete(many->session, name_of(many, n)));
	}
}

TEST_HARNESS_MAIN
