// SPDX-License-Identifier: GPL-2.0-only
/*
 * Requests to the snapshot store.
 *
 * A request lives in memory of its own until the device has completed it, or
 * was reset.  Who waits for it may be killed before that (if he asked for it), or
 * lose patience (reclaim): then the request is *abandoned*, and whoever ends it
 * frees it.  Should it open a handle, that one is closed.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/vmalloc.h>

#include "store.h"

/* Reclaim's patience with the device, and how long it then leaves it alone. */
#define RECLAIM_PATIENCE	(HZ / 4)
#define RECLAIM_PAUSE		HZ

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
	struct scatterlist small[4];	/* enough where no buffer is vmalloc()ed */
	struct virtio_vas_request head;
	struct virtio_vas_response response;
};

static void request_free(struct vas_request *r)
{
	vas_store_put(r->store);
	kvfree(r->in);
	kvfree(r->out);
	kfree(r);
}

static int status_errno(u32 op, u32 status)
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
	case VIRTIO_VAS_S_CHANGED:
		return -ESTALE;
	case VIRTIO_VAS_S_BAD_REQUEST:
		/* We pass labels on unread; the store wants text. */
		if (op == VIRTIO_VAS_OP_LABEL)
			return -EINVAL;
		fallthrough;
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
	return status_errno(le32_to_cpu(r->head.op),
			    le32_to_cpu(r->response.status));
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
	struct scatterlist *sg = r->small, *next, *sgs[2];
	struct vas_queue *q = r->queue;
	int err;

	if (nr_out + nr_in > ARRAY_SIZE(r->small)) {
		sg = kvmalloc_array(nr_out + nr_in, sizeof(*sg), gfp);
		if (!sg)
			return -ENOMEM;
	}
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
	if (sg != r->small)
		kvfree(sg);
	return err;
}

/* Until then, in jiffies; a hint. */
static unsigned long reclaim_pause = INITIAL_JIFFIES;

static bool request_waited(struct vas_request *r, unsigned int flags)
{
	if (flags & VAS_CALL_RECLAIM) {
		if (wait_for_completion_timeout(&r->done, RECLAIM_PATIENCE))
			return true;
		WRITE_ONCE(reclaim_pause, jiffies + RECLAIM_PAUSE);
		return false;
	}
	if (flags & VAS_CALL_KILLABLE)
		return !wait_for_completion_killable(&r->done);
	wait_for_completion(&r->done);
	return true;
}

static int request_wait(struct vas_request *r, unsigned int flags)
{
	if (request_waited(r, flags))
		return 0;
	spin_lock_irq(&r->queue->lock);
	r->abandoned = !completion_done(&r->done);
	if (!r->abandoned) {
		spin_unlock_irq(&r->queue->lock);
		return 0;
	}
	/* From the unlock on it is no longer ours; the store is its own. */
	spin_unlock_irq(&r->queue->lock);
	return flags & VAS_CALL_RECLAIM ? -EAGAIN : -EINTR;
}

/* Called with the queue's lock held. */
void vas_request_end(struct vas_request *r, u32 len, int err)
{
	r->len = len;
	r->err = err;
	if (r->abandoned)
		schedule_work(&r->orphan);
	else
		complete(&r->done);
}

static gfp_t call_gfp(unsigned int flags)
{
	return flags & VAS_CALL_NOFAIL ? GFP_KERNEL | __GFP_NOFAIL : GFP_KERNEL;
}

