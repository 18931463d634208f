// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which memory cgroup is charged for the pages that a task and a VAS share.
 *
 * A page is charged to who made it, and that is often a task that is gone.  So an
 * attach takes over, for the task's group, what nobody else uses: what nobody but
 * the VAS maps besides, and what is charged to a group that was removed.  What
 * others share with it stays theirs, as with any shared page.
 *
 * The other way round, what a group is charged for and a VAS alone still has (its
 * tasks wrote to their own copy since, or unmapped it) is no use of the group.  It
 * is given back, to the root group, when the group reaches its limit: else a task
 * that writes to all of its memory would be charged for it twice.
 *
 * A folio changes its group while it is locked, isolated from the LRU, not in the
 * swap cache, and while the page table lock of one of its mappings is held.  So it
 * stays mapped, its statistics stand still, and no other copy of it can be made
 * from that mapping.  That is how memcg v1 moves charges; but as its move_lock is
 * not there, memcg v1 and the multi-generational LRU, which need it, must be off.
 *
 * Locks: charging waits for memory, for the group's reclaim and its OOM killer, so
 * a worker does it, after the attach, with nothing locked.  Moving takes, under mmap_lock
 * (for reading) and page table lock: the folio's by trying, then lru_lock or
 * split_queue_lock.  Giving back runs in reclaim, and takes vas->lock and the VAS's
 * mmap_lock only by trying.
 */
#include <linux/init.h>
#include <linux/memcontrol.h>
#include <linux/mmap_lock.h>
#include <linux/nodemask.h>
#include <linux/oom.h>
#include <linux/pagewalk.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/workqueue.h>

#include "../internal.h"
#include "../memcontrol-v1.h"
#include "internal.h"

/*
 * A walk that moves folios to the group @to, which was charged for @room pages
 * already.  What was moved and not yet entered into the books is all of @from and
 * of one node.  Both are the root group or pinned: @to by the caller, @from by
 * the folios' references, which are dropped with the entry.
 */
struct move {
	struct mem_cgroup *to;
	struct mem_cgroup *only;	/* give back what this one is charged for */
	unsigned long room;
	unsigned long wanted;		/* more room than there is */
	unsigned long addr;		/* where to go on */
	u64 moved;

	struct mem_cgroup *from;
	struct pglist_data *pgdat;
	int folios;
	long pages, huge;
};

/* Enters what was moved into the books, under the page table lock. */
static void move_flush(struct move *m)
{
	struct lruvec *from, *to;

	if (!m->folios)
		return;
	from = mem_cgroup_lruvec(m->from, m->pgdat);
	to = mem_cgroup_lruvec(m->to, m->pgdat);
	mod_lruvec_state(from, NR_ANON_MAPPED, -m->pages);
	mod_lruvec_state(to, NR_ANON_MAPPED, m->pages);
	if (m->huge) {
		mod_lruvec_state(from, NR_ANON_THPS, -m->huge);
		mod_lruvec_state(to, NR_ANON_THPS, m->huge);
	}
	css_get_many(&m->to->css, m->folios);
	mem_cgroup_cancel_charge(m->from, m->pages);
	css_put_many(&m->from->css, m->folios);
	m->moved += m->pages;
	m->folios = m->pages = m->huge = 0;
}

/* Is it to be moved?  The folio is locked, so that nobody else moves it. */
static bool move_wanted(struct move *m, struct folio *folio,
			struct mem_cgroup *from)
{
	int mapped = folio_mapcount(folio);

	if (!from || from == m->to || folio_test_swapcache(folio))
		return false;
	if (m->only)
		return from == m->only && mapped == 1;
	return mapped <= 2 || css_is_dying(&from->css);
}

/*
 * The split queue is the group's.  deferred_split_scan() holds a reference to each
 * folio that it has on a list of its own: such a one must stay.  That references
 * and mappings match says so only where no mapping can come while we look: with
 * one besides ours at most, as that one may only go, and ours is locked.
 */
