// SPDX-License-Identifier: GPL-2.0
/*
 * Who attaches is charged for what nobody else uses, and is held to its limit for
 * it; what it no longer uses is given back.
 */
#include "vas_cgroup.h"
#include "vas_pair.h"

#define SIZE	(32 * MiB)
#define SLACK	(2 * MiB)	/* page tables, and what CPUs hold in stock */

/* A worker charges, once the attach is over. */
#define SOON(condition) ({						\
	bool _is;							\
	for (int _i = 0; !(_is = (condition)) && _i < 1000; _i++)	\
		usleep(10000);						\
	_is;								\
})

#define EXPECT_NEAR(expected, seen) \
	EXPECT_TRUE(SOON(labs((long)(expected) - (long)(seen)) <= SLACK)) \
		TH_LOG("expected %ld KiB, seen %ld KiB", \
		       (long)(expected) / 1024, (long)(seen) / 1024)

static long charged(const char *group)
{
	return cgroup_value(group, "memory.current");
}

/* A group that a failed test may have left is taken over. */
static void groups(const char * const *names)
{
	for (; *names; names++)
		cgroup(*names);
}

static long dying(void)
{
	return cgroup_key(".", "cgroup.stat", "nr_dying_descendants");
}

/* A target in @group with room for what is to come. */
static struct target user_in(const char *group)
{
	struct target t = target_new();

	if (cgroup_enter(group, t.pid) || tcall(&t, t_map, BASE, SIZE, RW))
		abort();
	return t;
}

typedef long (*map_fn)(ulong addr, ulong len, ulong prot);

/* Without stack and data, which are not alike in all targets here. */
static int capture(int vas, pid_t pid)
{
	return vas_capture_range(vas, pid, BASE, GiB);
}

/* A VAS of SIZE, made in group "made" by a target that is gone. */
static int made_vas(struct target *t, int fd, map_fn map)
{
	int err = cgroup_enter("made", t->pid);

	err = err ?: tcall(t, map, BASE, SIZE, RW);
	err = err ?: tcall(t, t_fill, BASE, SIZE, 1);
	err = err ?: capture(fd, t->pid);
	target_kill(t);
	*t = target_new();
	return err;
}

#define NEED_GROUPS(...) do {						\
	if (!cgroups_on())						\
		SKIP(return, "no memory cgroups");			\
	groups((const char * const []){ __VA_ARGS__, NULL });		\
} while (0)

TEST_F(vas, who_attaches_is_charged_for_what_nobody_else_uses)
{
	struct target v;
	long made, user, other;

	NEED_GROUPS("made", "user", "other");
	ASSERT_EQ(0, made_vas(&self->t, self->fd, t_map));
	made = charged("made");
	EXPECT_LE(SIZE, made);
	target_kill(&self->u);
	self->u = user_in("user");
	user = charged("user");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_NEAR(user + SIZE, charged("user"));
	EXPECT_NEAR(made - SIZE, charged("made"));
	EXPECT_NEAR(SIZE, cgroup_key("user", "memory.stat", "anon"));
	EXPECT_NEAR(0, cgroup_key("made", "memory.stat", "anon"));
	/* Nobody is charged twice for what they share. */
	v = user_in("other");
	other = charged("other");
	ASSERT_EQ(0, vas_attach(self->fd, v.pid, 0, 0, 0, NULL));
	settle();
	EXPECT_NEAR(other, charged("other"));
	EXPECT_NEAR(user + SIZE, charged("user"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, SIZE, 1));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, SIZE, 1));
	/* All goes with its last user, and so do the groups. */
	target_kill(&v);
	target_kill(&self->u);
	self->u = target_new();
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	EXPECT_NEAR(0, charged("user"));
	EXPECT_EQ(0, cgroup_remove("made"));
	EXPECT_EQ(0, cgroup_remove("user"));
	EXPECT_EQ(0, cgroup_remove("other"));
}

TEST_F(vas, what_others_use_stays_theirs)
{
	long made, user;

	NEED_GROUPS("made", "user");
	ASSERT_EQ(0, cgroup_enter("made", self->t.pid));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, SIZE, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, SIZE, 1));
	ASSERT_EQ(0, capture(self->fd, self->t.pid));
	target_kill(&self->u);
	self->u = user_in("user");
	made = charged("made");
	user = charged("user");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	settle();
	EXPECT_NEAR(made, charged("made"));
	EXPECT_NEAR(user, charged("user"));
	target_kill(&self->t);
	self->t = target_new();
	/* Until they are gone. */
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_NEAR(user + SIZE, charged("user"));
	EXPECT_NEAR(made - SIZE, charged("made"));
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, cgroup_remove("made"));
	EXPECT_EQ(0, cgroup_remove("user"));
}