/* Does a request.  Process context; may be reclaim (which has PF_MEMALLOC). */
int vas_store_call(struct vas_call *call, unsigned int flags)
{
	bool killable = flags & VAS_CALL_KILLABLE;
	gfp_t gfp = call_gfp(flags);
	struct vas_store *store = vas_store_get();
	struct vas_request *r;
	int err;

	if (!store)
		return -ENODEV;
	if (flags & VAS_CALL_RECLAIM &&
	    time_before(jiffies, READ_ONCE(reclaim_pause))) {
		vas_store_put(store);
		return -EAGAIN;
	}
	r = request_new(store, call, gfp);
	if (!r) {
		vas_store_put(store);
		return -ENOMEM;
	}
	r->queue = &store->queue[flags & VAS_CALL_URGENT ?
				 VIRTIO_VAS_RELEASEQ : VIRTIO_VAS_REQUESTQ];
	err = request_submit(r, killable && !(gfp & __GFP_NOFAIL), gfp);
	if (err)
		goto out_free;
	err = request_wait(r, flags);
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
	vas_store_put(store);
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

/* What outlives a request, and is ours: text that ends, numbers. */
struct vas_snapshot
vas_snapshot_read(const struct virtio_vas_snapshot *snapshot)
{
	struct vas_snapshot info = {
		.created_ns = le64_to_cpu(snapshot->created_ns),
		.meta_bytes = le64_to_cpu(snapshot->meta_bytes),
		.blocks = le64_to_cpu(snapshot->blocks),
		.packed_pages = le64_to_cpu(snapshot->packed_pages),
	};

	strscpy(info.name, snapshot->name);
	return info;
}

bool vas_snapshot_same(const struct vas_snapshot *a,
		       const struct vas_snapshot *b)
{
	return a->created_ns == b->created_ns &&
	       a->meta_bytes == b->meta_bytes && a->blocks == b->blocks &&
	       a->packed_pages == b->packed_pages && !strcmp(a->name, b->name);
}

/* A complete snapshot; its label goes to @label unless that is NULL. */
int vas_store_open(const char *name, u64 *handle, struct vas_snapshot *info,
		   char *label, unsigned int flags)
{
	struct virtio_vas_snapshot *snapshot;
	struct virtio_vas_name in = {};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_OPEN, .in = &in, .in_len = sizeof(in),
		.out_len = sizeof(*snapshot),
	};
	int err;

	snapshot = kmalloc(sizeof(*snapshot), call_gfp(flags));
	if (!snapshot)
		return -ENOMEM;
	call.out = snapshot;
	strscpy(in.name, name);
	err = vas_store_call(&call, flags);
	if (err)
		goto out;
	*handle = call.value;
	*info = vas_snapshot_read(snapshot);
	if (call.out_got == sizeof(*snapshot) && !strcmp(info->name, name)) {
		if (label)
			strscpy_pad(label, snapshot->label,
				    VIRTIO_VAS_LABEL_MAX);
	} else {
		vas_store_close(*handle, flags);
		err = -EPROTO;
	}
out:
	kfree(snapshot);
	return err;
}

/* Opens a snapshot, and has @closing close it.  -ENOENT: it is another one. */
static int check_with(const struct vas_snapshot *then, unsigned int flags,
		      struct vas_request *closing, struct virtio_vas_snapshot *out)
{
	struct virtio_vas_name in = {};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_OPEN, .in = &in, .in_len = sizeof(in),
		.out = out, .out_len = sizeof(*out),
	};
	struct vas_snapshot now;
	int err;

	strscpy(in.name, then->name);
	err = vas_store_call(&call, flags);
	if (err) {
		request_free(closing);
		return err;
	}
	closing->head.handle = cpu_to_le64(call.value);
	closing->abandoned = true;
	if (request_submit(closing, false, GFP_KERNEL))
		request_free(closing);		/* the device is gone */
	if (call.out_got != sizeof(*out))
		return -EPROTO;
	now = vas_snapshot_read(out);
	return vas_snapshot_same(&now, then) ? 0 : -ENOENT;
}

/*
 * Has the store this very snapshot?  0, or -ENOENT: no; else it does not say.  It
 * may be called from reclaim: what closes the handle is made before there is one,
 * and nobody waits for that.
 */
int vas_store_check(const struct vas_snapshot *then, unsigned int flags)
{
	const struct vas_call close = { .op = VIRTIO_VAS_OP_CLOSE };
	struct virtio_vas_snapshot *out;
	struct vas_request *closing;
	struct vas_store *store = vas_store_get();
	int err = -ENOMEM;

	if (!store)
		return -ENODEV;
	out = kmalloc(sizeof(*out), GFP_KERNEL);
	closing = out ? request_new(store, &close, GFP_KERNEL) : NULL;
	if (closing) {
		closing->queue = &store->queue[VIRTIO_VAS_RELEASEQ];
		err = check_with(then, flags, closing, out);
	}
	kfree(out);
	vas_store_put(store);
	return err;
}

static int store_label(u64 handle, const char *name, const char *expected,
		       const char *label)
{
	struct virtio_vas_label *in = kzalloc(sizeof(*in), GFP_KERNEL);
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_LABEL, .handle = handle,
		.in = in, .in_len = sizeof(*in),
	};
	int err;

	if (!in)
		return -ENOMEM;
	strscpy(in->name, name);
	strscpy(in->label, label);
	strscpy(in->expected, expected);
	err = vas_store_call(&call, VAS_CALL_KILLABLE);
	kfree(in);
	return err;
}

/* Labels the draft @handle.  The store refuses what is no text. */
int vas_store_label(u64 handle, const char *label)
{
	return store_label(handle, "", "", label);
}

/* Labels the complete snapshot @name; -ESTALE if its label is not @expected. */
int vas_store_relabel(const char *name, const char *expected, const char *label)
{
	return store_label(0, name, expected, label);
}
