// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the pages of a VAS are in the store: in memory (struct vas_map), and as
 * a snapshot's metadata, written by the drain and read by a load.
 */
#include <linux/ctype.h>
#include <linux/mman.h>
#include <linux/mmap_lock.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "../internal.h"
#include "internal.h"

/* Of a snapshot; the store takes no others.  Those of VASes may begin otherwise. */
bool vas_snapshot_name_valid(const char *name)
{
	return isalnum(name[0]) && vas_name_valid(name);
}

struct vas_map *vas_map_new(void)
{
	return kzalloc(sizeof(struct vas_map), GFP_KERNEL_ACCOUNT);
}

void vas_map_free(struct vas_map *map)
{
	if (!map)
		return;
	kvfree(map->runs);
	kfree(map);
}

static u64 run_end(const struct vas_run *run)
{
	return run->start + ((u64)run->pages << PAGE_SHIFT);
}

static bool run_follows(const struct vas_run *last, const struct vas_run *run)
{
	u64 units = last->kind == VIRTIO_VAS_KIND_BLOCKS ?
		    last->pages / HPAGE_PMD_NR : last->pages;

	return last->kind == run->kind && run_end(last) == run->start &&
	       last->index + units == run->index &&
	       last->pages <= S32_MAX - run->pages;
}

/* Appends @run.  @first: it begins a VMA, and so does not join the last run. */
int vas_map_add(struct vas_map *map, const struct vas_run *run, bool first)
{
	if (!first && map->nr && run_follows(&map->runs[map->nr - 1], run)) {
		map->runs[map->nr - 1].pages += run->pages;
	} else {
		if (map->nr == map->room) {
			size_t room = max(64, map->room * 2);
			void *runs = kvmalloc_array(room, sizeof(*run),
						    GFP_KERNEL_ACCOUNT);

			if (!runs)
				return -ENOMEM;
			if (map->nr)
				memcpy(runs, map->runs, map->nr * sizeof(*run));
			kvfree(map->runs);
			map->runs = runs;
			map->room = room;
		}
		map->runs[map->nr++] = *run;
	}
	map->pages += run->pages;
	if (run->kind == VIRTIO_VAS_KIND_BLOCKS)
		map->huge_pages += run->pages;
	return 0;
}

/* Counts what the store has of [start, end). */
void vas_map_count(struct vas_map *map, u64 start, u64 end,
		   struct vas_pages *count)
{
	size_t low = 0, high = map->nr;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (run_end(&map->runs[mid]) <= start)
			low = mid + 1;
		else
			high = mid;
	}
	for (; low < map->nr && map->runs[low].start < end; low++) {
		const struct vas_run *run = &map->runs[low];
		u64 pages = (min(end, run_end(run)) - max(start, run->start)) >>
			    PAGE_SHIFT;

		count->present += pages;
		if (run->kind == VIRTIO_VAS_KIND_BLOCKS)
			count->huge += pages;
	}
}

/* --- Writing --- */

struct meta_out {
	u64 handle;
	u64 offset;			/* of @buf in the metadata */
	size_t used;
	void *buf;			/* VAS_STORE_CHUNK */
};

static int meta_flush(struct meta_out *out)
{
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_META, .count = out->used,
		.handle = out->handle, .arg = out->offset,
		.in = out->buf, .in_len = out->used,
	};

	out->offset += out->used;
	out->used = 0;
	return call.in_len ? vas_store_call(&call, 0) : 0;
}

static int meta_put(struct meta_out *out, const void *data, size_t len)
{
	int err = 0;

	if (out->used + len > VAS_STORE_CHUNK)
		err = meta_flush(out);
	memcpy(out->buf + out->used, data, len);
	out->used += len;
	return err;
}

static struct virtio_vas_meta_vma meta_vma(struct vm_area_struct *vma)
{
	u32 flags = 0;

