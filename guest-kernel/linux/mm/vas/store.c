// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver of the virtio-vas device: requests to the snapshot store.
 *
 * A request lives in memory of its own until the device has completed it, or
 * was reset.  Who waits for it may be killed before that (if he asked for it):
 * then the request is *abandoned*, and whoever ends it frees it.  Should it open
 * a handle, that one is closed.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/vmalloc.h>

#include "store.h"

/* @lock: the virtqueue, and the abandoning of requests in it. */
struct vas_queue {
	spinlock_t lock;
	struct virtqueue *vq;
};

/*
 * The device.  @kref: being the_store, and every request.  @dead, by the lock of
 * either queue: no request enters a queue any more.
 */
struct vas_store {
	struct kref kref;
	struct virtio_device *vdev;
	struct vas_queue queue[VIRTIO_VAS_QUEUES];
	bool dead;
	struct work_struct reset_work;
};

static struct vas_store *the_store;	/* by store_lock */
static DEFINE_SPINLOCK(store_lock);

struct vas_request {
	struct vas_store *store;
	struct vas_queue *queue;
	struct completion done;
	struct work_struct orphan;
	bool abandoned;			/* by queue->lock */
	int err;			/* this one and @len before @done */
	u32 len;			/* bytes that the device wrote */
	void *in, *out;
	size_t in_len, out_len;
	struct virtio_vas_request head;
	struct virtio_vas_response response;
};

static void store_free(struct kref *kref)
{
	kfree(container_of(kref, struct vas_store, kref));
}

static struct vas_store *store_get(void)
{
	struct vas_store *store;

	spin_lock(&store_lock);
	store = the_store;
	if (store)
		kref_get(&store->kref);
	spin_unlock(&store_lock);
	return store;
}

static void store_put(struct vas_store *store)
{
	kref_put(&store->kref, store_free);
}

bool vas_store_present(void)
{
	return READ_ONCE(the_store);
}

/* --- Requests --- */

static void request_free(struct vas_request *r)
{
	store_put(r->store);
	kvfree(r->in);
	kvfree(r->out);
	kfree(r);
}

static int status_errno(u32 status)
{
	switch (status) {
	case VIRTIO_VAS_S_OK:
		return 0;
	case VIRTIO_VAS_S_NOT_FOUND:
		return -ENOENT;
	case VIRTIO_VAS_S_EXISTS:
		return -EEXIST;
	case VIRTIO_VAS_S_NO_SPACE:
		return -ENOSPC;
	case VIRTIO_VAS_S_BAD_META:
		return -EBADMSG;
	case VIRTIO_VAS_S_LIMIT:
		return -EMFILE;
	case VIRTIO_VAS_S_HOST:
		return -EIO;
	default:
		/* What we ask is well-formed: one of us has a bug. */
		pr_warn_ratelimited("vas: the store refuses a request: status %u\n",
				    status);
		return -EPROTO;
	}
}

static int request_result(struct vas_request *r)
{
	if (r->err)
		return r->err;
	if (r->len < sizeof(r->response))
		return -EIO;
	return status_errno(le32_to_cpu(r->response.status));
}

/* Nobody waits for this one any more. */
static void request_orphan(struct work_struct *work)
{
	struct vas_request *r = container_of(work, struct vas_request, orphan);
	u32 op = le32_to_cpu(r->head.op);

	if ((op == VIRTIO_VAS_OP_CREATE || op == VIRTIO_VAS_OP_OPEN) &&
	    !request_result(r))
		vas_store_close(le64_to_cpu(r->response.value), 0);
	request_free(r);
}

static struct vas_request *request_new(struct vas_store *store,
				       const struct vas_call *call, gfp_t gfp)
{
	struct vas_request *r = kzalloc(sizeof(*r), gfp);

	if (!r)
		return NULL;
	kref_get(&store->kref);
	r->store = store;
	init_completion(&r->done);
	INIT_WORK(&r->orphan, request_orphan);
	r->head = (struct virtio_vas_request) {
		.op = cpu_to_le32(call->op),
		.count = cpu_to_le32(call->count),
		.handle = cpu_to_le64(call->handle),
		.arg = cpu_to_le64(call->arg),
	};
	r->in_len = call->in_len;
	r->out_len = call->out_len;
	if (call->in_len) {
		r->in = kvmalloc(call->in_len, gfp);
		if (!r->in)
			goto out_free;
		memcpy(r->in, call->in, call->in_len);
	}
	if (call->out_len) {
		r->out = kvzalloc(call->out_len, gfp);
		if (!r->out)
			goto out_free;
	}
	return r;

out_free:
	request_free(r);
	return NULL;
}

static unsigned int buffer_pieces(const void *buf, size_t len)
{
	if (!len)
		return 0;
	return is_vmalloc_addr(buf) ? DIV_ROUND_UP(len, PAGE_SIZE) : 1;
}

