// SPDX-License-Identifier: GPL-2.0-only
/*
 * Filling a cold VAS from the store.
 *
 * Fresh blocks of memory are made to show the store's: a block of the snapshot
 * becomes a huge page, and packed pages a block that is split into 4 KiB pages.
 * Nothing is zeroed or copied.  Where there is no block, as memory is fragmented,
 * 512 pages from anywhere take its place, and what they should show is copied.  All
 * of them are there, and show what they should, before the first page is mapped.
 */
#include <linux/memcontrol.h>
#include <linux/mmap_lock.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/xarray.h>

#include <asm/pgalloc.h>

#include "../internal.h"
#include "internal.h"

/*
 * Without __GFP_ZERO (init_on_alloc, where it is on, zeroes all the same).  A
 * lack of blocks is an error, not a reason for the OOM killer.
 */
#define FILL_GFP	(GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | \
			 __GFP_NOWARN)

#define MAP_BATCH	(VAS_STORE_CHUNK / sizeof(struct virtio_vas_map))

/*
 * @huge: one block for each of the runs', in their order; those before @mapped
 * belong to the VAS.  @groups: by index / 512, a block of packed pages.  The fill
 * holds a reference to each of their pages until it ends, so that none goes while
 * it may be needed once more.
 *
 * A block is its first page; or, tagged, an array of 512 pages.
 */
struct fill {
	struct vas *vas;
	void **huge;
	size_t nr_huge, mapped;
	struct xarray groups;
};

/* The pages that stand for a block; NULL: it is one. */
static struct page **block_pages(void *block)
{
	return xa_pointer_tag(block) ? xa_untag_pointer(block) : NULL;
}

static struct page *block_page(void *block, unsigned int n)
{
	struct page **pages = block_pages(block);

	return pages ? pages[n] : (struct page *)block + n;
}

/* Lets all pages of an mm go.  The caller holds its mmap_lock, as for MADV_DONTNEED. */
void vas_zap(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;

	for_each_vma(vmi, vma)
		zap_page_range_single(vma, vma->vm_start,
				      vma->vm_end - vma->vm_start, NULL);
}

/* --- Memory --- */

static void free_pages_of(struct page **pages, unsigned int nr)
{
	while (nr)
		put_page(pages[--nr]);
	kfree(pages);
}

/* What a huge page, a split block, or pages from anywhere have of references. */
static void block_free(void *block)
{
	struct page **pages = block_pages(block), *page = block;

	if (pages)
		free_pages_of(pages, HPAGE_PMD_NR);
	else if (PageHead(page))
		put_page(page);
	else
		for (int i = 0; i < HPAGE_PMD_NR; i++)
			put_page(page + i);
}

static void *alloc_pages_for_block(void)
{
	struct page **pages = kmalloc_array(HPAGE_PMD_NR, sizeof(*pages),
					    GFP_KERNEL_ACCOUNT);

	if (!pages)
		return NULL;
	for (int i = 0; i < HPAGE_PMD_NR; i++) {
		pages[i] = alloc_page(FILL_GFP);
		if (!pages[i]) {
			free_pages_of(pages, i);
			return NULL;
		}
	}
	return xa_tag_pointer(pages, 1);
}

/*
 * Where there is no block, other VASes turn cold for it.  Reclaim alone is content
 * with the few pages that it finds first, and then the block is still missing.
 */
static void *alloc_block(gfp_t flags)
{
	struct page *page;

	do {
		page = alloc_pages(FILL_GFP | flags, HPAGE_PMD_ORDER);
	} while (!page && vas_make_room(HPAGE_PMD_NR, 0));
	return page ?: alloc_pages_for_block();
}

