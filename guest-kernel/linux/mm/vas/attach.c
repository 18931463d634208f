// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attach: replace memory of a task by the memory of a VAS, copy-on-write.
 *
 * All that can fail happens on the side, in a *stage*: an mm of its own, which
 * gets the pages of the VAS as a fork of it would.  It has one VMA for every
 * pair of a captured VMA and a VMA of the target that overlap.  Only then is
 * the target touched: its VMAs are split at the borders of the stage's (undone
 * if that fails), its old pages are zapped, and page tables and anon_vmas move
 * over from the stage, which cannot fail.
 *
 * The target's VMAs themselves stay: their flags, policies, names, and what is
 * accounted by VMA (total_vm, locked_vm, commitment) are as before, and so is
 * /proc/pid/maps.  Two flags alone come back with the memory: that it may be
 * dropped, of which CRIU, who made these VMAs, knows nothing, and that it is to
 * be wiped on fork.
 */
#include <linux/fs.h>
#include <linux/khugepaged.h>
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/mman.h>
#include <linux/mmap_lock.h>
#include <linux/oom.h>
#include <linux/rmap.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/security.h>
#include <linux/swap.h>

#include <asm/tlb.h>

#include "../internal.h"
#include "../vma.h"
#include "internal.h"

/*
 * vas->lock is held, so that the VAS has its pages and keeps them.  All three
 * mms are locked for writing from vas_attach() on.  An address of the
 * stage is one of the VAS; + delta it is one of the target.
 */
struct attach {
	struct mm_struct *mm;		/* the target */
	struct mm_struct *vas_mm;
	struct mm_struct *stage;
	unsigned long start, end;	/* in the VAS */
	unsigned long delta;
	unsigned long charge;		/* pages to add to the commitment */
	bool clone;			/* leave out what is wiped on fork */
	bool locked;			/* some of the target is mlocked */
	u64 vmas;
};

static struct vm_area_struct *target_vma(struct attach *a,
					 struct vm_area_struct *piece)
{
	return vma_lookup(a->mm, piece->vm_start + a->delta);
}

/*
 * Is it of a file where the source was, and has at @dst the place in it that the
 * source has at @addr?  What was not written comes from there.
 */
static bool is_same_file_range(struct vm_area_struct *vma, unsigned long dst,
			       struct vm_area_struct *src, unsigned long addr)
{
	bool of_file = src->vm_flags & VAS_VMA_FILE;

	return of_file == !!vma->vm_file &&
	       (!of_file || linear_page_index(vma, dst) ==
			    linear_page_index(src, addr));
}

/* Does the target take the memory of @src at @addr here? */
static int check_target(struct vm_area_struct *vma, unsigned long dst,
			struct vm_area_struct *src, unsigned long addr)
{
	if (!vma || vma->vm_start > dst)
		return -EFAULT;
	if (!vas_eligible(vma) ||
	    vma->vm_flags & ~src->vm_flags & VM_DROPPABLE ||
	    !is_same_file_range(vma, dst, src, addr))
		return -EBUSY;
	if (!can_modify_vma(vma))
		return -EPERM;
	return 0;
}

/* Does the target get nothing of @src, and so an empty VMA? */
static bool left_out(struct attach *a, struct vm_area_struct *src)
{
	return src->vm_flags & VM_DROPPABLE ||
	       (a->clone && src->vm_flags & VM_WIPEONFORK);
}

/* A piece without an anon_vma is one that stays empty. */
static int plan_piece(struct attach *a, struct vm_area_struct *src,
		      unsigned long start, unsigned long end,
		      struct vm_area_struct *vma)
{
	struct vm_area_struct *piece;

