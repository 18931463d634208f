// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VAS object: identity, rights, lifetime, and its address space.
 */
#include <linux/capability.h>
#include <linux/ctype.h>
#include <linux/hashtable.h>
#include <linux/mman.h>
#include <linux/mmap_lock.h>
#include <linux/pagewalk.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/stringhash.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/timekeeping.h>
#include <linux/userfaultfd_k.h>
#include <linux/xarray.h>

#include "../internal.h"
#include "internal.h"

DEFINE_MUTEX(vas_mutex);
static DEFINE_XARRAY(vas_registry);	/* by id; vas_mutex */
static DEFINE_HASHTABLE(vas_names, 10);	/* the same; vas_mutex */
static u64 vas_last_id;			/* vas_mutex */

bool vas_name_valid(const char *name)
{
	size_t i, len = strnlen(name, VAS_NAME_MAX);

	if (!len || len == VAS_NAME_MAX || name[0] == '.')
		return false;
	for (i = 0; i < len; i++)
		if (!(isascii(name[i]) && isalnum(name[i])) &&
		    !strchr("._:@+-", name[i]))
			return false;
	return true;
}

static u32 name_hash(const char *name)
{
	return full_name_hash(NULL, name, strnlen(name, VAS_NAME_MAX));
}

/* By @id, or by @name where @id is 0.  The caller holds vas_mutex. */
struct vas *vas_find(u64 id, const char *name)
{
	struct vas *vas;

	lockdep_assert_held(&vas_mutex);
	if (id)
		return xa_load(&vas_registry, id);
	hash_for_each_possible(vas_names, vas, by_name, name_hash(name))
		if (!strncmp(vas->name, name, VAS_NAME_MAX))
			return vas;
	return NULL;
}

/* Registers a new, empty VAS of the caller.  The caller holds vas_mutex. */
struct vas *vas_create(const char *name, umode_t mode)
{
	struct vas *vas;
	int err;

	lockdep_assert_held(&vas_mutex);
	if (!vas_name_valid(name))
		return ERR_PTR(-EINVAL);
	if (vas_find(0, name))
		return ERR_PTR(-EEXIST);

	vas = kzalloc(sizeof(*vas), GFP_KERNEL_ACCOUNT);
	if (!vas)
		return ERR_PTR(-ENOMEM);
	refcount_set(&vas->pins, 1);
	vas->id = ++vas_last_id;
	strscpy(vas->name, name);
	vas->mode = mode;
	vas->uid = current_fsuid();
	vas->gid = current_fsgid();
	vas->created_ns = ktime_get_real_ns();
	INIT_LIST_HEAD(&vas->session_node);
	mutex_init(&vas->lock);
	INIT_LIST_HEAD(&vas->evictable);
	INIT_LIST_HEAD(&vas->paid);

	vas_sysfs_init(vas);
	err = vas_sysfs_add(vas);
	if (err)
		goto out_put;
	err = xa_insert(&vas_registry, vas->id, vas, GFP_KERNEL_ACCOUNT);
	if (err)
		goto out_del;
	hash_add(vas_names, &vas->by_name, name_hash(vas->name));
	vas->registered = true;
	return vas;

out_del:
	kobject_del(&vas->kobj);
out_put:
	vas_put(vas);
	return ERR_PTR(err);
}

/*
 * Takes name and id from a VAS that the caller has pinned; its memory goes with
 * its last pin.  Without @force only if the caller has its only file.
 */
int vas_delete(struct vas *vas, bool force)
{
	int err = 0;

	mutex_lock(&vas_mutex);
	if (!vas->registered)
		err = -ENOENT;
	else if (!force && atomic_read(&vas->files) > 1)
		err = -EBUSY;
	if (err) {
		mutex_unlock(&vas_mutex);
		return err;
	}
	xa_erase(&vas_registry, vas->id);
	hash_del(&vas->by_name);
	list_del_init(&vas->session_node);
	WRITE_ONCE(vas->registered, false);
	kobject_del(&vas->kobj);	/* waits for readers of its files */
	mutex_unlock(&vas_mutex);
	vas_put(vas);
	return 0;
}

