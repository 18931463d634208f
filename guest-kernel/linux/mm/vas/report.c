// SPDX-License-Identifier: GPL-2.0-only
/*
 * Free memory goes back to the host, where the store is: whole blocks, as the
 * page allocator reports them.  They come again as zeroes.  That goes for frames
 * of every kind; what was published or mapped is an ordinary frame again then.
 */
#include <linux/mm.h>
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>

#include "store.h"

/* These blocks are ours until it returns. */
static int vas_report(struct page_reporting_dev_info *reporting,
		      struct scatterlist *sgl, unsigned int nents)
{
	struct virtio_vas_range ranges[PAGE_REPORTING_CAPACITY];
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_RELEASE, .count = nents,
		.in = ranges, .in_len = nents * sizeof(ranges[0]),
	};
	struct scatterlist *sg;
	int i;

	if (WARN_ON_ONCE(nents > ARRAY_SIZE(ranges)))
		return -EINVAL;
	for_each_sg(sgl, sg, nents, i)
		ranges[i] = (struct virtio_vas_range) {
			.gpa = cpu_to_le64(sg_phys(sg)),
			.bytes = cpu_to_le64(sg->length),
		};
	return vas_store_call(&call, VAS_CALL_URGENT);
}

static struct page_reporting_dev_info reporting = {
	.report = vas_report,
	.order = HPAGE_PMD_ORDER,
};
static bool registered;		/* by the driver core: one device at a time */

void vas_report_start(void)
{
	int err;

	/* A poisoned free page must still be so when it is allocated. */
	if (page_poisoning_enabled_static())
		return;
	err = page_reporting_register(&reporting);
	registered = !err;
	if (err)
		pr_warn("vas: free memory is not given back to the host: %d\n",
			err);
}

/* The device is gone: nothing waits for it. */
void vas_report_stop(void)
{
	if (registered)
		page_reporting_unregister(&reporting);
	registered = false;
}