TEST_F(vas, huge_pages_are_charged_whole)
{
	long user;

	NEED_GROUPS("made", "user");
	ASSERT_EQ(0, made_vas(&self->t, self->fd, t_map_huge));
	EXPECT_EQ(SIZE, cgroup_key("made", "memory.stat", "anon_thp"));
	target_kill(&self->u);
	self->u = user_in("user");
	user = charged("user");
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_NEAR(user + SIZE, charged("user"));
	EXPECT_TRUE(SOON(cgroup_key("user", "memory.stat", "anon_thp") == SIZE));
	EXPECT_EQ(0, cgroup_key("made", "memory.stat", "anon_thp"));
	/* They can be split and freed from there. */
	EXPECT_EQ(0, tcall(&self->u, t_munmap, BASE + MiB, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE + 4 * MiB, MiB, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 8 * MiB, 8 * MiB, 1));
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, cgroup_remove("made"));
	EXPECT_EQ(0, cgroup_remove("user"));
}

/* Generation after generation shares what was never written. */
TEST_F(vas, a_removed_group_is_relieved_and_goes)
{
	enum { GENERATIONS = 6 };
	int fds[GENERATIONS + 1] = { self->fd };
	char name[16];
	long before;

	NEED_GROUPS("made");
	before = dying();
	ASSERT_EQ(0, made_vas(&self->t, fds[0], t_map));
	EXPECT_EQ(0, cgroup_remove("made"));
	for (int i = 0; i < GENERATIONS; i++) {
		struct target t;

		snprintf(name, sizeof(name), "gen%d", i);
		cgroup(name);
		t = user_in(name);
		ASSERT_EQ(0, vas_attach(fds[i], t.pid, 0, 0, 0, NULL));
		EXPECT_TRUE(SOON(charged(name) >= SIZE));
		EXPECT_EQ(0, tcall(&t, t_check, BASE, SIZE, 1));
		fds[i + 1] = vas_create(self->session, name, 0600, NULL);
		ASSERT_GE(fds[i + 1], 0);
		ASSERT_EQ(0, capture(fds[i + 1], t.pid));
		target_kill(&t);
		EXPECT_EQ(0, cgroup_remove(name));
	}
	/* What a generation has written is charged to it while its VAS is there. */
	for (int i = 0; i < GENERATIONS; i++) {
		ASSERT_EQ(0, vas_delete(fds[i], 0));
		close(fds[i]);
	}
	for (int i = 0; i < 100 && dying() > before + 1; i++)
		usleep(100000);
	EXPECT_GE(before + 1, dying());
}

/* No swap: what is too much ends who has it, and nobody else. */
static void too_much(struct __test_metadata *_metadata,
		     FIXTURE_DATA(vas) *self, map_fn map)
{
	struct target v;

	NEED_GROUPS("made", "small");
	ASSERT_EQ(0, made_vas(&self->t, self->fd, map));
	target_kill(&self->u);
	self->u = user_in("small");
	ASSERT_EQ(0, cgroup_limit("small", SIZE / 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_TRUE(SOON(tcall(&self->u, t_nop, 0, 0, 0) == -ECONNRESET));
	EXPECT_LE(charged("small"), SIZE / 2);
	EXPECT_LE(1, cgroup_key("small", "memory.events", "oom_kill"));
	EXPECT_EQ(0, tcall(&self->t, t_nop, 0, 0, 0));
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, cgroup_remove("small"));
	/* The VAS is as good as before. */
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_map, BASE, SIZE, RW));
	ASSERT_EQ(0, vas_attach(self->fd, v.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, SIZE, 1));
	target_kill(&v);
	cgroup_remove("made");
}

TEST_F(vas, who_attaches_more_than_its_limit_ends)
{
	too_much(_metadata, self, t_map);
}

TEST_F(vas, who_attaches_more_huge_pages_than_its_limit_ends)
{
	too_much(_metadata, self, t_map_huge);
}

TEST_F(vas, what_is_too_much_is_swapped)
{
	long current;

	NEED_GROUPS("made", "small");
	if (swap_on())
		SKIP(return, "no swap");
	ASSERT_EQ(0, made_vas(&self->t, self->fd, t_map));
	target_kill(&self->u);
	self->u = user_in("small");
	ASSERT_EQ(0, cgroup_limit("small", SIZE / 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_TRUE(SOON((current = charged("small")) >= SIZE / 4));
	settle();
	EXPECT_LE(charged("small"), SIZE / 2);
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, SIZE, 1));
	EXPECT_LE(charged("small"), SIZE / 2);
	target_kill(&self->u);
	self->u = target_new();
	swap_off();
	EXPECT_EQ(0, cgroup_remove("small"));
	cgroup_remove("made");
}

/* The snapshot's copy of what was written since is not the writer's. */
static void write_all(struct __test_metadata *_metadata,
		      FIXTURE_DATA(vas) *self, map_fn map)
{
	struct target v;

	NEED_GROUPS("made", "user");
	ASSERT_EQ(0, made_vas(&self->t, self->fd, map));
	target_kill(&self->u);
	self->u = user_in("user");
	ASSERT_EQ(0, cgroup_limit("user", SIZE + SIZE / 4));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, SIZE, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, SIZE, 2));
	EXPECT_EQ(0, cgroup_key("user", "memory.events", "oom"));
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_map, BASE, SIZE, RW));
	ASSERT_EQ(0, vas_attach(self->fd, v.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, SIZE, 1));
	target_kill(&v);
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, cgroup_remove("user"));
	cgroup_remove("made");
}

