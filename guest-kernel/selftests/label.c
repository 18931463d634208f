// SPDX-License-Identifier: GPL-2.0
/* Labels: what user space keeps with a VAS comes back as it was. */
#include "vas_pair.h"

TEST_F(vas, a_new_vas_has_an_empty_label)
{
	struct vas_label label;

	memset(&label, 'a', sizeof(label));
	ASSERT_EQ(0, ioctl(self->fd, VAS_IOC_GET_LABEL, &label));
	for (int i = 0; i < VAS_LABEL_MAX; i++)
		ASSERT_EQ(0, label.label[i]);
}

TEST_F(vas, a_label_can_be_changed_as_long_as_the_vas_is_there)
{
	char longest[VAS_LABEL_MAX];
	int other;

	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	ASSERT_EQ(0, vas_set_label(self->fd, "{\"name\":\"empty\"}"));
	EXPECT_STREQ("{\"name\":\"empty\"}", vas_get_label(self->fd));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, vas_set_label(self->fd, longest));
	EXPECT_STREQ(longest, vas_get_label(self->fd));
	ASSERT_EQ(0, vas_commit(self->session));
	other = vas_open(self->session, 0, "pair", VAS_ACCESS_WRITE);
	ASSERT_EQ(0, vas_set_label(other, "committed"));
	EXPECT_STREQ("committed", vas_get_label(self->fd));
	ASSERT_EQ(0, vas_set_label(self->fd, ""));
	EXPECT_STREQ("", vas_get_label(self->fd));

	ASSERT_EQ(0, vas_set_label(self->fd, "last"));
	ASSERT_EQ(0, vas_delete(other, VAS_DELETE_FORCE));
	EXPECT_EQ(-ENOENT, vas_set_label(self->fd, "too late"));
	EXPECT_STREQ("last", vas_get_label(self->fd));
}

TEST_F(vas, what_has_no_end_or_more_after_it_is_no_label)
{
	struct vas_label label;

	ASSERT_EQ(0, vas_set_label(self->fd, "good"));
	memset(&label, 'a', sizeof(label));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_SET_LABEL, &label)));
	label.label[5] = 0;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_SET_LABEL, &label)));
	memset(&label, 0, sizeof(label));
	label.label[VAS_LABEL_MAX - 1] = 'a';
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_SET_LABEL, &label)));
	EXPECT_STREQ("good", vas_get_label(self->fd));
}

static long t_label_often(ulong fd, ulong letter, ulong rounds)
{
	char label[VAS_LABEL_MAX] = {};
	long bad = 0;

	while (rounds--) {
		const char *seen;

		memset(label, letter, sizeof(label) - 1);
		bad += vas_set_label(fd, label) != 0;
		seen = vas_get_label(fd);
		bad += strlen(seen) != sizeof(label) - 1 ||
		       strspn(seen, (char[]){ seen[0], 0 }) != sizeof(label) - 1;
	}
	return bad;
}

/* One, or the other; never a mixture. */
TEST_F(vas, a_label_is_read_and_written_whole)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(t_label_often(self->fd, 'a', 5000) != 0);
	EXPECT_EQ(0, t_label_often(self->fd, 'b', 5000));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_HARNESS_MAIN
