// SPDX-License-Identifier: GPL-2.0
/*
 * What must not work: bad arguments, and targets that do not fit.  A refused
 * attach leaves the target as it was.
 */
#include <pthread.h>
#include <sys/ptrace.h>

#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(vas)
{
	int session;
	int fd;
	uint64_t id;
	struct target t;	/* captured: BASE, 4 MiB, filled with 1 */
	struct target u;
};

FIXTURE_SETUP(vas)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "refuse", 0640, &self->id);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	self->u = target_new();
}

FIXTURE_TEARDOWN(vas)
{
	target_kill(&self->t);
	target_kill(&self->u);
}

/* --- Names, ids, flags --- */

TEST_F(vas, a_name_is_unique)
{
	EXPECT_EQ(-EEXIST, vas_create(self->session, "refuse", 0600, NULL));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	EXPECT_LE(0, vas_create(self->session, "refuse", 0600, NULL));
}

TEST_F(vas, bad_names_are_refused)
{
	static const char * const bad[] = {
		"", ".", "..", ".hidden", "a/b", "a b", "a\nb", "\xc3\xa4", "a*",
	};
	struct vas_create arg = { .mode = 0600 };

	for (int i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, vas_create(self->session, bad[i], 0600, NULL))
			TH_LOG("name '%s'", bad[i]);
	}
	memset(arg.name, 'a', sizeof(arg.name));	/* no NUL */
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_CREATE, &arg)));
	arg.name[VAS_NAME_MAX - 1] = 0;			/* the longest */
	EXPECT_LE(0, ret_errno(ioctl(self->session, VAS_IOC_CREATE, &arg)));
	EXPECT_LE(0, vas_create(self->session, "A-z_0.9:@+", 0600, NULL));
}

TEST_F(vas, unknown_ids_and_names_are_not_found)
{
	EXPECT_EQ(-ENOENT, vas_open(self->session, self->id + 1000, NULL, VAS_ACCESS_READ));
	EXPECT_EQ(-ENOENT, vas_open(self->session, 0, "nobody", VAS_ACCESS_READ));
	EXPECT_EQ(-ENOENT, vas_open(self->session, 0, NULL, VAS_ACCESS_READ));
	EXPECT_EQ(-ENOENT, vas_open(self->session, ~0ULL, NULL, VAS_ACCESS_READ));
	EXPECT_LE(0, vas_open(self->session, 0, "refuse", VAS_ACCESS_READ));
}

TEST_F(vas, an_id_is_never_used_again)
{
	uint64_t id;

	ASSERT_EQ(0, vas_delete(self->fd, 0));
	ASSERT_LE(0, vas_create(self->session, "refuse", 0600, &id));
	EXPECT_LT(self->id, id);
	EXPECT_EQ(-ENOENT, vas_open(self->session, self->id, NULL, VAS_ACCESS_READ));
}

TEST_F(vas, unknown_flags_and_reserved_fields_are_refused)
{
	struct vas_create create = { .name = "x", .mode = 0600, .flags = 1 };
	struct vas_open open = { .id = self->id, .access = VAS_ACCESS_READ, .flags = 1 };
	struct vas_capture capture = { .pidfd = pidfd_of(self->t.pid), .flags = 4 };
	struct vas_attach attach = { .pidfd = pidfd_of(self->t.pid), .flags = 4 };
	struct vas_ranges ranges = { .count = 1, .reserved = 1 };
	struct vas_delete delete = { .flags = 2 };

	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_CREATE, &create)));
	create.flags = 0;
	create.mode = 01000;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_CREATE, &create)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_OPEN, &open)));
	EXPECT_EQ(-EINVAL, vas_open(self->session, self->id, NULL, 0));
	EXPECT_EQ(-EINVAL, vas_open(self->session, self->id, NULL, 4));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	capture.flags = 0;
	capture.start = PAGE;			/* without a length */
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	capture.len = PAGE + 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	capture.len = -PAGE;			/* wraps */
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	capture.len = PAGE;			/* hiding is for all */
	capture.flags = VAS_CAPTURE_HIDE;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, &attach)));
	attach.flags = 0;
	attach.len = PAGE;			/* a part is of no snapshot */
	attach.snapshot[15] = 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, &attach)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_RANGES, &ranges)));
	ranges.reserved = 0;
	ranges.count = 0;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_RANGES, &ranges)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_DELETE, &delete)));
	delete.flags = 0;
	delete.reserved = 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_DELETE, &delete)));
}

