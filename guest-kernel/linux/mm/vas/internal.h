/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Virtual address spaces (VAS).
 *
 * A VAS owns an mm_struct that no task runs in.  Its VMAs are made by one
 * capture, or loaded from the store, and never change after that.  What is in
 * them never changes either: nothing faults there but the drain, to bring back
 * what was swapped out; it is registered neither with KSM nor with khugepaged;
 * its PTEs are read-only.  To reclaim, migration and swapoff it is an mm like any
 * other (mm_users > 0), so its pages can be swapped, moved and split.
 *
 * Hot and cold: a VAS has all of its pages, or, while the store has them (cold),
 * none.  They go and come as a whole, under vas->lock and the mm's mmap_lock.
 * So who needs pages (attach, drain) holds vas->lock, or has made the VAS
 * VAS_STORE_DRAINING, which keeps it from being evicted.
 *
 * Locks, outermost first:
 *
 *	vas_mutex		names, ids, labels, sessions, what VAS is registered
 *	vas->lock		one capture, attach, fill or eviction at a time
 *	mmap_lock of the target	subclass 0
 *	mmap_lock of vas->mm	subclass VAS_LOCK_VAS
 *	mmap_lock of a stage	subclass VAS_LOCK_STAGE (see attach.c)
 *	i_mmap_rwsem		of a file, while pages change their VMA
 *	root anon_vma rwsem	likewise
 *	page table locks	two at once, nested as in copy_pte_range()
 *
 * The shrinkers, which may run under any of these, take vas->lock and the
 * mmap_lock of a VAS only by trying.  vas_evictable_lock and vas_paid_lock are
 * leaves.
 *
 * vas_hide_sem is a leaf under the mmap_lock of the target (PAGEMAP_SCAN and
 * smaps hold that one); nothing is taken under it.  Neither a mmap_lock nor user memory
 * is touched under vas_mutex.
 */
#ifndef _MM_VAS_INTERNAL_H
#define _MM_VAS_INTERNAL_H

#include <linux/cred.h>
#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/vas.h>
#include <uapi/linux/vas.h>

#include "store.h"

/*
 * Of a VAS's VMA: it has what was written in a private mapping of a file, no huge
 * pages.  Where it has no page there is the file's, and not a page of zeros.  The
 * flag's own meaning is void here, as no VAS is forked.
 */
#define VAS_VMA_FILE	VM_DONTCOPY

#define VAS_LOCK_VAS	SINGLE_DEPTH_NESTING
#define VAS_LOCK_STAGE	(SINGLE_DEPTH_NESTING + 1)

/* Pages of a VAS that follow each other, in the VAS and in the store. */
struct vas_run {
	u64 start;
	u64 index;			/* block or packed page of the snapshot */
	u32 pages;
	u32 kind;			/* VIRTIO_VAS_KIND_* */
};

/*
 * Where the store has the pages of a VAS: runs of @snapshot, ascending, each in
 * one VMA.  Pages in none are zero.  Constant once a VAS has it.
 */
struct vas_map {
	struct vas_snapshot snapshot;
	struct vas_run *runs;
	size_t nr, room;
	u64 pages;
	u64 huge_pages;
};

/*
 * Lifetime: @pins counts the registry (from creation to deletion), every open
 * VAS file and every hide.  The last pin frees the memory.  The struct itself
 * lives as long as its kobject.
 */
struct vas {
	struct kobject kobj;		/* /sys/kernel/vas/<id> */
	refcount_t pins;
	atomic_t files;

	u64 id;				/* these five never change */
	char name[VAS_NAME_MAX];
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
	u64 created_ns;

	char label[VAS_LABEL_MAX];	/* by vas_mutex */

	struct hlist_node by_name;	/* by vas_mutex; while registered */
	bool registered;		/* written under vas_mutex */
	bool committed;			/* written under vas_mutex */
	struct list_head session_node;	/* by vas_mutex; linked while transient */

