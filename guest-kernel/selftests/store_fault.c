// SPDX-License-Identifier: GPL-2.0
/*
 * Every allocation of a drain, an eviction, a fill and a load fails once, by
 * fault injection (the debug flavor has it): nothing is lost, neither store nor
 * kernel keeps anything of it, and a second try works.
 *
 * Each test goes on until no allocation is left that did not fail.  How many there
 * are, and how many of them are not made up for, is not ours to say: it depends on
 * what lies ready in kmalloc's caches, and a fill does without a block.
 *
 * The host has 64 handles for a machine, fewer than what fails here: a handle
 * that stayed open would be noticed.
 */
#include <dirent.h>

#include "vas_store.h"
#include "vas_fault.h"

#define NEED_FAULTS(session)						\
	do {								\
		NEED_STORE(session);					\
		if (!fault_set_up())					\
			SKIP(return, "no fault injection");		\
	} while (0)

/* --- Failures in the kernel's own threads --- */

/* Those that may run a drain. */
struct workers {
	pid_t pids[256];
	int nr;
};

static void workers_find(struct workers *w)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	char path[300];

	w->nr = 0;
	while (dir && w->nr < ARRAY_SIZE(w->pids) && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (!strncmp(read_file(path), "kworker/u", 9))
			w->pids[w->nr++] = strtol(entry->d_name, NULL, 10);
	}
	if (dir)
		closedir(dir);
}

static void workers_fail_nth(struct workers *w, int n)
{
	char path[64], text[16];

	snprintf(text, sizeof(text), "%d", n);
	for (int i = 0; i < w->nr; i++) {
		snprintf(path, sizeof(path), "/proc/%d/fail-nth", w->pids[i]);
		write_file(path, text);
	}
}

static bool workers_have_failed(struct workers *w)
{
	char path[64];

	for (int i = 0; i < w->nr; i++) {
		snprintf(path, sizeof(path), "/proc/%d/fail-nth", w->pids[i]);
		if (read_file(path)[0] == '0')
			return true;
	}
	return false;
}

/* Only what is allocated below this function of the kernel fails. */
static bool fail_only_below(const char *function)
{
	ulong start = 0, end = ~0UL, addr;
	char symbol[256], text[32];
	FILE *f = fopen("/proc/kallsyms", "re");

	while (f && fscanf(f, "%lx %*c %255s%*[^\n]", &addr, symbol) == 2)
		if (!strcmp(symbol, function))
			start = addr;
	if (f)
		rewind(f);
	while (f && fscanf(f, "%lx %*c %255s%*[^\n]", &addr, symbol) == 2)
		if (addr > start && addr < end)
			end = addr;
	if (f)
		fclose(f);
	if (!start || access(FAULTS "failslab/require-start", F_OK))
		return false;
	snprintf(text, sizeof(text), "%#lx", start);
	fault_set("require-start", text);
	snprintf(text, sizeof(text), "%#lx", end);
	fault_set("require-end", text);
	return true;
}

static void fail_everywhere(void)
{
	fault_set("require-start", "0");
	fault_set("require-end", "0xffffffffffffffff");
}

/* --- Drain --- */

static struct vas_stat stat_of(int fd)
{
	struct vas_stat st = { .store = ~0U };

	vas_stat(fd, &st);
	return st;
}

/* A cold VAS comes back with what was captured of t_workload(1). */
static long cold_and_back(int fd)
{
	struct target u = target_new();
	long ret = evict(fd, NULL) ?: tcall(&u, t_map_all, 0, 0, 0) ?:
		   attach_all(fd, &u) ?: tcall(&u, t_check_all, 1, 0, 0);

	target_kill(&u);
	return ret;
}

/*
 * One drain of a new VAS, which may fail: 0, or -ENOMEM.  arm() is called before
 * it, with @n; failed() after it.
 */
