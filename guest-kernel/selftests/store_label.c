// SPDX-License-Identifier: GPL-2.0
/* What a snapshot in the store says beside its memory: its label, and flags. */
#include <linux/capability.h>

#include "vas_store.h"

/* Whatever is in the store's list of @name, "" without it. */
static const char *stored_label(int session, const char *name)
{
	static struct vas_store_snapshot snap;

	return store_find(session, name, &snap) == 1 ? snap.label : "";
}

TEST_F(vas, a_label_goes_to_the_store_and_comes_back)
{
	int second = vas_create(self->session, "second", 0600, NULL), fd;
	int fds[2] = { self->fd, second };
	const char *name = snap_name("label");
	uint64_t ids[2];
	uint32_t count = 2;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_capture(second, self->u.pid, 0, NULL));
	ASSERT_EQ(0, vas_set_label(self->fd, "{\"name\":\"first \xc3\xa4\"}"));
	ASSERT_EQ(0, vas_set_label(second, "not asked for"));
	ASSERT_EQ(0, drain(self->session, name, fds, 2, VAS_DRAIN_SYNC));
	EXPECT_STREQ("{\"name\":\"first \xc3\xa4\"}", stored_label(self->session, name));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	ASSERT_EQ(0, vas_delete(second, 0));

	ASSERT_EQ(0, load(self->session, name, ids, &count));
	ASSERT_EQ(2, count);
	fd = vas_open(self->session, ids[0], NULL, ALL_FLAGS);
	EXPECT_STREQ("{\"name\":\"first \xc3\xa4\"}", vas_get_label(fd));
	EXPECT_EQ(0, vas_set_label(fd, "cold"));
	EXPECT_STREQ("cold", vas_get_label(fd));
	EXPECT_STREQ("{\"name\":\"first \xc3\xa4\"}", stored_label(self->session, name));
	close(fd);
	fd = vas_open(self->session, ids[1], NULL, ALL_FLAGS);
	EXPECT_STREQ("", vas_get_label(fd));
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, a_snapshot_without_a_label_has_an_empty_one)
{
	const char *name = snap_name("none");
	struct vas_store_snapshot snap;

	NEED_STORE(self->session);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	memset(&snap, 'a', sizeof(snap));
	ASSERT_EQ(1, store_find(self->session, name, &snap));
	EXPECT_STREQ("", snap.label);
	EXPECT_EQ(0, store_delete(self->session, name));
}

TEST_F(vas, a_label_in_the_store_can_be_changed)
{
	const char *name = snap_name("again");
	char longest[VAS_LABEL_MAX] = {};

	NEED_STORE(self->session);
	memset(longest, 'x', sizeof(longest) - 1);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_set_label(self->fd, "before"));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-ESTALE, store_label(self->session, name, "", longest));
	EXPECT_EQ(-ESTALE, store_label(self->session, name, "befor", longest));
	EXPECT_STREQ("before", stored_label(self->session, name));
	EXPECT_EQ(0, store_label(self->session, name, "before", longest));
	EXPECT_STREQ(longest, stored_label(self->session, name));
	EXPECT_STREQ("before", vas_get_label(self->fd));
	EXPECT_EQ(0, store_label(self->session, name, longest, ""));
	EXPECT_STREQ("", stored_label(self->session, name));
	EXPECT_EQ(-ENOENT, store_label(self->session, "nobody", "", "text"));
	/* It is still the snapshot that it was. */
	EXPECT_EQ(0, evict(self->fd, NULL));
	EXPECT_EQ(0, store_delete(self->session, name));
}

/* The store wants text; the kernel, which does not look, passes that on. */
TEST_F(vas, a_label_that_is_no_text_stays_out_of_the_store)
{
	const char *name = snap_name("text");

	NEED_STORE(self->session);
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_set_label(self->fd, "\xff"));
	EXPECT_EQ(-EINVAL, drain_one(self->session, name, self->fd));
	EXPECT_EQ(VAS_STORE_HOT, store_state(self->fd));
	ASSERT_EQ(0, vas_set_label(self->fd, "text"));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-EINVAL, store_label(self->session, name, "text", "two\nlines"));
	EXPECT_STREQ("text", stored_label(self->session, name));
	EXPECT_EQ(0, store_delete(self->session, name));
}

static long t_label_as_nobody(ulong session, ulong name, ulong unused)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {};

	data[0].effective = data[0].permitted = ~(1U << CAP_DAC_OVERRIDE);
	data[1].effective = data[1].permitted = 1U << (CAP_CHECKPOINT_RESTORE - 32);
	if (syscall(SYS_capset, &head, data))
		return -errno;
	return store_label(vas_session(), "anything", "", "theirs");
}

TEST_F(vas, labels_in_the_store_are_not_for_everybody)
{
	EXPECT_EQ(-EPERM, tcall(&self->t, t_label_as_nobody, 0, 0, 0));
}

/* 1 MiB of memory, of droppable memory, and of what is wiped on fork. */
static long t_kinds(ulong addr, ulong b, ulong c)
{
	return t_map(addr, MiB, RW) ?: t_map_droppable(addr + 2 * MiB, MiB, RW) ?:
	       t_map(addr + 4 * MiB, MiB, RW) ?:
	       t_madvise(addr + 4 * MiB, MiB, MADV_WIPEONFORK) ?:
	       t_fill(addr, MiB, 1) ?: t_fill(addr + 2 * MiB, MiB, 1) ?:
	       t_fill(addr + 4 * MiB, MiB, 1);
}

static long t_map_kinds(ulong addr, ulong b, ulong c)
{
	return t_map(addr, MiB, RW) ?: t_map(addr + 2 * MiB, MiB, RW) ?:
	       t_map(addr + 4 * MiB, MiB, RW);
}

/* How much of it is not as it should be in a restored task. */
static long check_kinds(struct target *t)
{
	return tcall(t, t_check, BASE, MiB, 1) +
	       tcall(t, t_check_zero, BASE + 2 * MiB, MiB, 0) +
	       tcall(t, t_check, BASE + 4 * MiB, MiB, 1) +
	       !vm_flag(t->pid, BASE + 2 * MiB, " dp") +
	       !vm_flag(t->pid, BASE + 4 * MiB, " wf");
}

TEST_F(vas, what_is_droppable_or_wiped_on_fork_is_so_from_the_store)
{
	struct vas_attach clone = { .flags = VAS_ATTACH_CLONE };
	const char *name = snap_name("kinds");
	struct target v = target_new();
	uint32_t count = 1;
	uint64_t id;
	int fd;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_kinds, BASE, 0, 0));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, GiB));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_kinds, BASE, 0, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, check_kinds(&self->u));
	ASSERT_EQ(0, vas_delete(self->fd, 0));

	ASSERT_EQ(0, load(self->session, name, &id, &count));
	fd = vas_open(self->session, id, NULL, ALL_FLAGS);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, tcall(&v, t_map_kinds, BASE, 0, 0));
	ASSERT_EQ(0, vas_attach_as(fd, v.pid, &clone));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&v, t_check_zero, BASE + 4 * MiB, MiB, 0));
	ASSERT_EQ(0, vas_attach(fd, v.pid, 0, 0, 0, NULL));
	EXPECT_EQ(0, check_kinds(&v));
	EXPECT_EQ(0, store_delete(self->session, name));
	target_kill(&v);
}

TEST_HARNESS_MAIN