TEST_F(vas, bad_pointers_and_unknown_ioctls_are_refused)
{
	struct vas_ranges ranges = { .ranges = 8, .count = 1 };
	void *bad = (void *)8;

	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_INFO, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_CREATE, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_OPEN, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_STAT, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_RANGES, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_USAGE, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_GET_LABEL, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_SET_LABEL, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_DELETE, bad)));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_RANGES, &ranges)));
	/* Each kind of file knows its own. */
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->session, VAS_IOC_STAT, bad)));
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->fd, VAS_IOC_COMMIT, bad)));
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->fd, VAS_IOC_INFO, bad)));
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->session, 0xd7ff, bad)));
}

/* A read-only page for the answer: nothing stays behind of what was made. */
TEST_F(vas, a_vas_whose_id_cannot_be_returned_is_gone)
{
	struct vas_create *arg = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	strcpy(arg->name, "lost");
	ASSERT_EQ(0, mprotect(arg, PAGE, PROT_READ));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_CREATE, arg)));
	EXPECT_EQ(-ENOENT, vas_open(self->session, 0, "lost", VAS_ACCESS_READ));
}

/* --- States --- */

TEST_F(vas, an_empty_vas_is_neither_attached_nor_committed)
{
	EXPECT_EQ(-ENODATA, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_EQ(-ENODATA, vas_commit(self->session));
}

TEST_F(vas, a_vas_is_captured_once)
{
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-ENOTEMPTY, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-ENOTEMPTY, vas_capture(self->fd, self->u.pid, 0, NULL));
}

TEST_F(vas, a_vas_in_use_is_deleted_only_by_force)
{
	int other = vas_open(self->session, self->id, NULL, VAS_ACCESS_READ);
	struct vas_stat st;

	ASSERT_GE(other, 0);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	EXPECT_EQ(-EBUSY, vas_delete(self->fd, 0));
	ASSERT_EQ(0, vas_delete(self->fd, VAS_DELETE_FORCE));
	EXPECT_EQ(-ENOENT, vas_delete(self->fd, VAS_DELETE_FORCE));
	EXPECT_EQ(-ENOENT, vas_open(self->session, self->id, NULL, VAS_ACCESS_READ));
	EXPECT_LE(0, vas_create(self->session, "refuse", 0600, NULL));
	/* Who has it open still has its memory. */
	close(self->fd);
	ASSERT_EQ(0, vas_stat(other, &st));
	EXPECT_EQ(1, st.users);
	ASSERT_EQ(0, vas_attach(other, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 4 * MiB, 1));
}

TEST_F(vas, a_deleted_vas_captures_nothing)
{
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	EXPECT_EQ(-ENOENT, vas_capture(self->fd, self->t.pid, 0, NULL));
}

/* --- Targets --- */

TEST_F(vas, what_is_no_task_is_refused)
{
	struct vas_capture capture = { .pidfd = -1 };
	struct vas_attach attach = { .pidfd = self->fd };
	int pidfd = pidfd_of(self->u.pid);

	EXPECT_EQ(-EBADF, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	capture.pidfd = self->session;
	EXPECT_EQ(-EBADF, ret_errno(ioctl(self->fd, VAS_IOC_CAPTURE, &capture)));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-EBADF, ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, &attach)));
	target_kill(&self->u);
	attach.pidfd = pidfd;
	EXPECT_EQ(-ESRCH, ret_errno(ioctl(self->fd, VAS_IOC_ATTACH, &attach)));
	self->u = target_new();
}

