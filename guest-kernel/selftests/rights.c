// SPDX-License-Identifier: GPL-2.0
/* Who may open /dev/vas, which VAS, and reach which task. */
#include <grp.h>
#include <linux/capability.h>

#include "vas_test.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(vas)
{
	int session;
	int fd;
	uint64_t id;
	struct target t;	/* captured: BASE, 4 MiB, filled with 1 */
};

FIXTURE_SETUP(vas)
{
	self->session = vas_session();
	ASSERT_GE(self->session, 0);
	self->fd = vas_create(self->session, "rights", 0640, &self->id);
	ASSERT_GE(self->fd, 0);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
}

FIXTURE_TEARDOWN(vas)
{
	target_kill(&self->t);
}

#define NOBODY	65534

/* Drops all but @cap, and becomes uid/gid. */
static long t_become(ulong uid, ulong gid, ulong cap)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {};

	if (prctl(PR_SET_KEEPCAPS, 1) || setgroups(0, NULL) ||
	    setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	if (cap) {
		data[cap / 32].effective = data[cap / 32].permitted = 1U << (cap % 32);
	}
	if (syscall(SYS_capset, &head, data))
		return -errno;
	prctl(PR_SET_DUMPABLE, 1);
	return 0;
}

static long t_session(ulong a, ulong b, ulong c)
{
	return vas_session();
}

static long t_userns(ulong a, ulong b, ulong c)
{
	return ret_errno(unshare(CLONE_NEWUSER));
}

TEST_F(vas, opening_needs_a_capability_in_the_initial_namespace)
{
	struct target v = target_new();

	ASSERT_EQ(0, tcall(&v, t_become, NOBODY, NOBODY, 0));
	EXPECT_EQ(-EPERM, tcall(&v, t_session, 0, 0, 0));
	/* Root of its own namespace only. */
	ASSERT_EQ(0, tcall(&v, t_userns, 0, 0, 0));
	EXPECT_EQ(-EPERM, tcall(&v, t_session, 0, 0, 0));
	target_kill(&v);
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_become, NOBODY, NOBODY, CAP_SYS_PTRACE));
	EXPECT_EQ(-EPERM, tcall(&v, t_session, 0, 0, 0));
	target_kill(&v);
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_become, NOBODY, NOBODY, CAP_CHECKPOINT_RESTORE));
	EXPECT_LE(0, tcall(&v, t_session, 0, 0, 0));
	target_kill(&v);
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_become, NOBODY, NOBODY, CAP_SYS_ADMIN));
	EXPECT_LE(0, tcall(&v, t_session, 0, 0, 0));
	target_kill(&v);
}

/* Reads the name of a VAS. */
static long t_name(ulong id, ulong b, ulong c)
{
	char name[VAS_NAME_MAX];
	int fd = open(vas_sysfs(id, "name"), O_RDONLY);
	long len = ret_errno(fd < 0 ? fd : read(fd, name, sizeof(name)));

	close(fd);
	return len;
}

/* As root in a container, which has few capabilities. */
TEST_F(vas, names_are_for_those_who_may_open_the_device)
{
	struct target v = target_new();

	EXPECT_LT(0, tcall(&v, t_name, self->id, 0, 0));
	ASSERT_EQ(0, tcall(&v, t_become, 0, 0, CAP_DAC_OVERRIDE));
	EXPECT_EQ(-EPERM, tcall(&v, t_name, self->id, 0, 0));
	target_kill(&v);
	v = target_new();
	ASSERT_EQ(0, tcall(&v, t_become, NOBODY, NOBODY, CAP_CHECKPOINT_RESTORE));
	EXPECT_LT(0, tcall(&v, t_name, self->id, 0, 0));
	target_kill(&v);
}

static long t_open(ulong session, ulong id, ulong access)
{
	return vas_open(session, id, NULL, access);
}

static long t_create(ulong session, ulong mode, ulong c)
{
	return vas_create(session, "theirs", mode, NULL);
}

static long t_capture(ulong fd, ulong pid, ulong c)
{
	return vas_capture(fd, pid, 0, NULL);
}

static long t_attach(ulong fd, ulong pid, ulong c)
{
	return vas_attach(fd, pid, BASE, 4 * MiB, BASE, NULL);
}

static long t_delete(ulong fd, ulong b, ulong c)
{
	return vas_delete(fd, 0);
}

