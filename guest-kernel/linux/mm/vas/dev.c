// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vas: sessions and VAS files.
 */
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/mmap_lock.h>
#include <linux/pid.h>
#include <linux/ptrace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

struct vas_file {
	struct vas *vas;
	struct vas_session *session;
	u32 access;
};

static void vas_session_free(struct kref *kref)
{
	kfree(container_of(kref, struct vas_session, kref));
}

static void vas_session_put(struct vas_session *session)
{
	kref_put(&session->kref, vas_session_free);
}

/* --- VAS files --- */

static struct task_struct *get_task(int pidfd)
{
	unsigned int flags;

	return pidfd_get_task(pidfd, &flags);
}

/*
 * Whether no thread of the process runs.  They go on when their tracer, a SIGCONT or
 * a SIGKILL lets them: this finds a caller's mistake, and excludes nobody.
 */
static bool is_stopped(struct task_struct *task)
{
	struct task_struct *t;
	bool stopped = true;

	rcu_read_lock();
	for_each_thread(task, t) {
		if (READ_ONCE(t->mm) && !task_is_stopped_or_traced(t))
			stopped = false;
	}
	rcu_read_unlock();
	return stopped;
}

/* The memory of the task of @pidfd, and the task; to be put. */
static struct mm_struct *get_memory(int pidfd, bool stopped,
				    struct task_struct **of)
{
	struct task_struct *task = get_task(pidfd);
	struct mm_struct *mm;

	if (IS_ERR(task))
		return ERR_CAST(task);
	mm = mm_access(task, PTRACE_MODE_ATTACH_REALCREDS);
	if (!IS_ERR(mm) && stopped && !is_stopped(task)) {
		mmput(mm);
		mm = ERR_PTR(-EBUSY);
	}
	if (IS_ERR(mm))
		put_task_struct(task);
	else
		*of = task;
	return mm;
}

static long vas_ioctl_capture(struct vas_file *vf, void __user *uarg)
{
	struct vas_hide *hide = NULL;
	struct task_struct *task;
	struct vas_capture arg;
	struct mm_struct *mm;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags & ~(VAS_CAPTURE_HIDE | VAS_CAPTURE_STOPPED) ||
	    !PAGE_ALIGNED(arg.start | arg.len) || arg.start > TASK_SIZE_MAX ||
	    arg.len > TASK_SIZE_MAX - arg.start ||
	    (arg.len ? arg.flags & VAS_CAPTURE_HIDE : arg.start))
		return -EINVAL;
	if (!(vf->access & VAS_ACCESS_WRITE))
		return -EBADF;
	if (!READ_ONCE(vf->vas->registered))
		return -ENOENT;
	/* If it closes from here on, that is as if right after the capture. */
	if (arg.flags & VAS_CAPTURE_HIDE && READ_ONCE(vf->session->closed))
		return -ESTALE;
	mm = get_memory(arg.pidfd, arg.flags & VAS_CAPTURE_STOPPED, &task);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	put_task_struct(task);

	err = -ENOMEM;
	if (arg.flags & VAS_CAPTURE_HIDE) {
		hide = vas_hide_alloc(vf->vas, mm);
		if (!hide)
			goto out;
	}
	err = vas_capture(vf->vas, mm, &arg);
	if (!err && hide && vas_hide_add(vf->session, hide))
		hide = NULL;
	if (hide)
		vas_hide_free(hide);
	if (!err && copy_to_user(uarg, &arg, sizeof(arg)))
		err = -EFAULT;
out:
	mmput(mm);
	return err;
}

static long vas_ioctl_attach(struct vas_file *vf, void __user *uarg)
{
	struct task_struct *task;
	struct vas_attach arg;
	struct mm_struct *mm;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags & ~(VAS_ATTACH_CLONE | VAS_ATTACH_STOPPED))
		return -EINVAL;
	if (!(vf->access & VAS_ACCESS_READ))
		return -EBADF;
	mm = get_memory(arg.pidfd, arg.flags & VAS_ATTACH_STOPPED, &task);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	err = vas_attach(vf->vas, task, mm, &arg);
	mmput(mm);
	put_task_struct(task);
	if (!err && copy_to_user(uarg, &arg, sizeof(arg)))
		err = -EFAULT;
	return err;
}

static long vas_ioctl_delete(struct vas_file *vf, void __user *uarg)
{
	struct vas_delete arg;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags & ~VAS_DELETE_FORCE || arg.reserved)
		return -EINVAL;
	if (!(vf->access & VAS_ACCESS_WRITE))
		return -EBADF;

	return vas_delete(vf->vas, arg.flags & VAS_DELETE_FORCE);
}

