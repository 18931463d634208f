// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of a capture and of an attach fails once, by fault injection
 * (the debug flavor has it): it is undone whole, and a second try works.
 */
#include "vas_fault.h"

#define RW	(PROT_READ | PROT_WRITE)

/* Small pages, huge ones, several VMAs. */
static long t_memory(ulong fill, ulong base, ulong c)
{
	return t_map(base, MiB, RW) ?: t_map(base + 2 * MiB, 8 * MiB, RW) ?:
	       t_madvise(base + 2 * MiB, 8 * MiB, MADV_HUGEPAGE) ?:
	       t_map(base + GiB, MiB + PAGE, RW) ?:
	       (fill ? t_fill(base, MiB, fill) ?: t_fill(base + 2 * MiB, 8 * MiB, fill) ?:
		       t_fill(base + GiB, MiB + PAGE, fill) : 0);
}

static long t_whole(ulong seed, ulong base, ulong c)
{
	return t_check(base, MiB, seed) + t_check(base + 2 * MiB, 8 * MiB, seed) +
	       t_check(base + GiB, MiB + PAGE, seed);
}

/*
 * Some failures are survived (the kernel tries again in another way): then the
 * result has to be whole, and the next allocation is up.
 */
TEST(a_capture_that_fails_anywhere_is_undone)
{
	struct target t = target_new();
	int session = vas_session(), n, undone = 0;
	bool failed = true;
	long committed;

	if (!fault_set_up())
		SKIP(return, "no fault injection");
	ASSERT_EQ(0, tcall(&t, t_memory, 1, BASE, 0));
	committed = meminfo("Committed_AS");
	for (n = 1; failed && n < 2000; n++) {
		int fd = vas_create(session, "fault", 0600, NULL);
		struct vas_capture arg = { .pidfd = pidfd_of(t.pid) };
		struct vas_stat st;
		int ret;

		ASSERT_GE(fd, 0);
		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(fd, VAS_IOC_CAPTURE, &arg));
		failed = has_failed();
		fail_nth(0);
		ASSERT_TRUE(ret == 0 || (ret == -ENOMEM && failed))
			TH_LOG("allocation %d: %d", n, ret);
		undone += ret != 0;
		ASSERT_EQ(0, vas_stat(fd, &st));
		ASSERT_EQ(ret ? VAS_STATE_EMPTY : VAS_STATE_TRANSIENT, st.state);
		ASSERT_EQ(0, tcall(&t, t_whole, 1, BASE, 0));
		if (ret)		/* a second try works */
			ASSERT_EQ(0, ioctl(fd, VAS_IOC_CAPTURE, &arg));
		ASSERT_EQ(0, vas_delete(fd, 0));
		close(arg.pidfd);
		close(fd);
	}
	TH_LOG("%d allocations, %d captures undone", n - 1, undone);
	EXPECT_FALSE(failed);
	EXPECT_LT(20, undone);
	EXPECT_GE(committed + 1024, meminfo("Committed_AS"));
	target_kill(&t);
}

static void check_attach(struct __test_metadata *_metadata, ulong delta)
{
	struct target t = target_new(), u = target_new();
	int session = vas_session(), fd, n, undone = 0, count = 0;
	ulong dst = BASE + delta;
	bool failed = true, fresh = true;

	ASSERT_EQ(0, tcall(&t, t_memory, 1, BASE, 0));
	fd = vas_create(session, "fault", 0600, NULL);
	ASSERT_EQ(0, vas_capture(fd, t.pid, 0, NULL));
	for (n = 1; failed && n < 2000; n++) {
		/* Cuts VMAs, so that the target's are split. */
		struct vas_attach arg = {
			.src = BASE + MiB / 2, .len = GiB, .dst = dst + MiB / 2,
		};
		int ret;

		if (fresh) {
			target_kill(&u);
			u = target_new();
			ASSERT_EQ(0, tcall(&u, t_memory, 2, dst, 0));
			count = map_count(u.pid);
		}
		arg.pidfd = pidfd_of(u.pid);
		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(fd, VAS_IOC_ATTACH, &arg));
		failed = has_failed();
		fail_nth(0);
		close(arg.pidfd);
		ASSERT_TRUE(ret == 0 || (ret == -ENOMEM && failed))
			TH_LOG("allocation %d: %d", n, ret);
		fresh = !ret;
		if (ret) {
			undone++;
			ASSERT_EQ(0, tcall(&u, t_whole, 2, dst, 0))
				TH_LOG("allocation %d", n);
			ASSERT_EQ(count, map_count(u.pid))
				TH_LOG("allocation %d", n);
			continue;
		}
		ASSERT_EQ(0, tcall(&u, t_check, dst, MiB / 2, 2));
		ASSERT_EQ(0, tcall(&u, t_check_moved, dst + MiB / 2, MiB / 2, BASE + MiB / 2));
		ASSERT_EQ(0, tcall(&u, t_check_moved, dst + 2 * MiB, 8 * MiB, BASE + 2 * MiB));
		ASSERT_EQ(0, tcall(&u, t_check_moved, dst + GiB, MiB / 2, BASE + GiB));
		ASSERT_EQ(0, tcall(&u, t_check, dst + GiB + MiB / 2, MiB / 2, 2));
	}
	TH_LOG("%d allocations, %d attaches undone", n - 1, undone);
	EXPECT_FALSE(failed);
	EXPECT_LT(20, undone);
	EXPECT_EQ(0, tcall(&t, t_whole, 1, BASE, 0));
	target_kill(&u);
	target_kill(&t);
	vas_delete(fd, 0);
}

TEST(an_attach_that_fails_anywhere_is_undone)
{
	if (!fault_set_up())
		SKIP(return, "no fault injection");
	check_attach(_metadata, 0);
}

TEST(an_attach_elsewhere_that_fails_anywhere_is_undone)
{
	if (!fault_set_up())
		SKIP(return, "no fault injection");
	check_attach(_metadata, 64 * GiB + 5 * PAGE);
}

/* Some allocations may fail and nothing is lost: those of memory accounting. */
TEST(creating_and_opening_that_fails_anywhere_leaves_nothing)
{
	int session = vas_session(), n, undone = 0;
	bool failed = true;

	if (!fault_set_up())
		SKIP(return, "no fault injection");
	for (n = 1; failed && n < 500; n++) {
		int fd, again;

		ASSERT_EQ(0, fail_nth(n));
		fd = vas_create(session, "created", 0600, NULL);
		failed = has_failed();
		fail_nth(0);
		ASSERT_TRUE(fd >= 0 || fd == -ENOMEM || fd == -ENFILE)
			TH_LOG("allocation %d: %d", n, fd);
		again = vas_open(session, 0, "created", VAS_ACCESS_READ);
		EXPECT_EQ(fd < 0, again < 0) TH_LOG("allocation %d", n);
		if (again >= 0)
			close(again);
		if (fd < 0) {
			undone++;
			continue;
		}
		ASSERT_EQ(0, vas_delete(fd, 0));
		close(fd);
	}
	TH_LOG("%d allocations, %d VASes not made", n - 1, undone);
	EXPECT_FALSE(failed);
	EXPECT_LT(3, undone);
}

TEST_HARNESS_MAIN