static long t_set_label(ulong fd, ulong b, ulong c)
{
	return vas_set_label(fd, "theirs");
}

/* Mode 0640, owned by root: the owner writes, the group reads, others nothing. */
TEST_F(vas, owner_and_mode_are_enforced)
{
	struct target other = target_new(), group = target_new();
	long session, fd;

	ASSERT_EQ(0, tcall(&other, t_become, NOBODY, NOBODY, CAP_CHECKPOINT_RESTORE));
	session = tcall(&other, t_session, 0, 0, 0);
	ASSERT_GE(session, 0);
	EXPECT_EQ(-EACCES, tcall(&other, t_open, session, self->id, VAS_ACCESS_READ));
	EXPECT_EQ(-EACCES, tcall(&other, t_open, session, self->id, VAS_ACCESS_WRITE));

	ASSERT_EQ(0, tcall(&group, t_become, NOBODY, 0, CAP_CHECKPOINT_RESTORE));
	session = tcall(&group, t_session, 0, 0, 0);
	ASSERT_GE(session, 0);
	fd = tcall(&group, t_open, session, self->id, VAS_ACCESS_READ);
	EXPECT_LE(0, fd);
	EXPECT_EQ(-EACCES, tcall(&group, t_open, session, self->id, VAS_ACCESS_WRITE));
	EXPECT_EQ(-EACCES, tcall(&group, t_open, session, self->id,
				 VAS_ACCESS_READ | VAS_ACCESS_WRITE));
	/* A file gives what it was opened for. */
	EXPECT_EQ(-EBADF, tcall(&group, t_capture, fd, group.pid, 0));
	EXPECT_EQ(-EBADF, tcall(&group, t_delete, fd, 0, 0));
	EXPECT_EQ(-EBADF, tcall(&group, t_set_label, fd, 0, 0));
	fd = vas_open(self->session, self->id, NULL, VAS_ACCESS_WRITE);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EBADF, vas_attach(fd, self->t.pid, 0, 0, 0, NULL));
	EXPECT_EQ(-EBADF, vas_stat(fd, &(struct vas_stat){}));
	EXPECT_EQ(-EBADF, vas_usage(fd, &(struct vas_usage){}));
	EXPECT_EQ(-EBADF, ret_errno(ioctl(fd, VAS_IOC_GET_LABEL, &(struct vas_label){})));
	EXPECT_EQ(0, vas_set_label(fd, "x"));
	target_kill(&other);
	target_kill(&group);
}

/* Mode 0: the creator has its file, root opens it by CAP_DAC_OVERRIDE. */
TEST_F(vas, the_owner_is_who_created)
{
	struct target other = target_new();
	struct vas_stat st;
	long session, fd;

	ASSERT_EQ(0, tcall(&other, t_become, NOBODY, NOBODY, CAP_CHECKPOINT_RESTORE));
	session = tcall(&other, t_session, 0, 0, 0);
	fd = tcall(&other, t_create, session, 0, 0);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, tcall(&other, t_capture, fd, other.pid, 0));
	fd = vas_open(self->session, 0, "theirs", VAS_ACCESS_READ | VAS_ACCESS_WRITE);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, vas_stat(fd, &st));
	EXPECT_EQ(NOBODY, st.uid);
	EXPECT_EQ(NOBODY, st.gid);
	EXPECT_EQ(0, st.mode);
	target_kill(&other);
}

TEST_F(vas, capture_and_attach_need_ptrace_access_to_the_target)
{
	struct target other = target_new();
	long session, fd;

	ASSERT_EQ(0, tcall(&other, t_become, NOBODY, NOBODY, CAP_CHECKPOINT_RESTORE));
	session = tcall(&other, t_session, 0, 0, 0);
	fd = tcall(&other, t_create, session, 0600, 0);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EACCES, tcall(&other, t_capture, fd, self->t.pid, 0));
	ASSERT_EQ(0, tcall(&other, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&other, t_fill, BASE, 4 * MiB, 2));
	ASSERT_EQ(0, tcall(&other, t_capture, fd, other.pid, 0));
	EXPECT_EQ(-EACCES, tcall(&other, t_attach, fd, self->t.pid, 0));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&other, t_attach, fd, other.pid, 0));
	target_kill(&other);
}

TEST_HARNESS_MAIN
