// SPDX-License-Identifier: GPL-2.0
/*
 * Private mappings of files, of which a VAS has what was written, and stacks.
 */
#include <sys/mount.h>

#include "vas_store.h"

#define FILE_DIR	"/tmp/vas-files"
#define FILE_PATH	FILE_DIR "/file"
#define FILE_SEED	7
#define FILE_LEN	(4 * MiB)

/* A file system of huge pages, and a file in it, as t_fill() at BASE has it. */
static int file_setup(void)
{
	void *at;
	int fd;

	mkdir(FILE_DIR, 0700);
	if (mount("files", FILE_DIR, "tmpfs", 0, "huge=always"))
		return -errno;
	fd = open(FILE_PATH, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, FILE_LEN))
		return -errno;
	at = mmap((void *)BASE, FILE_LEN, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return -errno;
	t_fill(BASE, FILE_LEN, FILE_SEED);
	return ret_errno(munmap(at, FILE_LEN));
}

static void file_teardown(void)
{
	umount2(FILE_DIR, MNT_DETACH);
	rmdir(FILE_DIR);
}

/* A private mapping of the file, from @offset on. */
static long t_map_file(ulong addr, ulong len, ulong offset)
{
	int fd = open(FILE_PATH, O_RDONLY | O_CLOEXEC);
	void *p = mmap((void *)addr, len, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE,
		       fd, offset);

	close(fd);
	return p == MAP_FAILED ? -errno : 0;
}

/* All of it, of which 256 pages from the fourth on are written. */
#define WRITTEN	(BASE + 3 * PAGE)
#define W_LEN	(256 * PAGE)

static long t_write_some(ulong seed, ulong b, ulong c)
{
	return t_map_file(BASE, FILE_LEN, 0) ?:
	       t_check(BASE, FILE_LEN, FILE_SEED) ?: t_fill(WRITTEN, W_LEN, seed);
}

static long t_check_some(ulong seed, ulong b, ulong c)
{
	return t_check(BASE, 3 * PAGE, FILE_SEED) + t_check(WRITTEN, W_LEN, seed) +
	       t_check(WRITTEN + W_LEN, FILE_LEN - 259 * PAGE, FILE_SEED);
}

static const char *maps_at(pid_t pid, ulong addr)
{
	static char line[512];
	char path[64];
	ulong start, end;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2 &&
		    start <= addr && addr < end)
			break;
	if (f)
		fclose(f);
	return line;
}

TEST_F(vas, what_was_written_of_a_file_comes_back)
{
	char before[512];

	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(W_LEN / PAGE, vas_range_at(self->fd, BASE).pages);

	ASSERT_EQ(0, tcall(&self->u, t_write_some, 2, 0, 0));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE + MiB, MiB, 2));
	strcpy(before, maps_at(self->u.pid, BASE));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
	EXPECT_STREQ(before, maps_at(self->u.pid, BASE));
	EXPECT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
	/* Each has its own, and the file what it had. */
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 3));
	EXPECT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 4));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, MiB, 3));
	target_kill(&self->u);
	self->u = target_new();
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, FILE_LEN, FILE_SEED));
	/* Again, of a task whose memory is from a VAS. */
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
	file_teardown();
}

/* What is not written is the file's, also in a huge page of it. */
TEST_F(vas, a_files_own_pages_are_not_captured)
{
	struct vas_capture captured;

	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_map_file, BASE, FILE_LEN, 0));
	ASSERT_EQ(0, tcall(&self->t, t_check, BASE, FILE_LEN, FILE_SEED));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + PAGE, PAGE, 1));
	EXPECT_EQ(2048, smaps_value(self->t.pid, BASE, "ShmemPmdMapped"));
	ASSERT_EQ(0, vas_capture_range(self->fd, self->t.pid, BASE, FILE_LEN));
	EXPECT_EQ(1, vas_range_at(self->fd, BASE).pages);
	/* In place of huge pages of the file that the target maps. */
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN, 0));
	ASSERT_EQ(0, tcall(&self->u, t_check, BASE, FILE_LEN, FILE_SEED));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, PAGE, FILE_SEED));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + PAGE, PAGE, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 2 * PAGE,
			   FILE_LEN - 2 * PAGE, FILE_SEED));

	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->t, t_map_file, BASE, FILE_LEN, 0));
	ASSERT_EQ(0, tcall(&self->t, t_check, BASE, FILE_LEN, FILE_SEED));
	EXPECT_EQ(0, vas_delete(self->fd, 0));
	close(self->fd);
	self->fd = vas_create(self->session, "unwritten", 0600, NULL);
	ASSERT_GE(self->fd, 0);
	/* Never written at all. */
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, &captured));
	EXPECT_EQ(0, vas_range_at(self->fd, BASE).end);
	file_teardown();
}

TEST_F(vas, a_targets_other_place_in_a_file_is_refused)
{
	struct target v = target_new();

	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + GiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + GiB, MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));

	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN - MiB, MiB));
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE + GiB, MiB, 0));
	EXPECT_EQ(-EBUSY, vas_attach(self->fd, self->u.pid, BASE, MiB, BASE, NULL));
	/* Where the place is the same, the address need not be. */
	EXPECT_EQ(0, vas_attach(self->fd, self->u.pid, BASE + MiB, MiB, BASE, NULL));
	EXPECT_EQ(-EBUSY, vas_attach(self->fd, self->u.pid, BASE + GiB, MiB,
				     BASE + GiB, NULL));
	/* Nor is what a file's mapping had put where there is none. */
	ASSERT_EQ(0, tcall(&v, t_map, BASE, FILE_LEN, RW));
	ASSERT_EQ(0, tcall(&v, t_fill, BASE, FILE_LEN, 9));
	EXPECT_EQ(-EBUSY, vas_attach(self->fd, v.pid, BASE, MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&v, t_check, BASE, FILE_LEN, 9));
	target_kill(&v);
	file_teardown();
}

