// SPDX-License-Identifier: GPL-2.0
/*
 * Captures and attaches against everything that can happen at the same time:
 * targets that fork, exit and are killed, reclaim, migration, KSM, and others
 * who do the same.
 */
#include <pthread.h>

#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)
#define LEN	(4 * MiB)

FIXTURE(stress)
{
	int session;
	struct target t;
};

FIXTURE_SETUP(stress)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, LEN, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, LEN, 1));
}

FIXTURE_TEARDOWN(stress)
{
	target_kill(&self->t);
}

/* One capture into a VAS that is closed with its file. */
static int capture_once(int session, pid_t pid)
{
	static int n;
	char name[64];
	int fd, ret;

	snprintf(name, sizeof(name), "stress-%d-%d", (int)syscall(SYS_gettid),
		 __atomic_add_fetch(&n, 1, __ATOMIC_RELAXED));
	fd = vas_create(session, name, 0600, NULL);
	if (fd < 0)
		return fd;
	ret = vas_capture(fd, pid, 0, NULL);
	vas_delete(fd, 0);
	close(fd);
	return ret;
}

/* --- Targets that move --- */

/* Forks children that write all of the memory, until it is killed. */
static long t_fork_forever(ulong seconds, ulong b, ulong c)
{
	alarm(seconds);
	for (ulong i = 0;; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(t_check(BASE, LEN, 1) || t_fill(BASE, LEN, i) ||
			      t_check(BASE, LEN, i));
		int status = -1;

		waitpid(pid, &status, 0);
		if (status || t_check(BASE, LEN, 1))
			return -EIO;
	}
}

TEST_F(stress, a_forking_target)
{
	struct target_call call = { t_fork_forever, { 300 } };
	long result;

	ASSERT_EQ(sizeof(call), write(self->t.fd, &call, sizeof(call)));
	for (int i = 0; i < 60; i++) {
		ASSERT_EQ(0, capture_once(self->session, self->t.pid));
	}
	/* It answers only if it found something wrong. */
	EXPECT_EQ(-1, recv(self->t.fd, &result, sizeof(result), MSG_DONTWAIT));
	EXPECT_EQ(EAGAIN, errno);
}

TEST_F(stress, targets_that_exit)
{
	int ok = 0, gone = 0;

	for (int i = 0; i < 150; i++) {
		int pidfd, ret, fd = vas_create(self->session, "exit", 0600, NULL);
		pid_t pid = fork();

		if (!pid) {
			t_map(BASE, LEN, RW);
			t_fill(BASE, LEN, 1);
			_exit(0);
		}
		usleep(i * 40);
		if (i % 2)
			kill(pid, SIGKILL);
		pidfd = pidfd_of(pid);
		struct vas_capture arg = { .pidfd = pidfd };

		ret = ret_errno(ioctl(fd, VAS_IOC_CAPTURE, &arg));
		ok += ret == 0;
		gone += ret == -ESRCH;
		EXPECT_TRUE(ret == 0 || ret == -ESRCH) TH_LOG("%d", ret);
		close(pidfd);
		waitpid(pid, NULL, 0);
		ASSERT_EQ(0, vas_delete(fd, 0));
		close(fd);
	}
	TH_LOG("%d captured, %d gone", ok, gone);
	EXPECT_EQ(150, ok + gone);
}

/* Writes as fast as it can, while its memory is being replaced. */
static void *scribble(void *arg)
{
	volatile bool *stop = arg;

	for (ulong i = 0; !*stop; i = (i + 4097) % LEN)
		*(volatile uint64_t *)(BASE + (i & ~7UL)) = i;
	return NULL;
}

TEST_F(stress, a_running_target_with_threads)
{
	bool stop = false;
	pthread_t threads[2];
	int fd = vas_create(self->session, "running", 0600, NULL);

	ASSERT_EQ(0, t_map(BASE, LEN, RW));
	ASSERT_EQ(0, t_madvise(BASE, LEN, MADV_HUGEPAGE));
	ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, scribble, &stop);
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(0, vas_attach(fd, getpid(), BASE, LEN, BASE, NULL));
		ASSERT_EQ(0, capture_once(self->session, getpid()));
	}
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	ASSERT_EQ(0, vas_attach(fd, getpid(), BASE, LEN, BASE, NULL));
	EXPECT_EQ(0, t_check(BASE, LEN, 1));
}

