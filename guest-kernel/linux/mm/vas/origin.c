// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which snapshot a task's memory was restored from: /proc/PID/vas.
 */
#include <linux/mmap_lock.h>
#include <linux/random.h>
#include <linux/seq_file.h>

#include "internal.h"

/* The caller holds @mm's mmap_lock for writing. */
void vas_set_origin(struct mm_struct *mm, const u8 snapshot[16])
{
	mmap_assert_write_locked(mm);
	memcpy(mm->vas_origin.snapshot, snapshot,
	       sizeof(mm->vas_origin.snapshot));
	/* Random, for copies in other machines have numbers, too. */
	do {
		mm->vas_origin.generation = get_random_u64();
	} while (!mm->vas_origin.generation);
}

/* Two lines; both are 0 where it never was restored. */
int vas_show_origin(struct seq_file *m, struct mm_struct *mm)
{
	if (mmap_read_lock_killable(mm))
		return -EINTR;
	seq_printf(m, "snapshot:\t%*phN\ngeneration:\t%llx\n",
		   (int)sizeof(mm->vas_origin.snapshot),
		   mm->vas_origin.snapshot, mm->vas_origin.generation);
	mmap_read_unlock(mm);
	return 0;
}