	struct mutex lock;
	/*
	 * NULL until a capture or a load succeeded; set once with release
	 * semantics, after @vmas and @bytes.  Its VMA tree never changes again.
	 */
	struct mm_struct *mm;
	u64 vmas;
	u64 bytes;
	atomic64_t attaches;

	u32 store;			/* VAS_STORE_*; written under @lock */
	int drain_error;		/* written under @lock */
	u64 stored_ns;			/* written under @lock: of @map's snapshot */
	struct vas_map *map;		/* by @lock; while STORED or COLD */
	atomic64_t drained;		/* pages */
	struct list_head evictable;	/* by vas_evictable_lock; while STORED */

	unsigned short payer;		/* see charge.c; by vas_paid_lock */
	struct list_head paid;		/* by vas_paid_lock; with a payer */
	unsigned long given;		/* by @lock: given back up to there */
};

/*
 * An open of /dev/vas.  @kref: that file, and every VAS file made through it
 * (a capture hides through its session).  @closed and @hides by vas_hide_sem.
 */
struct vas_session {
	struct kref kref;
	bool closed;
	struct list_head vases;		/* transient ones, by vas_mutex */
	struct list_head hides;
};

/* What is mapped in a VAS now, in pages. */
struct vas_pages {
	u64 present;
	u64 huge;
	u64 exclusive;			/* PageAnonExclusive */
	u64 own;			/* mapped nowhere else */
	u64 ksm;
	u64 swap;
};

static inline struct mm_struct *vas_mm(struct vas *vas)
{
	return smp_load_acquire(&vas->mm);	/* pairs with vas_capture() */
}

/* Exact, unlike get_mm_counter(). */
static inline u64 vas_mm_counter(struct mm_struct *mm, int member)
{
	return percpu_counter_sum_positive(&mm->rss_stat[member]);
}

/* vas.c */
extern struct mutex vas_mutex;

bool vas_name_valid(const char *name);

struct vas *vas_create(const char *name, umode_t mode);
struct vas *vas_find(u64 id, const char *name);
bool vas_may_see(void);
bool vas_may(struct vas *vas, u32 access);
int vas_delete(struct vas *vas, bool force);
void vas_put(struct vas *vas);
u32 vas_state(struct vas *vas);

static inline void vas_get(struct vas *vas)
{
	refcount_inc(&vas->pins);
}

struct mm_struct *vas_mm_alloc(void);
struct vm_area_struct *vas_add_vma(struct mm_struct *mm, unsigned long start,
				   unsigned long end, pgoff_t pgoff,
				   vm_flags_t flags, pgprot_t prot);
bool vas_eligible(struct vm_area_struct *vma);
void vas_split_huge_at(struct vm_area_struct *vma, unsigned long addr);
int vas_share_pages(struct vm_area_struct *dst, struct vm_area_struct *src,
		    unsigned long start, unsigned long end);
void vas_count_range(struct mm_struct *mm, unsigned long start,
		     unsigned long end, bool ptes, struct vas_pages *count);

u32 vas_vma_prot(struct vm_area_struct *vma);

/* stat.c */
long vas_ioctl_stat(struct vas *vas, void __user *uarg);
long vas_ioctl_ranges(struct vas *vas, void __user *uarg);
long vas_ioctl_usage(struct vas *vas, void __user *uarg);

/* label.c */
bool vas_label_valid(const char label[VAS_LABEL_MAX]);
char *vas_label_dup(struct vas *vas);
long vas_ioctl_get_label(struct vas *vas, void __user *uarg);
long vas_ioctl_set_label(struct vas *vas, void __user *uarg);

/* hide.c */
struct vas_hide;

struct vas_hide *vas_hide_alloc(struct vas *vas, struct mm_struct *mm);
bool vas_hide_add(struct vas_session *session, struct vas_hide *hide);
void vas_hide_free(struct vas_hide *hide);
void vas_hide_close(struct vas_session *session);

