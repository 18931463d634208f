// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hiding captured memory from PAGEMAP_SCAN and smaps.
 */
#include <linux/hashtable.h>
#include <linux/pid.h>
#include <linux/rmap.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "internal.h"

/*
 * @vas holds the memory of @mm that @process does not want to be told of.
 * Until its session closes; then @vas is unpinned.
 */
struct vas_hide {
	struct hlist_node hash;
	struct list_head session_node;
	struct pid *process;
	struct mm_struct *mm;		/* mmgrab()ed: a key, never entered */
	struct vas *vas;
};

static DECLARE_RWSEM(vas_hide_sem);
static DEFINE_HASHTABLE(vas_hides, 8);
static atomic_t vas_hide_count;

/*
 * Is @copy, a VAS's, of @vma, and not of one that took its place?  Where it is
 * droppable it has no anon_vma to tell by, but then nobody misses what is in it.
 */
static bool is_copy_of(struct vm_area_struct *copy, struct vm_area_struct *vma)
{
	if (copy->vm_start != vma->vm_start || copy->vm_end != vma->vm_end ||
	    copy->vm_pgoff != vma->vm_pgoff)
		return false;
	if (copy->vm_flags & VM_DROPPABLE)
		return vma->vm_flags & VM_DROPPABLE;
	return vma->anon_vma && copy->anon_vma->root == vma->anon_vma->root;
}

bool vas_hidden(struct vm_area_struct *vma)
{
	struct vas_hide *hide;
	bool hidden = false;

	if (!atomic_read(&vas_hide_count))
		return false;
	down_read(&vas_hide_sem);
	hash_for_each_possible(vas_hides, hide, hash, (unsigned long)vma->vm_mm) {
		struct vm_area_struct *copy;

		if (hide->mm != vma->vm_mm || hide->process != task_tgid(current))
			continue;
		copy = mtree_load(&vas_mm(hide->vas)->mm_mt, vma->vm_start);
		hidden = copy && is_copy_of(copy, vma);
		if (hidden)
			break;
	}
	up_read(&vas_hide_sem);
	return hidden;
}

void vas_hide_free(struct vas_hide *hide)
{
	put_pid(hide->process);
	mmdrop(hide->mm);
	vas_put(hide->vas);
	kfree(hide);
}

struct vas_hide *vas_hide_alloc(struct vas *vas, struct mm_struct *mm)
{
	struct vas_hide *hide = kzalloc(sizeof(*hide), GFP_KERNEL_ACCOUNT);

	if (!hide)
		return NULL;
	hide->process = get_pid(task_tgid(current));
	mmgrab(mm);
	hide->mm = mm;
	vas_get(vas);
	hide->vas = vas;
	return hide;
}

/* False if the session has closed meanwhile. */
bool vas_hide_add(struct vas_session *session, struct vas_hide *hide)
{
	bool added;

	down_write(&vas_hide_sem);
	added = !session->closed;
	if (added) {
		hash_add(vas_hides, &hide->hash, (unsigned long)hide->mm);
		list_add(&hide->session_node, &session->hides);
		atomic_inc(&vas_hide_count);
	}
	up_write(&vas_hide_sem);
	return added;
}

/* The end of a session: nothing that it hid is hidden, and nothing will be. */
void vas_hide_close(struct vas_session *session)
{
	struct vas_hide *hide, *next;

	down_write(&vas_hide_sem);
	session->closed = true;
	list_for_each_entry(hide, &session->hides, session_node) {
		hash_del(&hide->hash);
		atomic_dec(&vas_hide_count);
	}
	up_write(&vas_hide_sem);
	list_for_each_entry_safe(hide, next, &session->hides, session_node)
		vas_hide_free(hide);
}