	piece = vas_add_vma(a->stage, start, end, linear_page_index(src, start),
			    src->vm_flags & ~VM_ACCOUNT, src->vm_page_prot);
	if (IS_ERR(piece))
		return PTR_ERR(piece);
	if (!left_out(a, src) && anon_vma_fork(piece, src))
		return -ENOMEM;
	a->vmas++;
	if (src->vm_flags & VM_DROPPABLE)
		return 0;
	if (vma->vm_flags & VM_LOCKED)
		a->locked = true;
	if ((src->vm_flags & VM_ACCOUNT) &&
	    !(vma->vm_flags & (VM_ACCOUNT | VM_NORESERVE)))
		a->charge += vma_pages(piece);
	return 0;
}

static int plan_vma(struct attach *a, struct vm_area_struct *src)
{
	unsigned long addr = max(src->vm_start, a->start);
	unsigned long end = min(src->vm_end, a->end);
	unsigned long next;

	for (; addr < end; addr = next) {
		unsigned long dst = addr + a->delta;
		struct vm_area_struct *vma = find_vma(a->mm, dst);
		int err = check_target(vma, dst, src, addr);

		if (err)
			return err;
		next = min(end, vma->vm_end - a->delta);
		err = plan_piece(a, src, addr, next, vma);
		if (err)
			return err;
	}
	return 0;
}