static int alloc_huge(struct fill *f, const struct vas_run *run)
{
	for (u32 i = 0; i < run->pages / HPAGE_PMD_NR; i++) {
		void *block = alloc_block(__GFP_COMP);
		struct folio *folio;

		if (!block)
			return -ENOMEM;
		f->huge[f->nr_huge++] = block;
		if (!block_pages(block)) {
			folio = page_rmappable_folio(block);
			if (mem_cgroup_charge(folio, NULL, FILL_GFP))
				return -ENOMEM;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int alloc_groups(struct fill *f, const struct vas_run *run)
{
	u64 group = run->index / HPAGE_PMD_NR;
	u64 last = (run->index + run->pages - 1) / HPAGE_PMD_NR;

	for (; group <= last; group++) {
		void *block;
		int err;

		if (xa_load(&f->groups, group))
			continue;
		block = alloc_block(0);
		if (!block)
			return -ENOMEM;
		if (!block_pages(block))
			split_page(block, HPAGE_PMD_ORDER);
		err = xa_err(xa_store(&f->groups, group, block, GFP_KERNEL));
		if (err) {
			block_free(block);
			return err;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int fill_alloc(struct fill *f)
{
	struct vas_map *map = f->vas->map;
	int err = 0;

	/* What is loaded may claim anything. */
	if (map->pages > totalram_pages())
		return -ENOMEM;
	f->huge = kvmalloc_array(map->huge_pages / HPAGE_PMD_NR,
				 sizeof(*f->huge), GFP_KERNEL_ACCOUNT);
	if (!f->huge)
		return -ENOMEM;
	for (size_t i = 0; i < map->nr && !err; i++) {
		const struct vas_run *run = &map->runs[i];

		err = run->kind == VIRTIO_VAS_KIND_BLOCKS ?
		      alloc_huge(f, run) : alloc_groups(f, run);
	}
	return err;
}

/* What is mapped has more references than the ones that are dropped here. */
static void fill_free(struct fill *f)
{
	unsigned long group;
	void *block;

	for (size_t i = 0; i < f->nr_huge; i++)
		if (i >= f->mapped || block_pages(f->huge[i]))
			block_free(f->huge[i]);
	kvfree(f->huge);
	xa_for_each(&f->groups, group, block) {
		block_free(block);
		cond_resched();
	}
	xa_destroy(&f->groups);
}

/* --- Its content --- */

struct map_batch {
	u64 handle;
	u32 nr;
	struct virtio_vas_map *maps;	/* MAP_BATCH */
};

/* Waits for the device, come what may: it changes these blocks. */
static int map_flush(struct map_batch *batch)
{
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_MAP, .handle = batch->handle,
		.count = batch->nr,
		.in = batch->maps, .in_len = batch->nr * sizeof(*batch->maps),
	};

	batch->nr = 0;
	if (fatal_signal_pending(current))
		return -EINTR;
	return call.count ? vas_store_call(&call, 0) : 0;
}

static int map_block(struct map_batch *batch, void *block, u64 index, u32 kind)
{
	struct page **pages = block_pages(block), *page = block;

	if (pages)
		return vas_bounce(batch->handle, index, kind, pages);
	batch->maps[batch->nr++] = (struct virtio_vas_map) {
		.gpa = cpu_to_le64(PFN_PHYS(page_to_pfn(page))),
		.index = cpu_to_le32(index),
		.kind = cpu_to_le32(kind),
	};
	return batch->nr == MAP_BATCH ? map_flush(batch) : 0;
}

static int map_all(struct fill *f, struct map_batch *batch)
{
	struct vas_map *map = f->vas->map;
	void **huge = f->huge, *block;
	unsigned long group;
	int err = 0;

	for (size_t i = 0; i < map->nr && !err; i++) {
		const struct vas_run *run = &map->runs[i];

		if (run->kind != VIRTIO_VAS_KIND_BLOCKS)
			continue;
		for (u32 n = 0; n < run->pages / HPAGE_PMD_NR && !err; n++)
			err = map_block(batch, *huge++, run->index + n,
					VIRTIO_VAS_KIND_BLOCKS);
	}
	xa_for_each(&f->groups, group, block) {
		if (err)
			break;
		err = map_block(batch, block, group, VIRTIO_VAS_KIND_PACKED);
	}
	return err ?: map_flush(batch);
}

static int fill_map(struct fill *f)
{
	struct map_batch batch = {};
	int err;

	batch.maps = kvmalloc_array(MAP_BATCH, sizeof(*batch.maps), GFP_KERNEL);
	if (!batch.maps)
		return -ENOMEM;
	err = vas_store_open_map(f->vas->map, &batch.handle, VAS_CALL_KILLABLE);
	if (!err) {
		err = map_all(f, &batch);
		vas_store_close(batch.handle, 0);
	} else if (err == -ENOENT) {
		err = -ESTALE;
	}
	kvfree(batch.maps);
	return err;
}

/* --- Its place --- */

static int install_huge(struct vm_area_struct *vma, unsigned long addr,
			struct page *page)
{
	struct folio *folio = page_folio(page);
	struct mm_struct *mm = vma->vm_mm;
	pmd_t *pmd = vas_alloc_pmd(mm, addr), entry;
	pgtable_t table = pmd ? pte_alloc_one(mm) : NULL;
	spinlock_t *ptl;

	if (!table)
		return -ENOMEM;
	/* One that is empty may be left from before the eviction. */
	vas_free_table(vma, addr, pmd);
	/* The content before the entry; see __do_huge_pmd_anonymous_page(). */
	__folio_mark_uptodate(folio);
	entry = pmd_mkdirty(mk_huge_pmd(page, vma->vm_page_prot));
	ptl = pmd_lock(mm, pmd);
	folio_add_new_anon_rmap(folio, vma, addr, RMAP_EXCLUSIVE);
	folio_add_lru_vma(folio, vma);
	pgtable_trans_huge_deposit(mm, pmd, table);
	set_pmd_at(mm, addr, pmd, entry);
	add_mm_counter(mm, MM_ANONPAGES, HPAGE_PMD_NR);
	mm_inc_nr_ptes(mm);
	spin_unlock(ptl);
	return 0;
}

static int install_folio(struct vm_area_struct *vma, unsigned long addr,
			 struct folio *folio)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl;
	pte_t *pte;

	if (mem_cgroup_charge(folio, NULL, FILL_GFP))
		return -ENOMEM;
	pte = get_locked_pte(mm, addr, &ptl);
	if (!pte)
		return -ENOMEM;
	__folio_mark_uptodate(folio);
	folio_get(folio);
	folio_add_new_anon_rmap(folio, vma, addr, RMAP_EXCLUSIVE);
	folio_add_lru_vma(folio, vma);
	set_pte_at(mm, addr, pte,
		   pte_mkdirty(mk_pte(&folio->page, vma->vm_page_prot)));
	inc_mm_counter(mm, MM_ANONPAGES);
	pte_unmap_unlock(pte, ptl);
	return 0;
}

static int install_page(struct vm_area_struct *vma, unsigned long addr,
			struct page *page)
{
	struct folio *folio;
	int err;

	if (!folio_test_anon(page_folio(page)))
		return install_folio(vma, addr, page_folio(page));
	/* Once more: KSM merged it, then.  An anonymous page has one address. */
	folio = folio_alloc(FILL_GFP, 0);
	if (!folio)
		return -ENOMEM;
	copy_highpage(&folio->page, page);
	err = install_folio(vma, addr, folio);
	folio_put(folio);
	return err;
}

static int install_block(struct vm_area_struct *vma, unsigned long addr,
			 void *block)
{
	struct page **pages = block_pages(block);
	int err = 0;

	if (!pages)
		return install_huge(vma, addr, block);
	for (int i = 0; i < HPAGE_PMD_NR && !err; i++)
		err = install_folio(vma, addr + i * PAGE_SIZE,
				    page_folio(pages[i]));
	return err;
}

static int install_run(struct fill *f, struct vm_area_struct *vma,
		       const struct vas_run *run)
{
	unsigned long addr = run->start;
	int err = 0;

	if (run->kind == VIRTIO_VAS_KIND_BLOCKS) {
		for (u32 i = 0; i < run->pages && !err; i += HPAGE_PMD_NR) {
			err = install_block(vma, addr, f->huge[f->mapped]);
			if (!err)
				f->mapped++;
			addr += HPAGE_PMD_SIZE;
			cond_resched();
		}
		return err;
	}
	for (u32 i = 0; i < run->pages && !err; i++, addr += PAGE_SIZE) {
		u64 index = run->index + i;
		void *block = xa_load(&f->groups, index / HPAGE_PMD_NR);

		err = install_page(vma, addr,
				   block_page(block, index % HPAGE_PMD_NR));
		if (!(i % HPAGE_PMD_NR))
			cond_resched();
	}
	return err;
}

static int fill_install(struct fill *f)
{
	struct mm_struct *mm = f->vas->mm;
	struct vas_map *map = f->vas->map;
	struct vm_area_struct *vma;
	int err = 0;

	mmap_write_lock(mm);
	for (size_t i = 0; i < map->nr && !err; i++) {
		const struct vas_run *run = &map->runs[i];

		vma = vma_lookup(mm, run->start);
		vma_start_write(vma);
		err = fatal_signal_pending(current) ? -EINTR :
		      install_run(f, vma, run);
	}
	if (err)
		vas_zap(mm);
	mmap_write_unlock(mm);
	return err;
}

/*
 * Gives a cold VAS all of its pages, or fails and leaves it cold.  The caller
 * holds vas->lock, and set the memory cgroup to charge as the active one.
 * Other VASes may turn cold for it (see shrink_vas()).  Without the memory for it
 * even so: -ENOMEM.
 */
int vas_fill(struct vas *vas)
{
	struct fill f = { .vas = vas };
	int err;

	lockdep_assert_held(&vas->lock);
	xa_init(&f.groups);
	err = fill_alloc(&f);
	err = err ?: fill_map(&f);
	err = err ?: fill_install(&f);
	fill_free(&f);
	if (!err)
		vas_set_store(vas, VAS_STORE_STORED);
	return err;
}
