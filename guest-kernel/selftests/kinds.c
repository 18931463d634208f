// SPDX-License-Identifier: GPL-2.0
/*
 * Every kind of anonymous memory comes back right: huge, swapped, pinned,
 * locked, protected, merged, watched.
 */
#include <linux/userfaultfd.h>

#include "gup_test.h"
#include "vas_pair.h"

/* --- Huge pages --- */

/* Both with 8 MiB at BASE, the first full of huge pages. */
static bool huge_pair(struct target *t, struct target *u)
{
	return !tcall(t, t_map_huge, BASE, 8 * MiB, RW) &&
	       !tcall(t, t_fill, BASE, 8 * MiB, 1) &&
	       smaps_value(t->pid, BASE, "AnonHugePages") == 8192 &&
	       !tcall(u, t_map_huge, BASE, 8 * MiB, RW);
}

TEST_F(vas, huge_pages_are_shared_as_huge_pages)
{
	struct vas_capture captured;
	struct vas_range range;

	ASSERT_TRUE(huge_pair(&self->t, &self->u));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, &captured));
	EXPECT_LE(8 * MiB / PAGE, captured.huge_pages);
	EXPECT_EQ(8192, smaps_value(self->t.pid, BASE, "AnonHugePages"));
	range = vas_range_at(self->fd, BASE);
	EXPECT_EQ(VAS_RANGE_HUGE, range.flags);
	EXPECT_EQ(8 * MiB / PAGE, range.pages);

	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(8192, smaps_value(self->u.pid, BASE, "AnonHugePages"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 2));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 8 * MiB, 1));
}

/* The target's own small pages and page tables make way for huge ones. */
TEST_F(vas, rollback_brings_huge_pages_back)
{
	ASSERT_TRUE(huge_pair(&self->t, &self->u));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, 8 * MiB, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 8 * MiB, 2));
	EXPECT_EQ(0, smaps_value(self->t.pid, BASE, "AnonHugePages"));
	ASSERT_EQ(0, vas_attach(self->fd, self->t.pid, BASE, 8 * MiB, BASE, NULL));
	EXPECT_EQ(8192, smaps_value(self->t.pid, BASE, "AnonHugePages"));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 8 * MiB, 1));
}

/* Folios of 64 KiB: their pages are copied in batches, and cut by a shift. */
TEST_F(vas, large_folios_are_shared_page_by_page)
{
	const char *enabled = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled";
	ulong to = BASE + GiB + 3 * PAGE;

	if (!kernel_has(enabled))
		SKIP(return, "no large folios");
	ASSERT_EQ(0, write_file(enabled, "always"));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	write_file(enabled, "never");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_map, to, MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, BASE, NULL));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, to, NULL));
	EXPECT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_moved, to, MiB, BASE));
}

TEST_F(vas, part_of_huge_pages_attaches)
{
	ulong from = BASE + MiB, len = 3 * MiB + 5 * PAGE;

	ASSERT_TRUE(huge_pair(&self->t, &self->u));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, 8 * MiB, 2));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, from, len, from, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 2));
	EXPECT_EQ(0, tcall(&self->u, t_check, from, len, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check, from + len, 4 * MiB - 5 * PAGE, 2));
	EXPECT_EQ(0, tcall(&self->t, t_check, BASE, 8 * MiB, 1));
}

/* --- Swap --- */

TEST_F(vas, swapped_pages_are_shared_in_swap)
{
	struct vas_capture captured;
	struct vas_stat st;

	if (!kernel_has("/sys/block/zram0"))
		SKIP(return, "no zram");
	swap_off();
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, 16 * MiB, MADV_PAGEOUT));
	ASSERT_LT(8 * 1024, smaps_value(self->t.pid, BASE, "Swap"));

	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, &captured));
	EXPECT_LT(8 * MiB / PAGE, captured.swap_pages);
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_LT(8 * MiB / PAGE, st.swap_pages);
	target_kill(&self->t);
	self->t = target_new();

	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 16 * MiB, BASE, NULL));
	EXPECT_LT(8 * 1024, smaps_value(self->u.pid, BASE, "Swap"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 8 * MiB, 1));

	/* swapoff finds the entries of the VAS and of its users. */
	swap_off();
	EXPECT_STREQ("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority",
		     read_file("/proc/swaps"));
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_EQ(0, st.swap_pages);
	EXPECT_LE(16 * MiB / PAGE, st.pages);
	EXPECT_EQ(0, smaps_value(self->u.pid, BASE, "Swap"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 16 * MiB, 1));
}

