// SPDX-License-Identifier: GPL-2.0
/*
 * The books balance: what a capture and an attach add somewhere, they take away
 * again, and nothing leaks however often.
 */
#include "vas_cgroup.h"
#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(account)
{
	int session;
	int fd;
	struct target t;
	struct target u;
};

FIXTURE_SETUP(account)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "account", 0600, NULL);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	self->u = target_new();
}

FIXTURE_TEARDOWN(account)
{
	target_kill(&self->t);
	target_kill(&self->u);
}

static const char * const status_keys[] = {
	"VmPeak", "VmSize", "VmLck", "VmPin", "VmData", "VmStk", "VmSwap",
};

#define KEYS	ARRAY_SIZE(status_keys)

static void read_status(pid_t pid, long *values)
{
	for (int i = 0; i < KEYS; i++)
		values[i] = pid_status(pid, status_keys[i]);
}

/* Exact, unlike status: the sum over all VMAs. */
static long rss(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	return proc_value(path, "Rss");
}

TEST_F(account, a_capture_changes_nothing_of_the_source)
{
	long before[KEYS], after[KEYS], rss_before, pte;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_mlock, BASE, MiB, 0));
	read_status(self->t.pid, before);
	rss_before = rss(self->t.pid);
	pte = pid_status(self->t.pid, "VmPTE");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	read_status(self->t.pid, after);
	for (int i = 0; i < KEYS; i++) {
		EXPECT_EQ(before[i], after[i]) TH_LOG("%s", status_keys[i]);
	}
	EXPECT_EQ(rss_before, rss(self->t.pid));
	EXPECT_EQ(pte, pid_status(self->t.pid, "VmPTE"));
	/* And that is so after its VAS is gone. */
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	EXPECT_EQ(rss_before, rss(self->t.pid));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 2));
	EXPECT_EQ(rss_before, rss(self->t.pid));
}

TEST_F(account, an_attach_adds_the_pages_and_their_tables)
{
	long before[KEYS], after[KEYS], rss_before, pte;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));

	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 16 * MiB, RW));
	read_status(self->u.pid, before);
	rss_before = rss(self->u.pid);
	pte = pid_status(self->u.pid, "VmPTE");
	for (int i = 0; i < 3; i++) {		/* again, over its own pages */
		ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 16 * MiB, BASE, NULL));
		read_status(self->u.pid, after);
		for (int k = 0; k < KEYS; k++) {
			EXPECT_EQ(before[k], after[k]) TH_LOG("%s", status_keys[k]);
		}
		EXPECT_EQ(rss_before + 16 * 1024, rss(self->u.pid));
		/* 8 page tables, and what is above them. */
		EXPECT_LE(pte + 8 * 4, pid_status(self->u.pid, "VmPTE"));
		EXPECT_GE(pte + 10 * 4, pid_status(self->u.pid, "VmPTE"));
		EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 4 * MiB, 2));
	}
	ASSERT_EQ(0, tcall(&self->u, t_munmap, BASE, 16 * MiB, 0));
	EXPECT_EQ(rss_before, rss(self->u.pid));
	EXPECT_EQ(pte, pid_status(self->u.pid, "VmPTE"));
}

static long pages_of(const char *key)
{
	return meminfo(key);
}

/* Everybody's committed memory: the VAS's counts like a child's would. */
TEST_F(account, a_vas_is_committed_memory_until_it_is_deleted)
{
	struct vas_stat st;
	long before, during;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	before = pages_of("Committed_AS");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	during = pages_of("Committed_AS");
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_LE(64 * 1024, during - before);
	EXPECT_GE(st.bytes / KiB + 512, during - before);
	/* The target has been charged for its own VMA. */
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 64 * MiB, RW));
	during = pages_of("Committed_AS");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 64 * MiB, BASE, NULL));
	EXPECT_GE(512, labs(pages_of("Committed_AS") - during));
	ASSERT_EQ(0, tcall(&self->u, t_munmap, BASE, 64 * MiB, 0));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	EXPECT_GE(512, labs(pages_of("Committed_AS") - before));
}

/* A VMA that never was writable is charged once it holds private pages. */
TEST_F(account, a_read_only_target_is_charged)
{
	long before;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 64 * MiB, PROT_READ));
	before = pages_of("Committed_AS");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 64 * MiB, BASE, NULL));
	EXPECT_LE(63 * 1024, pages_of("Committed_AS") - before);
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 64 * MiB, BASE, NULL));
	EXPECT_GE(65 * 1024, pages_of("Committed_AS") - before);
	ASSERT_EQ(0, tcall(&self->u, t_munmap, BASE, 64 * MiB, 0));
	EXPECT_GE(512, labs(pages_of("Committed_AS") - before));
}