/* vmalloc()ed memory begins at a page. */
static struct scatterlist *add_buffer(struct scatterlist *sg, void *buf,
				      size_t len)
{
	size_t n;

	for (; len; buf += n, len -= n) {
		n = len;
		if (is_vmalloc_addr(buf)) {
			n = min(len, PAGE_SIZE);
			sg_set_page(sg++, vmalloc_to_page(buf), n, 0);
		} else {
			sg_set_buf(sg++, buf, n);
		}
	}
	return sg;
}

static int request_submit(struct vas_request *r, bool killable, gfp_t gfp)
{
	unsigned int nr_out = 1 + buffer_pieces(r->in, r->in_len);
	unsigned int nr_in = 1 + buffer_pieces(r->out, r->out_len);
	struct scatterlist *sg, *next, *sgs[2];
	struct vas_queue *q = r->queue;
	int err;

	sg = kvmalloc_array(nr_out + nr_in, sizeof(*sg), gfp);
	if (!sg)
		return -ENOMEM;
	sg_init_table(sg, nr_out);
	sg_init_table(sg + nr_out, nr_in);
	next = add_buffer(sg, &r->head, sizeof(r->head));
	next = add_buffer(next, r->in, r->in_len);
	next = add_buffer(next, &r->response, sizeof(r->response));
	add_buffer(next, r->out, r->out_len);
	sgs[0] = sg;
	sgs[1] = sg + nr_out;

	for (;;) {
		spin_lock_irq(&q->lock);
		if (r->store->dead)
			err = -ENODEV;
		else
			err = virtqueue_add_sgs(q->vq, sgs, 1, 1, r, GFP_ATOMIC);
		if (!err)
			virtqueue_kick(q->vq);
		spin_unlock_irq(&q->lock);
		if (err != -ENOSPC)
			break;
		/* Full: rare, as a request takes one descriptor (indirect). */
		if (killable && fatal_signal_pending(current)) {
			err = -EINTR;
			break;
		}
		usleep_range(100, 1000);
	}
	kvfree(sg);
	return err;
}

static int request_wait(struct vas_request *r, bool killable)
{
	if (!killable) {
		wait_for_completion(&r->done);
		return 0;
	}
	if (!wait_for_completion_killable(&r->done))
		return 0;
	spin_lock_irq(&r->queue->lock);
	r->abandoned = !completion_done(&r->done);
	if (!r->abandoned) {
		spin_unlock_irq(&r->queue->lock);
		return 0;
	}
	/* From the unlock on it is no longer ours; the store is its own. */
	spin_unlock_irq(&r->queue->lock);
	return -EINTR;
}

/* Called with the queue's lock held. */
static void request_end(struct vas_request *r, u32 len, int err)
{
	r->len = len;
	r->err = err;
	if (r->abandoned)
		schedule_work(&r->orphan);
	else
		complete(&r->done);
}

/* Does a request.  Process context; may be reclaim (which has PF_MEMALLOC). */
int vas_store_call(struct vas_call *call, unsigned int flags)
{
	bool killable = flags & VAS_CALL_KILLABLE;
	bool nofail = flags & VAS_CALL_NOFAIL;
	gfp_t gfp = nofail ? GFP_KERNEL | __GFP_NOFAIL : GFP_KERNEL;
	struct vas_store *store = store_get();
	struct vas_request *r;
	int err;

	if (!store)
		return -ENODEV;
	r = request_new(store, call, gfp);
	if (!r) {
		store_put(store);
		return -ENOMEM;
	}
	r->queue = &store->queue[flags & VAS_CALL_URGENT ?
				 VIRTIO_VAS_RELEASEQ : VIRTIO_VAS_REQUESTQ];
	err = request_submit(r, killable && !nofail, gfp);
	if (err)
		goto out_free;
	err = request_wait(r, killable);
	if (err)
		goto out;

	call->done = le32_to_cpu(r->response.done);
	call->value = le64_to_cpu(r->response.value);
	err = request_result(r);
	if (!err) {
		call->out_got = min_t(size_t, r->len - sizeof(r->response),
				      r->out_len);
		memcpy(call->out, r->out, call->out_got);
	}
out_free:
	request_free(r);
out:
	store_put(store);
	return err;
}

int vas_store_commit(u64 handle)
{
	struct vas_call call = { .op = VIRTIO_VAS_OP_COMMIT, .handle = handle };

	return vas_store_call(&call, 0);
}

/* There are few handles: none is left open but where the device is gone. */
void vas_store_close(u64 handle, unsigned int flags)
{
	struct vas_call call = { .op = VIRTIO_VAS_OP_CLOSE, .handle = handle };

	vas_store_call(&call, flags | VAS_CALL_NOFAIL);
}

