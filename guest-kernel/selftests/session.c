// SPDX-License-Identifier: GPL-2.0
/*
 * Sessions: what is not committed goes with them, however they end; and they
 * hide captured memory from PAGEMAP_SCAN and smaps, for one process only.
 */
#include <linux/fs.h>

#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(session)
{
	int session;
	int fd;
	uint64_t id;
	struct target t;
};

FIXTURE_SETUP(session)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "session", 0600, &self->id);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
}

FIXTURE_TEARDOWN(session)
{
	target_kill(&self->t);
}

static bool exists(uint64_t id)
{
	return access(vas_sysfs(id, "name"), F_OK) == 0;
}

TEST_F(session, closing_deletes_what_is_not_committed)
{
	int other = vas_session();

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	close(self->session);
	EXPECT_FALSE(exists(self->id));
	EXPECT_EQ(-ENOENT, vas_open(other, self->id, NULL, VAS_ACCESS_READ));
	EXPECT_EQ(-ENOENT, vas_open(other, 0, "session", VAS_ACCESS_READ));
	/* An open VAS file still reaches the memory, as with a deleted file. */
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_EQ(0, vas_attach(self->fd, self->t.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
}

TEST_F(session, what_is_committed_stays_until_it_is_deleted)
{
	int other = vas_session(), fd;
	struct vas_stat st;

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_commit(self->session));
	close(self->fd);
	close(self->session);
	EXPECT_TRUE(exists(self->id));
	fd = vas_open(other, 0, "session", VAS_ACCESS_READ | VAS_ACCESS_WRITE);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, vas_stat(fd, &st));
	EXPECT_EQ(self->id, st.id);
	EXPECT_EQ(VAS_STATE_COMMITTED, st.state);
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_EQ(0, vas_attach(fd, self->t.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
	ASSERT_EQ(0, vas_stat(fd, &st));
	EXPECT_EQ(1, st.attaches);
	EXPECT_EQ(0, vas_delete(fd, 0));
	EXPECT_FALSE(exists(self->id));
}

TEST_F(session, a_commit_takes_all_or_none)
{
	uint64_t id2;
	int fd2 = vas_create(self->session, "second", 0600, &id2);

	ASSERT_GE(fd2, 0);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-ENODATA, vas_commit(self->session));
	EXPECT_STREQ("transient", read_file(vas_sysfs(self->id, "state")));
	ASSERT_EQ(0, vas_capture(fd2, self->t.pid, 0, NULL));
	EXPECT_EQ(0, vas_commit(self->session));
	EXPECT_STREQ("committed", read_file(vas_sysfs(self->id, "state")));
	EXPECT_STREQ("committed", read_file(vas_sysfs(id2, "state")));
	EXPECT_EQ(0, vas_commit(self->session));	/* nothing left to do */
	EXPECT_EQ(0, vas_delete(self->fd, 0));
	EXPECT_EQ(0, vas_delete(fd2, 0));
}

/* A session that is killed, at any moment, is a session that is closed. */
TEST_F(session, a_killed_process_leaves_nothing)
{
	for (int i = 0; i < 20; i++) {
		uint64_t *id = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		pid_t pid = fork();

		if (!pid) {
			int s = vas_session();
			int fd = vas_create(s, "killed", 0600, id);

			vas_capture(fd, self->t.pid, VAS_CAPTURE_HIDE, NULL);
			pause();
		}
		usleep(i * 3000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		EXPECT_FALSE(*id && exists(*id));
		EXPECT_EQ(-ENOENT, vas_open(self->session, 0, "killed", VAS_ACCESS_READ));
		EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
		munmap(id, PAGE);
	}
}

TEST_F(session, capture_and_attach_race_with_the_sessions_end)
{
	for (int i = 0; i < 20; i++) {
		int s = vas_session();
		int fd = vas_create(s, "race", 0600, NULL);
		pid_t pid = fork();
		int ret;

		ASSERT_GE(fd, 0);
		if (!pid) {
			close(s);	/* the child's; ours is the last */
			vas_capture(fd, self->t.pid, VAS_CAPTURE_HIDE, NULL);
			vas_attach(fd, self->t.pid, BASE, MiB, BASE, NULL);
			_exit(0);
		}
		usleep(i * 500);
		close(s);
		ret = vas_capture(fd, self->t.pid, VAS_CAPTURE_HIDE, NULL);
		/* The child may still hold the session, or have been first. */
		EXPECT_TRUE(!ret || ret == -ENOENT || ret == -ESTALE || ret == -ENOTEMPTY);
		close(fd);
		waitpid(pid, NULL, 0);
		EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
	}
}

/* --- Hiding --- */

/* How many pages of [addr, addr + len) PAGEMAP_SCAN finds present. */
static long scan(pid_t pid, ulong addr, ulong len)
{
	static struct page_region regions[256];
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .start = addr, .end = addr + len,
		.vec = (ulong)regions, .vec_len = 256,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	char path[64];
	long pages = 0;
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = ret_errno(ioctl(fd, PAGEMAP_SCAN, &arg));
	close(fd);
	if (n < 0)
		return n;
	for (int i = 0; i < n; i++)
		pages += (regions[i].end - regions[i].start) / PAGE;
	return pages;
}

static long t_scan(ulong pid, ulong addr, ulong len)
{
	return scan(pid, addr, len);
}

TEST_F(session, captured_memory_is_hidden_from_this_process_only)
{
	struct target other = target_new();

	ASSERT_EQ(256, scan(self->t.pid, BASE, MiB));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(0, scan(self->t.pid, BASE, MiB));
	EXPECT_EQ(256, tcall(&other, t_scan, self->t.pid, BASE, MiB));
	EXPECT_EQ(256, tcall(&self->t, t_scan, self->t.pid, BASE, MiB));
	/* Committed or not, until the session closes. */
	ASSERT_EQ(0, vas_commit(self->session));
	EXPECT_EQ(0, scan(self->t.pid, BASE, MiB));
	close(self->session);
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	target_kill(&other);
}

static long rss(pid_t pid)
{
	return smaps_value(pid, BASE, "Rss");
}

static long t_rss(ulong pid, ulong b, ulong c)
{
	return rss(pid);
}

static long rollup(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	return proc_value(path, "Rss");
}

TEST_F(session, captured_memory_is_not_counted_for_this_process_only)
{
	struct target other = target_new();
	long all = rollup(self->t.pid);

	ASSERT_EQ(1024, rss(self->t.pid));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(0, rss(self->t.pid));
	EXPECT_EQ(0, smaps_value(self->t.pid, BASE, "Anonymous"));
	EXPECT_GE(all - 1024, rollup(self->t.pid));
	/* The VMA itself is there, with its size and flags. */
	EXPECT_EQ(1024, smaps_value(self->t.pid, BASE, "Size"));
	EXPECT_EQ(0, smaps_value(self->t.pid, BASE, "VmFlags"));
	EXPECT_EQ(1024, tcall(&other, t_rss, self->t.pid, 0, 0));
	EXPECT_EQ(1024, tcall(&self->t, t_rss, self->t.pid, 0, 0));
	ASSERT_EQ(0, vas_commit(self->session));
	EXPECT_EQ(0, rss(self->t.pid));
	close(self->session);
	EXPECT_EQ(1024, rss(self->t.pid));
	EXPECT_LE(all, rollup(self->t.pid));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	target_kill(&other);
}

/* It has no page in the VAS, and so must have none for who would write them. */
TEST_F(session, droppable_memory_is_hidden_too)
{
	ulong addr = BASE + GiB;

	ASSERT_EQ(0, tcall(&self->t, t_map_droppable, addr, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, addr, MiB, 1));
	ASSERT_EQ(256, scan(self->t.pid, addr, MiB));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(0, scan(self->t.pid, addr, MiB));
	EXPECT_EQ(0, smaps_value(self->t.pid, addr, "Rss"));
	EXPECT_EQ(0, tcall(&self->t, t_check, addr, MiB, 1));
	/* Ordinary memory in its place is not. */
	ASSERT_EQ(0, tcall(&self->t, t_munmap, addr, MiB, 0));
	ASSERT_EQ(0, tcall(&self->t, t_map, addr, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, addr, MiB, 1));
	EXPECT_EQ(256, scan(self->t.pid, addr, MiB));
}

TEST_F(session, without_the_flag_nothing_is_hidden)
{
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
	EXPECT_EQ(1024, rss(self->t.pid));
}

static long t_map_shared(ulong addr, ulong len, ulong c)
{
	void *p = mmap((void *)addr, len, PROT_READ | PROT_WRITE, MAP_SHARED |
		       MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	return p == MAP_FAILED ? -errno : t_fill(addr, len, 1);
}

/* What was not captured, or came later, has to be found. */
TEST_F(session, only_what_was_captured_is_hidden)
{
	ASSERT_EQ(0, tcall(&self->t, t_map_shared, BASE + 2 * GiB, MiB, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(256, scan(self->t.pid, BASE + 2 * GiB, MiB));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + GiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, MiB, 1));
	EXPECT_EQ(256, scan(self->t.pid, BASE + GiB, MiB));
	/* Another VMA in the same place is not the captured one. */
	ASSERT_EQ(0, tcall(&self->t, t_munmap, BASE, MiB, 0));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
	EXPECT_EQ(1024, rss(self->t.pid));
}

TEST_F(session, a_failed_capture_hides_nothing)
{
	ASSERT_EQ(0, vas_capture(self->fd, getpid(), 0, NULL));
	EXPECT_EQ(-ENOTEMPTY, vas_capture(self->fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
}

TEST_F(session, hiding_needs_an_open_session)
{
	int s = vas_session();
	int fd = vas_open(s, self->id, NULL, VAS_ACCESS_WRITE);

	ASSERT_GE(fd, 0);
	close(s);
	EXPECT_EQ(-ESTALE, vas_capture(fd, self->t.pid, VAS_CAPTURE_HIDE, NULL));
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
	EXPECT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
}

TEST_F(session, many_tasks_are_hidden_at_once)
{
	struct target t[32];
	char name[32];

	for (int i = 0; i < 32; i++) {
		int fd;

		t[i] = target_new();
		ASSERT_EQ(0, tcall(&t[i], t_map, BASE, MiB, RW));
		ASSERT_EQ(0, tcall(&t[i], t_fill, BASE, MiB, i));
		snprintf(name, sizeof(name), "many-%d", i);
		fd = vas_create(self->session, name, 0600, NULL);
		ASSERT_EQ(0, vas_capture(fd, t[i].pid, VAS_CAPTURE_HIDE, NULL));
		close(fd);
	}
	for (int i = 0; i < 32; i++) {
		EXPECT_EQ(0, scan(t[i].pid, BASE, MiB));
	}
	EXPECT_EQ(256, scan(self->t.pid, BASE, MiB));
	close(self->session);
	for (int i = 0; i < 32; i++) {
		EXPECT_EQ(256, scan(t[i].pid, BASE, MiB));
		target_kill(&t[i]);
	}
}

TEST_HARNESS_MAIN