TEST_F(account, strict_overcommit_refuses_whole)
{
	long limit, used, before;
	int err;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	before = pages_of("Committed_AS");
	/* A limit that has room for half of it. */
	char text[32], old[32];

	strcpy(old, read_file("/proc/sys/vm/overcommit_kbytes"));
	used = pages_of("Committed_AS");
	limit = used + 32 * 1024;
	snprintf(text, sizeof(text), "%ld", limit);
	ASSERT_EQ(0, write_file("/proc/sys/vm/overcommit_kbytes", text));
	ASSERT_EQ(0, write_file("/proc/sys/vm/admin_reserve_kbytes", "0"));
	ASSERT_EQ(0, write_file("/proc/sys/vm/overcommit_memory", "2"));
	err = vas_capture(self->fd, self->t.pid, 0, NULL);
	write_file("/proc/sys/vm/overcommit_memory", "0");
	write_file("/proc/sys/vm/admin_reserve_kbytes", "8192");
	EXPECT_EQ(-ENOMEM, err);
	EXPECT_GE(512, labs(pages_of("Committed_AS") - before));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
	/* The VAS is still empty, and works. */
	EXPECT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
}

/* --- Leaks --- */

static const char * const leak_keys[] = {
	"AnonPages", "PageTables", "Slab", "Mlocked", "Percpu", "KernelStack",
	"Committed_AS",
};

#define LEAK_KEYS	ARRAY_SIZE(leak_keys)

/* Free memory in kB: with what caches give back, and what CPUs hold back. */
static long free_memory(void)
{
	long held = 0, n;
	char line[256];
	FILE *f;

	sync();
	write_file("/proc/sys/vm/drop_caches", "3");
	sleep(1);
	f = fopen("/proc/zoneinfo", "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, " count: %ld", &n) == 1)
			held += n;
	if (f)
		fclose(f);
	return meminfo("MemFree") + held * 4;
}

static bool one_round(int session, int i)
{
	struct target t = target_new(), u = target_new();
	int fd = vas_create(session, "round", 0600, NULL);
	ulong dst = i % 3 ? BASE : BASE + GiB + (i % 2) * PAGE;
	bool ok;

	ok = !tcall(&t, t_map, BASE, 4 * MiB, RW) &&
	     !(i % 2 && tcall(&t, t_madvise, BASE, 4 * MiB, MADV_HUGEPAGE)) &&
	     !tcall(&t, t_fill, BASE, 4 * MiB, 1) &&
	     !tcall(&u, t_map, dst, 4 * MiB, RW) &&
	     !tcall(&u, t_fill, dst + MiB, MiB, 2) &&
	     !vas_capture(fd, t.pid, VAS_CAPTURE_HIDE, NULL) &&
	     !vas_attach(fd, u.pid, BASE, 4 * MiB, dst, NULL) &&
	     !vas_attach(fd, u.pid, BASE + MiB, PAGE, dst + MiB, NULL) &&
	     !tcall(&u, t_check_moved, dst, 4 * MiB, BASE) &&
	     !vas_delete(fd, 0);
	close(fd);
	target_kill(&t);
	target_kill(&u);
	return ok;
}

/* What KASAN holds back of freed slab memory, to find who still uses it; kB. */
static long quarantine(void)
{
	return system("zgrep -qx CONFIG_KASAN=y /proc/config.gz") ? 0 : 64 * 1024;
}

TEST_F(account, nothing_leaks_over_many_rounds)
{
	long before[LEAK_KEYS], after[LEAK_KEYS], free_before = 0, free_after;
	long held = quarantine();

	for (int i = 0; i < 120; i++) {
		int session = vas_session();

		ASSERT_TRUE(one_round(session, i));
		close(session);
		if (i == 20) {		/* caches are warm */
			free_before = free_memory();
			for (int k = 0; k < LEAK_KEYS; k++)
				before[k] = meminfo(leak_keys[k]);
		}
	}
	free_after = free_memory();
	for (int k = 0; k < LEAK_KEYS; k++) {
		after[k] = meminfo(leak_keys[k]);
		/* One leaked page per round would be 400 kB. */
		EXPECT_GE(before[k] + (strcmp(leak_keys[k], "Slab") ? 300 : 2000 + held), after[k])
			TH_LOG("%s", leak_keys[k]);
	}
	EXPECT_LE(free_before - 8 * 1024 - held, free_after);
}

/* --- Memory cgroups --- */

/*
 * Pages stay with the group that made them while its task uses them (see charge.c).
 * Page tables are paid by who has them: the VAS's by who captured, the target's by
 * the target.
 */
TEST_F(account, groups_pay_for_what_they_made)
{
	long made, user;

	if (!cgroups_on())
		SKIP(return, "no memory cgroups");
	ASSERT_EQ(0, cgroup("made"));
	ASSERT_EQ(0, cgroup("user"));
	ASSERT_EQ(0, cgroup_enter("made", self->t.pid));
	ASSERT_EQ(0, cgroup_enter("user", self->u.pid));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 32 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 32 * MiB, 1));
	made = cgroup_value("made", "memory.current");
	EXPECT_LE(32 * MiB, made);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_GE(made + 256 * KiB, cgroup_value("made", "memory.current"));

	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 32 * MiB, RW));
	user = cgroup_value("user", "memory.current");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 32 * MiB, BASE, NULL));
	settle();
	EXPECT_GE(user + MiB, cgroup_value("user", "memory.current"));
	target_kill(&self->t);
	EXPECT_LE(32 * MiB, cgroup_value("made", "memory.current"));
	/* The writer pays for its copy. */
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 16 * MiB, 2));
	EXPECT_LE(user + 15 * MiB, cgroup_value("user", "memory.current"));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, BASE, 32 * MiB, 0));
	EXPECT_GE(user + MiB, cgroup_value("user", "memory.current"));
	/* The group of a snapshot may go before it. */
	EXPECT_EQ(0, cgroup_remove("made"));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 32 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 32 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 32 * MiB, 1));
	target_kill(&self->u);
	EXPECT_EQ(0, cgroup_remove("user"));
	self->t = target_new();
	self->u = target_new();
}