static bool leave_split_queue(struct folio *folio, struct mem_cgroup *from,
			      bool *queued)
{
	struct deferred_split *queue = &from->deferred_split_queue;
	unsigned long flags;
	bool idle;
	int mapped;

	*queued = false;
	if (!folio_test_large(folio) ||
	    data_race(list_empty(&folio->_deferred_list)))
		return true;
	spin_lock_irqsave(&queue->split_queue_lock, flags);
	mapped = folio_mapcount(folio);
	idle = mapped <= 2 && !folio_test_partially_mapped(folio) &&
	       folio_ref_count(folio) == mapped + 1 &&	/* + isolation */
	       folio_mapcount(folio) == mapped;
	if (idle && !list_empty(&folio->_deferred_list)) {
		list_del_init(&folio->_deferred_list);
		queue->split_queue_len--;
		*queued = true;
	}
	spin_unlock_irqrestore(&queue->split_queue_lock, flags);
	return idle;
}

static void move_locked(struct move *m, struct folio *folio)
{
	struct mem_cgroup *from = folio_memcg(folio);
	long nr = folio_nr_pages(folio);
	bool queued;

	if (!move_wanted(m, folio, from) || !folio_isolate_lru(folio))
		return;
	if (!leave_split_queue(folio, from, &queued))
		goto putback;
	if (m->folios && (m->from != from || m->pgdat != folio_pgdat(folio)))
		move_flush(m);
	m->from = from;
	m->pgdat = folio_pgdat(folio);
	WRITE_ONCE(folio->memcg_data, (unsigned long)m->to);
	if (!mem_cgroup_is_root(m->to))
		m->room -= nr;
	m->folios++;
	m->pages += nr;
	if (folio_test_pmd_mappable(folio))
		m->huge += nr;
	if (queued)
		deferred_split_folio(folio, false);
putback:
	folio_putback_lru(folio);
}

/* False: there is no room for it.  The caller holds the page table lock. */
static bool move_folio(struct move *m, struct folio *folio)
{
	long nr = folio_nr_pages(folio);

	if (!folio_test_anon(folio) || folio_test_ksm(folio) ||
	    data_race(folio->memcg_data) == (unsigned long)m->to)
		return true;
	if (!mem_cgroup_is_root(m->to) && m->room < nr) {
		m->wanted = nr;
		return false;
	}
	if (folio_trylock(folio)) {
		move_locked(m, folio);
		folio_unlock(folio);
	}
	return true;
}

/*
 * A large folio that is mapped in pieces stays where it is: its statistics may
 * change under other locks than ours.
 */
static int move_pmd(pmd_t *pmd, unsigned long addr, unsigned long end,
		    struct mm_walk *walk)
{
	struct move *m = walk->private;
	struct vm_area_struct *vma = walk->vma;
	pte_t *start_pte, *pte;
	spinlock_t *ptl;
	bool room = true;

	m->addr = addr;
	ptl = pmd_trans_huge_lock(pmd, vma);
	if (ptl) {
		if (pmd_present(*pmd) && !is_huge_zero_pmd(*pmd))
			room = move_folio(m, pmd_folio(*pmd));
		move_flush(m);
		spin_unlock(ptl);
		return !room;
	}
	start_pte = pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!pte)
		return 0;
	for (; addr != end && room; pte++, addr += PAGE_SIZE) {
		pte_t ptent = ptep_get(pte);
		struct folio *folio;

		if (!pte_present(ptent))
			continue;
		folio = vm_normal_folio(vma, addr, ptent);
		if (folio && !folio_test_large(folio))
			room = move_folio(m, folio);
		m->addr = addr;
	}
	move_flush(m);
	pte_unmap_unlock(start_pte, ptl);
	cond_resched();
	return !room;
}

static const struct mm_walk_ops move_ops = {
	.pmd_entry = move_pmd,
	.walk_lock = PGWALK_RDLOCK,
};

/* --- To who attaches --- */

/*
 * A charge that an attach leaves to a worker: the target waits for no page.  Nor is
 * it begun while the target is traced, up to a bound: who restores a tree must not
 * have it killed under its hands, and lets go of one task after the other.
 */
struct charge {
	struct delayed_work work;
	unsigned long latest;		/* jiffies */
	bool traced;			/* when last looked at */
	struct task_struct *task;
	struct vas *vas;
	struct mm_struct *mm;
	struct mem_cgroup *memcg;
	unsigned long start, end;
};