/* A draft of a new snapshot. */
int vas_store_create(const char *name, u64 *handle)
{
	struct virtio_vas_name in = {};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_CREATE, .in = &in, .in_len = sizeof(in),
	};
	int err;

	strscpy(in.name, name);
	err = vas_store_call(&call, 0);
	*handle = call.value;
	return err;
}

/* A complete snapshot. */
int vas_store_open(const char *name, u64 *handle,
		   struct virtio_vas_snapshot *info, unsigned int flags)
{
	struct virtio_vas_name in = {};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_OPEN, .in = &in, .in_len = sizeof(in),
		.out = info, .out_len = sizeof(*info),
	};
	int err;

	strscpy(in.name, name);
	err = vas_store_call(&call, flags);
	if (err)
		return err;
	*handle = call.value;
	if (call.out_got == sizeof(*info) &&
	    !strncmp(info->name, name, sizeof(info->name)))
		return 0;
	vas_store_close(*handle, flags);
	return -EPROTO;
}

/* --- The device --- */

static void vas_queue_done(struct virtqueue *vq)
{
	struct vas_store *store = vq->vdev->priv;
	struct vas_queue *q = &store->queue[vq->index];
	struct vas_request *r;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&q->lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((r = virtqueue_get_buf(vq, &len)))
			request_end(r, len, 0);
	} while (!virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&q->lock, flags);
}

/* From here on the device touches nothing, and nobody waits for it. */
static void store_kill(struct vas_store *store)
{
	struct vas_request *r;

	spin_lock(&store_lock);
	if (the_store == store) {
		WRITE_ONCE(the_store, NULL);
		store_put(store);	/* not the last: the driver has one */
	}
	spin_unlock(&store_lock);
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++) {
		spin_lock_irq(&store->queue[i].lock);
		store->dead = true;
		spin_unlock_irq(&store->queue[i].lock);
	}
	virtio_reset_device(store->vdev);
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++) {
		struct vas_queue *q = &store->queue[i];

		spin_lock_irq(&q->lock);
		while ((r = virtqueue_detach_unused_buf(q->vq)))
			request_end(r, 0, -EIO);
		spin_unlock_irq(&q->lock);
	}
}

static void store_reset_work(struct work_struct *work)
{
	struct vas_store *store = container_of(work, struct vas_store,
					       reset_work);
	struct virtio_device *vdev = store->vdev;

	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET))
		return;
	dev_err(&vdev->dev, "the device failed; the store is gone\n");
	store_kill(store);
}

static void store_config_changed(struct virtio_device *vdev)
{
	struct vas_store *store = vdev->priv;

	schedule_work(&store->reset_work);
}

static int store_probe(struct virtio_device *vdev)
{
	struct virtqueue_info info[VIRTIO_VAS_QUEUES] = {
		[VIRTIO_VAS_REQUESTQ] = { "request", vas_queue_done },
		[VIRTIO_VAS_RELEASEQ] = { "release", vas_queue_done },
	};
	struct virtqueue *vqs[VIRTIO_VAS_QUEUES];
	struct vas_store *store;
	u32 version;
	int err;

	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1))
		return -ENODEV;
	virtio_cread_le(vdev, struct virtio_vas_config, version, &version);
	if (version != VIRTIO_VAS_VERSION) {
		dev_err(&vdev->dev, "version %u of the store is unknown\n",
			version);
		return -ENODEV;
	}
	if (vas_store_present())
		return -EBUSY;

	store = kzalloc(sizeof(*store), GFP_KERNEL);
	if (!store)
		return -ENOMEM;
	kref_init(&store->kref);
	store->vdev = vdev;
	INIT_WORK(&store->reset_work, store_reset_work);
	vdev->priv = store;
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++)
		spin_lock_init(&store->queue[i].lock);
	err = virtio_find_vqs(vdev, VIRTIO_VAS_QUEUES, vqs, info, NULL);
	if (err) {
		store_put(store);
		return err;
	}
	for (int i = 0; i < VIRTIO_VAS_QUEUES; i++)
		store->queue[i].vq = vqs[i];
	virtio_device_ready(vdev);

	spin_lock(&store_lock);
	kref_get(&store->kref);
	WRITE_ONCE(the_store, store);
	spin_unlock(&store_lock);
	vas_report_start();
	return 0;
}

static void store_remove(struct virtio_device *vdev)
{
	struct vas_store *store = vdev->priv;

	cancel_work_sync(&store->reset_work);
	/* First: a report that waits for the device would hold up the next. */
	store_kill(store);
	vas_report_stop();
	vdev->config->del_vqs(vdev);
	store_put(store);
}

static const struct virtio_device_id store_ids[] = {
	{ VIRTIO_VAS_DEVICE_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static struct virtio_driver store_driver = {
	.driver.name = "virtio-vas",
	.id_table = store_ids,
	.probe = store_probe,
	.remove = store_remove,
	.config_changed = store_config_changed,
};
module_virtio_driver(store_driver);