/* Checks the target, and gives the stage its VMAs. */
static int plan(struct attach *a)
{
	VMA_ITERATOR(vmi, a->vas_mm, a->start);
	struct vm_area_struct *src;
	int err;

	for_each_vma_range(vmi, src, a->end) {
		err = plan_vma(a, src);
		if (err)
			return err;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/* The PTEs of @piece as mprotect would leave them: the target's protection. */
static int stage_protect(struct vm_area_struct *piece,
			 struct vm_area_struct *vma)
{
	struct mmu_gather tlb;
	long ret;

	if (pgprot_val(piece->vm_page_prot) == pgprot_val(vma->vm_page_prot))
		return 0;
	vm_flags_reset(piece, (piece->vm_flags & ~VM_ACCESS_FLAGS) |
			      (vma->vm_flags & VM_ACCESS_FLAGS));
	piece->vm_page_prot = vma->vm_page_prot;
	tlb_gather_mmu(&tlb, piece->vm_mm);
	ret = change_protection(&tlb, piece, piece->vm_start, piece->vm_end, 0);
	tlb_finish_mmu(&tlb);
	return ret < 0 ? ret : 0;
}

/* What a page must not be when it changes its address. */
static int stage_unfix(struct attach *a, struct vm_area_struct *piece)
{
	unsigned long addr, flags = VM_MERGEABLE;
	struct vas_pages count = {};
	int err = 0;

	/* The rmap of a KSM page knows its address: as in mremap, unshare. */
	vas_count_range(a->stage, piece->vm_start, piece->vm_end, true, &count);
	if (count.ksm)
		err = ksm_madvise(piece, piece->vm_start, piece->vm_end,
				  MADV_UNMERGEABLE, &flags);
	if (err || IS_ALIGNED(a->delta, HPAGE_PMD_SIZE))
		return err;
	for (addr = piece->vm_start;
	     vas_next_pmd(a->stage, &addr, piece->vm_end);
	     addr = pmd_addr_end(addr, piece->vm_end))
		split_huge_pmd_address(piece, addr, false, NULL);
	return 0;
}

/* Gives the stage the VAS's pages. */
static int fill_stage(struct attach *a)
{
	VMA_ITERATOR(vmi, a->stage, 0);
	struct vm_area_struct *piece;
	int err;

	for_each_vma(vmi, piece) {
		struct vm_area_struct *src = vma_lookup(a->vas_mm,
							piece->vm_start);

		if (!piece->anon_vma)
			continue;
		vas_split_huge_at(src, piece->vm_start);
		vas_split_huge_at(src, piece->vm_end);
		err = vas_share_pages(piece, src, piece->vm_start,
				      piece->vm_end);
		if (!err)
			err = stage_protect(piece, target_vma(a, piece));
		if (!err && a->delta)
			err = stage_unfix(a, piece);
		if (err)
			return err;
	}
	return 0;
}

static int split_at(struct mm_struct *mm, unsigned long addr)
{
	VMA_ITERATOR(vmi, mm, addr);
	struct vm_area_struct *vma = vma_find(&vmi, addr + 1);

	if (!vma || vma->vm_start == addr)
		return 0;
	return split_vma(&vmi, vma, addr, 1);
}

/* Undoes split_target() as far as there is memory for it. */
static void merge_target(struct attach *a)
{
	VMA_ITERATOR(stage_vmi, a->stage, 0);
	struct vm_area_struct *piece;

	for_each_vma(stage_vmi, piece) {
		unsigned long border[] = { piece->vm_start + a->delta,
					   piece->vm_end + a->delta };

		for (int i = 0; i < ARRAY_SIZE(border); i++) {
			VMA_ITERATOR(vmi, a->mm, border[i]);
			struct vm_area_struct *vma, *prev;

			vma = vma_find(&vmi, border[i] + 1);
			if (!vma || vma->vm_start != border[i])
				continue;
			prev = vma_prev(&vmi);
			if (!prev || prev->vm_end != border[i])
				continue;
			vma_next(&vmi);
			vma_modify_flags(&vmi, prev, vma, vma->vm_start,
					 vma->vm_end, vma->vm_flags);
		}
	}
}

/* One VMA of the target for each of the stage. */
static int split_target(struct attach *a)
{
	VMA_ITERATOR(vmi, a->stage, 0);
	struct vm_area_struct *piece;
	int err;

	for_each_vma(vmi, piece) {
		err = split_at(a->mm, piece->vm_start + a->delta);
		if (!err)
			err = split_at(a->mm, piece->vm_end + a->delta);
		if (!err) {
			struct vm_area_struct *vma = target_vma(a, piece);

			vma_start_write(vma);
			/* khugepaged leaves tables of a file alone where there is one. */
			err = vma->vm_file ? anon_vma_prepare(vma) : 0;
			err = err ?: vas_move_prepare(vma, piece);
		}
		if (err)
			return err;
	}
	return 0;
}

/*
 * @vma, whose pages are gone, takes over @piece's place in the anon_vma
 * hierarchy, and its pages.  rmap walks see either of them: they need the root
 * anon_vma's lock.  If it is of a file, i_mmap_rwsem is held, so that khugepaged
 * does not see it without an anon_vma.
 */
static void take_over_locked(struct vm_area_struct *vma,
			     struct vm_area_struct *piece)
{
	struct anon_vma *root;
	struct anon_vma_chain *avc;

	unlink_anon_vmas(vma);
	if (!piece->anon_vma) {
		vma->vm_pgoff = piece->vm_pgoff;
		return;
	}
	root = piece->anon_vma->root;
	anon_vma_lock_write(root);
	vma->vm_pgoff = piece->vm_pgoff;
	list_for_each_entry(avc, &piece->anon_vma_chain, same_vma) {
		anon_vma_interval_tree_remove(avc, &avc->anon_vma->rb_root);
		avc->vma = vma;
		anon_vma_interval_tree_insert(avc, &avc->anon_vma->rb_root);
	}
	list_splice_init(&piece->anon_vma_chain, &vma->anon_vma_chain);
	vma->anon_vma = piece->anon_vma;
	piece->anon_vma = NULL;
	vas_move_pages(vma, piece);
	anon_vma_unlock_write(root);
}

static void take_over(struct vm_area_struct *vma, struct vm_area_struct *piece)
{
	struct address_space *mapping = NULL;

	if (vma->vm_file) {
		mapping = vma->vm_file->f_mapping;
		i_mmap_lock_write(mapping);
	}
	take_over_locked(vma, piece);
	if (mapping)
		i_mmap_unlock_write(mapping);
}

/* What the target's VMA is from now on. */
static vm_flags_t target_flags(vm_flags_t flags, vm_flags_t src)
{
	flags |= VM_SOFTDIRTY | (src & VM_WIPEONFORK);
	if (src & VM_DROPPABLE) {
		/* As mmap(MAP_DROPPABLE) makes it: see do_mmap(). */
		flags |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK |
			 VM_DONTDUMP;
		flags &= ~(VM_ACCOUNT | VM_LOCKED_MASK | VM_MERGEABLE);
	} else if (src & VM_ACCOUNT && !(flags & VM_NORESERVE)) {
		flags |= VM_ACCOUNT;
	}
	return flags;
}

static void commit_piece(struct attach *a, struct vm_area_struct *piece)
{
	struct vm_area_struct *vma = target_vma(a, piece);
	struct vm_area_struct *src = vma_lookup(a->vas_mm, piece->vm_start);
	vm_flags_t flags = target_flags(vma->vm_flags, src->vm_flags);
	vm_flags_t lost = vma->vm_flags & ~flags;

	/* What was gained of VM_ACCOUNT is in @charge. */
	if (lost & VM_ACCOUNT)
		vm_unacct_memory(vma_pages(vma));
	if (lost & VM_LOCKED)
		a->mm->locked_vm -= vma_pages(vma);
	zap_page_range_single(vma, vma->vm_start, vma->vm_end - vma->vm_start,
			      NULL);
	/* While not VM_LOCKED, reclaim does not mlock the pages behind our back. */
	vm_flags_reset(vma, flags & ~VM_LOCKED_MASK);
	take_over(vma, piece);
	if (flags & VM_LOCKED)
		mlock_vma_pages_range(vma, vma->vm_start, vma->vm_end, flags);
	khugepaged_enter_vma(vma, flags);
}

/* From here on nothing fails. */
static void commit(struct attach *a)
{
	VMA_ITERATOR(vmi, a->stage, 0);
	struct vm_area_struct *piece;

	for_each_vma(vmi, piece) {
		commit_piece(a, piece);
		cond_resched();
	}

	for (int i = 0; i < NR_MM_COUNTERS; i++) {
		s64 n = percpu_counter_sum(&a->stage->rss_stat[i]);

		add_mm_counter(a->stage, i, -n);
		add_mm_counter(a->mm, i, n);
	}
	/* The stage holds a reference, so this only takes another. */
	if (test_bit(MMF_HUGE_ZERO_PAGE, &a->stage->flags))
		mm_get_huge_zero_folio(a->mm);
	/* swapoff must find the swap entries; it looks until all are gone. */
	if (!list_empty(&a->stage->mmlist) && list_empty(&a->mm->mmlist)) {
		spin_lock(&mmlist_lock);
		if (list_empty(&a->mm->mmlist))
			list_add(&a->mm->mmlist, &a->stage->mmlist);
		spin_unlock(&mmlist_lock);
	}
}

static int attach_locked(struct attach *a, struct vas_attach *arg)
{
	int err;

	/* Reaped by the OOM killer: it is on its way out. */
	if (check_stable_address_space(a->mm))
		return -ESRCH;
	err = plan(a);
	/* A task that has only just begun has nothing, and comes back all the same. */
	if (!err && !a->vmas && arg->len)
		err = -ENOENT;
	if (!err)
		err = fill_stage(a);
	if (err)
		return err;
	if (a->charge && security_vm_enough_memory_mm(a->mm, a->charge))
		return -ENOMEM;
	err = split_target(a);
	if (err) {
		merge_target(a);
		vm_unacct_memory(a->charge);
		return err;
	}
	arg->vmas = a->vmas;
	arg->pages = vas_mm_counter(a->stage, MM_ANONPAGES);
	commit(a);
	if (memchr_inv(arg->snapshot, 0, sizeof(arg->snapshot)))
		vas_set_origin(a->mm, arg->snapshot);
	return 0;
}

/*
 * mlock(2) promises residence: bring in what was swapped out, but do not break
 * copy-on-write for it.  As in mmap, a failure is no failure of the whole.
 */
static void populate_locked(struct mm_struct *mm, unsigned long start,
			    unsigned long end)
{
	struct vm_area_struct *vma;
	int locked = 0;
	long ret;

	while (start < end) {
		if (fatal_signal_pending(current))
			break;
		if (!locked) {
			mmap_read_lock(mm);
			locked = 1;
		}
		vma = find_vma_intersection(mm, start, end);
		if (!vma)
			break;
		start = max(start, vma->vm_start);
		if ((vma->vm_flags & VM_LOCKED_MASK) != VM_LOCKED ||
		    !vma_is_accessible(vma)) {
			start = vma->vm_end;
			continue;
		}
		ret = faultin_page_range(mm, start, min(end, vma->vm_end),
					 false, &locked);
		start = ret > 0 ? start + ret * PAGE_SIZE : start + PAGE_SIZE;
		cond_resched();
	}
	if (locked)
		mmap_read_unlock(mm);
}

/* The caller made sure of its rights to @mm, which is @task's. */
int vas_attach(struct vas *vas, struct task_struct *task, struct mm_struct *mm,
	       struct vas_attach *arg)
{
	struct attach a = {
		.mm = mm,
		.vas_mm = vas_mm(vas),
		.end = TASK_SIZE_MAX,
		.clone = arg->flags & VAS_ATTACH_CLONE,
	};
	struct mem_cgroup *memcg, *old_memcg;
	int err;

	if (arg->len) {
		if (!PAGE_ALIGNED(arg->src | arg->len | arg->dst) ||
		    arg->src > TASK_SIZE_MAX ||
		    arg->len > TASK_SIZE_MAX - arg->src ||
		    arg->dst > TASK_SIZE_MAX ||
		    arg->len > TASK_SIZE_MAX - arg->dst ||
		    memchr_inv(arg->snapshot, 0, sizeof(arg->snapshot)))
			return -EINVAL;
		a.start = arg->src;
		a.end = arg->src + arg->len;
		a.delta = arg->dst - arg->src;
	}
	if (!a.vas_mm)
		return -ENODATA;

	/* The target is charged for its page tables, as if it faulted them in. */
	memcg = get_mem_cgroup_from_mm(mm);
	old_memcg = set_active_memcg(memcg);
	err = -ENOMEM;
	a.stage = vas_mm_alloc();
	if (!a.stage)
		goto out;
#ifdef CONFIG_MEMCG
	rcu_assign_pointer(a.stage->owner, task);	/* unshared KSM pages */
#endif

	err = -EINTR;
	if (mutex_lock_killable(&vas->lock))
		goto out_stage;
	err = 0;
	if (vas->store == VAS_STORE_COLD) {
		err = vas_fill(vas);
		if (!err)
			vas_set_payer(vas, memcg);
	}
	if (!err && mmap_write_lock_killable(mm))
		err = -EINTR;
	if (err)
		goto out_lock;
	mmap_write_lock_nested(a.vas_mm, VAS_LOCK_VAS);
	mmap_write_lock_nested(a.stage, VAS_LOCK_STAGE);
	err = attach_locked(&a, arg);
	mmap_write_unlock(a.stage);
	mmap_write_unlock(a.vas_mm);
	mmap_write_unlock(mm);
	if (!err)
		atomic64_inc(&vas->attaches);
out_lock:
	mutex_unlock(&vas->lock);
	if (!err && a.locked)
		populate_locked(mm, a.start + a.delta, a.end + a.delta);
	if (!err)
		vas_charge(vas, task, mm, memcg, a.start + a.delta, a.end + a.delta);
out_stage:
#ifdef CONFIG_MEMCG
	rcu_assign_pointer(a.stage->owner, NULL);
#endif
	mmput(a.stage);
out:
	set_active_memcg(old_memcg);
	mem_cgroup_put(memcg);
	return err;
}