static long vas_ioctl_evict(struct vas_file *vf, void __user *uarg)
{
	struct vas_evict arg;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.reserved)
		return -EINVAL;
	if (!(vf->access & VAS_ACCESS_WRITE))
		return -EBADF;
	if (!vas_store_present())
		return -EOPNOTSUPP;
	if (mutex_lock_killable(&vf->vas->lock))
		return -EINTR;
	err = vas_evict(vf->vas, &arg.pages);
	mutex_unlock(&vf->vas->lock);
	if (!err && copy_to_user(uarg, &arg, sizeof(arg)))
		err = -EFAULT;
	return err;
}

static long vas_file_ioctl(struct file *file, unsigned int cmd,
			   unsigned long arg)
{
	struct vas_file *vf = file->private_data;
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case VAS_IOC_CAPTURE:
		return vas_ioctl_capture(vf, uarg);
	case VAS_IOC_ATTACH:
		return vas_ioctl_attach(vf, uarg);
	case VAS_IOC_STAT:
		return vf->access & VAS_ACCESS_READ ?
		       vas_ioctl_stat(vf->vas, uarg) : -EBADF;
	case VAS_IOC_RANGES:
		return vf->access & VAS_ACCESS_READ ?
		       vas_ioctl_ranges(vf->vas, uarg) : -EBADF;
	case VAS_IOC_USAGE:
		return vf->access & VAS_ACCESS_READ ?
		       vas_ioctl_usage(vf->vas, uarg) : -EBADF;
	case VAS_IOC_GET_LABEL:
		return vf->access & VAS_ACCESS_READ ?
		       vas_ioctl_get_label(vf->vas, uarg) : -EBADF;
	case VAS_IOC_SET_LABEL:
		return vf->access & VAS_ACCESS_WRITE ?
		       vas_ioctl_set_label(vf->vas, uarg) : -EBADF;
	case VAS_IOC_EVICT:
		return vas_ioctl_evict(vf, uarg);
	case VAS_IOC_DELETE:
		return vas_ioctl_delete(vf, uarg);
	default:
		return -ENOTTY;
	}
}

static int vas_file_release(struct inode *inode, struct file *file)
{
	struct vas_file *vf = file->private_data;

	atomic_dec(&vf->vas->files);
	vas_put(vf->vas);
	vas_session_put(vf->session);
	kfree(vf);
	return 0;
}

static const struct file_operations vas_file_fops = {
	.owner = THIS_MODULE,
	.release = vas_file_release,
	.unlocked_ioctl = vas_file_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

/* A new file of @vas.  The caller holds vas_mutex, so that @vas stays. */
static struct file *vas_file_new(struct vas_session *session, struct vas *vas,
				 u32 access)
{
	struct vas_file *vf = kmalloc(sizeof(*vf), GFP_KERNEL_ACCOUNT);
	struct file *file;

	lockdep_assert_held(&vas_mutex);
	if (!vf)
		return ERR_PTR(-ENOMEM);
	*vf = (struct vas_file) {
		.vas = vas, .session = session, .access = access,
	};
	file = anon_inode_getfile("[vas]", &vas_file_fops, vf, O_RDWR);
	if (IS_ERR(file)) {
		kfree(vf);
		return file;
	}
	vas_get(vas);
	atomic_inc(&vas->files);
	kref_get(&session->kref);
	return file;
}

/* --- Sessions --- */

static long vas_ioctl_info(void __user *uarg)
{
	struct vas_info arg = {
		.abi_version = VAS_ABI_VERSION,
		.features = VAS_FEATURE_PAGEMAP_HIDE |
			    (vas_store_present() ? VAS_FEATURE_STORE : 0),
	};

	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
}

static long vas_ioctl_create(struct vas_session *session, void __user *uarg)
{
	struct vas_create arg;
	struct file *file;
	struct vas *vas;
	long err;
	int fd;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.mode & ~0777)
		return -EINVAL;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;

	mutex_lock(&vas_mutex);
	vas = vas_create(arg.name, arg.mode);
	if (IS_ERR(vas)) {
		mutex_unlock(&vas_mutex);
		err = PTR_ERR(vas);
		goto out_fd;
	}
	vas_get(vas);
	list_add_tail(&vas->session_node, &session->vases);
	file = vas_file_new(session, vas, VAS_ACCESS_READ | VAS_ACCESS_WRITE);
	mutex_unlock(&vas_mutex);

	arg.id = vas->id;
	err = PTR_ERR_OR_ZERO(file);
	if (!err && copy_to_user(uarg, &arg, sizeof(arg))) {
		fput(file);
		err = -EFAULT;
	}
	if (err)
		vas_delete(vas, true);
	else
		fd_install(fd, file);
	vas_put(vas);
	if (!err)
		return fd;
out_fd:
	put_unused_fd(fd);
	return err;
}

