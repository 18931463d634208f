// SPDX-License-Identifier: GPL-2.0-only
/*
 * Turning cold: letting go of the pages of a VAS that the store has, on request
 * or under memory pressure.
 *
 * Nothing that a live task sees changes: its own mappings keep the pages that it
 * shares with the VAS.
 */
#include <linux/init.h>
#include <linux/mmap_lock.h>
#include <linux/sched/mm.h>
#include <linux/shrinker.h>

#include "internal.h"

static DEFINE_SPINLOCK(vas_evictable_lock);
static LIST_HEAD(vas_evictable);	/* what is STORED; by vas_evictable_lock */

/* The caller holds vas->lock. */
void vas_set_store(struct vas *vas, u32 store)
{
	lockdep_assert_held(&vas->lock);
	WRITE_ONCE(vas->store, store);
	spin_lock(&vas_evictable_lock);
	list_del_init(&vas->evictable);
	if (store == VAS_STORE_STORED)
		list_add_tail(&vas->evictable, &vas_evictable);
	spin_unlock(&vas_evictable_lock);
}

/* Of a VAS that is without pins. */
void vas_forget_evictable(struct vas *vas)
{
	spin_lock(&vas_evictable_lock);
	list_del_init(&vas->evictable);
	spin_unlock(&vas_evictable_lock);
}

/*
 * Opens the snapshot that @map is of.  -ENOENT where it is no longer there; one
 * of the same name that came later is another.
 */
int vas_store_open_map(struct vas_map *map, u64 *handle, unsigned int flags)
{
	struct vas_snapshot now;
	int err = vas_store_open(map->snapshot.name, handle, &now, NULL, flags);

	if (err || vas_snapshot_same(&now, &map->snapshot))
		return err;
	vas_store_close(*handle, flags);
	return -ENOENT;
}

/* Makes sure that the store still has it.  If not, the VAS is hot for good. */
static int evict_check(struct vas *vas, unsigned int flags)
{
	int err = vas_store_check(&vas->map->snapshot, flags | VAS_CALL_URGENT);

	if (err == -ENOENT) {
		vas_set_store(vas, VAS_STORE_HOT);
		WRITE_ONCE(vas->stored_ns, 0);
		vas_map_free(vas->map);
		vas->map = NULL;
		atomic64_set(&vas->drained, 0);
	}
	return err;
}

static void evict_locked(struct vas *vas, u64 *pages)
{
	*pages = vas_mm_counter(vas->mm, MM_ANONPAGES);
	vas_zap(vas->mm);
	vas_set_store(vas, VAS_STORE_COLD);
}

/* The caller holds vas->lock. */
int vas_evict(struct vas *vas, u64 *pages)
{
	int err;

	lockdep_assert_held(&vas->lock);
	*pages = 0;
	if (!vas->mm)
		return -ENODATA;
	switch (vas->store) {
	case VAS_STORE_COLD:
		return 0;
	case VAS_STORE_DRAINING:
		return -EBUSY;
	case VAS_STORE_HOT:
		return -ENOENT;
	}
	err = evict_check(vas, VAS_CALL_KILLABLE);
	if (err)
		return err;
	mmap_read_lock(vas->mm);
	evict_locked(vas, pages);
	mmap_read_unlock(vas->mm);
	return 0;
}

/* --- The shrinker --- */

/* So many places of a VAS are looked at to tell what its end would free. */
#define LOOKS	16

/* Without what was written of files: that is little, in large VMAs. */
static u64 bytes_to_look_at(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;
	u64 bytes = 0;

	for_each_vma(vmi, vma)
		if (!(vma->vm_flags & VAS_VMA_FILE))
			bytes += vma->vm_end - vma->vm_start;
	return bytes;
}

static void look_at_some(struct vas *vas, u64 step, struct vas_pages *count)
{
	VMA_ITERATOR(vmi, vas->mm, 0);
	struct vm_area_struct *vma;
	u64 at = 0, next = 0;

	for_each_vma(vmi, vma) {
		u64 len = vma->vm_end - vma->vm_start;

		if (vma->vm_flags & VAS_VMA_FILE)
			continue;
		for (; next < at + len; next += step) {
			unsigned long addr = vma->vm_start + next - at;

			vas_count_range(vas->mm, addr & PAGE_MASK,
					pmd_addr_end(addr, vma->vm_end), true,
					count);
		}
		at += len;
	}
}

/*
 * How much of its memory nobody else maps, in percent, if it is large by some of it:
 * what a live task shares with it stays when it goes.  What is in swap counts as its
 * own.  The caller holds the mmap_lock.
 */
