// SPDX-License-Identifier: GPL-2.0-only
/*
 * What there is in a VAS, batch by batch, for the drain.
 */
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pagewalk.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>

#include "../internal.h"
#include "internal.h"

/* Stops the walk at @addr: 1. */
static int collect_stop(struct vas_batch *b, unsigned long addr, bool fault)
{
	b->cursor = addr;
	b->fault = fault;
	return 1;
}

static int collect_page(struct vas_batch *b, struct vm_area_struct *vma,
			unsigned long addr, struct page *page, bool huge)
{
	if (b->nr == VAS_BATCH_ITEMS || (huge && b->nr_blocks == VAS_BATCH_BLOCKS))
		return collect_stop(b, addr, false);
	folio_get(page_folio(page));
	b->items[b->nr++] = (struct vas_batch_item) {
		.addr = addr, .page = page, .huge = huge,
		.first = addr == vma->vm_start,
	};
	b->nr_blocks += huge;
	return 0;
}

static int collect_huge(struct vas_batch *b, struct vm_area_struct *vma, pmd_t pmd,
			unsigned long addr, unsigned long end)
{
	if (is_huge_zero_pmd(pmd))
		return 0;
	if (!pmd_present(pmd))			/* being migrated */
		return collect_stop(b, addr, true);
	/* The walk goes on where it stopped, at a border. */
	if (WARN_ON_ONCE(end - addr != HPAGE_PMD_SIZE))
		return -EIO;
	return collect_page(b, vma, addr, pmd_page(pmd), true);
}

static int collect_pmd(pmd_t *pmd, unsigned long addr, unsigned long end,
		       struct mm_walk *walk)
{
	struct vm_area_struct *vma = walk->vma;
	struct vas_batch *b = walk->private;
	pte_t *start_pte, *pte;
	spinlock_t *ptl;
	int ret = 0;

	ptl = pmd_trans_huge_lock(pmd, vma);
	if (ptl) {
		ret = collect_huge(b, vma, *pmd, addr, end);
		spin_unlock(ptl);
		return ret;
	}
	start_pte = pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!pte) {
		walk->action = ACTION_AGAIN;
		return 0;
	}
	for (; addr != end && !ret; pte++, addr += PAGE_SIZE) {
		pte_t ptent = ptep_get(pte);
		struct page *page;

		if (pte_none(ptent))
			continue;
		if (!pte_present(ptent)) {
			ret = collect_stop(b, addr, true);
			continue;
		}
		page = vm_normal_page(vma, addr, ptent);
		if (page)			/* else the zero page */
			ret = collect_page(b, vma, addr, page, false);
		else if (vma->vm_flags & VAS_VMA_FILE)
			ret = -EIO;		/* see worth_capturing() */
	}
	pte_unmap_unlock(start_pte, ptl);
	cond_resched();
	return ret;
}

/*
 * From swap, or after a migration.  The one fault that there is in a VAS: it
 * changes where the page is, and not what it holds.
 */
static int bring_in(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);
	vm_fault_t fault;

	fault = handle_mm_fault(vma, addr, FAULT_FLAG_REMOTE, NULL);
	return fault & VM_FAULT_ERROR ? vm_fault_to_errno(fault, 0) : 0;
}

/*
 * The next batch, from @cursor on, with a reference to each of its pages, also
 * where it fails.  1: there is more; else 0 or -errno.
 */
int vas_collect(struct vas_batch *b, struct mm_struct *mm)
{
	static const struct mm_walk_ops ops = {
		.pmd_entry = collect_pmd,
		.walk_lock = PGWALK_RDLOCK,
	};
	int ret;

	b->nr = 0;
	b->nr_blocks = 0;
	mmap_read_lock(mm);
	for (;;) {
		ret = walk_page_range(mm, b->cursor, TASK_SIZE_MAX, &ops, b);
		if (ret != 1 || !b->fault)
			break;
		ret = bring_in(mm, b->cursor);
		if (ret)
			break;
		/* An attach need not wait for all of the swap. */
		if (b->nr && mmap_lock_is_contended(mm)) {
			ret = 1;
			break;
		}
	}
	mmap_read_unlock(mm);
	return ret;
}
