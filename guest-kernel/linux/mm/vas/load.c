// SPDX-License-Identifier: GPL-2.0-only
/*
 * The store's snapshots: listing, labelling, removing, and loading them, which
 * makes cold VASes.
 */
#include <linux/capability.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

/* --- List --- */

static void to_user_snapshot(struct vas_store_snapshot *to,
			     const struct virtio_vas_snapshot *from)
{
	*to = (struct vas_store_snapshot) {
		.created_ns = le64_to_cpu(from->created_ns),
		.meta_bytes = le64_to_cpu(from->meta_bytes),
		.blocks = le64_to_cpu(from->blocks),
		.packed_pages = le64_to_cpu(from->packed_pages),
		.bytes = le64_to_cpu(from->bytes),
	};
	strscpy(to->name, from->name);
	strscpy(to->label, from->label);
}

#define LIST_BATCH	64

/* Up to LIST_BATCH after the first @skip; how many. */
static int list_some(u64 skip, struct virtio_vas_snapshot *snapshots,
		     u64 *total)
{
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_LIST, .arg = skip,
		.out = snapshots, .out_len = LIST_BATCH * sizeof(*snapshots),
	};
	int err = vas_store_call(&call, VAS_CALL_KILLABLE);

	*total = call.value;
	return err ?: min(call.done, call.out_got / sizeof(*snapshots));
}

/* Too large for the stack. */
struct list_buffer {
	struct virtio_vas_snapshot from[LIST_BATCH];
	struct vas_store_snapshot one;
};

long vas_ioctl_store_list(void __user *uarg)
{
	struct vas_store_snapshot __user *to;
	struct vas_store_list arg;
	struct list_buffer *buf;
	u32 filled = 0;
	int n;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved)
		return -EINVAL;
	if (!vas_store_present())
		return -EOPNOTSUPP;
	buf = kvmalloc(sizeof(*buf), GFP_KERNEL_ACCOUNT);
	if (!buf)
		return -ENOMEM;
	to = u64_to_user_ptr(arg.snapshots);
	do {
		n = list_some(arg.skip + filled, buf->from, &arg.total);
		for (int i = 0; i < n && filled < arg.count; i++) {
			to_user_snapshot(&buf->one, &buf->from[i]);
			if (copy_to_user(&to[filled++], &buf->one,
					 sizeof(buf->one)))
				n = -EFAULT;
		}
	} while (n > 0 && filled < arg.count);
	kvfree(buf);
	if (n < 0)
		return n;
	arg.count = filled;
	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/* --- Delete --- */

long vas_ioctl_store_delete(void __user *uarg)
{
	struct virtio_vas_name name = {};
	struct vas_call call = {
		.op = VIRTIO_VAS_OP_DELETE, .in = &name, .in_len = sizeof(name),
	};
	struct vas_store_delete arg;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.reserved || !vas_snapshot_name_valid(arg.name))
		return -EINVAL;
	if (!capable(CAP_DAC_OVERRIDE))
		return -EPERM;
	if (!vas_store_present())
		return -EOPNOTSUPP;
	strscpy(name.name, arg.name);
	call.arg = arg.created_ns;
	return vas_store_call(&call, VAS_CALL_KILLABLE);
}

/* --- Label --- */

long vas_ioctl_store_label(void __user *uarg)
{
	struct vas_store_label *arg = memdup_user(uarg, sizeof(*arg));
	long err;

	if (IS_ERR(arg))
		return PTR_ERR(arg);
	if (!vas_snapshot_name_valid(arg->name) || !vas_label_valid(arg->label) ||
	    !vas_label_valid(arg->expected))
		err = -EINVAL;
	else if (!capable(CAP_DAC_OVERRIDE))
		err = -EPERM;
	else if (!vas_store_present())
		err = -EOPNOTSUPP;
	else
		err = vas_store_relabel(arg->name, arg->expected, arg->label);
	kfree(arg);
	return err;
}

/* --- Load --- */

/* What a snapshot is made of. */
struct load {
	struct vas_loaded *vases;
	u32 count;
	char label[VAS_LABEL_MAX];
};

static int fetch(u64 handle, void *meta, size_t len)
{
	struct vas_call call = { .op = VIRTIO_VAS_OP_FETCH, .handle = handle };
	int err;

	for (; call.arg < len; call.arg += call.done) {
		call.out = meta + call.arg;
		call.out_len = min(len - call.arg, VAS_STORE_CHUNK);
		err = vas_store_call(&call, VAS_CALL_KILLABLE);
		if (err)
			return err;
		if (!call.done || call.done > call.out_got)
			return -EBADMSG;
	}
	return 0;
}

