// SPDX-License-Identifier: GPL-2.0-only
/*
 * Draining: VASes go to the store as one snapshot, in the background.
 *
 * Huge pages are published: the host keeps the block and remaps our frame
 * copy-on-write, at the cost of a page table entry.  Other pages are copied by
 * the host.  What is neither mapped nor in swap is zero, and so is the zero page.
 *
 * Why what is read is what was captured: the VAS shares each page copy-on-write.
 * Whoever else maps it lost PageAnonExclusive at the capture, and writes into a
 * copy, unless he can take the page over.  That needs the page's only reference
 * (wp_can_reuse_anon_folio(), do_huge_pmd_wp_page()), and with the page in swap,
 * the only swap entry (folio_free_swap()); the VAS has one of either.  A page
 * that was pinned at the capture was copied for the VAS instead.  KSM pages are
 * never written.  The drain's own reference keeps all this so where the VAS
 * unmaps the page meanwhile (reclaim, deletion), and keeps the frame from being
 * moved or freed: then its number would be another page's.
 */
#include <linux/completion.h>
#include <linux/init.h>
#include <linux/memcontrol.h>
#include <linux/mmap_lock.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "../internal.h"
#include "internal.h"

/*
 * One drain.  @refs: its work, and the ioctl that began it.  It pins its VASes,
 * and has made each of them VAS_STORE_DRAINING.
 *
 * @blocks and @pages: frame number → index in the snapshot of what may be mapped
 * more than once in it.  An entry is right only while the frame stays what it
 * is, so each holds a reference.
 */
struct drain {
	struct work_struct work;
	refcount_t refs;
	struct mem_cgroup *memcg;
	char name[VAS_NAME_MAX];
	u32 count;
	struct vas **vases;
	struct vas_map **maps;

	struct completion started;	/* the store took the name, or @err */
	struct completion done;
	int start_err, err;

	u64 handle;
	char *label;			/* that the draft has */
	struct xarray blocks, pages;
	u64 next_block, next_page;

	struct vas_batch batch;
	__le64 *page_gpas;		/* VAS_BATCH_ITEMS */
	__le64 *block_gpas;		/* VAS_BATCH_BLOCKS */
	u32 nr_pages, nr_blocks;	/* in these */
};

/* For drains that nobody waits for: they leave the CPUs to who needs them. */
static struct workqueue_struct *vas_drain_wq __ro_after_init;

static void drain_free(struct drain *d)
{
	for (u32 i = 0; i < d->count; i++) {
		if (d->vases && d->vases[i])
			vas_put(d->vases[i]);
		if (d->maps)
			vas_map_free(d->maps[i]);
	}
	mem_cgroup_put(d->memcg);
	kvfree(d->vases);
	kvfree(d->maps);
	kvfree(d->batch.items);
	kvfree(d->page_gpas);
	kvfree(d->block_gpas);
	kfree(d->label);
	kfree(d);
}

static void drain_put(struct drain *d)
{
	if (refcount_dec_and_test(&d->refs))
		drain_free(d);
}

static struct drain *drain_new(const char *name, u32 count)
{
	struct drain *d = kzalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);

	if (!d)
		return NULL;
	refcount_set(&d->refs, 1);
	d->memcg = get_mem_cgroup_from_mm(current->mm);
	strscpy(d->name, name);
	init_completion(&d->started);
	init_completion(&d->done);
	xa_init(&d->blocks);
	xa_init(&d->pages);
	d->count = count;
	d->vases = kvcalloc(count, sizeof(*d->vases), GFP_KERNEL_ACCOUNT);
	d->maps = kvcalloc(count, sizeof(*d->maps), GFP_KERNEL_ACCOUNT);
	d->batch.items = kvmalloc_array(VAS_BATCH_ITEMS,
					sizeof(*d->batch.items),
					GFP_KERNEL_ACCOUNT);
	d->page_gpas = kvmalloc_array(VAS_BATCH_ITEMS, sizeof(__le64),
				      GFP_KERNEL_ACCOUNT);
	d->block_gpas = kvmalloc_array(VAS_BATCH_BLOCKS, sizeof(__le64),
				       GFP_KERNEL_ACCOUNT);
	if (!d->vases || !d->maps || !d->batch.items || !d->page_gpas ||
	    !d->block_gpas)
		goto out_free;
	for (u32 i = 0; i < count; i++) {
		d->maps[i] = vas_map_new();
		if (!d->maps[i])
			goto out_free;
	}
	return d;

out_free:
	drain_free(d);
	return NULL;
}

/* --- Sending it --- */

static struct xarray *item_index(struct drain *d, struct vas_batch_item *item)
{
	return item->huge ? &d->blocks : &d->pages;
}

/*
 * May the snapshot have @item's page a second time?  Within a VAS, an anonymous
 * page is mapped once, unless KSM merged it.  Several VASes may each have it: by
 * another mapping, one of the swap entries that keep it in the swap cache, or
 * other pages of its folio.  A live task's mapping, which is the usual other one,
 * must not cost an entry for each page where there is only one VAS.
 */
