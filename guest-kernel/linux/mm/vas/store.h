/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The snapshot store outside of this machine, as the virtio-vas device offers
 * it: its driver is store.c, and what is asked of it request.c.
 * docs/VIRTIO-VAS.md specifies the device.
 */
#ifndef _MM_VAS_STORE_H
#define _MM_VAS_STORE_H

#include <linux/kref.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>
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
/* For reclaim: waits for the device for a moment only, then -EAGAIN. */
#define VAS_CALL_RECLAIM	(1U << 3)

/* What a complete snapshot is, but for its label. */
struct vas_snapshot {
	char name[VIRTIO_VAS_NAME_MAX];
	u64 created_ns;
	u64 meta_bytes;
	u64 blocks;
	u64 packed_pages;
};

/* request.c */
int vas_store_call(struct vas_call *call, unsigned int flags);
int vas_store_create(const char *name, u64 *handle);
int vas_store_open(const char *name, u64 *handle, struct vas_snapshot *info,
		   char *label, unsigned int flags);
int vas_store_label(u64 handle, const char *label);
int vas_store_relabel(const char *name, const char *expected, const char *label);
int vas_store_commit(u64 handle);
void vas_store_close(u64 handle, unsigned int flags);
int vas_store_check(const struct vas_snapshot *then, unsigned int flags);
bool vas_snapshot_same(const struct vas_snapshot *a,
		       const struct vas_snapshot *b);
struct vas_snapshot
vas_snapshot_read(const struct virtio_vas_snapshot *snapshot);

/* @lock: the virtqueue, and the abandoning of requests in it. */
struct vas_queue {
	spinlock_t lock;
	struct virtqueue *vq;
};

/*
 * The device.  @kref: being the store, and every request.  @dead, by the lock of
 * either queue: no request enters a queue any more.
 */
struct vas_store {
	struct kref kref;
	struct virtio_device *vdev;
	struct vas_queue queue[VIRTIO_VAS_QUEUES];
	bool dead;
	struct work_struct reset_work;
};

struct vas_request;

void vas_request_end(struct vas_request *r, u32 len, int err);

/* store.c */
bool vas_store_present(void);
struct vas_store *vas_store_get(void);
void vas_store_put(struct vas_store *store);

/* bounce.c */
void vas_bounce_prepare(void);
int vas_bounce(u64 handle, u32 index, u32 kind, struct page **pages);

/* report.c */
void vas_report_start(void);
void vas_report_stop(void);

#endif /* _MM_VAS_STORE_H */
