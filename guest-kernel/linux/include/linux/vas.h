/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_VAS_H
#define _LINUX_VAS_H

#include <linux/types.h>

struct mm_struct;
struct seq_file;
struct vm_area_struct;

#ifdef CONFIG_VAS
/*
 * True if @vma was captured with VAS_CAPTURE_HIDE by the calling process.  The
 * caller holds the mmap_lock.
 */
bool vas_hidden(struct vm_area_struct *vma);

/* For /proc/PID/vas: which snapshot @mm was restored from. */
int vas_show_origin(struct seq_file *m, struct mm_struct *mm);
#else
static inline bool vas_hidden(struct vm_area_struct *vma)
{
	return false;
}
#endif

#endif /* _LINUX_VAS_H */