static bool sharable(struct drain *d, struct vas_batch_item *item)
{
	struct folio *folio = page_folio(item->page);

	if (item->huge || folio_test_ksm(folio))
		return true;
	return d->count > 1 &&
	       (folio_test_large(folio) || folio_test_swapcache(folio) ||
		folio_mapcount(folio) != 1);
}

/*
 * Gives an item its index, and adds it to what is to be sent if the snapshot has
 * not got it.  Indices count from 0 in the order of sending.
 */
static int item_place(struct drain *d, struct vas_batch_item *item)
{
	unsigned long pfn = page_to_pfn(item->page);
	struct xarray *index = item_index(d, item);
	void *entry = xa_load(index, pfn);
	int err = 0;

	if (entry) {
		item->index = xa_to_value(entry);
		return 0;
	}
	item->index = item->huge ? d->next_block++ : d->next_page++;
	if (sharable(d, item)) {
		err = xa_err(xa_store(index, pfn, xa_mk_value(item->index),
				      GFP_KERNEL));
		item->entered = !err;
	}
	if (item->huge)
		d->block_gpas[d->nr_blocks++] = cpu_to_le64(PFN_PHYS(pfn));
	else
		d->page_gpas[d->nr_pages++] = cpu_to_le64(PFN_PHYS(pfn));
	return err;
}

static int send(struct drain *d, u32 op, const __le64 *gpas, u32 count,
		u64 first)
{
	struct vas_call call = {
		.op = op, .count = count, .handle = d->handle,
		.in = gpas, .in_len = count * sizeof(*gpas),
	};
	int err = count ? vas_store_call(&call, 0) : 0;

	return err ?: count && call.value != first ? -EPROTO : 0;
}

static int batch_send(struct drain *d)
{
	u64 first_block = d->next_block, first_page = d->next_page;
	int err = 0;

	d->nr_pages = 0;
	d->nr_blocks = 0;
	for (u32 i = 0; i < d->batch.nr && !err; i++)
		err = item_place(d, &d->batch.items[i]);
	if (err)
		return err;
	return send(d, VIRTIO_VAS_OP_PUBLISH, d->block_gpas, d->nr_blocks,
		    first_block) ?:
	       send(d, VIRTIO_VAS_OP_COPY, d->page_gpas, d->nr_pages,
		    first_page);
}

/*
 * What was entered stays until the drain ends: it may come again.  And a frame can
 * be published to a draft only once: it must not be freed, and become another
 * block of the same draft.
 */
static void item_drop(struct vas_batch_item *item)
{
	if (!item->entered)
		folio_put(page_folio(item->page));
}

static int batch_drain(struct drain *d, struct vas *vas, struct vas_map *map)
{
	int err = batch_send(d);

	for (u32 i = 0; i < d->batch.nr; i++) {
		struct vas_batch_item *item = &d->batch.items[i];
		struct vas_run run = {
			.start = item->addr,
			.index = item->index,
			.pages = item->huge ? HPAGE_PMD_NR : 1,
			.kind = item->huge ? VIRTIO_VAS_KIND_BLOCKS :
					     VIRTIO_VAS_KIND_PACKED,
		};

		if (!err)
			err = vas_map_add(map, &run, item->first);
		item_drop(item);
	}
	atomic64_set(&vas->drained, map->pages);
	return err;
}

/* --- A drain from beginning to end --- */

static int drain_vas(struct drain *d, u32 i)
{
	int err, more;

	d->batch.cursor = 0;
	do {
		for (u32 n = 0; n < d->count; n++)
			if (!READ_ONCE(d->vases[n]->registered))
				return -ECANCELED;
		more = vas_collect(&d->batch, d->vases[i]->mm);
		err = batch_drain(d, d->vases[i], d->maps[i]);
		if (more < 0 || err)
			return more < 0 ? more : err;
		cond_resched();
	} while (more);
	return 0;
}

/* The snapshot's label is what the first VAS's is now. */
static int drain_label(struct drain *d)
{
	d->label = vas_label_dup(d->vases[0]);
	if (!d->label)
		return -ENOMEM;
	return d->label[0] ? vas_store_label(d->handle, d->label) : 0;
}

/*
 * Whoever changed the VAS's label since then was told that the store has no such
 * snapshot.  If this fails, the store has the label of then, or one that somebody
 * has given it who saw that.
 */
static void drain_relabel(struct drain *d)
{
	char *label = vas_label_dup(d->vases[0]);

	if (label && strcmp(label, d->label))
		vas_store_relabel(d->name, d->label, label);
	kfree(label);
}

static int drain_all(struct drain *d)
{
	struct vas_snapshot info;
	u64 complete;
	int err = 0;

	for (u32 i = 0; i < d->count && !err; i++)
		err = drain_vas(d, i);
	err = err ?: vas_meta_send(d->handle, d->vases, d->maps, d->count);
	err = err ?: drain_label(d);
	err = err ?: vas_store_commit(d->handle);
	/*
	 * While the draft is open: what it became, and nothing else.  The store
	 * has it now, so a lack of memory must not make this a failure.
	 */
	err = err ?: vas_store_open(d->name, &complete, &info, NULL,
				   VAS_CALL_NOFAIL);
	if (!err) {
		vas_store_close(complete, 0);
		drain_relabel(d);
		for (u32 i = 0; i < d->count; i++)
			d->maps[i]->snapshot = info;
	}
	return err;
}

