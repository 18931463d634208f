/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_VAS_H
#define _LINUX_VAS_H

#include <linux/types.h>

struct mm_struct;
struct seq_file;
struct task_struct;
struct vm_area_struct;

#ifdef CONFIG_VAS
/*
 * True if @vma was captured with VAS_CAPTURE_HIDE by the calling process.  The
 * caller holds the mmap_lock.
 */
bool vas_hidden(struct vm_area_struct *vma);

/* For /proc/PID/vas: which snapshot @mm was restored from. */
int vas_show_origin(struct seq_file *m, struct mm_struct *mm);

/* Guards of tasks that are traced: see mm/vas/guard.c. */
void vas_guard_exit(void);
void vas_guard_detach(struct task_struct *task);
#else
static inline bool vas_hidden(struct vm_area_struct *vma)
{
	return false;
}

static inline void vas_guard_exit(void)
{
}

static inline void vas_guard_detach(struct task_struct *task)
{
}
#endif

#endif /* _LINUX_VAS_H */
