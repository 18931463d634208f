// SPDX-License-Identifier: GPL-2.0
/*
 * The store is not there, refuses, or goes away; a caller is killed, a VAS or a
 * snapshot removed: an error that says so, and nothing is lost.
 */
#include <dirent.h>

#include "vas_cgroup.h"
#include "vas_store.h"

TEST_F(vas, without_a_store_all_of_it_is_refused)
{
	struct vas_store_snapshot one;
	uint32_t count = 0;

	if (has_store(self->session))
		SKIP(return, "there is a store");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-EOPNOTSUPP, drain_one(self->session, "x", self->fd));
	EXPECT_EQ(-EOPNOTSUPP, evict(self->fd, NULL));
	EXPECT_EQ(-EOPNOTSUPP, load(self->session, "x", NULL, &count));
	EXPECT_EQ(-EOPNOTSUPP, store_delete(self->session, "x"));
	EXPECT_EQ(-EOPNOTSUPP, store_label(self->session, "x", "", "text"));
	EXPECT_EQ(-EOPNOTSUPP, store_find(self->session, "x", &one));
	EXPECT_EQ(VAS_STORE_HOT, store_state(self->fd));
}

TEST_F(vas, bad_arguments_are_refused)
{
	struct vas_drain d = { .name = "x", .count = 1 };
	struct vas_evict e = { .flags = 1 };
	struct vas_store_list list = { .reserved = 1 };
	struct vas_store_load l = { .name = "x", .flags = 1 };
	struct vas_store_delete del = { .name = "x", .flags = 1 };
	struct vas_store_label text;
	void *bad = (void *)8;
	int ro;

	d.flags = 2;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.flags = 0;
	d.reserved[1] = 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.reserved[1] = 0;
	d.count = 0;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.count = VAS_DRAIN_MAX + 1;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	d.count = 1;
	strcpy(d.name, "_b");		/* a VAS may be called so */
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	strcpy(d.name, "a/b");
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	memset(d.name, 'a', sizeof(d.name));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &d)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->fd, VAS_IOC_EVICT, &e)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_LIST, &list)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_LOAD, &l)));
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_DELETE, &del)));
	EXPECT_EQ(-EINVAL, store_label(self->session, "a/b", "", "text"));
	EXPECT_EQ(-EINVAL, store_label(self->session, "", "", "text"));
	memset(&text, 'a', sizeof(text));
	text.name[1] = 0;
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(self->session, VAS_IOC_STORE_LABEL, &text)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_LABEL, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->fd, VAS_IOC_EVICT, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_LIST, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_LOAD, bad)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_STORE_DELETE, bad)));
	EXPECT_EQ(-ENOTTY, ret_errno(ioctl(self->session, VAS_IOC_EVICT, &e)));
	ro = vas_open(self->session, 0, "pair", VAS_ACCESS_READ);
	EXPECT_EQ(-EBADF, evict(ro, NULL));
	close(ro);
}

TEST_F(vas, what_cannot_be_drained_or_evicted_is_refused)
{
	struct vas_drain arg = { .name = "x", .count = 1 };
	uint64_t ids[] = { 0, 1UL << 60 };
	const char *name = snap_name("refuse");

	NEED_STORE(self->session);
	arg.ids = (ulong)&ids[0];
	EXPECT_EQ(-ENOENT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	arg.ids = (ulong)&ids[1];
	EXPECT_EQ(-ENOENT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	arg.ids = 8;
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(self->session, VAS_IOC_DRAIN, &arg)));
	EXPECT_EQ(-ENODATA, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-ENODATA, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(-ENOENT, evict(self->fd, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(-EALREADY, drain_one(self->session, "other", self->fd));
	EXPECT_EQ(VAS_STORE_STORED, store_state(self->fd));
	EXPECT_EQ(0, store_delete(self->session, name));
	EXPECT_EQ(-ENOENT, store_delete(self->session, name));
}

TEST_F(vas, deleting_a_vas_gives_its_drain_up)
{
	struct vas_store_snapshot snap;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 64 * MiB, 1));
	for (int i = 0; i < 6; i++) {
		const char *name = snap_name("gone");
		struct vas_stat st;
		int fds[2];

		fds[0] = vas_create(self->session, "keep", 0600, NULL);
		fds[1] = vas_create(self->session, "gone", 0600, NULL);
		ASSERT_EQ(0, vas_capture(fds[0], self->t.pid, 0, NULL));
		ASSERT_EQ(0, vas_capture(fds[1], self->t.pid, 0, NULL));
		ASSERT_EQ(0, drain(self->session, name, fds, 2, 0));
		usleep(i * 20000);
		ASSERT_EQ(0, vas_delete(fds[1], 0));
		close(fds[1]);
		do {
			usleep(10000);
			ASSERT_EQ(0, vas_stat(fds[0], &st));
		} while (st.store == VAS_STORE_DRAINING);
		if (st.store == VAS_STORE_HOT) {
			EXPECT_EQ(ECANCELED, st.drain_error);
			EXPECT_EQ(0, st.drained_pages);
			EXPECT_EQ(0, store_find(self->session, name, &snap));
			/* It is whole, and its name free, for another try. */
			ASSERT_EQ(0, drain_one(self->session, name, fds[0]));
			ASSERT_EQ(0, vas_stat(fds[0], &st));
			EXPECT_EQ(0, st.drain_error);
		}
		EXPECT_EQ(VAS_STORE_STORED, st.store);
		EXPECT_EQ(1, store_find(self->session, name, &snap));
		EXPECT_EQ(0, store_delete(self->session, name));
		ASSERT_EQ(0, vas_delete(fds[0], 0));
		close(fds[0]);
	}
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 64 * MiB, 1));
}

