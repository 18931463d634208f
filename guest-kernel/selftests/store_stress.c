// SPDX-License-Identifier: GPL-2.0
/*
 * Many at once: drains, evictions, attaches, loads and deletions, while memory is
 * reclaimed and swapped.  Whatever comes back is what was captured.
 */
#include "vas_store.h"

#define WORKERS	4
#define ROUNDS	12

static long t_map_both(ulong a, ulong b, ulong c)
{
	return t_map_huge(BASE, 4 * MiB, RW) ?: t_map(SMALL, MiB, RW);
}

static long t_fill_both(ulong seed, ulong b, ulong c)
{
	return t_fill(BASE, 4 * MiB, seed) ?: t_fill(SMALL, MiB, seed);
}

static long t_check_both(ulong seed, ulong b, ulong c)
{
	return t_check(BASE, 4 * MiB, seed) + t_check(SMALL, MiB, seed);
}

/* Whole, wherever it is now; how many pages are wrong, or -errno. */
static long attach_and_check(int fd, ulong seed)
{
	struct target u = target_new();
	long ret = tcall(&u, t_map_both, 0, 0, 0) ?:
		   vas_attach(fd, u.pid, BASE, 4 * MiB, BASE, NULL) ?:
		   vas_attach(fd, u.pid, SMALL, MiB, SMALL, NULL) ?:
		   tcall(&u, t_check_both, seed, 0, 0) ?:
		   tcall(&u, t_fill_both, seed + 1, 0, 0);

	target_kill(&u);
	return ret;
}

/* One VAS through all that there is; 0, or the line where it went wrong. */
static int round_trip(struct target *t, int worker, int n)
{
	ulong seed = worker * 1000 + n * 2;
	uint32_t count = 0;
	char name[64];
	int s = vas_session(), fd;

	snprintf(name, sizeof(name), "stress-%d-%d-%d", getpid(), worker, n);
	if (tcall(t, t_fill_both, seed, 0, 0))
		return __LINE__;
	fd = vas_create(s, name, 0600, NULL);
	if (fd < 0 || vas_capture(fd, t->pid, 0, NULL))
		return __LINE__;
	if (drain(s, name, &fd, 1, n % 2 ? VAS_DRAIN_SYNC : 0))
		return __LINE__;
	if (tcall(t, t_fill_both, seed + 1, 0, 0) || attach_and_check(fd, seed))
		return __LINE__;
	while (store_state(fd) == VAS_STORE_DRAINING)
		usleep(1000);
	if (store_state(fd) != VAS_STORE_STORED && store_state(fd) != VAS_STORE_COLD)
		return __LINE__;
	for (int i = 0; i < 3; i++)
		if (evict(fd, NULL) || attach_and_check(fd, seed))
			return __LINE__;
	if (tcall(t, t_check_both, seed + 1, 0, 0) || vas_delete(fd, 0))
		return __LINE__;
	close(fd);
	if (load(s, name, NULL, &count))
		return __LINE__;
	fd = vas_open(s, 0, name, ALL_FLAGS);
	if (fd < 0 || attach_and_check(fd, seed) || attach_and_check(fd, seed))
		return __LINE__;
	if (store_delete(s, name))
		return __LINE__;
	close(fd);
	close(s);
	return 0;
}

static int work(int worker)
{
	struct target t = target_new();
	int bad = tcall(&t, t_map_both, 0, 0, 0) ? __LINE__ : 0;
	time_t begun = time(NULL);

	for (int n = 0; n < ROUNDS && !bad && may_go_on(begun); n++)
		bad = round_trip(&t, worker, n);
	target_kill(&t);
	return bad;
}

static void reclaim_for_ever(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		write_file("/proc/sys/vm/drop_caches", "2");
		write_file("/sys/fs/cgroup/memory.reclaim", "8M swappiness=200");
		write_file("/proc/sys/vm/compact_memory", "1");
		usleep(50000);
	}
}

TEST(what_comes_back_is_what_was_captured)
{
	pid_t pids[WORKERS], reclaimer;
	int session = vas_session();

	NEED_STORE(session);
	if (kernel_has("/sys/block/zram0")) {
		swap_off();
		ASSERT_EQ(0, swap_on());
	}
	reclaimer = fork();
	if (!reclaimer)
		reclaim_for_ever();
	for (int i = 0; i < WORKERS; i++) {
		pids[i] = fork();
		if (!pids[i])
			_exit(work(i));
	}
	for (int i = 0; i < WORKERS; i++) {
		int status;

		ASSERT_EQ(pids[i], waitpid(pids[i], &status, 0));
		EXPECT_EQ(0, status) TH_LOG("worker %d: line %d", i, WEXITSTATUS(status));
	}
	kill(reclaimer, SIGKILL);
	waitpid(reclaimer, NULL, 0);
	swap_off();
}

TEST_HARNESS_MAIN
