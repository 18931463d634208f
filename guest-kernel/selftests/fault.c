// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of a capture and of an attach fails once, by fault injection
 * (the debug flavor has it): it is undone whole, and a second try works.
 */
#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)
#define FAULTS	"/sys/kernel/debug/"

/* The next-but-n allocation of this process fails; 0 ends it. */
static int fail_nth(int n)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", n);
	return write_file("/proc/self/fail-nth", text);
}

/* Did it? Then what was asked for is reset to 0. */
static bool has_failed(void)
{
	return read_file("/proc/self/fail-nth")[0] == '0';
}

static bool set_up(void)
{
	static const char * const kinds[] = { "failslab", "fail_page_alloc" };
	char path[128];

	if (access("/proc/self/fail-nth", F_OK))
		return false;
	for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
		snprintf(path, sizeof(path), FAULTS "%s/ignore-gfp-wait", kinds[i]);
		write_file(path, "N");
		snprintf(path, sizeof(path), FAULTS "%s/verbose", kinds[i]);
		write_file(path, "0");
	}
	write_file(FAULTS "fail_page_alloc/min-order", "0");
	write_file(FAULTS "fail_page_alloc/ignore-gfp-highmem", "N");
	return true;
}

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

static int maps_of(pid_t pid, char *text, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	snprintf(text, size, "%s", read_file(path));
	/* read_file() ends at the first newline; count them all. */
	FILE *f = fopen(path, "re");
	int n = 0, c;

	while ((c = fgetc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

TEST(a_capture_that_fails_anywhere_is_undone)
{
	struct target t = target_new();
	int session = vas_session(), fd, n, ret = -1;
	long committed;

	if (!set_up())
		SKIP(return, "no fault injection");
	ASSERT_EQ(0, tcall(&t, t_memory, 1, BASE, 0));
	fd = vas_create(session, "fault", 0600, NULL);
	ASSERT_GE(fd, 0);
	committed = meminfo("Committed_AS");
	for (n = 1; n < 2000; n++) {
		int pidfd = pidfd_of(t.pid);
		struct vas_capture arg = { .pidfd = pidfd };
		bool failed;

		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(fd, VAS_IOC_CAPTURE, &arg));
		failed = has_failed();
		fail_nth(0);
		close(pidfd);
		if (!ret)
			break;
		ASSERT_TRUE(failed);
		ASSERT_EQ(-ENOMEM, ret) TH_LOG("allocation %d", n);
		ASSERT_EQ(0, tcall(&t, t_whole, 1, BASE, 0));
	}
	TH_LOG("%d allocations", n - 1);
	EXPECT_EQ(0, ret);
	EXPECT_LT(20, n);
	ASSERT_EQ(0, vas_delete(fd, 0));
	close(fd);
	EXPECT_GE(committed + 1024, meminfo("Committed_AS"));
	EXPECT_EQ(0, tcall(&t, t_whole, 1, BASE, 0));
	target_kill(&t);
}

static void check_attach(struct __test_metadata *_metadata, ulong delta)
{
	struct target t = target_new(), u = target_new();
	int session = vas_session(), fd, n, ret = -1, count;
	char before[4096], after[4096];
	long committed;

	ASSERT_EQ(0, tcall(&t, t_memory, 1, BASE, 0));
	fd = vas_create(session, "fault", 0600, NULL);
	ASSERT_EQ(0, vas_capture(fd, t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&u, t_memory, 2, BASE + delta, 0));
	count = maps_of(u.pid, before, sizeof(before));
	committed = meminfo("Committed_AS");
	for (n = 1; n < 2000; n++) {
		int pidfd = pidfd_of(u.pid);
		/* Cuts VMAs, so that the target's are split. */
		struct vas_attach arg = {
			.pidfd = pidfd, .src = BASE + MiB / 2, .len = GiB,
			.dst = BASE + delta + MiB / 2,
		};
		bool failed;

		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(fd, VAS_IOC_ATTACH, &arg));
		failed = has_failed();
		fail_nth(0);
		close(pidfd);
		if (!ret)
			break;
		ASSERT_TRUE(failed);
		ASSERT_EQ(-ENOMEM, ret) TH_LOG("allocation %d", n);
		ASSERT_EQ(0, tcall(&u, t_whole, 2, BASE + delta, 0))
			TH_LOG("allocation %d", n);
		ASSERT_EQ(count, maps_of(u.pid, after, sizeof(after)))
			TH_LOG("allocation %d", n);
	}
	TH_LOG("%d allocations", n - 1);
	EXPECT_EQ(0, ret);
	EXPECT_LT(20, n);
	EXPECT_EQ(0, tcall(&u, t_check, BASE + delta, MiB / 2, 2));
	EXPECT_EQ(0, tcall(&u, t_check_moved, BASE + delta + MiB / 2, MiB / 2, BASE + MiB / 2));
	EXPECT_EQ(0, tcall(&u, t_check_moved, BASE + delta + 2 * MiB, 8 * MiB, BASE + 2 * MiB));
	EXPECT_EQ(0, tcall(&t, t_whole, 1, BASE, 0));
	target_kill(&u);
	target_kill(&t);
	vas_delete(fd, 0);
	EXPECT_GE(committed + 1024, meminfo("Committed_AS"));
}

TEST(an_attach_that_fails_anywhere_is_undone)
{
	if (!set_up())
		SKIP(return, "no fault injection");
	check_attach(_metadata, 0);
}

TEST(an_attach_elsewhere_that_fails_anywhere_is_undone)
{
	if (!set_up())
		SKIP(return, "no fault injection");
	check_attach(_metadata, 64 * GiB + 5 * PAGE);
}

TEST(creating_and_opening_that_fails_anywhere_leaves_nothing)
{
	int session = vas_session(), n, fd = -1;

	if (!set_up())
		SKIP(return, "no fault injection");
	for (n = 1; n < 500 && fd < 0; n++) {
		ASSERT_EQ(0, fail_nth(n));
		fd = vas_create(session, "created", 0600, NULL);
		fail_nth(0);
		ASSERT_TRUE(fd >= 0 || fd == -ENOMEM || fd == -ENFILE);
		EXPECT_EQ(fd < 0 ? -ENOENT : 0,
			  vas_open(session, 0, "created", VAS_ACCESS_READ) < 0 ? -ENOENT : 0);
	}
	EXPECT_LE(0, fd);
	EXPECT_LT(3, n);
}

TEST_HARNESS_MAIN
