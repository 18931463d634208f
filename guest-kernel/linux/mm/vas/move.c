// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moving pages from a VMA of one mm to a VMA of another, with their page
 * tables where these cover nothing else.
 *
 * mremap moves page tables within one mm; this is the same between two.  The
 * source is a stage (see attach.c): it never ran, so no TLB knows it.
 */
#include <linux/pgtable.h>
#include <linux/page_table_check.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#include <asm/pgalloc.h>
#include <asm/tlbflush.h>

#include "../internal.h"
#include "internal.h"

/*
 * The first entry at or after *@addr that is not none in a PMD table of @mm,
 * with *@addr set to where it begins or to what was asked for if that lies
 * within.  NULL, with *@addr at @end, if there is no more.
 */
pmd_t *vas_next_pmd(struct mm_struct *mm, unsigned long *addr,
		    unsigned long end)
{
	while (*addr < end) {
		pgd_t *pgd = pgd_offset(mm, *addr);
		p4d_t *p4d;
		pud_t *pud;
		pmd_t *pmd;

		if (pgd_none_or_clear_bad(pgd)) {
			*addr = pgd_addr_end(*addr, end);
			continue;
		}
		p4d = p4d_offset(pgd, *addr);
		if (p4d_none_or_clear_bad(p4d)) {
			*addr = p4d_addr_end(*addr, end);
			continue;
		}
		pud = pud_offset(p4d, *addr);
		if (pud_none_or_clear_bad(pud)) {
			*addr = pud_addr_end(*addr, end);
			continue;
		}
		pmd = pmd_offset(pud, *addr);
		if (!pmd_none(*pmd))
			return pmd;
		*addr = pmd_addr_end(*addr, end);
	}
	return NULL;
}

pmd_t *vas_alloc_pmd(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;

	return pud ? pmd_alloc(mm, pud, addr) : NULL;
}

/*
 * Do [addr, next) and its new place at @dst each fill a page table?  Tables of a
 * file's mapping stay: who walks the file's mappings may be in one.
 */
static bool fills_table(struct vm_area_struct *vma, unsigned long addr,
			unsigned long next, unsigned long dst)
{
	return next - addr == PMD_SIZE && IS_ALIGNED(dst, PMD_SIZE) &&
	       !vma->vm_file;
}

/* Where [addr, next) meets the end of a page table at its new place. */
static unsigned long dst_end(unsigned long addr, unsigned long next,
			     unsigned long delta)
{
	return pmd_addr_end(addr + delta, next + delta) - delta;
}

/* Allocates all that vas_move_pages() will need in @dst's mm. */
int vas_move_prepare(struct vm_area_struct *dst, struct vm_area_struct *src)
{
	unsigned long delta = dst->vm_start - src->vm_start;
	unsigned long addr = src->vm_start, end = src->vm_end, next;
	struct mm_struct *mm = dst->vm_mm;

	for (; vas_next_pmd(src->vm_mm, &addr, end); addr = next) {
		next = pmd_addr_end(addr, end);
		if (fills_table(dst, addr, next, addr + delta)) {
			if (!vas_alloc_pmd(mm, addr + delta))
				return -ENOMEM;
			continue;
		}
		for (; addr < next; addr = dst_end(addr, next, delta)) {
			pmd_t *pmd = vas_alloc_pmd(mm, addr + delta);

			if (!pmd)
				return -ENOMEM;
			split_huge_pmd(dst, pmd, addr + delta);
			if (pte_alloc(mm, pmd))
				return -ENOMEM;
		}
		cond_resched();
	}
	return 0;
}

/* Frees an empty page table that only @vma, locked for writing, can fill. */
void vas_free_table(struct vm_area_struct *vma, unsigned long addr,
		    pmd_t *pmd)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *pml, *ptl;
	pmd_t table;

	if (pmd_none(*pmd))
		return;
	pml = pmd_lock(mm, pmd);
	ptl = pte_lockptr(mm, pmd);
	if (ptl != pml)
		spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	table = pmdp_collapse_flush(vma, addr, pmd);
	pmdp_get_lockless_sync();
	if (ptl != pml)
		spin_unlock(ptl);
	spin_unlock(pml);
	mm_dec_nr_ptes(mm);
	page_table_check_pte_clear_range(mm, addr, table);
	pte_free_defer(mm, pmd_pgtable(table));
}