TEST_F(vas, a_snapshot_that_was_removed_is_missed)
{
	const char *name = snap_name("removed");
	struct vas_stat st;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, store_delete(self->session, name));
	/* Not let go: nobody else has it. */
	EXPECT_EQ(-ENOENT, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(VAS_STORE_HOT, st.store);
	EXPECT_EQ(0, st.drained_pages);
	/* Nor is one of the same name, that came later, it. */
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, store_delete(self->session, name));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	EXPECT_EQ(-ESTALE, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * MiB, 0));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
}

#define DRIVER	"/sys/bus/virtio/drivers/virtio-vas"

/* "virtioN"; "" if there is none. */
static const char *device_name(void)
{
	static char name[256];
	DIR *dir = opendir(DRIVER);
	struct dirent *entry;

	name[0] = 0;
	while (dir && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "virtio", 6))
			snprintf(name, sizeof(name), "%s", entry->d_name);
	if (dir)
		closedir(dir);
	return name;
}

/* Whatever is on its way: it fails, nothing hangs, and nothing is lost. */
TEST_F(vas, the_device_goes_and_comes_back)
{
	const char *device = device_name();
	char name[VAS_NAME_MAX];
	int cold = vas_create(self->session, "cold", 0600, NULL);

	NEED_STORE(self->session);
	strcpy(name, snap_name("device"));
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(cold, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, cold));
	ASSERT_EQ(0, evict(cold, NULL));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + GiB, 64 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, 64 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	for (int i = 0; i < 5; i++) {
		const char *other = snap_name("lost");
		struct vas_stat st;

		ASSERT_EQ(0, drain(self->session, other, &self->fd, 1, 0));
		usleep(i * 20000);
		ASSERT_EQ(0, write_file(DRIVER "/unbind", device));
		EXPECT_FALSE(has_store(self->session));
		do {
			usleep(10000);
			ASSERT_EQ(0, vas_stat(self->fd, &st));
		} while (st.store == VAS_STORE_DRAINING);
		if (st.store == VAS_STORE_HOT) {
			EXPECT_TRUE(st.drain_error == EIO || st.drain_error == ENODEV);
		}
		EXPECT_EQ(-EOPNOTSUPP, evict(self->fd, NULL));
		EXPECT_EQ(-ENODEV, vas_attach(cold, self->u.pid, BASE, 8 * MiB, BASE, NULL));
		EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * MiB, 0));
		ASSERT_EQ(0, write_file(DRIVER "/bind", device));
		EXPECT_TRUE(has_store(self->session));
		if (st.store != VAS_STORE_HOT)	/* it was done before */
			break;
	}
	ASSERT_EQ(0, attach_all(cold, &self->u));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE + GiB, 64 * MiB, 1));
	EXPECT_EQ(0, store_delete(self->session, name));
}

