// SPDX-License-Identifier: GPL-2.0-only
/*
 * Capture: share a task's memory with an empty VAS, copy-on-write.
 *
 * This is fork's dup_mmap() with another choice of VMAs: only plain private
 * anonymous memory, but also what fork would leave out (DONTFORK) or wipe
 * (WIPEONFORK), because it is a snapshot and not a child.
 */
#include <linux/mmap_lock.h>
#include <linux/oom.h>
#include <linux/rmap.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>

#include <asm/tlbflush.h>

#include "../internal.h"
#include "internal.h"

/*
 * What the VAS keeps of a VMA's flags: how it may be accessed, and that it is
 * charged as committed memory, as a fork's VMA would be.
 */
#define VAS_VMA_FLAGS	(VM_READ | VM_WRITE | VM_EXEC | VM_MAYREAD | \
			 VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT | VM_NORESERVE)

static int capture_vma(struct mm_struct *mm, struct vm_area_struct *src)
{
	struct vm_area_struct *vma;

	vma = vas_add_vma(mm, src->vm_start, src->vm_end, src->vm_pgoff,
			  src->vm_flags & VAS_VMA_FLAGS, src->vm_page_prot);
	if (IS_ERR(vma))
		return PTR_ERR(vma);
	if (anon_vma_fork(vma, src))
		return -ENOMEM;
	return vas_share_pages(vma, src, src->vm_start, src->vm_end);
}

static int capture_mm(struct mm_struct *mm, struct mm_struct *src)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, src, 0);
	int err = 0;

	if (mmap_write_lock_killable(src))
		return -EINTR;
	/* Once the OOM killer reaped pages, what is left is no snapshot. */
	if (check_stable_address_space(src)) {
		mmap_write_unlock(src);
		return -ESRCH;
	}
	mmap_write_lock_nested(mm, VAS_LOCK_VAS);
	for_each_vma(vmi, vma) {
		/* Without an anon_vma it was never written: it has no page. */
		if (!vas_eligible(vma) || !vma->anon_vma)
			continue;
		err = capture_vma(mm, vma);
		if (err)
			break;
	}
	mmap_write_unlock(mm);
	/* The target's PTEs became read-only, whether it failed or not. */
	flush_tlb_mm(src);
	mmap_write_unlock(src);
	return err;
}

/* All of @mm or nothing; the caller made sure of its rights to @mm. */
int vas_capture(struct vas *vas, struct mm_struct *mm, struct vas_capture *arg)
{
	struct vas_pages count = {};
	struct vm_area_struct *vma;
	struct mm_struct *new;
	int err;

	if (mutex_lock_killable(&vas->lock))
		return -EINTR;
	err = -ENOTEMPTY;
	if (vas->mm)
		goto out;
	err = -ENOMEM;
	new = vas_mm_alloc();
	if (!new)
		goto out;
	err = capture_mm(new, mm);
	if (err)
		goto out_mm;

	mmap_read_lock(new);
	VMA_ITERATOR(vmi, new, 0);
	for_each_vma(vmi, vma) {
		vas->vmas++;
		vas->bytes += vma->vm_end - vma->vm_start;
	}
	/* No page is exclusive to a VAS but those that had to be copied. */
	vas_count_range(new, 0, TASK_SIZE_MAX,
			test_bit(MMF_HAS_PINNED, &mm->flags), &count);
	mmap_read_unlock(new);

	arg->vmas = vas->vmas;
	arg->pages = vas_mm_counter(new, MM_ANONPAGES);
	arg->huge_pages = count.huge;
	arg->swap_pages = vas_mm_counter(new, MM_SWAPENTS);
	arg->copied_pages = count.exclusive;
	/* @vmas and @bytes before @mm; pairs with vas_mm(). */
	smp_store_release(&vas->mm, new);
	mutex_unlock(&vas->lock);
	return 0;

out_mm:
	mmput(new);
out:
	mutex_unlock(&vas->lock);
	return err;
}