TEST_F(vas, a_vas_is_swapped_out_under_pressure_and_attaches)
{
	struct vas_stat st;

	if (!kernel_has("/sys/block/zram0"))
		SKIP(return, "no zram");
	swap_off();
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, tcall(&self->t, t_map_huge, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 16 * MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	/* Only the VAS maps the pages now. */
	write_file("/sys/fs/cgroup/memory.reclaim", "64M");
	write_file("/sys/fs/cgroup/memory.reclaim", "64M swappiness=200");
	ASSERT_EQ(0, vas_stat(self->fd, &st));
	EXPECT_LT(0, st.swap_pages);
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 16 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 16 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 16 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, 16 * MiB, 2));
	swap_off();
}

/* --- Pinned pages --- */

static int gup_fd = -1;

static long t_pin(ulong addr, ulong len, ulong unused)
{
	struct pin_longterm_test arg = {
		.addr = addr, .size = len,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};

	gup_fd = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
	return ret_errno(ioctl(gup_fd, PIN_LONGTERM_TEST_START, &arg));
}

/* How many pages look different through the pin. */
static long t_pin_check(ulong addr, ulong len, ulong unused)
{
	char *seen = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t to = (ulong)seen;
	long bad = 0;

	if (ioctl(gup_fd, PIN_LONGTERM_TEST_READ, &to))
		return -errno;
	for (ulong p = 0; p < len; p += PAGE)
		bad += memcmp(seen + p, (char *)addr + p, PAGE) != 0;
	return bad;
}

static void check_pinned(struct __test_metadata *_metadata, int fd,
			 struct target *t, struct target *u, target_fn map)
{
	struct vas_capture captured;

	ASSERT_EQ(0, tcall(t, map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(t, t_fill, BASE, 4 * MiB, 1));
	ASSERT_EQ(0, tcall(t, t_pin, BASE + MiB, MiB, 0));
	ASSERT_EQ(0, vas_capture(fd, t->pid, 0, &captured));
	EXPECT_LE(MiB / PAGE, captured.copied_pages);
	EXPECT_GE(4 * MiB / PAGE, captured.copied_pages);
	/* What the target writes goes where the device looks. */
	EXPECT_EQ(0, tcall(t, t_fill, BASE, 4 * MiB, 2));
	EXPECT_EQ(0, tcall(t, t_pin_check, BASE + MiB, MiB, 0));
	ASSERT_EQ(0, tcall(u, map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, vas_attach(fd, u->pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(u, t_check, BASE, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(u, t_fill, BASE, 4 * MiB, 3));
	EXPECT_EQ(0, tcall(t, t_check, BASE, 4 * MiB, 2));
}

TEST_F(vas, pinned_pages_are_copied)
{
	if (!kernel_has("/sys/kernel/debug/gup_test"))
		SKIP(return, "no gup_test");
	check_pinned(_metadata, self->fd, &self->t, &self->u, t_map);
}

TEST_F(vas, pinned_huge_pages_are_copied)
{
	if (!kernel_has("/sys/kernel/debug/gup_test"))
		SKIP(return, "no gup_test");
	check_pinned(_metadata, self->fd, &self->t, &self->u, t_map_huge);
}

/* --- Locked memory --- */

TEST_F(vas, locked_memory_stays_locked_in_the_source_only)
{
	long locked;

	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_mlock, BASE, 4 * MiB, 0));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	locked = meminfo("Mlocked");
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(4096, pid_status(self->t.pid, "VmLck"));
	EXPECT_EQ(locked, meminfo("Mlocked"));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_EQ(0, pid_status(self->u.pid, "VmLck"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 4 * MiB, 1));
}

TEST_F(vas, a_locked_target_is_locked_with_its_new_pages)
{
	long mlocked = meminfo("Mlocked");

	if (kernel_has("/sys/block/zram0")) {
		swap_off();
		ASSERT_EQ(0, swap_on());
	}
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, 2 * MiB, MADV_PAGEOUT));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	target_kill(&self->t);
	self->t = target_new();
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_mlock, BASE, 4 * MiB, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * MiB, BASE, NULL));
	EXPECT_EQ(4096, pid_status(self->u.pid, "VmLck"));
	EXPECT_EQ(4096, smaps_value(self->u.pid, BASE, "Rss"));
	EXPECT_EQ(0, smaps_value(self->u.pid, BASE, "Swap"));
	EXPECT_LE(mlocked + 2000, meminfo("Mlocked"));
	/* Pages that were swapped in are resident; reclaim finds them locked. */
	write_file("/sys/fs/cgroup/memory.reclaim", "64M swappiness=200");
	EXPECT_EQ(0, smaps_value(self->u.pid, BASE, "Swap"));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, 4 * MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_munmap, BASE, 4 * MiB, 0));
	EXPECT_EQ(0, pid_status(self->u.pid, "VmLck"));
	EXPECT_GE(mlocked + 100, meminfo("Mlocked"));
	swap_off();
}