/* What was written, swapped out, from a target that is gone. */
TEST_F(vas, what_was_written_of_a_file_is_swapped)
{
	if (!kernel_has("/sys/block/zram0"))
		SKIP(return, "no zram");
	ASSERT_EQ(0, file_setup());
	swap_off();
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, WRITTEN, W_LEN / 2, MADV_PAGEOUT));
	EXPECT_LT(0, smaps_value(self->t.pid, BASE, "Swap"));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
	swap_off();
	EXPECT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
	file_teardown();
}

static long t_zero(ulong addr, ulong len, ulong unused)
{
	memset((void *)addr, 0, len);
	return 0;
}

/* Also pages of zeroes, in whose place there is none of zeroes in the file. */
TEST_F(vas, what_was_written_of_a_file_comes_back_from_the_store)
{
	const char *name = snap_name("file");

	NEED_STORE(self->session);
	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_zero, BASE + 2 * MiB, MiB, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, drain_one(self->session, name, self->fd));
	ASSERT_EQ(0, evict(self->fd, NULL));
	EXPECT_EQ((W_LEN + MiB) / PAGE, vas_range_at(self->fd, BASE).pages);
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, WRITTEN, W_LEN, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + 2 * MiB, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 3 * MiB, MiB, FILE_SEED));
	EXPECT_EQ(0, store_delete(self->session, name));
	file_teardown();
}

/* KSM may merge it with the zero page, which is not stored: so it is left to others. */
TEST_F(vas, what_ksm_may_merge_of_a_file_is_not_captured)
{
	if (!kernel_has("/sys/kernel/mm/ksm/run"))
		SKIP(return, "no KSM");
	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, FILE_LEN, MADV_MERGEABLE));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(0, vas_range_at(self->fd, BASE).end);
	file_teardown();
}

/* Pages that move while they are captured and attached: the file's are left out. */
TEST_F(vas, pages_of_a_file_may_move_meanwhile)
{
	pid_t mover;

	ASSERT_EQ(0, file_setup());
	ASSERT_EQ(0, tcall(&self->t, t_write_some, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->u, t_map_file, BASE, FILE_LEN, 0));
	mover = fork();
	if (!mover)
		for (;;)
			write_file("/proc/sys/vm/compact_memory", "1");
	for (int i = 0; i < 200; i++) {
		int fd = vas_create(self->session, "moving", 0600, NULL);

		ASSERT_EQ(0, vas_capture_range(fd, self->t.pid, BASE, FILE_LEN));
		ASSERT_EQ(W_LEN / PAGE, vas_range_at(fd, BASE).pages);
		ASSERT_EQ(0, vas_attach(fd, self->u.pid, BASE, FILE_LEN, BASE, NULL));
		ASSERT_EQ(0, tcall(&self->u, t_check_some, 1, 0, 0));
		ASSERT_EQ(0, vas_delete(fd, 0));
		close(fd);
	}
	kill(mover, SIGKILL);
	waitpid(mover, NULL, 0);
	file_teardown();
}

/* --- Stacks --- */

#define STACK	(BASE + 64 * MiB)

static long t_map_stack(ulong seed, ulong b, ulong c)
{
	void *p = mmap((void *)STACK, MiB, RW, MAP_PRIVATE | MAP_ANONYMOUS |
		       MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);

	return p == MAP_FAILED ? -errno : seed ? t_fill(STACK, MiB, seed) : 0;
}

TEST_F(vas, a_stack_comes_back_and_grows)
{
	ASSERT_EQ(0, tcall(&self->t, t_map_stack, 1, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_fill, STACK - 2 * PAGE, 2 * PAGE, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map_stack, 2, 0, 0));
	/* The target has grown less far, and then further. */
	EXPECT_EQ(-EFAULT, vas_attach(self->fd, self->u.pid, STACK - 2 * PAGE,
				      MiB + 2 * PAGE, STACK - 2 * PAGE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, STACK, MiB, 2));
	ASSERT_EQ(0, tcall(&self->u, t_fill, STACK - 3 * PAGE, 3 * PAGE, 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, STACK - 2 * PAGE,
				MiB + 2 * PAGE, STACK - 2 * PAGE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, STACK - 3 * PAGE, PAGE, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, STACK - 2 * PAGE, MiB + 2 * PAGE, 1));
	EXPECT_TRUE(vm_flag(self->u.pid, STACK - 2 * PAGE, "gd"));
	EXPECT_EQ(0, tcall(&self->u, t_fill, STACK - 8 * PAGE, 8 * PAGE, 3));
	EXPECT_EQ(0, tcall(&self->t, t_check, STACK - 2 * PAGE, MiB + 2 * PAGE, 1));
	EXPECT_EQ(0, tcall(&self->t, t_fill, STACK - 8 * PAGE, 8 * PAGE, 3));
}

TEST_HARNESS_MAIN