void vas_put(struct vas *vas)
{
	if (!refcount_dec_and_test(&vas->pins))
		return;
	vas_forget_evictable(vas);
	vas_forget_payer(vas);
	vas_map_free(vas->map);
	/* In reclaim (see cold.c) no mmap_lock may be waited for. */
	if (vas->mm && current->flags & PF_MEMALLOC)
		mmput_async(vas->mm);
	else if (vas->mm)
		mmput(vas->mm);
	kobject_put(&vas->kobj);
}

/* Who may use /dev/vas, and so may know what there is. */
bool vas_may_see(void)
{
	return checkpoint_restore_ns_capable(&init_user_ns);
}

/* As a file's owner and mode would allow it. */
bool vas_may(struct vas *vas, u32 access)
{
	umode_t want = 0, mode = vas->mode;

	if (access & VAS_ACCESS_READ)
		want |= 04;
	if (access & VAS_ACCESS_WRITE)
		want |= 02;
	if (uid_eq(current_fsuid(), vas->uid))
		mode >>= 6;
	else if (in_group_p(vas->gid))
		mode >>= 3;
	return !(want & ~mode) || capable(CAP_DAC_OVERRIDE);
}

u32 vas_state(struct vas *vas)
{
	if (!vas_mm(vas))
		return VAS_STATE_EMPTY;
	return READ_ONCE(vas->committed) ? VAS_STATE_COMMITTED :
					   VAS_STATE_TRANSIENT;
}

/*
 * An mm that no task runs in.  It inherits nothing from its creator, which may
 * be long gone: no flags (dumpable, KSM's merge-any) and no owner, which for
 * memcg means that what nobody else is charged for belongs to the root.
 */
struct mm_struct *vas_mm_alloc(void)
{
	struct mm_struct *mm = mm_alloc();

	if (!mm)
		return NULL;
	mm->flags = 0;
	mm->def_flags = 0;
#ifdef CONFIG_MEMCG
	RCU_INIT_POINTER(mm->owner, NULL);
#endif
	return mm;
}

/*
 * A new anonymous VMA in @mm, an mm that no task runs in, with its pages'
 * index (@pgoff) given: rmap finds a page by vm_pgoff, so a VMA that shares
 * another's pages must take its vm_pgoff, too.
 */
struct vm_area_struct *vas_add_vma(struct mm_struct *mm, unsigned long start,
				   unsigned long end, pgoff_t pgoff,
				   vm_flags_t flags, pgprot_t prot)
{
	struct vm_area_struct *vma = vm_area_alloc(mm);
	int err;

	if (!vma)
		return ERR_PTR(-ENOMEM);
	vma_set_anonymous(vma);
	vma_set_range(vma, start, end, pgoff);
	vm_flags_init(vma, flags);
	vma->vm_page_prot = prot;
	err = insert_vm_struct(mm, vma);	/* charges VM_ACCOUNT */
	if (err) {
		vm_area_free(vma);
		return ERR_PTR(err);
	}
	vma->vm_pgoff = pgoff;			/* insert_vm_struct() sets it anew */
	vm_stat_account(mm, flags, vma_pages(vma));
	return vma;
}

static bool is_of_regular_file(struct vm_area_struct *vma)
{
	return !vma_is_anonymous(vma) && vma->vm_file &&
	       S_ISREG(file_inode(vma->vm_file)->i_mode) && !vma_is_dax(vma);
}

/*
 * Private memory: plain anonymous memory, stacks, and private mappings of regular
 * files.  Not: /dev/zero (anonymous, with a file), memory of devices, shadow
 * stacks, and what userfaultfd watches (a page that is missing there is not a
 * page of zeros).
 */
bool vas_eligible(struct vm_area_struct *vma)
{
	bool anonymous = vma_is_anonymous(vma) && !vma->vm_file;

	return (anonymous || is_of_regular_file(vma)) &&
	       !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL |
				  VM_HUGETLB | VM_GROWSUP | VM_SHADOW_STACK)) &&
	       !vma_is_temporary_stack(vma) && !userfaultfd_armed(vma);
}