static int drain_once(struct __test_metadata *_metadata, FIXTURE_DATA(vas) *self,
		      int n, void (*arm)(int n), bool (*failed)(void), bool *hit)
{
	const char *name = snap_name("fault");
	int fd = vas_create(self->session, "fault", 0600, NULL), ret;
	struct vas_store_snapshot snap;
	struct vas_drain arg = { .count = 1, .flags = VAS_DRAIN_SYNC };
	struct vas_stat st;

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
	st = stat_of(fd);
	arg.ids = (ulong)&st.id;
	strcpy(arg.name, name);
	arm(n);
	ret = ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg));
	*hit = failed();
	arm(0);
	EXPECT_TRUE(ret == 0 || (ret == -ENOMEM && *hit))
		TH_LOG("allocation %d: %d", n, ret);
	if (ret) {
		st = stat_of(fd);
		EXPECT_EQ(VAS_STORE_HOT, st.store) TH_LOG("allocation %d", n);
		EXPECT_EQ(0, st.drained_pages);
		EXPECT_EQ(0, store_find(self->session, name, &snap))
			TH_LOG("allocation %d", n);
		/* Nor does a draft of it stay: its name is free. */
		EXPECT_EQ(0, drain_one(self->session, name, fd))
			TH_LOG("allocation %d", n);
	}
	st = stat_of(fd);
	EXPECT_EQ(VAS_STORE_STORED, st.store) TH_LOG("allocation %d", n);
	EXPECT_EQ(0, st.drain_error);
	if (!ret) {
		EXPECT_EQ(0, cold_and_back(fd)) TH_LOG("allocation %d", n);
	}
	EXPECT_EQ(0, store_delete(self->session, name));
	EXPECT_EQ(0, vas_delete(fd, 0));
	close(fd);
	return ret;
}

static void arm_self(int n)
{
	fail_nth(n);
}

TEST_F(vas, a_drain_that_cannot_begin_leaves_nothing)
{
	int n, undone = 0;
	bool hit = true;

	NEED_FAULTS(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	for (n = 1; hit && n < 500; n++)
		undone += drain_once(_metadata, self, n, arm_self, has_failed, &hit) != 0;
	TH_LOG("%d allocations, %d drains undone", n - 1, undone);
	EXPECT_FALSE(hit);
	EXPECT_LT(0, undone);
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
}

static struct workers workers;

static void arm_workers(int n)
{
	if (n)
		workers_find(&workers);
	workers_fail_nth(&workers, n);
}

static bool workers_failed(void)
{
	return workers_have_failed(&workers);
}

TEST_F(vas, a_drain_that_fails_anywhere_is_undone)
{
	int n, undone = 0, missed = 0;
	bool hit;

	NEED_FAULTS(self->session);
	if (!fail_only_below("vas_drain_work"))
		SKIP(return, "no stacktrace filter of faults");
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	/* A thread that was begun meanwhile does not fail: try again. */
	for (n = 1; missed < 3 && n < 500; n += hit, missed += !hit)
		undone += drain_once(_metadata, self, n, arm_workers, workers_failed, &hit) != 0;
	fail_everywhere();
	TH_LOG("%d allocations, %d drains undone", n - 1, undone);
	EXPECT_EQ(3, missed);
	EXPECT_LT(0, undone);
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
}

/* --- Eviction, fill --- */

/* A VAS of t_workload(1) in the store; its task is gone. */
static void store_workload(struct __test_metadata *_metadata,
			   FIXTURE_DATA(vas) *self, const char *name)
{
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
}

TEST_F(vas, an_eviction_that_fails_lets_nothing_go)
{
	const char *name = snap_name("fault-evict");
	struct vas_stat before, st;
	int n, undone = 0;
	bool hit = true;

	NEED_FAULTS(self->session);
	store_workload(_metadata, self, name);
	before = stat_of(self->fd);
	for (n = 1; hit && n < 100; n++) {
		struct vas_evict arg = {};
		int ret;

		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(self->fd, VAS_IOC_EVICT, &arg));
		hit = has_failed();
		fail_nth(0);
		ASSERT_TRUE(ret == 0 || (ret == -ENOMEM && hit))
			TH_LOG("allocation %d: %d", n, ret);
		st = stat_of(self->fd);
		EXPECT_EQ(ret ? VAS_STORE_STORED : VAS_STORE_COLD, st.store);
		EXPECT_EQ(ret ? before.pages : 0, st.pages);
		undone += ret != 0;
		ASSERT_EQ(0, cold_and_back(self->fd)) TH_LOG("allocation %d", n);
	}
	TH_LOG("%d allocations, %d evictions undone", n - 1, undone);
	EXPECT_FALSE(hit);
	EXPECT_LT(0, undone);
	EXPECT_EQ(0, store_delete(self->session, name));
}

/*
 * The VAS stays cold, or, when it was filled already, is in memory; and the task
 * keeps what it had.
 */