/* --- Protection and advice --- */

/* guard, data, guard, PROT_NONE data, guard */
#define GUARD_DATA	(BASE + PAGE)
#define GUARD_NONE	(GUARD_DATA + MiB + PAGE)

static long t_guards(ulong fill, ulong b, ulong c)
{
	if (t_map(BASE, 2 * MiB + 3 * PAGE, PROT_NONE) ||
	    t_mprotect(GUARD_DATA, MiB, RW) || t_mprotect(GUARD_NONE, MiB, RW))
		return -errno;
	if (fill && (t_fill(GUARD_DATA, MiB, 1) || t_fill(GUARD_NONE, MiB, 1)))
		return -errno;
	return t_mprotect(GUARD_NONE, MiB, PROT_NONE);
}

TEST_F(vas, inaccessible_memory_and_guard_pages_come_back)
{
	ulong data = GUARD_DATA, none = GUARD_NONE;
	ASSERT_EQ(0, tcall(&self->t, t_guards, true, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(RW, vas_range_at(self->fd, data).prot);
	EXPECT_EQ(PROT_NONE, vas_range_at(self->fd, none).prot);
	ASSERT_EQ(0, tcall(&self->u, t_guards, false, 0, 0));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE,
				2 * MiB + 3 * PAGE, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, data, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_mprotect, none, MiB, PROT_READ));
	EXPECT_EQ(0, tcall(&self->u, t_check, none, MiB, 1));
	EXPECT_EQ(0, tcall(&self->t, t_mprotect, none, MiB, PROT_READ));
	EXPECT_EQ(0, tcall(&self->t, t_check, none, MiB, 1));
	/* The guard page still guards. */
	EXPECT_EQ(-ECONNRESET, tcall(&self->u, t_check, none + MiB, PAGE, 0));
}

static long t_put_code(ulong addr, ulong b, ulong c)
{
	static const uint8_t code[] = { 0xb8, 42, 0, 0, 0, 0xc3 }; /* return 42 */

	memcpy((void *)addr, code, sizeof(code));
	return 0;
}

static long t_run(ulong addr, ulong b, ulong c)
{
	return ((int (*)(void))addr)();
}

TEST_F(vas, the_target_keeps_its_own_protection)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 2 * PAGE, RW));
	ASSERT_EQ(0, tcall(&self->t, t_put_code, BASE, 0, 0));
	ASSERT_EQ(0, tcall(&self->t, t_put_code, BASE + PAGE, 0, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, PAGE, PROT_READ | PROT_EXEC));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE + PAGE, PAGE, PROT_NONE));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 2 * PAGE, BASE, NULL));
	EXPECT_EQ(42, tcall(&self->u, t_run, BASE, 0, 0));
	EXPECT_EQ(-ECONNRESET, tcall(&self->u, t_run, BASE + PAGE, 0, 0));
}

TEST_F(vas, dontfork_and_wipeonfork_memory_is_captured)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + 2 * MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE, MiB, MADV_DONTFORK));
	ASSERT_EQ(0, tcall(&self->t, t_madvise, BASE + 2 * MiB, MiB, MADV_WIPEONFORK));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + 2 * MiB, MiB, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 3 * MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 3 * MiB, BASE, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_zero, BASE + MiB, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check, BASE + 2 * MiB, MiB, 1));
}

static long t_watch(ulong addr, ulong len, ulong c)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { addr, len }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg))
		return -errno;
	return 0;
}

/* It is left to others. */
TEST_F(vas, watched_memory_is_not_captured)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + 2 * MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + 2 * MiB, MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE + 4 * MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + 4 * MiB, MiB, 1));
	ASSERT_EQ(0, tcall(&self->t, t_watch, BASE + 2 * MiB, MiB, 0));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(0, vas_range_at(self->fd, BASE + 2 * MiB).end);
	EXPECT_EQ(BASE + 5 * MiB, vas_range_at(self->fd, BASE + 4 * MiB).end);
	/* And a watched VMA takes no memory from a VAS. */
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE + 4 * MiB, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_watch, BASE + 4 * MiB, MiB, 0));
	EXPECT_EQ(-EBUSY, vas_attach(self->fd, self->u.pid, BASE + 4 * MiB, MiB,
				     BASE + 4 * MiB, NULL));
}

/* --- KSM --- */