#define TRACED_WAIT	(HZ / 10)
#define TRACED_LIMIT	(60 * HZ)

/* Has the target ended?  Then its mm is only ours. */
static bool has_ended(const struct charge *c)
{
	return atomic_read(&c->mm->mm_users) == 1;
}

/*
 * As many pages as a page table has, as long as that costs no reclaim; then only
 * what is needed, in pieces for which the group's OOM killer acts.
 */
static int make_room(struct move *m, const struct charge *c)
{
	const unsigned int piece = 1 << PAGE_ALLOC_COSTLY_ORDER;

	if (!try_charge(m->to, GFP_KERNEL & ~__GFP_DIRECT_RECLAIM,
			HPAGE_PMD_NR)) {
		m->room += HPAGE_PMD_NR;
		return 0;
	}
	while (m->room < m->wanted) {
		unsigned int nr = min_t(unsigned long, piece,
					m->wanted - m->room);

		if (has_ended(c))
			return -ESRCH;
		if (try_charge(m->to, GFP_KERNEL, nr))
			return -ENOMEM;
		m->room += nr;
	}
	return 0;
}

/* Until there is no room, or all is done. */
static void charge_walk(struct move *m, const struct charge *c)
{
	VMA_ITERATOR(vmi, c->mm, m->addr);
	struct vm_area_struct *vma;

	for_each_vma_range(vmi, vma, c->end) {
		if (!vas_eligible(vma))
			continue;
		if (walk_page_range(c->mm, max(vma->vm_start, m->addr),
				    min(vma->vm_end, c->end), &move_ops, m))
			break;
	}
}

static void charge(const struct charge *c)
{
	struct move m = { .to = c->memcg, .addr = c->start };

	lru_add_drain_all();
	do {
		m.wanted = 0;
		mmap_read_lock(c->mm);
		if (!check_stable_address_space(c->mm) && !has_ended(c))
			charge_walk(&m, c);
		mmap_read_unlock(c->mm);
	} while (m.wanted && !make_room(&m, c));
	if (m.room)
		mem_cgroup_cancel_charge(c->memcg, m.room);
	if (m.moved)
		vas_set_payer(c->vas, c->memcg);
}

static void charge_work(struct work_struct *work)
{
	struct charge *c = container_of(work, struct charge, work.work);
	bool was_traced = c->traced;

	c->traced = READ_ONCE(c->task->ptrace);
	if ((c->traced || was_traced) && !has_ended(c) &&
	    time_before(jiffies, c->latest)) {
		queue_delayed_work(system_unbound_wq, &c->work, TRACED_WAIT);
		return;
	}
	charge(c);
	put_task_struct(c->task);
	mmput(c->mm);
	mem_cgroup_put(c->memcg);
	vas_put(c->vas);
	kfree(c);
}

/*
 * Charges the group of @task, whose @mm was just attached to, for what nobody else
 * uses of [start, end), soon.  It is held to its limit for that as for any allocation.
 * A page that cannot be moved stays where it is; no failure is one of the attach.
 */
void vas_charge(struct vas *vas, struct task_struct *task,
		struct mm_struct *mm, struct mem_cgroup *memcg,
		unsigned long start, unsigned long end)
{
	struct charge *c;

	if (mem_cgroup_disabled() || mem_cgroup_is_root(memcg))
		return;
	c = kmalloc(sizeof(*c), GFP_KERNEL | __GFP_NOFAIL);
	INIT_DELAYED_WORK(&c->work, charge_work);
	c->latest = jiffies + TRACED_LIMIT;
	c->traced = false;
	c->task = get_task_struct(task);
	vas_get(vas);
	c->vas = vas;
	mmget(mm);
	c->mm = mm;
	css_get(&memcg->css);
	c->memcg = memcg;
	c->start = start;
	c->end = end;
	queue_delayed_work(system_unbound_wq, &c->work, 0);
}

/* --- Back from who no longer uses it --- */

static struct shrinker *vas_payer_shrinker;
static DEFINE_SPINLOCK(vas_paid_lock);
static LIST_HEAD(vas_paid);		/* VASes with a payer; by vas_paid_lock */