	if (vma->vm_flags & VM_ACCOUNT)
		flags |= VIRTIO_VAS_VMA_ACCOUNT;
	if (vma->vm_flags & VM_NORESERVE)
		flags |= VIRTIO_VAS_VMA_NORESERVE;
	if (vma->vm_flags & VM_DROPPABLE)
		flags |= VIRTIO_VAS_VMA_DROPPABLE;
	if (vma->vm_flags & VM_WIPEONFORK)
		flags |= VIRTIO_VAS_VMA_WIPEONFORK;
	if (vma->vm_flags & VAS_VMA_FILE)
		flags |= VIRTIO_VAS_VMA_FILE;
	return (struct virtio_vas_meta_vma) {
		.start = cpu_to_le64(vma->vm_start),
		.end = cpu_to_le64(vma->vm_end),
		.pgoff = cpu_to_le64(vma->vm_pgoff),
		.prot = cpu_to_le32(vas_vma_prot(vma)),
		.flags = cpu_to_le32(flags),
	};
}

static int meta_put_vas(struct meta_out *out, struct vas *vas,
			struct vas_map *map)
{
	struct virtio_vas_meta_vas head = {
		.mode = cpu_to_le32(vas->mode),
		.vmas = cpu_to_le32(vas->vmas),
		.runs = cpu_to_le32(map->nr),
	};
	VMA_ITERATOR(vmi, vas->mm, 0);
	struct vm_area_struct *vma;
	int err;

	if (map->nr > U32_MAX)
		return -EFBIG;
	strscpy(head.name, vas->name);
	err = meta_put(out, &head, sizeof(head));
	/* Its VMAs never change; the lock is for the iterator's debug checks. */
	mmap_read_lock(vas->mm);
	for_each_vma(vmi, vma) {
		struct virtio_vas_meta_vma v = meta_vma(vma);

		err = err ?: meta_put(out, &v, sizeof(v));
	}
	mmap_read_unlock(vas->mm);
	for (size_t i = 0; i < map->nr && !err; i++) {
		const struct vas_run *run = &map->runs[i];
		struct virtio_vas_meta_run r = {
			.start = cpu_to_le64(run->start),
			.pages = cpu_to_le32(run->pages),
			.kind = cpu_to_le32(run->kind),
			.index = cpu_to_le64(run->index),
		};

		err = meta_put(out, &r, sizeof(r));
	}
	return err;
}

/* Sends the metadata of a draft. */
int vas_meta_send(u64 handle, struct vas **vases, struct vas_map **maps,
		  u32 count)
{
	struct virtio_vas_meta head = {
		.magic = cpu_to_le32(VIRTIO_VAS_META_MAGIC),
		.version = cpu_to_le32(VIRTIO_VAS_META_VERSION),
		.vases = cpu_to_le32(count),
	};
	struct meta_out out = { .handle = handle };
	int err;

	out.buf = kvmalloc(VAS_STORE_CHUNK, GFP_KERNEL_ACCOUNT);
	if (!out.buf)
		return -ENOMEM;
	err = meta_put(&out, &head, sizeof(head));
	for (u32 i = 0; i < count && !err; i++)
		err = meta_put_vas(&out, vases[i], maps[i]);
	err = err ?: meta_flush(&out);
	kvfree(out.buf);
	return err;
}

/* --- Reading.  What is read may be anything: it comes from outside. --- */

struct meta_in {
	const void *at;
	size_t left;
	const struct vas_snapshot *snapshot;
};

/* @count structs of @size, or NULL.  All are multiples of 8 bytes. */
static const void *meta_take(struct meta_in *in, u64 count, size_t size)
{
	const void *at = in->at;

	if (count > in->left / size)
		return NULL;
	in->at += count * size;
	in->left -= count * size;
	return at;
}

#define VMA_FLAGS	(VIRTIO_VAS_VMA_ACCOUNT | VIRTIO_VAS_VMA_NORESERVE | \
			 VIRTIO_VAS_VMA_DROPPABLE | VIRTIO_VAS_VMA_WIPEONFORK | \
			 VIRTIO_VAS_VMA_FILE)