TEST_F(vas, a_writer_is_not_charged_twice)
{
	write_all(_metadata, self, t_map);
}

TEST_F(vas, a_writer_to_huge_pages_is_not_charged_twice)
{
	write_all(_metadata, self, t_map_huge);
}

/* Nor is who was captured and goes on. */
TEST_F(vas, a_captured_writer_is_not_charged_twice)
{
	NEED_GROUPS("user");
	target_kill(&self->u);
	self->u = user_in("user");
	ASSERT_EQ(0, cgroup_limit("user", SIZE + SIZE / 4));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, SIZE, 1));
	ASSERT_EQ(0, capture(self->fd, self->u.pid));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, SIZE, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, SIZE, 2));
	EXPECT_EQ(0, cgroup_key("user", "memory.events", "oom"));
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, cgroup_remove("user"));
}

/* Attaches into groups, writes, forks and deletions at once, short of memory. */
static void churn(int seed)
{
	int session = vas_session();
	time_t begun = time(NULL);
	char group[16], name[16];

	snprintf(group, sizeof(group), "churn%d", seed);
	cgroup(group);
	cgroup_limit(group, 24 * MiB);
	for (int i = 0; i < 30 && may_go_on(begun); i++) {
		struct target t = target_new(), u = target_new();
		int fd;

		snprintf(name, sizeof(name), "churn%d.%d", seed, i);
		fd = vas_create(session, name, 0600, NULL);
		cgroup_enter(group, u.pid);
		if (tcall(&t, i % 2 ? t_map_huge : t_map, BASE, 8 * MiB, RW) ||
		    tcall(&t, t_fill, BASE, 8 * MiB, seed) ||
		    capture(fd, t.pid))
			_exit(1);
		if (i % 3)
			target_kill(&t);
		if (tcall(&u, t_map, BASE, 8 * MiB, RW) ||
		    vas_attach(fd, u.pid, 0, 0, 0, NULL) ||
		    tcall(&u, t_check, BASE, 8 * MiB, seed) ||
		    tcall(&u, t_fork, 0, 0, 0) < 0 ||
		    tcall(&u, t_fill, BASE, 4 * MiB, seed + 1) ||
		    vas_attach(fd, u.pid, 0, 0, 0, NULL) ||
		    tcall(&u, t_check, BASE, 8 * MiB, seed))
			_exit(2);
		if (!(i % 3))
			target_kill(&t);
		target_kill(&u);
		vas_delete(fd, 0);
		close(fd);
	}
	_exit(cgroup_remove(group) ? 3 : 0);
}

TEST_F(vas, charges_move_while_all_else_goes_on)
{
	pid_t pids[3];
	int status;

	NEED_GROUPS("user");
	cgroup_remove("user");
	if (swap_on())
		SKIP(return, "no swap");
	fflush(NULL);
	for (int i = 0; i < 3; i++) {
		pids[i] = fork();
		if (!pids[i])
			churn(10 * i + 1);
	}
	for (int i = 0; i < 3; i++) {
		waitpid(pids[i], &status, 0);
		EXPECT_EQ(0, status);
	}
	swap_off();
}

static double ms_since(const struct timespec *begun)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - begun->tv_sec) * 1e3 +
	       (now.tv_nsec - begun->tv_nsec) / 1e6;
}

/* How long an attach takes, and until its group is charged. */
static double attach_ms(struct __test_metadata *_metadata, int fd,
			const char *group, ulong len, double *charged_ms)
{
	struct target t = target_new();
	struct timespec begun;
	double ms;

	ASSERT_EQ(0, cgroup_enter(group, t.pid));
	ASSERT_EQ(0, tcall(&t, t_map, BASE, len, RW));
	clock_gettime(CLOCK_MONOTONIC, &begun);
	ASSERT_EQ(0, vas_attach(fd, t.pid, 0, 0, 0, NULL));
	ms = ms_since(&begun);
	if (charged_ms) {
		EXPECT_TRUE(SOON(charged(group) >= len));
		*charged_ms = ms_since(&begun);
	}
	target_kill(&t);
	return ms;
}

/* Only tells: no test fails on a time. */
TEST_F(vas, what_charging_costs)
{
	ulong len = 256 * MiB;

	NEED_GROUPS("one", "two");
	if (meminfo("MemFree") < 512 * 1024)
		SKIP(return, "not enough memory");
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, len, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, len, 1));
	ASSERT_EQ(0, capture(self->fd, self->t.pid));
	target_kill(&self->t);
	self->t = target_new();
	for (int i = 0; i < 5; i++) {
		const char *group = i % 2 ? "one" : "two";
		double charged, attach, root;

		root = attach_ms(_metadata, self->fd, ".", len, NULL);
		attach = attach_ms(_metadata, self->fd, group, len, &charged);
		TH_LOG("attach of 256 MiB: %.1f ms in the root group, %.1f ms in another, which is charged after %.1f ms",
		       root, attach, charged);
	}
	cgroup_remove("one");
	cgroup_remove("two");
}

TEST_HARNESS_MAIN
