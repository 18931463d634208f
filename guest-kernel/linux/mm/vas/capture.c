// SPDX-License-Identifier: GPL-2.0-only
/*
 * Capture: share a task's memory with an empty VAS, copy-on-write.
 *
 * This is fork's dup_mmap() with another choice of VMAs: only private memory, but
 * also what fork would leave out (DONTFORK) or wipe (WIPEONFORK), because it is a
 * snapshot and not a child.  Of a file's private mapping it has the pages that
 * were written; the others are the file's.  Droppable memory is empty in the
 * snapshot, too: whoever uses it must cope with that at any time.
 */
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/mmap_lock.h>
#include <linux/oom.h>
#include <linux/pagewalk.h>
#include <linux/rmap.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>

#include <asm/tlbflush.h>

#include "../internal.h"
#include "internal.h"

/*
 * What the VAS keeps of a VMA's flags: how it may be accessed, that it is charged
 * as committed memory, as a fork's VMA would be, and what an attach gives back.
 */
#define VAS_VMA_FLAGS	(VM_READ | VM_WRITE | VM_EXEC | VM_MAYREAD | \
			 VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT | \
			 VM_NORESERVE | VM_WIPEONFORK | VM_DROPPABLE)

/*
 * Without an anon_vma it was never written: it has no page.  KSM may put the zero
 * page where a page of a file's mapping was written, and in the store there are no
 * zero pages.
 */
static bool worth_capturing(struct vm_area_struct *vma)
{
	return vas_eligible(vma) &&
	       (vma->anon_vma || vma->vm_flags & VM_DROPPABLE) &&
	       !(vma->vm_file && vma->vm_flags & VM_MERGEABLE);
}

/* What of @src lies in [start, end). */
static int capture_vma(struct mm_struct *mm, struct vm_area_struct *src,
		       unsigned long start, unsigned long end)
{
	vm_flags_t flags = src->vm_flags & VAS_VMA_FLAGS;
	struct vm_area_struct *vma;

	if (src->vm_file)
		flags |= VAS_VMA_FILE;
	start = max(start, src->vm_start);
	end = min(end, src->vm_end);
	vma = vas_add_vma(mm, start, end, linear_page_index(src, start), flags,
			  src->vm_page_prot);
	if (IS_ERR(vma))
		return PTR_ERR(vma);
	if (src->vm_flags & VM_DROPPABLE)
		return 0;
	if (anon_vma_fork(vma, src))
		return -ENOMEM;
	vas_split_huge_at(src, start);
	vas_split_huge_at(src, end);
	return vas_share_pages(vma, src, start, end);
}

#ifdef CONFIG_KSM
static int plain_zero_pages_pmd(pmd_t *pmd, unsigned long addr,
				unsigned long end, struct mm_walk *walk)
{
	struct mm_struct *mm = walk->mm;
	pte_t *start_pte, *pte;
	spinlock_t *ptl;

	start_pte = pte = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!pte)
		return 0;
	for (; addr != end; pte++, addr += PAGE_SIZE) {
		pte_t ptent = ptep_get(pte);

		if (pte_present(ptent) && is_ksm_zero_pte(ptent))
			set_pte_at(mm, addr, pte, pte_mkclean(ptent));
	}
	pte_unmap_unlock(start_pte, ptl);
	return 0;
}

/*
 * KSM counts, for each mm, the zero pages that it put in place of pages of zeroes,
 * and knows them by their dirty PTEs.  In a VAS they are zero pages like any other.
 */
static void plain_zero_pages(struct mm_struct *mm, struct mm_struct *src)
{
	static const struct mm_walk_ops ops = {
		.pmd_entry = plain_zero_pages_pmd,
		.walk_lock = PGWALK_RDLOCK,
	};

	if (mm_ksm_zero_pages(src))
		walk_page_range(mm, 0, TASK_SIZE_MAX, &ops, NULL);
}
#else
static void plain_zero_pages(struct mm_struct *mm, struct mm_struct *src)
{
}
#endif

static int capture_mm(struct mm_struct *mm, struct mm_struct *src,
		      const struct vas_capture *arg)
{
	unsigned long end = arg->len ? arg->start + arg->len : TASK_SIZE_MAX;
	VMA_ITERATOR(vmi, src, arg->start);
	struct vm_area_struct *vma;
	int err = 0;

	if (mmap_write_lock_killable(src))
		return -EINTR;
	/* Once the OOM killer reaped pages, what is left is no snapshot. */
	if (check_stable_address_space(src)) {
		mmap_write_unlock(src);
		return -ESRCH;
	}
	mmap_write_lock_nested(mm, VAS_LOCK_VAS);
	for_each_vma_range(vmi, vma, end) {
		if (!worth_capturing(vma))
			continue;
		err = capture_vma(mm, vma, arg->start, end);
		if (err)
			break;
	}
	plain_zero_pages(mm, src);
	mmap_write_unlock(mm);
	/* The target's PTEs became read-only, whether it failed or not. */
	flush_tlb_mm(src);
	mmap_write_unlock(src);
	return err;
}

/* All of @mm, or of the range in it, or nothing; the caller made sure of its rights to @mm. */
int vas_capture(struct vas *vas, struct mm_struct *mm, struct vas_capture *arg)
{
	struct vas_pages count = {};
	struct vm_area_struct *vma;
	struct mem_cgroup *memcg;
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
	err = capture_mm(new, mm, arg);
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
	memcg = get_mem_cgroup_from_mm(mm);
	vas_set_payer(vas, memcg);
	mem_cgroup_put(memcg);
	return 0;

out_mm:
	mmput(new);
out:
	mutex_unlock(&vas->lock);
	return err;
}
