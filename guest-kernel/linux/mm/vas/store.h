/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The snapshot store outside of this machine, as the virtio-vas device offers
 * it (store.c).  docs/VIRTIO-VAS.md specifies that.
 */
#ifndef _MM_VAS_STORE_H
#define _MM_VAS_STORE_H

#include <linux/types.h>
#include <uapi/linux/virtio_vas.h>

/* The most bytes of a request's payload that we send or ask for at once. */
#define VAS_STORE_CHUNK		(256 * 1024)

/*
 * One request and its answer.  The buffers stay the caller's; what the device
 * reads and writes is memory of the request, which outlives a caller that is
 * killed while it waits.
 */
struct vas_call {
	u32 op;
	u32 count;
	u64 handle;
	u64 arg;
	const void *in;
	size_t in_len;
	void *out;
	size_t out_len;		/* room; what came is out_got */

	size_t out_got;
	u32 done;
	u64 value;
};

/*
 * A fatal signal ends the wait with -EINTR.  Never for a request that names
 * frames: these must not be freed before the device is done with them.
 */
#define VAS_CALL_KILLABLE	(1U << 0)
/* Goes by the queue on which nothing takes long: for reclaim. */
#define VAS_CALL_URGENT		(1U << 1)
/* Is sent, come what may: waits for memory.  For small ones that undo something. */
#define VAS_CALL_NOFAIL		(1U << 2)

bool vas_store_present(void);
int vas_store_call(struct vas_call *call, unsigned int flags);
int vas_store_create(const char *name, u64 *handle);
int vas_store_open(const char *name, u64 *handle,
		   struct virtio_vas_snapshot *info, unsigned int flags);
int vas_store_commit(u64 handle);
void vas_store_close(u64 handle, unsigned int flags);

/* report.c */
void vas_report_start(void);
void vas_report_stop(void);

#endif /* _MM_VAS_STORE_H */