/*
 * @memcg is charged for pages of @vas.  It is a hint: the group that was so last.
 * Its id is not pinned, and may be another's by now.
 */
void vas_set_payer(struct vas *vas, struct mem_cgroup *memcg)
{
	int nid;

	if (mem_cgroup_disabled() || mem_cgroup_is_root(memcg))
		return;
	spin_lock(&vas_paid_lock);
	vas->payer = mem_cgroup_id(memcg);
	list_move_tail(&vas->paid, &vas_paid);
	spin_unlock(&vas_paid_lock);
	for_each_node_state(nid, N_MEMORY)
		set_shrinker_bit(memcg, nid, vas_payer_shrinker->id);
}

/* Of a VAS that is without pins. */
void vas_forget_payer(struct vas *vas)
{
	spin_lock(&vas_paid_lock);
	list_del_init(&vas->paid);
	spin_unlock(&vas_paid_lock);
}

static unsigned long payer_count(struct shrinker *shrinker,
				 struct shrink_control *sc)
{
	unsigned long pages = 0;
	struct vas *vas;

	if (!sc->memcg || mem_cgroup_is_root(sc->memcg))
		return SHRINK_EMPTY;
	spin_lock(&vas_paid_lock);
	list_for_each_entry(vas, &vas_paid, paid)
		if (vas->payer == mem_cgroup_id(sc->memcg))
			pages += get_mm_counter(vas->mm, MM_ANONPAGES);
	spin_unlock(&vas_paid_lock);
	return pages ?: SHRINK_EMPTY;
}

/* The VASes of a group take turns.  NULL: none, or it is just going away. */
static struct vas *next_paid(struct mem_cgroup *memcg)
{
	struct vas *vas;

	spin_lock(&vas_paid_lock);
	list_for_each_entry(vas, &vas_paid, paid) {
		if (vas->payer != mem_cgroup_id(memcg))
			continue;
		list_move_tail(&vas->paid, &vas_paid);
		if (!refcount_inc_not_zero(&vas->pins))
			vas = NULL;
		spin_unlock(&vas_paid_lock);
		return vas;
	}
	spin_unlock(&vas_paid_lock);
	return NULL;
}

/* Looks at the @nr pages' worth of addresses that come next, round and round. */
static void give_back(struct move *m, struct vas *vas, unsigned long nr)
{
	unsigned long left = nr << PAGE_SHIFT;
	VMA_ITERATOR(vmi, vas->mm, vas->given);
	struct vm_area_struct *vma;

	for_each_vma(vmi, vma) {
		unsigned long start = max(vma->vm_start, vas->given);
		unsigned long len = min(vma->vm_end - start, left);

		walk_page_range(vas->mm, start, start + len, &move_ops, m);
		left -= len;
		vas->given = start + len;
		if (!left)
			return;
	}
	vas->given = 0;
}

static unsigned long payer_scan(struct shrinker *shrinker,
				struct shrink_control *sc)
{
	struct move m = { .to = root_mem_cgroup, .only = sc->memcg };
	struct vas *vas = next_paid(sc->memcg);

	sc->nr_scanned = sc->nr_to_scan;
	if (!vas)
		return SHRINK_STOP;
	if (mutex_trylock(&vas->lock)) {
		if (mmap_read_trylock(vas->mm)) {
			give_back(&m, vas, sc->nr_to_scan);
			mmap_read_unlock(vas->mm);
		}
		mutex_unlock(&vas->lock);
	}
	vas_put(vas);
	return m.moved;
}

static int __init vas_payer_init(void)
{
	struct shrinker *shrinker;

	shrinker = shrinker_alloc(SHRINKER_MEMCG_AWARE | SHRINKER_NONSLAB,
				  "vas-payer");
	if (!shrinker)
		return -ENOMEM;
	shrinker->count_objects = payer_count;
	shrinker->scan_objects = payer_scan;
	shrinker->batch = HPAGE_PMD_NR;		/* a page table at a time */
	vas_payer_shrinker = shrinker;
	shrinker_register(shrinker);
	return 0;
}
core_initcall(vas_payer_init);