/* A huge page with its deposited table, or a table with all its pages. */
static void move_table(struct vm_area_struct *dst, pmd_t *dst_pmd,
		       struct mm_struct *src_mm, pmd_t *src_pmd,
		       unsigned long addr, unsigned long delta)
{
	struct mm_struct *mm = dst->vm_mm;
	spinlock_t *dst_ptl, *src_ptl;
	pmd_t pmd;

	vas_free_table(dst, addr + delta, dst_pmd);

	dst_ptl = pmd_lock(mm, dst_pmd);
	src_ptl = pmd_lockptr(src_mm, src_pmd);
	if (src_ptl != dst_ptl)
		spin_lock_nested(src_ptl, SINGLE_DEPTH_NESTING);
	if (is_swap_pmd(*src_pmd) || pmd_trans_huge(*src_pmd)) {
		pmd = pmdp_huge_get_and_clear(src_mm, addr, src_pmd);
		pgtable_trans_huge_deposit(mm, dst_pmd,
				pgtable_trans_huge_withdraw(src_mm, src_pmd));
		set_pmd_at(mm, addr + delta, dst_pmd, pmd);
	} else {
		pmd = *src_pmd;
		pmd_clear(src_pmd);
		smp_wmb();	/* the PTEs before the table, as in pmd_install() */
		pmd_populate(mm, dst_pmd, pmd_pgtable(pmd));
	}
	if (src_ptl != dst_ptl)
		spin_unlock(src_ptl);
	spin_unlock(dst_ptl);
	mm_dec_nr_ptes(src_mm);
	mm_inc_nr_ptes(mm);
}

/* Page by page, into a table that has room for them. */
static void move_ptes(struct mm_struct *dst_mm, struct mm_struct *src_mm,
		      pmd_t *src_pmd, unsigned long addr, unsigned long end,
		      unsigned long delta)
{
	pmd_t *dst_pmd = mm_find_pmd(dst_mm, addr + delta);
	pte_t *dst_start, *src_start, *dst, *src;
	spinlock_t *dst_ptl, *src_ptl;

	dst_start = dst = pte_offset_map_lock(dst_mm, dst_pmd, addr + delta,
					      &dst_ptl);
	src_start = src = pte_offset_map_nolock(src_mm, src_pmd, addr,
						&src_ptl);
	/* vas_move_prepare() made the one, vas_share_pages() the other. */
	BUG_ON(!dst || !src);
	spin_lock_nested(src_ptl, SINGLE_DEPTH_NESTING);
	arch_enter_lazy_mmu_mode();
	for (; addr < end; addr += PAGE_SIZE, src++, dst++) {
		if (pte_none(ptep_get(src)))
			continue;
		set_pte_at(dst_mm, addr + delta, dst,
			   ptep_get_and_clear(src_mm, addr, src));
	}
	arch_leave_lazy_mmu_mode();
	spin_unlock(src_ptl);
	pte_unmap(src_start);
	pte_unmap_unlock(dst_start, dst_ptl);
}

/*
 * Moves all pages of @src to @dst, which has none.  Both mms, both VMAs and
 * their root anon_vma are locked for writing; vas_move_prepare() went before.
 * The mms' RSS counters are left to the caller.
 */
void vas_move_pages(struct vm_area_struct *dst, struct vm_area_struct *src)
{
	unsigned long delta = dst->vm_start - src->vm_start;
	unsigned long addr = src->vm_start, end = src->vm_end, next;
	struct mm_struct *dst_mm = dst->vm_mm, *src_mm = src->vm_mm;
	pmd_t *pmd;

	for (; (pmd = vas_next_pmd(src_mm, &addr, end)); addr = next) {
		next = pmd_addr_end(addr, end);
		if (fills_table(dst, addr, next, addr + delta)) {
			move_table(dst, mm_find_pmd(dst_mm, addr + delta),
				   src_mm, pmd, addr, delta);
		} else {
			unsigned long to;

			for (; addr < next; addr = to) {
				to = dst_end(addr, next, delta);
				move_ptes(dst_mm, src_mm, pmd, addr, to, delta);
			}
		}
		cond_resched();
	}
}