TEST_F(vas, zombies_and_kernel_threads_have_no_memory)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	waitid(P_PID, pid, NULL, WEXITED | WNOWAIT);
	EXPECT_EQ(-ESRCH, vas_capture(self->fd, pid, 0, NULL));
	waitpid(pid, NULL, 0);
	EXPECT_EQ(-ESRCH, vas_capture(self->fd, 2 /* kthreadd */, 0, NULL));
	EXPECT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
}

static void *pause_forever(void *arg)
{
	for (;;)
		pause();
	return NULL;
}

static long t_thread(ulong a, ulong b, ulong c)
{
	pthread_t thread;

	return -pthread_create(&thread, NULL, pause_forever, NULL);
}

/* What a capture and an attach say to a process that must not run; 1 if not the same. */
static int of_stopped(int session, pid_t pid)
{
	struct vas_attach whole = { .flags = VAS_ATTACH_STOPPED };
	int fd = vas_create(session, "stopped", 0600, NULL);
	int err = vas_capture(fd, pid, VAS_CAPTURE_STOPPED, NULL);

	if (err)
		vas_capture(fd, pid, 0, NULL);
	if (vas_attach_as(fd, pid, &whole) != err)
		err = 1;
	vas_delete(fd, 0);
	close(fd);
	return err;
}

TEST_F(vas, a_process_that_must_not_run_is_refused_while_one_thread_does)
{
	pid_t pid = self->t.pid;

	ASSERT_EQ(0, tcall(&self->t, t_thread, 0, 0, 0));
	EXPECT_EQ(-EBUSY, of_stopped(self->session, pid));
	kill(pid, SIGSTOP);
	ASSERT_EQ(pid, waitpid(pid, NULL, WUNTRACED));
	EXPECT_EQ(0, of_stopped(self->session, pid));
	kill(pid, SIGCONT);
	ASSERT_EQ(pid, waitpid(pid, NULL, WCONTINUED));
	/* Its first thread stops, the other does not. */
	ASSERT_EQ(0, ptrace(PTRACE_SEIZE, pid, 0, 0));
	ASSERT_EQ(0, ptrace(PTRACE_INTERRUPT, pid, 0, 0));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	EXPECT_EQ(-EBUSY, of_stopped(self->session, pid));
	ASSERT_EQ(0, ptrace(PTRACE_DETACH, pid, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 4 * MiB, 1));
}

TEST_F(vas, bad_ranges_are_refused)
{
	static const struct { ulong src, len, dst; int err; } bad[] = {
		{ BASE + 1, PAGE, BASE, -EINVAL },
		{ BASE, PAGE + 1, BASE, -EINVAL },
		{ BASE, PAGE, BASE + 1, -EINVAL },
		{ BASE, -PAGE, BASE, -EINVAL },
		{ -PAGE, PAGE, BASE, -EINVAL },
		{ BASE, PAGE, -PAGE, -EINVAL },
		{ BASE, PAGE, 1UL << 56, -EINVAL },
		{ BASE, -BASE, BASE, -EINVAL },
		{ BASE + 4 * MiB, MiB, BASE, -ENOENT },	/* nothing captured there */
		{ BASE, PAGE, BASE + GiB, -EFAULT },	/* nothing mapped there */
	};

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	for (int i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(bad[i].err, vas_attach(self->fd, self->t.pid, bad[i].src,
						 bad[i].len, bad[i].dst, NULL))
			TH_LOG("range %d", i);
	}
}

static long t_shared(ulong addr, ulong len, ulong b)
{
	return mmap((void *)addr, len, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
		    -1, 0) == MAP_FAILED ? -errno : 0;
}

static long t_file(ulong addr, ulong len, ulong b)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	void *p = mmap((void *)addr, len, RW, MAP_PRIVATE | MAP_FIXED, fd, 0);

	close(fd);
	return p == MAP_FAILED ? -errno : 0;
}