static void drop_entries(struct xarray *index)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(index, pfn, entry) {
		folio_put(page_folio(pfn_to_page(pfn)));
		cond_resched();
	}
	xa_destroy(index);
}

/* The first @count VASes are no longer being drained. */
static void drain_end(struct drain *d, u32 count, int err)
{
	for (u32 i = 0; i < count; i++) {
		struct vas *vas = d->vases[i];

		mutex_lock(&vas->lock);
		WRITE_ONCE(vas->drain_error, -err);
		if (err) {
			atomic64_set(&vas->drained, 0);
		} else {
			vas->map = d->maps[i];
			d->maps[i] = NULL;
			WRITE_ONCE(vas->stored_ns,
				   vas->map->snapshot.created_ns);
		}
		vas_set_store(vas, err ? VAS_STORE_HOT : VAS_STORE_STORED);
		mutex_unlock(&vas->lock);
	}
}

static void vas_drain_work(struct work_struct *work)
{
	struct drain *d = container_of(work, struct drain, work);
	struct mem_cgroup *old_memcg = set_active_memcg(d->memcg);
	int err = vas_store_create(d->name, &d->handle);

	if (err) {
		drain_end(d, d->count, err);
		d->start_err = err;
		complete(&d->started);
	} else {
		complete(&d->started);
		err = drain_all(d);
		vas_store_close(d->handle, 0);
		drop_entries(&d->blocks);
		drop_entries(&d->pages);
		drain_end(d, d->count, err);
	}
	set_active_memcg(old_memcg);
	d->err = err;
	complete(&d->done);
	drain_put(d);
}

static int drain_find(struct drain *d, const u64 __user *ids)
{
	int err = 0;

	for (u32 i = 0; i < d->count && !err; i++) {
		struct vas *vas;
		u64 id;

		if (get_user(id, &ids[i]))
			return -EFAULT;
		mutex_lock(&vas_mutex);
		vas = id ? vas_find(id, NULL) : NULL;
		if (!vas) {
			err = -ENOENT;
		} else if (!vas_may(vas, VAS_ACCESS_READ)) {
			err = -EACCES;
		} else {
			vas_get(vas);
			d->vases[i] = vas;
		}
		mutex_unlock(&vas_mutex);
	}
	return err;
}

static int drain_begin_vas(struct vas *vas)
{
	int err = 0;

	if (mutex_lock_killable(&vas->lock))
		return -EINTR;
	if (!vas->mm)
		err = -ENODATA;
	else if (vas->store == VAS_STORE_DRAINING)
		err = -EBUSY;
	else if (vas->store != VAS_STORE_HOT)
		err = -EALREADY;
	if (!err) {
		vas_set_store(vas, VAS_STORE_DRAINING);
		WRITE_ONCE(vas->drain_error, 0);
	}
	mutex_unlock(&vas->lock);
	return err;
}

static int drain_begin(struct drain *d)
{
	for (u32 i = 0; i < d->count; i++) {
		int err = drain_begin_vas(d->vases[i]);

		if (err) {
			drain_end(d, i, err);
			return err;
		}
	}
	return 0;
}

long vas_ioctl_drain(void __user *uarg)
{
	struct vas_drain arg;
	struct drain *d;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags & ~VAS_DRAIN_SYNC || arg.reserved[0] || arg.reserved[1] ||
	    !arg.count || arg.count > VAS_DRAIN_MAX ||
	    !vas_snapshot_name_valid(arg.name))
		return -EINVAL;
	if (!vas_store_present())
		return -EOPNOTSUPP;
	d = drain_new(arg.name, arg.count);
	if (!d)
		return -ENOMEM;
	err = drain_find(d, u64_to_user_ptr(arg.ids));
	err = err ?: drain_begin(d);
	if (err)
		goto out;

	refcount_inc(&d->refs);
	INIT_WORK(&d->work, vas_drain_work);
	queue_work(arg.flags & VAS_DRAIN_SYNC ? system_unbound_wq :
						vas_drain_wq, &d->work);
	err = -EINTR;
	if (wait_for_completion_killable(&d->started))
		goto out;
	err = d->start_err;
	if (err || !(arg.flags & VAS_DRAIN_SYNC))
		goto out;
	err = wait_for_completion_killable(&d->done) ? -EINTR : d->err;
out:
	drain_put(d);
	return err;
}

static int __init vas_drain_init(void)
{
	struct workqueue_attrs *attrs = alloc_workqueue_attrs();
	int err = -ENOMEM;

	vas_drain_wq = alloc_workqueue("vas_drain", WQ_UNBOUND, 0);
	if (attrs && vas_drain_wq) {
		attrs->nice = MAX_NICE;
		err = apply_workqueue_attrs(vas_drain_wq, attrs);
	}
	free_workqueue_attrs(attrs);
	if (err)
		panic("vas: no workqueue: %d\n", err);
	return 0;
}
core_initcall(vas_drain_init);