TEST_F(vas, merged_pages_come_back_here_and_elsewhere)
{
	ulong to = BASE + GiB;

	if (!kernel_has("/sys/kernel/mm/ksm/run"))
		SKIP(return, "no KSM");
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill_same, BASE, MiB, 0));
	ASSERT_TRUE(ksm_merges("pages_sharing", 250));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_EQ(MiB / PAGE, vas_range_at(self->fd, BASE).pages);
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->u, t_map, to, MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, BASE, NULL));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, MiB, to, NULL));
	EXPECT_EQ(0, tcall(&self->u, t_check_same, BASE, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_check_same, to, MiB, 0));
	/* Unmerge all: the source is on its own again, the others unharmed. */
	EXPECT_EQ(0, write_file("/sys/kernel/mm/ksm/run", "2"));
	EXPECT_EQ(0, tcall(&self->t, t_check_same, BASE, MiB, 0));
	target_kill(&self->t);
	EXPECT_EQ(0, tcall(&self->u, t_check_same, BASE, MiB, 0));
	EXPECT_EQ(0, tcall(&self->u, t_fill, BASE, MiB, 1));
	EXPECT_EQ(0, tcall(&self->u, t_check_same, to, MiB, 0));
	self->t = target_new();
	write_file("/sys/kernel/mm/ksm/run", "0");
}

static long ksm_zero_pages(void)
{
	return strtol(read_file("/sys/kernel/mm/ksm/ksm_zero_pages"), NULL, 10);
}

static long t_fill_zeroes(ulong addr, ulong len, ulong unused)
{
	memset((void *)addr, 0, len);
	return t_madvise(addr, len, MADV_MERGEABLE);
}

/* The zero page takes their place, and KSM counts how often: once for who has it. */
TEST_F(vas, merged_pages_of_zeroes_are_counted_where_they_were_merged)
{
	long before;

	if (!kernel_has("/sys/kernel/mm/ksm/use_zero_pages"))
		SKIP(return, "no KSM");
	write_file("/sys/kernel/mm/ksm/use_zero_pages", "1");
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill_zeroes, BASE, MiB, 0));
	ASSERT_TRUE(ksm_merges("ksm_zero_pages", 250));
	write_file("/sys/kernel/mm/ksm/run", "0");
	before = ksm_zero_pages();
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, MiB, RW));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, 0, 0, 0, NULL));
	target_kill(&self->u);
	ASSERT_EQ(0, vas_delete(self->fd, 0));
	EXPECT_EQ(before, ksm_zero_pages());
	target_kill(&self->t);
	EXPECT_EQ(0, ksm_zero_pages());
	self->t = target_new();
	self->u = target_new();
	write_file("/sys/kernel/mm/ksm/use_zero_pages", "0");
}

/* --- Soft-dirty, and other things of page tables --- */

#define SOFT_DIRTY	(1ULL << 55)

static int clear_refs(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	return write_file(path, "4");
}

TEST_F(vas, soft_dirty_is_kept_in_the_source_and_set_in_the_target)
{
	ASSERT_EQ(0, tcall(&self->t, t_map, BASE, 4 * PAGE, RW));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, 4 * PAGE, 1));
	ASSERT_EQ(0, clear_refs(self->t.pid));
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE, PAGE, 1));
	ASSERT_EQ(0, vas_capture(self->fd, self->t.pid, 0, NULL));
	EXPECT_NE(0, pagemap(self->t.pid, BASE) & SOFT_DIRTY);
	EXPECT_EQ(0, pagemap(self->t.pid, BASE + PAGE) & SOFT_DIRTY);
	ASSERT_EQ(0, tcall(&self->t, t_fill, BASE + PAGE, PAGE, 1));
	EXPECT_NE(0, pagemap(self->t.pid, BASE + PAGE) & SOFT_DIRTY);
	EXPECT_EQ(0, pagemap(self->t.pid, BASE + 2 * PAGE) & SOFT_DIRTY);

	ASSERT_EQ(0, tcall(&self->u, t_map, BASE, 4 * PAGE, RW));
	ASSERT_EQ(0, clear_refs(self->u.pid));
	ASSERT_EQ(0, vas_attach(self->fd, self->u.pid, BASE, 4 * PAGE, BASE, NULL));
	for (int i = 0; i < 4; i++) {
		EXPECT_NE(0, pagemap(self->u.pid, BASE + i * PAGE) & SOFT_DIRTY);
	}
	ASSERT_EQ(0, clear_refs(self->u.pid));
	EXPECT_EQ(0, pagemap(self->u.pid, BASE) & SOFT_DIRTY);
	ASSERT_EQ(0, tcall(&self->u, t_fill, BASE, PAGE, 2));
	EXPECT_NE(0, pagemap(self->u.pid, BASE) & SOFT_DIRTY);
}

TEST_HARNESS_MAIN
