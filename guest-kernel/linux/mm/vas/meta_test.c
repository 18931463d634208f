// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lets the self-tests feed arbitrary metadata to the decoder, as a store that
 * means harm would: the host's own store checks metadata before it keeps it.
 *
 * Each write to /sys/kernel/debug/vas/meta is a struct virtio_vas_snapshot and
 * then its metadata; it fails as VAS_IOC_STORE_LOAD of that would.  What was
 * decoded is dropped.
 */
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

static ssize_t vas_meta_write(struct file *file, const char __user *ubuf,
			      size_t len, loff_t *pos)
{
	struct virtio_vas_snapshot *snapshot;
	struct vas_loaded *vases;
	struct vas_snapshot info;
	u32 count;
	void *buf;
	int err;

	if (len < sizeof(*snapshot) || len > SZ_16M)
		return -EINVAL;
	buf = vmemdup_user(ubuf, len);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	snapshot = buf;
	info = vas_snapshot_read(snapshot);
	err = vas_meta_parse(snapshot + 1, len - sizeof(*snapshot), &info,
			     &vases, &count);
	if (!err)
		vas_loaded_free(vases, count);
	kvfree(buf);
	return err ?: len;
}

static const struct file_operations vas_meta_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.write = vas_meta_write,
};

static int __init vas_meta_test_init(void)
{
	debugfs_create_file("meta", 0200, debugfs_create_dir("vas", NULL), NULL,
			    &vas_meta_fops);
	return 0;
}
late_initcall(vas_meta_test_init);
