// SPDX-License-Identifier: GPL-2.0-only
/*
 * Labels: text that user space keeps with a VAS.  By vas_mutex, as is whether
 * the VAS is still there.
 */
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "internal.h"

/* It ends, and zeroes follow it. */
bool vas_label_valid(const char label[VAS_LABEL_MAX])
{
	size_t len = strnlen(label, VAS_LABEL_MAX);

	return len < VAS_LABEL_MAX &&
	       !memchr_inv(label + len, 0, VAS_LABEL_MAX - len);
}

/* A copy of @vas's label, to be freed. */
char *vas_label_dup(struct vas *vas)
{
	char *label = kmalloc(VAS_LABEL_MAX, GFP_KERNEL);

	if (!label)
		return NULL;
	mutex_lock(&vas_mutex);
	memcpy(label, vas->label, VAS_LABEL_MAX);
	mutex_unlock(&vas_mutex);
	return label;
}

long vas_ioctl_get_label(struct vas *vas, void __user *uarg)
{
	char *label = vas_label_dup(vas);
	long err;

	if (!label)
		return -ENOMEM;
	err = copy_to_user(uarg, label, VAS_LABEL_MAX) ? -EFAULT : 0;
	kfree(label);
	return err;
}

long vas_ioctl_set_label(struct vas *vas, void __user *uarg)
{
	char *label = memdup_user(uarg, VAS_LABEL_MAX);
	long err = 0;

	if (IS_ERR(label))
		return PTR_ERR(label);
	mutex_lock(&vas_mutex);
	if (!vas_label_valid(label))
		err = -EINVAL;
	else if (!vas->registered)
		err = -ENOENT;
	else
		memcpy(vas->label, label, VAS_LABEL_MAX);
	mutex_unlock(&vas_mutex);
	kfree(label);
	return err;
}