/* --- At once --- */

static pid_t same_pid;
static int same_fd, same_session;

static void *capture_same_target(void *unused)
{
	for (int i = 0; i < 50; i++) {
		long ret = capture_once(same_session, same_pid);

		if (ret)
			return (void *)ret;
	}
	return NULL;
}

TEST_F(stress, one_target_captured_by_many_at_once)
{
	pthread_t threads[4];

	same_pid = self->t.pid;
	same_session = self->session;
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, capture_same_target, NULL);
	for (int i = 0; i < 4; i++) {
		void *ret;

		pthread_join(threads[i], &ret);
		EXPECT_EQ(0, (long)ret);
	}
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, LEN, 1));
}

static void *capture_same_vas(void *unused)
{
	return (void *)(long)vas_capture(same_fd, same_pid, 0, NULL);
}

TEST_F(stress, one_vas_captured_into_by_many_at_once)
{
	for (int round = 0; round < 30; round++) {
		pthread_t threads[4];
		int done = 0, refused = 0;

		same_pid = self->t.pid;
		same_fd = vas_create(self->session, "same", 0600, NULL);
		for (int i = 0; i < 4; i++)
			pthread_create(&threads[i], NULL, capture_same_vas, NULL);
		for (int i = 0; i < 4; i++) {
			void *ret;

			pthread_join(threads[i], &ret);
			done += (long)ret == 0;
			refused += (long)ret == -ENOTEMPTY;
		}
		ASSERT_EQ(1, done);
		ASSERT_EQ(3, refused);
		ASSERT_EQ(0, vas_delete(same_fd, 0));
		close(same_fd);
	}
}

static void *attach_same_vas(void *unused)
{
	struct target u = target_new();
	long bad = tcall(&u, t_map, BASE, LEN, RW);

	for (int i = 0; i < 20 && !bad; i++)
		bad = vas_attach(same_fd, u.pid, BASE, LEN, BASE, NULL) ?:
		      tcall(&u, t_check, BASE, LEN, 1) ?:
		      tcall(&u, t_fill, BASE, LEN / 2, 2);
	target_kill(&u);
	return (void *)bad;
}

TEST_F(stress, one_vas_attached_by_many_at_once)
{
	pthread_t threads[4];

	same_fd = vas_create(self->session, "attached", 0600, NULL);
	ASSERT_EQ(0, vas_capture(same_fd, self->t.pid, 0, NULL));
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, attach_same_vas, NULL);
	for (int i = 0; i < 4; i++) {
		void *ret;

		pthread_join(threads[i], &ret);
		EXPECT_EQ(0, (long)ret);
	}
}

/* --- Against the rest of mm --- */

static bool stop_disturbing;

static void *disturb(void *unused)
{
	while (!stop_disturbing) {
		write_file("/proc/sys/vm/compact_memory", "1");
		write_file("/proc/sys/vm/drop_caches", "1");
		write_file("/sys/fs/cgroup/memory.reclaim", "2M");
		usleep(1000);
	}
	return NULL;
}