static int parse_vma(struct vas_loaded *vas, const struct virtio_vas_meta_vma *m)
{
	u64 start = le64_to_cpu(m->start), end = le64_to_cpu(m->end);
	u64 pgoff = le64_to_cpu(m->pgoff);
	u32 prot = le32_to_cpu(m->prot), flags = le32_to_cpu(m->flags);
	vm_flags_t vm_flags = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
	struct vm_area_struct *vma;

	if (!PAGE_ALIGNED(start | end) || start >= end || end > TASK_SIZE_MAX ||
	    pgoff > (ULONG_MAX >> PAGE_SHIFT) - ((end - start) >> PAGE_SHIFT) ||
	    prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC) ||
	    flags & ~VMA_FLAGS)
		return -EBADMSG;
	if (prot & PROT_READ)
		vm_flags |= VM_READ;
	if (prot & PROT_WRITE)
		vm_flags |= VM_WRITE;
	if (prot & PROT_EXEC)
		vm_flags |= VM_EXEC;
	if (flags & VIRTIO_VAS_VMA_ACCOUNT)
		vm_flags |= VM_ACCOUNT;
	if (flags & VIRTIO_VAS_VMA_NORESERVE)
		vm_flags |= VM_NORESERVE;
	if (flags & VIRTIO_VAS_VMA_DROPPABLE)
		vm_flags |= VM_DROPPABLE;
	if (flags & VIRTIO_VAS_VMA_WIPEONFORK)
		vm_flags |= VM_WIPEONFORK;
	if (flags & VIRTIO_VAS_VMA_FILE)
		vm_flags |= VAS_VMA_FILE;

	vma = vas_add_vma(vas->mm, start, end, pgoff, vm_flags,
			  vm_get_page_prot(vm_flags));
	if (IS_ERR(vma))
		return PTR_ERR(vma);
	vas->vmas++;
	vas->bytes += end - start;
	return vm_flags & VM_DROPPABLE ? 0 : anon_vma_prepare(vma);
}

static int parse_vmas(struct vas_loaded *vas,
		      const struct virtio_vas_meta_vma *vmas, u32 count)
{
	u64 last = 0;
	int err = 0;

	mmap_write_lock(vas->mm);
	for (u32 i = 0; i < count && !err; i++) {
		if (le64_to_cpu(vmas[i].start) < last)
			err = -EBADMSG;
		else if (fatal_signal_pending(current))
			err = -EINTR;
		else
			err = parse_vma(vas, &vmas[i]);
		last = le64_to_cpu(vmas[i].end);
		cond_resched();
	}
	mmap_write_unlock(vas->mm);
	return err;
}

/* Does the snapshot have what @run names? */
static bool run_valid(const struct vas_run *run,
		      const struct vas_snapshot *snapshot)
{
	u64 have = snapshot->packed_pages, units = run->pages;

	if (!PAGE_ALIGNED(run->start) || !run->pages)
		return false;
	if (run->kind == VIRTIO_VAS_KIND_BLOCKS) {
		if (run->start % HPAGE_PMD_SIZE || run->pages % HPAGE_PMD_NR)
			return false;
		have = snapshot->blocks;
		units /= HPAGE_PMD_NR;
	} else if (run->kind != VIRTIO_VAS_KIND_PACKED) {
		return false;
	}
	/* The index in a request to MAP has 32 bits. */
	return have <= U32_MAX && run->index <= have &&
	       units <= have - run->index;
}