static long t_zero_file(ulong addr, ulong len, ulong b)
{
	int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	void *p = mmap((void *)addr, len, RW, MAP_PRIVATE | MAP_FIXED, fd, 0);

	close(fd);
	return p == MAP_FAILED ? -errno : 0;
}

static long t_sealed(ulong addr, ulong len, ulong b)
{
	return t_map(addr, len, RW) ?:
	       ret_errno(syscall(462 /* mseal */, addr, len, 0));
}

static long t_hole(ulong addr, ulong len, ulong b)
{
	return 0;
}

/* 3 MiB that fit, 1 MiB that does not: then nothing changes at all. */
TEST_F(vas, a_target_that_does_not_fit_stays_as_it_was)
{
	static const struct { const char *what; target_fn map; int err; } bad[] = {
		{ "hole", t_hole, -EFAULT },
		{ "shared", t_shared, -EBUSY },
		{ "file", t_file, -EBUSY },
		{ "/dev/zero", t_zero_file, -EBUSY },
		{ "sealed", t_sealed, -EPERM },
	};

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	for (int i = 0; i < ARRAY_SIZE(bad); i++) {
		struct target v = target_new();
		char path[64], before[4096];

		ASSERT_EQ(0, tcall(&v, t_map, BASE, 3 * MiB, RW));
		ASSERT_EQ(0, tcall(&v, t_fill, BASE, 3 * MiB, 9));
		ASSERT_EQ(0, tcall(&v, bad[i].map, BASE + 3 * MiB, MiB, 0))
			TH_LOG("%s", bad[i].what);
		snprintf(path, sizeof(path), "/proc/%d/maps", v.pid);
		strcpy(before, read_file(path));
		EXPECT_EQ(bad[i].err, vas_attach(self->fd, v.pid, BASE, 4 * MiB,
						 BASE, NULL))
			TH_LOG("%s", bad[i].what);
		EXPECT_STREQ(before, read_file(path));
		EXPECT_EQ(0, tcall(&v, t_check, BASE, 3 * MiB, 9));
		EXPECT_EQ(3072, smaps_value(v.pid, BASE, "Rss"));
		target_kill(&v);
	}
}

/* An attach that needs a VMA more than the target may have. */
TEST_F(vas, the_limit_of_mappings_holds_and_nothing_changes)
{
	const char *limit = "/proc/sys/vm/max_map_count";
	char old[32], text[32];
	int n, err;

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 6 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 6 * MiB, 9));
	n = map_count(self->u.pid);
	strcpy(old, read_file(limit));
	/* Room for one of two splits, then for none. */
	for (int room = 1; room >= 0; room--) {
		snprintf(text, sizeof(text), "%d", n - 1 + room);
		ASSERT_EQ(0, write_file(limit, text));
		err = vas_attach(self->fd, self->u.pid, BASE + MiB, 2 * MiB,
				 BASE + MiB, NULL);
		write_file(limit, old);
		EXPECT_EQ(-ENOMEM, err);
		EXPECT_EQ(n, map_count(self->u.pid));
		EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 6 * MiB, 9));
	}
	EXPECT_EQ(0, vas_attach(self->fd, self->u.pid, BASE + MiB, 2 * MiB,
				BASE + MiB, NULL));
	EXPECT_EQ(n + 2, map_count(self->u.pid));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 9));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + MiB, 2 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 3 * MiB, 3 * MiB, 9));
}

/* One captured VMA meets three of the target, and their /proc/pid/maps stay. */
TEST_F(vas, the_target_may_be_mapped_in_other_pieces)
{
	char path[64], before[4096];

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_mprotect, BASE + MiB, MiB + PAGE, PROT_READ));
	snprintf(path, sizeof(path), "/proc/%d/maps", self->u.pid);
	strcpy(before, read_file(path));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_STREQ(before, read_file(path));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 2));
	EXPECT_EQ(-ECONNRESET, tcall(&self->u, t_fill, BASE + MiB, PAGE, 2));
}

TEST_HARNESS_MAIN