/* Pages are migrated, merged, split and reclaimed all the time. */
TEST_F(stress, migration_reclaim_and_merging_at_the_same_time)
{
	time_t begun = time(NULL);
	pthread_t thread;

	swap_off();
	swap_on();
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "0");
	write_file("/sys/kernel/mm/ksm/run", "1");
	stop_disturbing = false;
	pthread_create(&thread, NULL, disturb, NULL);
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, LEN, MADV_MERGEABLE));
	for (int i = 0; i < 60 && may_go_on(begun); i++) {
		struct target u = target_new();
		ulong dst = i % 2 ? BASE : BASE + GiB + (i % 4) * PAGE;
		int fd = vas_create(self->session, "disturbed", 0600, NULL);

		ASSERT_EQ(0, tcall(&u, t_map, dst, LEN, RW));
		ASSERT_EQ(0, tcall(&u, t_madvise, dst, LEN, i % 3 ? MADV_HUGEPAGE : MADV_MERGEABLE));
		ASSERT_EQ(0, tcall(&u, t_fill, dst, LEN, 5));
		ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
		ASSERT_EQ(0, vas_attach(fd, u.pid, BASE, LEN, dst, NULL));
		EXPECT_EQ(0, tcall(&u, t_check_moved, dst, LEN, BASE));
		EXPECT_EQ(0, tcall(&u, t_madvise, dst, LEN, MADV_PAGEOUT));
		EXPECT_EQ(0, tcall(&u, t_fill, dst, LEN / 2, 6));
		ASSERT_EQ(0, vas_delete(fd, 0));
		close(fd);
		EXPECT_EQ(0, tcall(&u, t_check, dst, LEN / 2, 6));
		target_kill(&u);
	}
	stop_disturbing = true;
	pthread_join(thread, NULL);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, LEN, 1));
	write_file("/sys/kernel/mm/ksm/run", "2");
	write_file("/sys/kernel/mm/ksm/run", "0");
	swap_off();
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, LEN, 1));
}

/* --- Killed --- */

/* A capture of much memory ends soon after its process is killed. */
TEST_F(stress, a_capture_is_killable_and_undone)
{
	long committed;

	/* 16 GiB with a page here and there: many page tables. */
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, LEN, MADV_NOHUGEPAGE));
	for (ulong p = BASE + GiB; p < BASE + 17 * GiB; p += GiB)
		ASSERT_EQ(0, tcall(&self->t, t_map, p, GiB - MiB, RW));
	for (ulong p = BASE + GiB; p < BASE + 17 * GiB; p += 4 * HUGE)
		ASSERT_EQ(0, tcall(&self->t, t_fill, p, PAGE, 1));
	committed = meminfo("Committed_AS");
	for (int i = 0; i < 15; i++) {
		pid_t pid = fork();

		if (!pid) {
			int s = vas_session();

			vas_capture(vas_create(s, "killable", 0600, NULL), self->t.pid, 0, NULL);
			_exit(0);
		}
		usleep(1000 + i * 2000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		EXPECT_EQ(-ENOENT, vas_open(self->session, 0, "killable", VAS_ACCESS_READ));
	}
	for (ulong p = BASE + GiB; p < BASE + 17 * GiB; p += 4 * HUGE)
		ASSERT_EQ(0, tcall(&self->t, t_check, p, PAGE, 1));
	EXPECT_GE(committed + 2048, meminfo("Committed_AS"));
}

/* The OOM killer takes the target in the middle: a whole capture, or ESRCH. */
TEST_F(stress, targets_that_are_oom_killed)
{
	if (write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory"))
		SKIP(return, "no memory cgroups");
	mkdir("/sys/fs/cgroup/victim", 0755);
	ASSERT_EQ(0, write_file("/sys/fs/cgroup/victim/memory.max", "16M"));
	write_file("/sys/fs/cgroup/victim/memory.swap.max", "0");
	for (int i = 0; i < 15; i++) {
		int ret, n = 0, pidfd, status;
		pid_t pid = fork();

		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			write_file("/sys/fs/cgroup/victim/cgroup.procs", "0");
			t_map(BASE, 64 * MiB, RW);
			t_fill(BASE, 64 * MiB, 1);
			_exit(0);
		}
		pidfd = pidfd_of(pid);
		do {
			int fd = vas_create(self->session, "victim", 0600, NULL);
			struct vas_capture arg = { .pidfd = pidfd };

			ret = ret_errno(ioctl(fd, VAS_IOC_CAPTURE, &arg));
			vas_delete(fd, 0);
			close(fd);
			n++;
		} while (!ret);
		EXPECT_EQ(-ESRCH, ret) TH_LOG("after %d", n);
		waitpid(pid, &status, 0);
		EXPECT_TRUE(WIFSIGNALED(status));
		close(pidfd);
	}
	rmdir("/sys/fs/cgroup/victim");
}

TEST_HARNESS_MAIN
