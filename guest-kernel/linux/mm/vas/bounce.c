// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copying a block of the store into pages that are no block.
 *
 * The store shows its memory in blocks, and when memory is fragmented there may be
 * none.  So one is kept from the start, through which all that is copied goes.
 */
#include <linux/highmem.h>
#include <linux/mutex.h>

#include "store.h"

static DEFINE_MUTEX(bounce_lock);	/* what the block shows */
static struct page *bounce;		/* for good; NULL: there was no memory */

/* When there is a store, one at a time. */
void vas_bounce_prepare(void)
{
	if (!bounce)
		bounce = alloc_pages(GFP_KERNEL, HPAGE_PMD_ORDER);
}

static __le64 bounce_gpa(void)
{
	return cpu_to_le64(PFN_PHYS(page_to_pfn(bounce)));
}

/* The store has no use of ours left.  If this fails, the next copy ends it. */
static void bounce_release(void)
{
	struct virtio_vas_range range = {
		.gpa = bounce_gpa(),
		.bytes = cpu_to_le64(HPAGE_PMD_SIZE),
	};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_RELEASE, .count = 1,
		.in = &range, .in_len = sizeof(range),
	};

	vas_store_call(&call, 0);
}

/* Copies what virtio_vas_map says of an opened snapshot to 512 @pages. */
int vas_bounce(u64 handle, u32 index, u32 kind, struct page **pages)
{
	struct virtio_vas_map map = {
		.index = cpu_to_le32(index),
		.kind = cpu_to_le32(kind),
	};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_MAP, .handle = handle, .count = 1,
		.in = &map, .in_len = sizeof(map),
	};
	int err;

	if (!bounce)
		return -ENOMEM;
	map.gpa = bounce_gpa();
	mutex_lock(&bounce_lock);
	err = vas_store_call(&call, 0);
	for (int i = 0; i < HPAGE_PMD_NR && !err; i++)
		copy_highpage(pages[i], bounce + i);
	bounce_release();
	mutex_unlock(&bounce_lock);
	return err;
}
