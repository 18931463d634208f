// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/kernel/vas/<id>/{name,mode,user,group,state,created,vmas,bytes,pages,
 * huge_pages,store,drained_pages,drain_error}: what there is, for who may open
 * /dev/vas; containers' root must not see the names of others' snapshots.
 */
#include <linux/init.h>
#include <linux/mmap_lock.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/time64.h>

#include "internal.h"

struct vas_attribute {
	struct attribute attr;
	ssize_t (*show)(struct vas *vas, char *buf);
};

static struct kset *vas_kset;

static struct vas *to_vas(struct kobject *kobj)
{
	return container_of(kobj, struct vas, kobj);
}

#define VAS_ATTR(name, fmt, ...)					\
static ssize_t name##_show(struct vas *vas, char *buf)			\
{									\
	return sysfs_emit(buf, fmt "\n", __VA_ARGS__);			\
}									\
static const struct vas_attribute name##_attr = __ATTR_RO(name)

VAS_ATTR(name, "%s", vas->name);
VAS_ATTR(mode, "%04o", vas->mode);
VAS_ATTR(user, "%u", from_kuid_munged(current_user_ns(), vas->uid));
VAS_ATTR(group, "%u", from_kgid_munged(current_user_ns(), vas->gid));
VAS_ATTR(created, "%llu.%09llu", vas->created_ns / NSEC_PER_SEC,
	 vas->created_ns % NSEC_PER_SEC);
VAS_ATTR(vmas, "%llu", vas_mm(vas) ? vas->vmas : 0);
VAS_ATTR(bytes, "%llu", vas_mm(vas) ? vas->bytes : 0);
VAS_ATTR(pages, "%llu",
	 vas_mm(vas) ? vas_mm_counter(vas_mm(vas), MM_ANONPAGES) : 0);

static ssize_t huge_pages_show(struct vas *vas, char *buf)
{
	struct mm_struct *mm = vas_mm(vas);
	struct vas_pages count = {};

	if (mm) {
		if (mmap_read_lock_killable(mm))
			return -EINTR;
		vas_count_range(mm, 0, TASK_SIZE_MAX, false, &count);
		mmap_read_unlock(mm);
	}
	return sysfs_emit(buf, "%llu\n", count.huge);
}
static const struct vas_attribute huge_pages_attr = __ATTR_RO(huge_pages);

static ssize_t state_show(struct vas *vas, char *buf)
{
	static const char * const states[] = {
		[VAS_STATE_EMPTY] = "empty",
		[VAS_STATE_TRANSIENT] = "transient",
		[VAS_STATE_COMMITTED] = "committed",
	};

	return sysfs_emit(buf, "%s\n", states[vas_state(vas)]);
}
static const struct vas_attribute state_attr = __ATTR_RO(state);

static ssize_t store_show(struct vas *vas, char *buf)
{
	static const char * const states[] = {
		[VAS_STORE_HOT] = "hot",
		[VAS_STORE_DRAINING] = "draining",
		[VAS_STORE_STORED] = "stored",
		[VAS_STORE_COLD] = "cold",
	};

	return sysfs_emit(buf, "%s\n", states[READ_ONCE(vas->store)]);
}
static const struct vas_attribute store_attr = __ATTR_RO(store);
VAS_ATTR(drained_pages, "%lld", atomic64_read(&vas->drained));
VAS_ATTR(drain_error, "%d", READ_ONCE(vas->drain_error));

static const struct attribute *const vas_attrs[] = {
	&name_attr.attr, &mode_attr.attr, &user_attr.attr, &group_attr.attr,
	&state_attr.attr, &created_attr.attr, &vmas_attr.attr,
	&bytes_attr.attr, &pages_attr.attr, &huge_pages_attr.attr,
	&store_attr.attr, &drained_pages_attr.attr, &drain_error_attr.attr,
	NULL,
};

static const struct attribute_group vas_group = {
	.attrs = (struct attribute **)vas_attrs,
};
__ATTRIBUTE_GROUPS(vas);

static ssize_t vas_attr_show(struct kobject *kobj, struct attribute *attr,
			     char *buf)
{
	if (!vas_may_see())
		return -EPERM;
	return container_of(attr, struct vas_attribute, attr)->show(to_vas(kobj),
								    buf);
}

static void vas_kobj_release(struct kobject *kobj)
{
	kfree(to_vas(kobj));
}

static void vas_ownership(const struct kobject *kobj, kuid_t *uid, kgid_t *gid)
{
	const struct vas *vas = container_of(kobj, struct vas, kobj);

	*uid = vas->uid;
	*gid = vas->gid;
}

static const struct sysfs_ops vas_sysfs_ops = { .show = vas_attr_show };

static const struct kobj_type vas_ktype = {
	.sysfs_ops = &vas_sysfs_ops,
	.default_groups = vas_groups,
	.release = vas_kobj_release,
	.get_ownership = vas_ownership,
};

/* From here on the struct is freed by its kobject. */
void vas_sysfs_init(struct vas *vas)
{
	kobject_init(&vas->kobj, &vas_ktype);
	vas->kobj.kset = vas_kset;
}

int vas_sysfs_add(struct vas *vas)
{
	return kobject_add(&vas->kobj, NULL, "%llu", vas->id);
}

static int __init vas_sysfs_setup(void)
{
	vas_kset = kset_create_and_add("vas", NULL, kernel_kobj);
	return vas_kset ? 0 : -ENOMEM;
}
core_initcall(vas_sysfs_setup);