static unsigned int own_percent(struct vas *vas)
{
	u64 step = bytes_to_look_at(vas->mm) / LOOKS, all;
	struct vas_pages count = {};

	if (step > HPAGE_PMD_SIZE)
		look_at_some(vas, step, &count);
	else
		vas_count_range(vas->mm, 0, TASK_SIZE_MAX, true, &count);
	all = count.present + count.swap;
	return all ? (count.own + count.swap) * 100 / all : 100;
}

/*
 * Turns a VAS cold of which at least so much is its own.  Returns how many pages
 * that frees.
 *
 * It may be called with any lock held that memory is allocated under, so it
 * waits for no lock of ours.  For the device it waits a moment (VAS_CALL_RECLAIM)
 * on the queue where no request takes long, and what it allocates for that comes
 * from the reserves (PF_MEMALLOC), so it does not recurse.  A fill gets here, too,
 * through reclaim or vas_make_room(): the VAS that it fills is locked, and the
 * others are for it to take; reclaim below it is the last, for the same reason.
 */
static u64 shrink_vas(struct vas *vas, unsigned int least, unsigned int flags)
{
	unsigned int own = 0;
	u64 pages = 0;

	if (!mutex_trylock(&vas->lock))
		return 0;
	if (vas->store == VAS_STORE_STORED && mmap_read_trylock(vas->mm)) {
		own = own_percent(vas);
		mmap_read_unlock(vas->mm);
	}
	if (own >= least && !evict_check(vas, flags) &&
	    mmap_read_trylock(vas->mm)) {
		evict_locked(vas, &pages);
		mmap_read_unlock(vas->mm);
	}
	mutex_unlock(&vas->lock);
	return pages * own / 100;
}

/* The next one to try, pinned; NULL: none, or it is just going away. */
static struct vas *next_evictable(void)
{
	struct vas *vas;

	spin_lock(&vas_evictable_lock);
	vas = list_first_entry_or_null(&vas_evictable, struct vas, evictable);
	if (vas) {
		list_move_tail(&vas->evictable, &vas_evictable);
		if (!refcount_inc_not_zero(&vas->pins))
			vas = NULL;
	}
	spin_unlock(&vas_evictable_lock);
	return vas;
}

static unsigned long evictable(unsigned long *vases)
{
	unsigned long pages = 0;
	struct vas *vas;

	*vases = 0;
	spin_lock(&vas_evictable_lock);
	list_for_each_entry(vas, &vas_evictable, evictable) {
		pages += get_mm_counter(vas->mm, MM_ANONPAGES);
		++*vases;
	}
	spin_unlock(&vas_evictable_lock);
	return pages;
}

static unsigned long vas_shrink_count(struct shrinker *shrinker,
				      struct shrink_control *sc)
{
	unsigned long vases;

	return evictable(&vases) ?: SHRINK_EMPTY;
}

static unsigned long make_room(unsigned long pages, unsigned int least,
			       unsigned int flags)
{
	unsigned long freed = 0, tries;

	evictable(&tries);
	for (; tries && freed < pages; tries--) {
		struct vas *vas = next_evictable();

		if (!vas)
			continue;
		freed += shrink_vas(vas, least, flags);
		vas_put(vas);
	}
	return freed;
}

/*
 * Turns whole VASes cold, until so many pages went; those first that have most of
 * their memory for themselves.  Returns how many went; 0: no VAS can.  @flags: of
 * the question to the store.
 */
unsigned long vas_make_room(unsigned long pages, unsigned int flags)
{
	return make_room(pages, 50, flags) ?: make_room(pages, 1, flags);
}

static unsigned long vas_shrink_scan(struct shrinker *shrinker,
				     struct shrink_control *sc)
{
	unsigned long freed;

	if ((sc->gfp_mask & GFP_KERNEL) != GFP_KERNEL)
		return SHRINK_STOP;
	freed = vas_make_room(sc->nr_to_scan, VAS_CALL_RECLAIM);
	sc->nr_scanned = max(freed, sc->nr_to_scan);
	return freed ?: SHRINK_STOP;
}

static int __init vas_shrinker_init(void)
{
	struct shrinker *shrinker = shrinker_alloc(0, "vas");

	if (!shrinker)
		return -ENOMEM;
	shrinker->count_objects = vas_shrink_count;
	shrinker->scan_objects = vas_shrink_scan;
	/* A VAS goes as a whole: not at the first whiff of pressure. */
	shrinker->batch = SZ_32M / PAGE_SIZE;
	shrinker_register(shrinker);
	return 0;
}
core_initcall(vas_shrinker_init);