/* Each run in one VMA that holds such pages, after the last one. */
static int parse_runs(struct vas_loaded *vas,
		      const struct virtio_vas_meta_run *runs, u32 count,
		      const struct vas_snapshot *snapshot)
{
	struct vm_area_struct *vma = NULL;
	u64 last = 0;
	int err = 0;

	mmap_read_lock(vas->mm);
	for (u32 i = 0; i < count && !err; i++) {
		struct vas_run run = {
			.start = le64_to_cpu(runs[i].start),
			.index = le64_to_cpu(runs[i].index),
			.pages = le32_to_cpu(runs[i].pages),
			.kind = le32_to_cpu(runs[i].kind),
		};

		err = -EBADMSG;
		if (run.start < last || run.start >= TASK_SIZE_MAX ||
		    !run_valid(&run, snapshot))
			break;
		if (!vma || vma->vm_end <= run.start)
			vma = vma_lookup(vas->mm, run.start);
		if (!vma || run_end(&run) > vma->vm_end ||
		    vma->vm_flags & VM_DROPPABLE ||
		    (vma->vm_flags & VAS_VMA_FILE &&
		     run.kind != VIRTIO_VAS_KIND_PACKED))
			break;
		last = run_end(&run);
		err = vas_map_add(vas->map, &run, true);
		if (!err && fatal_signal_pending(current))
			err = -EINTR;
		cond_resched();
	}
	mmap_read_unlock(vas->mm);
	return err;
}

static int parse_vas(struct vas_loaded *vas, struct meta_in *in)
{
	const struct virtio_vas_meta_vas *head;
	const struct virtio_vas_meta_vma *vmas;
	const struct virtio_vas_meta_run *runs;
	int err;

	head = meta_take(in, 1, sizeof(*head));
	if (!head || le32_to_cpu(head->mode) & ~0777 || head->reserved ||
	    le32_to_cpu(head->vmas) > sysctl_max_map_count ||
	    !vas_name_valid(head->name))
		return -EBADMSG;
	vmas = meta_take(in, le32_to_cpu(head->vmas), sizeof(*vmas));
	runs = meta_take(in, le32_to_cpu(head->runs), sizeof(*runs));
	if (!vmas || !runs)
		return -EBADMSG;
	strscpy(vas->name, head->name);
	vas->mode = le32_to_cpu(head->mode);
	vas->mm = vas_mm_alloc();
	vas->map = vas_map_new();
	if (!vas->mm || !vas->map)
		return -ENOMEM;
	vas->map->snapshot = *in->snapshot;
	err = parse_vmas(vas, vmas, le32_to_cpu(head->vmas));
	return err ?: parse_runs(vas, runs, le32_to_cpu(head->runs),
				 in->snapshot);
}

void vas_loaded_free(struct vas_loaded *vases, u32 count)
{
	for (u32 i = 0; i < count; i++) {
		if (vases[i].mm)
			mmput(vases[i].mm);
		vas_map_free(vases[i].map);
	}
	kvfree(vases);
}

/* Memory is bounded by @len, and by max_map_count for each VAS. */
int vas_meta_parse(const void *meta, size_t len,
		   const struct vas_snapshot *snapshot,
		   struct vas_loaded **vases, u32 *count)
{
	struct meta_in in = { .at = meta, .left = len, .snapshot = snapshot };
	const struct virtio_vas_meta *head = meta_take(&in, 1, sizeof(*head));
	int err = 0;

	if (!head || le32_to_cpu(head->magic) != VIRTIO_VAS_META_MAGIC ||
	    le32_to_cpu(head->version) != VIRTIO_VAS_META_VERSION ||
	    head->reserved || !head->vases)
		return -EBADMSG;
	*count = le32_to_cpu(head->vases);
	if (*count > VAS_DRAIN_MAX)
		return -E2BIG;
	*vases = kvcalloc(*count, sizeof(**vases), GFP_KERNEL_ACCOUNT);
	if (!*vases)
		return -ENOMEM;
	for (u32 i = 0; i < *count && !err; i++)
		err = parse_vas(&(*vases)[i], &in);
	if (!err && in.left)
		err = -EBADMSG;
	if (err)
		vas_loaded_free(*vases, *count);
	return err;
}
