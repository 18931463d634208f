/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_VAS_H
#define _LINUX_VAS_H

#include <linux/types.h>

struct vm_area_struct;

#ifdef CONFIG_VAS
/*
 * True if @vma was captured with VAS_CAPTURE_HIDE by the calling process.  The
 * caller holds the mmap_lock.
 */
bool vas_hidden(struct vm_area_struct *vma);
#else
static inline bool vas_hidden(struct vm_area_struct *vma)
{
	return false;
}
#endif

#endif /* _LINUX_VAS_H */
