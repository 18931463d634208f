// SPDX-License-Identifier: GPL-2.0-only
/*
 * VAS_IOC_STAT, VAS_IOC_USAGE and VAS_IOC_RANGES.  A cold VAS answers from its
 * map: it is not filled for being looked at.
 */
#include <linux/cred.h>
#include <linux/mmap_lock.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

long vas_ioctl_stat(struct vas *vas, void __user *uarg)
{
	struct mm_struct *mm = vas_mm(vas);
	struct vas_pages count = {};
	struct vas_stat arg = {
		.id = vas->id,
		.mode = vas->mode,
		.uid = from_kuid_munged(current_user_ns(), vas->uid),
		.gid = from_kgid_munged(current_user_ns(), vas->gid),
		.state = vas_state(vas),
		.created_ns = vas->created_ns,
		.attaches = atomic64_read(&vas->attaches),
		.users = atomic_read(&vas->files),
		.store = READ_ONCE(vas->store),
		.drain_error = READ_ONCE(vas->drain_error),
		.drained_pages = atomic64_read(&vas->drained),
		.stored_ns = READ_ONCE(vas->stored_ns),
	};

	strscpy(arg.name, vas->name);
	if (mm) {
		if (mmap_read_lock_killable(mm))
			return -EINTR;
		vas_count_range(mm, 0, TASK_SIZE_MAX, false, &count);
		mmap_read_unlock(mm);
		arg.vmas = vas->vmas;
		arg.bytes = vas->bytes;
		arg.pages = vas_mm_counter(mm, MM_ANONPAGES);
		arg.huge_pages = count.huge;
		arg.swap_pages = vas_mm_counter(mm, MM_SWAPENTS);
	}
	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
}

long vas_ioctl_usage(struct vas *vas, void __user *uarg)
{
	struct mm_struct *mm = vas_mm(vas);
	struct vas_pages count = {};
	struct vm_area_struct *vma;
	struct vas_usage arg;
	int err = 0;

	if (mm) {
		VMA_ITERATOR(vmi, mm, 0);

		if (mmap_read_lock_killable(mm))
			return -EINTR;
		for_each_vma(vmi, vma) {
			if (fatal_signal_pending(current)) {
				err = -EINTR;
				break;
			}
			vas_count_range(mm, vma->vm_start, vma->vm_end, true,
					&count);
			cond_resched();
		}
		mmap_read_unlock(mm);
	}
	if (err)
		return err;
	arg = (struct vas_usage) {
		.own_pages = count.own,
		.shared_pages = count.present - count.own,
	};
	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/*
 * Fills @ranges from *@start on, and sets that to where to go on (0: no more).
 * Not into user memory: a fault would take another mmap_lock inside the VAS's.
 */
static int fill_ranges(struct vas *vas, u64 *start, struct vas_range *ranges,
		       u32 max)
{
	struct mm_struct *mm = vas_mm(vas);
	VMA_ITERATOR(vmi, mm, *start);
	struct vm_area_struct *vma;
	u32 n = 0;

	if (mutex_lock_killable(&vas->lock))
		return -EINTR;
	mmap_read_lock(mm);
	*start = 0;
	for_each_vma(vmi, vma) {
		struct vas_pages count = {};

		if (n == max) {
			*start = vma->vm_start;
			break;
		}
		if (vas->store == VAS_STORE_COLD)
			vas_map_count(vas->map, vma->vm_start, vma->vm_end,
				      &count);
		else
			vas_count_range(mm, vma->vm_start, vma->vm_end, true,
					&count);
		ranges[n++] = (struct vas_range) {
			.start = vma->vm_start,
			.end = vma->vm_end,
			.pages = count.present,
			.prot = vas_vma_prot(vma),
			.flags = count.huge ? VAS_RANGE_HUGE : 0,
		};
	}
	mmap_read_unlock(mm);
	mutex_unlock(&vas->lock);
	return n;
}

#define VAS_RANGES_BATCH	(PAGE_SIZE / sizeof(struct vas_range))

long vas_ioctl_ranges(struct vas *vas, void __user *uarg)
{
	struct vas_range *ranges;
	struct vas_ranges arg;
	u32 filled = 0;
	long err = 0;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved || !arg.count)
		return -EINVAL;
	ranges = kmalloc(PAGE_SIZE, GFP_KERNEL_ACCOUNT);
	if (!ranges)
		return -ENOMEM;

	if (!vas_mm(vas) || arg.start >= TASK_SIZE_MAX) {
		arg.count = 0;
		arg.start = 0;
	}
	while (filled < arg.count) {
		int n = fill_ranges(vas, &arg.start, ranges,
				    min_t(u32, arg.count - filled,
					  VAS_RANGES_BATCH));

		err = n < 0 ? n : 0;
		if (!err && copy_to_user(u64_to_user_ptr(arg.ranges) +
						filled * sizeof(*ranges),
					 ranges, n * sizeof(*ranges)))
			err = -EFAULT;
		if (err)
			break;
		filled += n;
		if (!arg.start)
			break;
	}
	kfree(ranges);

	arg.count = filled;
	if (!err && copy_to_user(uarg, &arg, sizeof(arg)))
		err = -EFAULT;
	return err;
}