TEST_F(vas, an_attach_of_cold_memory_that_fails_anywhere_is_undone)
{
	const char *name = snap_name("fault-fill");
	int n, undone = 0, cold = 0;
	bool hit = true;

	NEED_FAULTS(self->session);
	store_workload(_metadata, self, name);
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 2));
	for (n = 1; hit && n < 2000; n++) {
		struct vas_attach arg = { .src = BASE, .len = 8 * MiB, .dst = BASE };
		struct vas_stat st;
		int ret;

		ASSERT_EQ(0, evict(self->fd, NULL));
		arg.pidfd = pidfd_of(self->u.pid);
		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, &arg));
		hit = has_failed();
		fail_nth(0);
		close(arg.pidfd);
		ASSERT_TRUE(ret == 0 || (ret == -ENOMEM && hit))
			TH_LOG("allocation %d: %d", n, ret);
		st = stat_of(self->fd);
		ASSERT_TRUE(st.store == VAS_STORE_STORED || (ret && st.store == VAS_STORE_COLD))
			TH_LOG("allocation %d: %u", n, st.store);
		if (st.store == VAS_STORE_COLD) {
			cold++;
			ASSERT_EQ(0, st.pages);
		}
		undone += ret != 0;
		ASSERT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, ret ? 2 : 1))
			TH_LOG("allocation %d", n);
		if (!ret) {
			ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 2));
		}
	}
	TH_LOG("%d allocations, %d attaches undone, %d stayed cold", n - 1, undone, cold);
	EXPECT_FALSE(hit);
	EXPECT_LT(0, cold);
	EXPECT_LT(cold, undone);
	EXPECT_EQ(0, cold_and_back(self->fd));
	EXPECT_EQ(0, store_delete(self->session, name));
}

/*
 * All blocks are refused: to this process, whose call fills.  At no time is anything
 * else, or nobody could end it.
 */
static void refuse_blocks(bool on)
{
	static const char * const what[][3] = {
		{ FAULTS "fail_page_alloc/min-order", "9", "0" },
		{ FAULTS "fail_page_alloc/task-filter", "Y", "N" },
		{ FAULTS "fail_page_alloc/times", "-1", "1" },
		{ "/proc/self/make-it-fail", "1", "0" },
		{ FAULTS "fail_page_alloc/probability", "100", "0" },
	};

	for (int i = 0; on && i < ARRAY_SIZE(what); i++)
		write_file(what[i][0], what[i][1]);
	for (int i = ARRAY_SIZE(what); !on && i--;)
		write_file(what[i][0], what[i][2]);
}

TEST_F(vas, without_a_block_of_memory_a_fill_takes_pages)
{
	const char *name = snap_name("fault-blocks");
	struct vas_stat before, st;
	int ret;

	NEED_FAULTS(self->session);
	if (access("/proc/self/make-it-fail", F_OK))
		SKIP(return, "no fault injection by task");
	store_workload(_metadata, self, name);
	before = stat_of(self->fd);
	ASSERT_LT(0, before.huge_pages);
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	refuse_blocks(true);
	ret = attach_all(self->fd, &self->u);
	refuse_blocks(false);
	ASSERT_EQ(0, ret);
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	st = stat_of(self->fd);
	EXPECT_EQ(before.pages, st.pages);
	EXPECT_EQ(0, st.huge_pages);
	/* There are blocks again. */
	ASSERT_EQ(0, cold_and_back(self->fd));
	EXPECT_LT(0, stat_of(self->fd).huge_pages);
	EXPECT_EQ(0, store_delete(self->session, name));
}

/* --- Load --- */

TEST_F(vas, a_load_that_fails_anywhere_leaves_nothing)
{
	const char *name = snap_name("fault-load");
	int n, undone = 0;
	bool hit = true;

	NEED_FAULTS(self->session);
	store_workload(_metadata, self, name);
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	for (n = 1; hit && n < 500; n++) {
		struct vas_store_load arg = {};
		int session = vas_session(), fd, ret;

		strcpy(arg.name, name);
		ASSERT_EQ(0, fail_nth(n));
		ret = ret_errno(ioctl(session, VAS_IOC_STORE_LOAD, &arg));
		hit = has_failed();
		fail_nth(0);
		ASSERT_TRUE(ret == 0 || (ret == -ENOMEM && hit))
			TH_LOG("allocation %d: %d", n, ret);
		fd = vas_open(session, 0, "pair", ALL_FLAGS);
		if (ret) {
			undone++;
			ASSERT_EQ(-ENOENT, fd) TH_LOG("allocation %d", n);
		} else {
			ASSERT_LE(0, fd);
			ASSERT_EQ(0, cold_and_back(fd)) TH_LOG("allocation %d", n);
			close(fd);
		}
		close(session);
		ASSERT_EQ(-ENOENT, vas_open(self->session, 0, "pair", VAS_ACCESS_READ));
	}
	TH_LOG("%d allocations, %d loads undone", n - 1, undone);
	EXPECT_FALSE(hit);
	EXPECT_LT(0, undone);
	self->fd = -1;
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_HARNESS_MAIN
