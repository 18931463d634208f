// SPDX-License-Identifier: GPL-2.0
/* /proc/PID/vas tells which snapshot a task's memory is from. */
#include "vas_pair.h"

struct origin {
	char snapshot[33];
	unsigned long long generation;
};

#define NOWHERE	"00000000000000000000000000000000"
#define SOME	"000102030405060708090a0b0c0d0e0f"

static struct origin origin_of(pid_t pid)
{
	struct origin origin = { "unreadable", -1 };
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/vas", pid);
	f = fopen(path, "re");
	if (!f)
		return origin;
	if (fscanf(f, "snapshot:\t%32[0-9a-f]\ngeneration:\t%llx\n", origin.snapshot,
		   &origin.generation) != 2 || fgetc(f) != EOF)
		strcpy(origin.snapshot, "unexpected");
	fclose(f);
	return origin;
}

/* All of the VAS, of the snapshot @first, @first + 1, ... */
static int restore(int fd, pid_t pid, uint8_t first)
{
	struct vas_attach arg = {};

	for (int i = 0; i < 16; i++)
		arg.snapshot[i] = first + i;
	return vas_attach_as(fd, pid, &arg);
}

#define CAPTURED(_metadata, self)						\
	do {									\
		ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));		\
		ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));		\
		ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, MiB)); \
		ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));		\
	} while (0)

TEST_F(vas, it_is_zero_where_nothing_was_restored)
{
	CAPTURED(_metadata, self);
	EXPECT_STREQ(NOWHERE, origin_of(getpid()).snapshot);
	EXPECT_EQ(0, origin_of(getpid()).generation);
	EXPECT_STREQ(NOWHERE, origin_of(self->t.pid).snapshot);
	/* An attach of no snapshot says nothing. */
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_STREQ(NOWHERE, origin_of(self->u.pid).snapshot);
	EXPECT_EQ(0, origin_of(self->u.pid).generation);
	EXPECT_STREQ("unreadable", origin_of(0).snapshot);
}

TEST_F(vas, each_restore_has_its_own_generation)
{
	struct target v = target_new();
	struct origin one, two, again;

	CAPTURED(_metadata, self);
	ASSERT_EQ(0, tcall(&v, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, restore(self->fd, self->u.pid, 0));
	ASSERT_EQ(0, restore(self->fd, v.pid, 0));
	one = origin_of(self->u.pid);
	two = origin_of(v.pid);
	EXPECT_STREQ(SOME, one.snapshot);
	EXPECT_STREQ(SOME, two.snapshot);
	EXPECT_NE(0, one.generation);
	EXPECT_NE(0, two.generation);
	EXPECT_NE(one.generation, two.generation);
	ASSERT_EQ(0, restore(self->fd, self->u.pid, 0x10));
	again = origin_of(self->u.pid);
	EXPECT_STREQ("101112131415161718191a1b1c1d1e1f", again.snapshot);
	EXPECT_NE(one.generation, again.generation);
	/* Other memory, put there later, does not change where it is from. */
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(again.generation, origin_of(self->u.pid).generation);
	target_kill(&v);
}

TEST_F(vas, an_attach_that_fails_sets_nothing)
{
	struct vas_attach part = { .src = BASE, .len = PAGE, .dst = BASE, .snapshot = { 1 } };

	CAPTURED(_metadata, self);
	EXPECT_EQ(-EINVAL, vas_attach_as(self->fd, self->u.pid, &part));
	ASSERT_EQ(0, tcall(&self->u, t_munmap, BASE, PAGE, 0));
	EXPECT_EQ(-EFAULT, restore(self->fd, self->u.pid, 0));
	EXPECT_STREQ(NOWHERE, origin_of(self->u.pid).snapshot);
	EXPECT_EQ(0, origin_of(self->u.pid).generation);
}

static long t_become_sleep(ulong a, ulong b, ulong c)
{
	execl("/bin/sleep", "sleep", "1000", NULL);
	return -errno;
}

static bool is_sleep(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	return !strcmp(read_file(path), "sleep");
}

static long t_child_pid(ulong a, ulong b, ulong c)
{
	return child.pid;
}

/* The child's memory is from there, too; what it executes is not. */
TEST_F(vas, fork_inherits_it_and_exec_ends_it)
{
	struct target_call exec = { t_become_sleep };
	struct origin parent, forked;
	pid_t pid;

	CAPTURED(_metadata, self);
	ASSERT_EQ(0, restore(self->fd, self->u.pid, 0));
	parent = origin_of(self->u.pid);
	ASSERT_LT(0, tcall(&self->u, t_fork, 0, 0, 0));
	pid = tcall(&self->u, t_child_pid, 0, 0, 0);
	forked = origin_of(pid);
	EXPECT_STREQ(SOME, forked.snapshot);
	EXPECT_EQ(parent.generation, forked.generation);

	ASSERT_EQ(sizeof(exec), send(self->u.fd, &exec, sizeof(exec), 0));
	for (int i = 0; i < 300 && !is_sleep(self->u.pid); i++)
		usleep(100000);
	ASSERT_TRUE(is_sleep(self->u.pid));
	EXPECT_STREQ(NOWHERE, origin_of(self->u.pid).snapshot);
	EXPECT_EQ(0, origin_of(self->u.pid).generation);
}

TEST_HARNESS_MAIN