/* SIGKILL ends a wait for the store, at any moment; what was begun goes on. */
TEST_F(vas, a_killed_caller_leaves_nothing_behind)
{
	struct vas_store_snapshot snap;

	NEED_STORE(self->session);
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	/* More than there are handles (64): none is left open. */
	for (int i = 0; i < 80; i++) {
		const char *name = snap_name("killed");
		int fd = vas_create(self->session, "killed", 0600, NULL);
		pid_t pid;

		ASSERT_EQ(0, vas_capture(fd, self->t.pid, 0, NULL));
		pid = fork();
		if (!pid) {
			uint32_t count = 0;
			int s = vas_session();

			drain_one(s, name, fd);
			evict(fd, NULL);
			vas_attach(fd, self->u.pid, BASE, 8 * MiB, BASE, NULL);
			vas_delete(fd, VAS_DELETE_FORCE);
			load(s, name, NULL, &count);
			_exit(0);
		}
		usleep(i % 20 * 10000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		while (store_state(fd) == VAS_STORE_DRAINING)
			usleep(10000);
		vas_delete(fd, VAS_DELETE_FORCE);
		close(fd);
		if (store_find(self->session, name, &snap)) {
			EXPECT_EQ(0, store_delete(self->session, name));
		}
	}
	EXPECT_EQ(0, tcall(&self->t, t_check_all, 1, 0, 0));
}

#define GROUP	"mvas-store"

/* Who attaches a cold VAS pays for its pages, and a limit is an error. */
TEST_F(vas, a_fill_is_charged_and_may_fail)
{
	const char *name = snap_name("charge");
	long now;

	NEED_STORE(self->session);
	if (!cgroups_on())
		SKIP(return, "no memory cgroups");
	ASSERT_EQ(0, cgroup(GROUP));
	ASSERT_EQ(0, cgroup_enter(GROUP, self->u.pid));
	ASSERT_EQ(0, tcall(&self->t, t_workload, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_all, 0, 0, 0));
	now = cgroup_value(GROUP, "memory.current");

	ASSERT_EQ(0, cgroup_limit(GROUP, 6 * MiB));
	EXPECT_EQ(-ENOMEM, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(VAS_STORE_COLD, store_state(self->fd));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE, 8 * KiB, 0));
	EXPECT_GE(now + MiB, cgroup_value(GROUP, "memory.current"));
	ASSERT_EQ(0, cgroup_write(GROUP, "memory.max", "max"));
	ASSERT_EQ(0, attach_all(self->fd, &self->u));
	EXPECT_LE(now + 11 * MiB, cgroup_value(GROUP, "memory.current"));
	EXPECT_EQ(0, tcall(&self->u, t_check_all, 1, 0, 0));
	target_kill(&self->u);
	ASSERT_EQ(0, evict(self->fd, NULL));
	EXPECT_GE(now + MiB, cgroup_value(GROUP, "memory.current"));
	self->u = target_new();
	EXPECT_EQ(0, store_delete(self->session, name));
	cgroup_remove(GROUP);
}

/*
 * What a drain takes from swap is charged to its group.  When that has no room, it
 * gives back what only the VAS has.
 */
TEST_F(vas, a_drain_ends_nobody_in_a_group_without_room)
{
	const char *name = snap_name("swap");
	const ulong size = 32 * MiB;

	NEED_STORE(self->session);
	if (!cgroups_on() || swap_on())
		SKIP(return, "no memory cgroups, or no swap");
	ASSERT_EQ(0, cgroup(GROUP));
	ASSERT_EQ(0, cgroup_enter(GROUP, self->t.pid));
	ASSERT_EQ(0, cgroup_enter(GROUP, self->u.pid));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, size, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, size, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	/* While a task has them, too: what only the VAS has would be given back. */
	cgroup_write(GROUP, "memory.reclaim", "64M");
	ASSERT_GT(size / 4, cgroup_value(GROUP, "memory.current"));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, cgroup_write(GROUP, "memory.swap.max", "0"));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, size, RW));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, size, 2));
	ASSERT_EQ(0, cgroup_limit(GROUP, cgroup_value(GROUP, "memory.current") + MiB));

	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	EXPECT_EQ(0, cgroup_key(GROUP, "memory.events", "oom_kill"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, size, 2));

	ASSERT_EQ(0, cgroup_write(GROUP, "memory.max", "max"));
	ASSERT_EQ(0, evict(self->fd, NULL));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, size, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, size, 1));
	target_kill(&self->u);
	self->u = target_new();
	EXPECT_EQ(0, store_delete(self->session, name));
	swap_off();
	cgroup_remove(GROUP);
}

TEST_HARNESS_MAIN