/* Every page in another page table: 512 tables, 2 MiB of them. */
static long t_many_tables(ulong a, ulong b, ulong c)
{
	long err = t_map(BASE, GiB, RW);

	for (ulong p = 0; p < GiB && !err; p += HUGE)
		err = t_fill(BASE + p, PAGE, 1);
	return err;
}

static long t_check_tables(ulong a, ulong b, ulong c)
{
	long bad = 0;

	for (ulong p = 0; p < GiB; p += HUGE)
		bad += t_check(BASE + p, PAGE, 1);
	return bad;
}

/*
 * No memory for the VAS's page tables: the group of who captures kills its own,
 * and the source goes on as if nothing had been.
 */
TEST_F(account, out_of_memory_in_a_capture_hurts_only_its_own_group)
{
	long committed, tables;
	int status;
	pid_t pid;

	if (!cgroups_on())
		SKIP(return, "no memory cgroups");
	ASSERT_EQ(0, cgroup("small"));
	ASSERT_EQ(0, tcall(&self->t, t_many_tables, 0, 0, 0));
	sleep(1);
	tables = meminfo("PageTables");
	committed = meminfo("Committed_AS");
	pid = fork();
	if (!pid) {
		int s = vas_session();
		int fd = vas_create(s, "oom", 0600, NULL);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		cgroup_enter("small", getpid());
		write_file(CG "/small/memory.max", "1M");
		_exit(vas_capture(fd, self->t.pid, 0, NULL) == 0);
	}
	waitpid(pid, &status, 0);
	EXPECT_TRUE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
		    (WIFEXITED(status) && WEXITSTATUS(status) == 0));
	EXPECT_EQ(0, tcall(&self->t, t_check_tables, 0, 0, 0));
	EXPECT_EQ(0, cgroup_remove("small"));
	EXPECT_EQ(-ENOENT, vas_open(self->session, 0, "oom", VAS_ACCESS_READ));
	sleep(1);
	EXPECT_GE(tables + 300, meminfo("PageTables"));
	EXPECT_GE(committed + 1024, meminfo("Committed_AS"));
	EXPECT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
}

/*
 * No memory for the target's page tables: its group kills it, or the attach
 * fails; the VAS is as good as before.
 */
TEST_F(account, out_of_memory_in_an_attach_hurts_only_the_targets_group)
{
	long tables;
	int ret;

	if (!cgroups_on())
		SKIP(return, "no memory cgroups");
	ASSERT_EQ(0, cgroup("small"));
	ASSERT_EQ(0, tcall(&self->t, t_many_tables, 0, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, GiB, RW));
	ASSERT_EQ(0, cgroup_enter("small", self->u.pid));
	ASSERT_EQ(0, write_file(CG "/small/memory.max", "1M"));
	tables = meminfo("PageTables");
	ret = vas_attach(self->fd, self->u.pid, BASE, GiB, BASE, NULL);
	TH_LOG("attach: %d", ret);
	EXPECT_TRUE(ret == -ENOMEM ||
		    tcall(&self->u, t_check_tables, 0, 0, 0) == -ECONNRESET);
	target_kill(&self->u);
	EXPECT_EQ(0, cgroup_remove("small"));
	self->u = target_new();
	sleep(1);
	EXPECT_GE(tables + 300, meminfo("PageTables"));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, GiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, GiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_tables, 0, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_check_tables, 0, 0, 0));
}

TEST_HARNESS_MAIN