/* guard.c */
long vas_ioctl_guard(void __user *uarg);

/* origin.c */
void vas_set_origin(struct mm_struct *mm, const u8 snapshot[16]);

/* sysfs.c */
int vas_sysfs_add(struct vas *vas);
void vas_sysfs_init(struct vas *vas);

/* capture.c */
int vas_capture(struct vas *vas, struct mm_struct *mm, struct vas_capture *arg);

/* attach.c */
int vas_attach(struct vas *vas, struct task_struct *task, struct mm_struct *mm,
	       struct vas_attach *arg);

/* charge.c */
void vas_charge(struct vas *vas, struct task_struct *task,
		struct mm_struct *mm, struct mem_cgroup *memcg,
		unsigned long start, unsigned long end);
void vas_set_payer(struct vas *vas, struct mem_cgroup *memcg);
void vas_forget_payer(struct vas *vas);

/* move.c */
int vas_move_prepare(struct vm_area_struct *dst, struct vm_area_struct *src);
void vas_move_pages(struct vm_area_struct *dst, struct vm_area_struct *src);
pmd_t *vas_next_pmd(struct mm_struct *mm, unsigned long *addr,
		    unsigned long end);
pmd_t *vas_alloc_pmd(struct mm_struct *mm, unsigned long addr);
void vas_free_table(struct vm_area_struct *vma, unsigned long addr,
		    pmd_t *pmd);

/* meta.c */
bool vas_snapshot_name_valid(const char *name);
struct vas_map *vas_map_new(void);
void vas_map_free(struct vas_map *map);
int vas_map_add(struct vas_map *map, const struct vas_run *run, bool first);
void vas_map_count(struct vas_map *map, u64 start, u64 end,
		   struct vas_pages *count);
int vas_meta_send(u64 handle, struct vas **vases, struct vas_map **maps,
		  u32 count);

/* What a snapshot in the store says of a VAS. */
struct vas_loaded {
	char name[VAS_NAME_MAX];
	umode_t mode;
	struct mm_struct *mm;
	u64 vmas;
	u64 bytes;
	struct vas_map *map;
};

int vas_meta_parse(const void *meta, size_t len,
		   const struct vas_snapshot *snapshot,
		   struct vas_loaded **vases, u32 *count);
void vas_loaded_free(struct vas_loaded *vases, u32 count);

/* collect.c */
#define VAS_BATCH_ITEMS		4096
#define VAS_BATCH_BLOCKS	512

/* A page or a huge page of a VAS. */
struct vas_batch_item {
	unsigned long addr;
	struct page *page;
	u64 index;			/* in the snapshot */
	bool huge;
	bool first;			/* of its VMA */
	bool entered;			/* see drain.c */
};

struct vas_batch {
	struct vas_batch_item *items;	/* VAS_BATCH_ITEMS */
	u32 nr, nr_blocks;
	unsigned long cursor;		/* where to go on */
	bool fault;			/* bring in the page there first */
};

int vas_collect(struct vas_batch *b, struct mm_struct *mm);

/* drain.c */
long vas_ioctl_drain(void __user *uarg);

/* cold.c */
int vas_store_open_map(struct vas_map *map, u64 *handle, unsigned int flags);
void vas_set_store(struct vas *vas, u32 store);
void vas_forget_evictable(struct vas *vas);
int vas_evict(struct vas *vas, u64 *pages);
unsigned long vas_make_room(unsigned long pages, unsigned int flags);

/* fill.c */
int vas_fill(struct vas *vas);
void vas_zap(struct mm_struct *mm);

/* load.c */
long vas_ioctl_store_list(void __user *uarg);
long vas_ioctl_store_load(struct vas_session *session, void __user *uarg);
long vas_ioctl_store_delete(void __user *uarg);
long vas_ioctl_store_label(void __user *uarg);

#endif /* _MM_VAS_INTERNAL_H */