/* Reads it, and checks it. */
static int load_read(struct load *load, const char *name)
{
	struct vas_snapshot info;
	u64 handle, len;
	void *meta;
	int err;

	err = vas_store_open(name, &handle, &info, load->label,
			     VAS_CALL_KILLABLE);
	if (err)
		return err;
	err = -EBADMSG;
	len = info.meta_bytes;
	if (!len || len > (u64)VIRTIO_VAS_MAX_META * SZ_1M)
		goto out_close;
	err = -ENOMEM;
	meta = kvmalloc(len, GFP_KERNEL_ACCOUNT);
	if (!meta)
		goto out_close;
	err = fetch(handle, meta, len);
	err = err ?: vas_meta_parse(meta, len, &info, &load->vases,
				    &load->count);
	kvfree(meta);
out_close:
	vas_store_close(handle, 0);
	return err;
}

/*
 * A cold VAS of what was loaded.  Under vas_mutex, so that nobody finds it before
 * it is whole.
 */
static struct vas *load_create(struct vas_session *session,
			       struct vas_loaded *loaded)
{
	struct vas *vas = vas_create(loaded->name, loaded->mode);

	if (IS_ERR(vas))
		return vas;
	list_add_tail(&vas->session_node, &session->vases);
	vas->vmas = loaded->vmas;
	vas->bytes = loaded->bytes;
	vas->map = loaded->map;
	atomic64_set(&vas->drained, vas->map->pages);
	vas->store = VAS_STORE_COLD;
	vas->stored_ns = vas->map->snapshot.created_ns;
	/* All before @mm; pairs with vas_mm(). */
	smp_store_release(&vas->mm, loaded->mm);
	loaded->map = NULL;
	loaded->mm = NULL;
	return vas;
}

/* All or none; what is in @made then is pinned. */
static int load_create_all(struct vas_session *session, struct load *load,
			   struct vas **made)
{
	u32 n;
	int err = 0;

	mutex_lock(&vas_mutex);
	for (n = 0; n < load->count; n++) {
		made[n] = load_create(session, &load->vases[n]);
		if (IS_ERR(made[n])) {
			err = PTR_ERR(made[n]);
			break;
		}
		vas_get(made[n]);
	}
	if (!err)
		memcpy(made[0]->label, load->label, VAS_LABEL_MAX);
	mutex_unlock(&vas_mutex);
	if (!err)
		return 0;
	while (n) {
		vas_delete(made[--n], true);
		vas_put(made[n]);
	}
	return err;
}

/* @made are pinned; on failure none of them stays. */
static int load_tell(struct vas **made, u32 count, struct vas_store_load *arg,
		     void __user *uarg)
{
	u64 __user *ids = u64_to_user_ptr(arg->ids);
	int err = 0;

	for (u32 i = 0; i < min(count, arg->count) && !err; i++)
		err = put_user(made[i]->id, &ids[i]);
	arg->count = count;
	if (!err && copy_to_user(uarg, arg, sizeof(*arg)))
		err = -EFAULT;
	for (u32 i = 0; i < count; i++) {
		if (err)
			vas_delete(made[i], true);
		vas_put(made[i]);
	}
	return err;
}

long vas_ioctl_store_load(struct vas_session *session, void __user *uarg)
{
	struct vas_store_load arg;
	struct load *load;
	struct vas **made;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.reserved[0] || arg.reserved[1] ||
	    !vas_snapshot_name_valid(arg.name))
		return -EINVAL;
	if (!capable(CAP_DAC_OVERRIDE))
		return -EPERM;
	if (!vas_store_present())
		return -EOPNOTSUPP;
	load = kzalloc(sizeof(*load), GFP_KERNEL_ACCOUNT);
	if (!load)
		return -ENOMEM;
	err = load_read(load, arg.name);
	if (err)
		goto out;
	err = -ENOMEM;
	made = kvmalloc_array(load->count, sizeof(*made), GFP_KERNEL_ACCOUNT);
	if (made)
		err = load_create_all(session, load, made);
	if (!err)
		err = load_tell(made, load->count, &arg, uarg);
	kvfree(made);
	vas_loaded_free(load->vases, load->count);
out:
	kfree(load);
	return err;
}
