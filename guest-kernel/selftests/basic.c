// SPDX-License-Identifier: GPL-2.0
/* Capture and attach bring plain memory back, and leave the source alone. */
#include "vas_test.h"

FIXTURE(vas)
{
	int session;
	int fd;
	uint64_t id;
	struct target t;
};

FIXTURE_SETUP(vas)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "basic", 0600, &self->id);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
}

FIXTURE_TEARDOWN(vas)
{
	target_kill(&self->t);
}

/* A second target with the same, empty VMA gets what the first had. */
TEST_F(vas, memory_survives_its_task)
{
	struct vas_capture captured;
	struct vas_attach attached;
	struct target u;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 16 * MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, &captured));
	EXPECT_LE(16 * MiB / PAGE, captured.pages);
	EXPECT_EQ(0, captured.copied_pages);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 16 * MiB, 1));
	target_kill(&self->t);

	u = target_new();
	ASSERT_EQ(0, tcall(&u, t_map, BASE, 16 * MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, vas_attach(self->fd, u.pid, BASE, 16 * MiB, BASE, &attached));
	EXPECT_EQ(1, attached.vmas);
	EXPECT_EQ(16 * MiB / PAGE, attached.pages);
	EXPECT_EQ(0, tcall(&u, t_check, BASE, 16 * MiB, 1));
	/* It is ordinary memory: writable, and the VAS keeps its own. */
	EXPECT_EQ(0, tcall(&u, t_fill, BASE, 16 * MiB, 2));
	EXPECT_EQ(0, tcall(&u, t_check, BASE, 16 * MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, u.pid, BASE, 16 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&u, t_check, BASE, 16 * MiB, 1));
	self->t = u;
}

TEST_F(vas, later_writes_of_the_source_do_not_reach_the_vas)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->t.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
}

/* A whole task rolls back, with all of its heap and data, while it waits. */
TEST_F(vas, whole_attach_rolls_a_task_back)
{
	struct vas_attach attached;
	struct vas_capture captured;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, &captured));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->t.pid, 0, 0, 0, &attached));
	EXPECT_EQ(captured.vmas, attached.vmas);
	EXPECT_EQ(captured.pages, attached.pages);
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 1));
}

TEST_F(vas, many_targets_share_one_copy)
{
	struct target u[8];
	long free_before, free_after;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 64 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	for (int i = 0; i < 8; i++) {
		u[i] = target_new();
		ASSERT_EQ(0, tcall(&u[i], t_map, BASE, 64 * MiB, PROT_READ | PROT_WRITE));
	}
	free_before = meminfo("MemFree");
	for (int i = 0; i < 8; i++) {
		ASSERT_EQ(0, vas_attach(self->fd, u[i].pid, BASE, 64 * MiB, BASE, NULL));
		EXPECT_EQ(0, tcall(&u[i], t_check, BASE, 64 * MiB, 1));
	}
	free_after = meminfo("MemFree");
	EXPECT_LT(free_before - free_after, 32 * 1024);	/* kB, not 512 MiB */
	for (int i = 0; i < 8; i++)
		target_kill(&u[i]);
}

TEST_F(vas, stat_and_ranges_and_sysfs_tell_what_is_there)
{
	struct vas_range range;
	struct vas_stat st;

	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(self->id, st.id);
	EXPECT_STREQ("basic", st.name);
	EXPECT_EQ(0600, st.mode);
	EXPECT_EQ(VAS_STATE_EMPTY, st.state);
	EXPECT_EQ(1, st.users);
	EXPECT_EQ(0, st.pages);
	EXPECT_STREQ("empty", read_file(vas_sysfs(self->id, "state")));

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_mprotect, BASE, 4 * MiB, PROT_READ));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STATE_TRANSIENT, st.state);
	EXPECT_LE(MiB / PAGE, st.pages);
	EXPECT_LE(4 * MiB, st.bytes);
	EXPECT_STREQ("transient", read_file(vas_sysfs(self->id, "state")));
	EXPECT_EQ(st.pages, strtoul(read_file(vas_sysfs(self->id, "pages")), NULL, 10));
	EXPECT_EQ(st.vmas, strtoul(read_file(vas_sysfs(self->id, "vmas")), NULL, 10));
	EXPECT_EQ(st.bytes, strtoul(read_file(vas_sysfs(self->id, "bytes")), NULL, 10));
	EXPECT_STREQ("0", read_file(vas_sysfs(self->id, "huge_pages")));
	EXPECT_STREQ("basic", read_file(vas_sysfs(self->id, "name")));
	EXPECT_STREQ("0600", read_file(vas_sysfs(self->id, "mode")));
	EXPECT_STREQ("0", read_file(vas_sysfs(self->id, "user")));
	EXPECT_STREQ("0", read_file(vas_sysfs(self->id, "group")));
	EXPECT_EQ(st.created_ns / 1000000000,
		  strtoul(read_file(vas_sysfs(self->id, "created")), NULL, 10));

	range = vas_range_at(self->fd, BASE);
	EXPECT_EQ(BASE, range.start);
	EXPECT_EQ(BASE + 4 * MiB, range.end);
	EXPECT_EQ(MiB / PAGE, range.pages);
	EXPECT_EQ(PROT_READ, range.prot);
	EXPECT_EQ(0, range.flags);

	ASSERT_EQ(0, vas_commit(self->session));
	EXPECT_STREQ("committed", read_file(vas_sysfs(self->id, "state")));
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	EXPECT_NE(0, access(vas_sysfs(self->id, "name"), F_OK));
}

TEST_F(vas, info_names_version_and_features)
{
	struct vas_info info;

	ASSERT_EQ(0, ioctl(self->session, VAS_IOC_INFO, &info));
	EXPECT_EQ(VAS_ABI_VERSION, info.abi_version);
	EXPECT_EQ(VAS_FEATURE_PAGEMAP_HIDE, info.features & ~VAS_FEATURE_STORE);
}

TEST_HARNESS_MAIN