static long vas_ioctl_open(struct vas_session *session, void __user *uarg)
{
	struct vas_open arg;
	struct file *file;
	struct vas *vas;
	long err;
	int fd;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || !arg.access ||
	    arg.access & ~(VAS_ACCESS_READ | VAS_ACCESS_WRITE))
		return -EINVAL;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;

	mutex_lock(&vas_mutex);
	vas = vas_find(arg.id, arg.name);
	err = -ENOENT;
	if (!vas)
		goto out_unlock;
	err = -EACCES;
	if (!vas_may(vas, arg.access))
		goto out_unlock;
	arg.id = vas->id;
	memcpy(arg.name, vas->name, sizeof(arg.name));
	file = vas_file_new(session, vas, arg.access);
	mutex_unlock(&vas_mutex);

	err = PTR_ERR_OR_ZERO(file);
	if (err)
		goto out_fd;
	if (copy_to_user(uarg, &arg, sizeof(arg))) {
		fput(file);
		err = -EFAULT;
		goto out_fd;
	}
	fd_install(fd, file);
	return fd;

out_unlock:
	mutex_unlock(&vas_mutex);
out_fd:
	put_unused_fd(fd);
	return err;
}

static long vas_ioctl_commit(struct vas_session *session)
{
	struct vas *vas, *next;
	long err = 0;

	mutex_lock(&vas_mutex);
	list_for_each_entry(vas, &session->vases, session_node)
		if (!vas_mm(vas))
			err = -ENODATA;
	if (!err) {
		list_for_each_entry_safe(vas, next, &session->vases,
					 session_node) {
			WRITE_ONCE(vas->committed, true);
			list_del_init(&vas->session_node);
		}
	}
	mutex_unlock(&vas_mutex);
	return err;
}

static long vas_session_ioctl(struct file *file, unsigned int cmd,
			      unsigned long arg)
{
	struct vas_session *session = file->private_data;
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case VAS_IOC_INFO:
		return vas_ioctl_info(uarg);
	case VAS_IOC_CREATE:
		return vas_ioctl_create(session, uarg);
	case VAS_IOC_OPEN:
		return vas_ioctl_open(session, uarg);
	case VAS_IOC_COMMIT:
		return vas_ioctl_commit(session);
	case VAS_IOC_GUARD:
		return vas_ioctl_guard(uarg);
	case VAS_IOC_DRAIN:
		return vas_ioctl_drain(uarg);
	case VAS_IOC_STORE_LIST:
		return vas_ioctl_store_list(uarg);
	case VAS_IOC_STORE_LOAD:
		return vas_ioctl_store_load(session, uarg);
	case VAS_IOC_STORE_DELETE:
		return vas_ioctl_store_delete(uarg);
	case VAS_IOC_STORE_LABEL:
		return vas_ioctl_store_label(uarg);
	default:
		return -ENOTTY;
	}
}

static int vas_session_open(struct inode *inode, struct file *file)
{
	struct vas_session *session;

	if (!vas_may_see())
		return -EPERM;
	session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return -ENOMEM;
	kref_init(&session->kref);
	INIT_LIST_HEAD(&session->vases);
	INIT_LIST_HEAD(&session->hides);
	file->private_data = session;
	return 0;
}

static int vas_session_release(struct inode *inode, struct file *file)
{
	struct vas_session *session = file->private_data;
	struct vas *vas;

	vas_hide_close(session);
	for (;;) {
		mutex_lock(&vas_mutex);
		vas = list_first_entry_or_null(&session->vases, struct vas,
					       session_node);
		if (vas)
			vas_get(vas);
		mutex_unlock(&vas_mutex);
		if (!vas)
			break;
		vas_delete(vas, true);
		vas_put(vas);
	}
	vas_session_put(session);
	return 0;
}

static const struct file_operations vas_session_fops = {
	.owner = THIS_MODULE,
	.open = vas_session_open,
	.release = vas_session_release,
	.unlocked_ioctl = vas_session_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice vas_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vas",
	.fops = &vas_session_fops,
	.mode = 0666,	/* open() asks for the capability */
};
builtin_misc_device(vas_device);