/* No huge page of @vma shall be mapped across @addr. */
void vas_split_huge_at(struct vm_area_struct *vma, unsigned long addr)
{
	if (!IS_ALIGNED(addr, HPAGE_PMD_SIZE))
		split_huge_pmd_address(vma, addr, false, NULL);
}

/*
 * Shares the pages of [start, end) of @src with @dst, as fork does.  Both mms
 * are locked for writing; the range cuts through no huge PMD.  Killable: a VMA
 * may be huge.
 */
int vas_share_pages(struct vm_area_struct *dst, struct vm_area_struct *src,
		    unsigned long start, unsigned long end)
{
	unsigned long next;
	int err;

	vma_start_write(src);
	for (; start < end; start = next) {
		next = min(end, ALIGN(start + 1, PUD_SIZE));
		if (fatal_signal_pending(current))
			return -EINTR;
		err = copy_page_subrange(dst, src, start, next);
		if (err)
			return err;
	}
	return 0;
}

struct vas_counter {
	struct vas_pages *count;
	bool ptes;
};

/* How often an anonymous page is mapped, alone or with its huge page. */
static int page_mappings(struct page *page)
{
	struct folio *folio = page_folio(page);

	return atomic_read(&page->_mapcount) + 1 +
	       (folio_test_large(folio) ? folio_entire_mapcount(folio) : 0);
}

static int vas_count_pmd(pmd_t *pmd, unsigned long addr, unsigned long end,
			 struct mm_walk *walk)
{
	struct vas_counter *counter = walk->private;
	struct vas_pages *count = counter->count;
	struct vm_area_struct *vma = walk->vma;
	pte_t *start_pte, *pte;
	spinlock_t *ptl;

	ptl = pmd_trans_huge_lock(pmd, vma);
	if (ptl) {
		if (!is_huge_zero_pmd(*pmd)) {
			u64 pages = (end - addr) >> PAGE_SHIFT;

			count->present += pages;
			count->huge += pages;
			/* While it is migrated, nobody knows who maps it. */
			if (pmd_present(*pmd) &&
			    folio_mapcount(pmd_folio(*pmd)) == 1)
				count->own += pages;
		}
		spin_unlock(ptl);
		return 0;
	}
	if (!counter->ptes)
		return 0;
	start_pte = pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!pte) {
		walk->action = ACTION_AGAIN;
		return 0;
	}
	for (; addr != end; pte++, addr += PAGE_SIZE) {
		pte_t ptent = ptep_get(pte);
		struct page *page;

		if (!pte_present(ptent)) {
			swp_entry_t entry = pte_to_swp_entry(ptent);

			if (pte_none(ptent))
				continue;
			count->present += is_migration_entry(entry);
			count->swap += !non_swap_entry(entry);
			continue;
		}
		page = vm_normal_page(vma, addr, ptent);
		if (!page)
			continue;
		count->present++;
		count->exclusive += PageAnon(page) && PageAnonExclusive(page);
		count->own += page_mappings(page) == 1;
		count->ksm += PageKsm(page);
	}
	pte_unmap_unlock(start_pte, ptl);
	cond_resched();
	return 0;
}

/*
 * Counts what is mapped in [start, end) of a VAS.  Without @ptes: only huge
 * pages, which is quick.  The caller holds the mm's mmap_lock.
 */
void vas_count_range(struct mm_struct *mm, unsigned long start,
		     unsigned long end, bool ptes, struct vas_pages *count)
{
	static const struct mm_walk_ops ops = {
		.pmd_entry = vas_count_pmd,
		.walk_lock = PGWALK_RDLOCK,
	};
	struct vas_counter counter = { .count = count, .ptes = ptes };

	walk_page_range(mm, start, end, &ops, &counter);
}

u32 vas_vma_prot(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_READ ? PROT_READ : 0) |
	       (vma->vm_flags & VM_WRITE ? PROT_WRITE : 0) |
	       (vma->vm_flags & VM_EXEC ? PROT_EXEC : 0);
}
