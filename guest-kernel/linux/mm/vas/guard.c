// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guards: a task that a dying tracer has borrowed gets itself back.
 *
 * A checkpointer makes the tasks that it has stopped run code of its own: it
 * replaces their registers, their signal mask and a few bytes of their code, and
 * puts all of it back at the end.  Killed in between, it leaves tasks that go on
 * with its registers.  So it has us save the state of a task before it changes
 * anything, and where it exits while it traces that task, we put that back.
 *
 * A guard belongs to the bond of ptrace: task->vas_guard is set by the tracer,
 * freed when it detaches the task, and used up when it exits (do_exit(), before
 * exit_notify() lets the tracees go).
 *
 * A state is saved and put back only where a task is stopped in get_signal(): with
 * the saved registers it has an interrupted system call restarted, or ended by a
 * handler, as ever.  A task that its tracer has left elsewhere is first driven
 * there, without a system call, a seccomp filter, or an instruction of user space.
 *
 * Locks: task->vas_guard is the tracer's while the task is frozen by
 * ptrace_check_attach(); it is taken away under tasklist_lock.  A guard that is not
 * at a task any more belongs to who took it.
 */
#include <linux/elf.h>
#include <linux/err.h>
#include <linux/hw_breakpoint.h>
#include <linux/mm.h>
#include <linux/ptrace.h>
#include <linux/regset.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vas.h>
#include <asm/syscall.h>

#include "internal.h"

/* Longest wait for tasks to stop, of one tracer. */
#define GUARD_PATIENCE	(5 * HZ)

/* Signals that code brings about, as by its INT3. */
#define FORCED	(rt_sigmask(SIGTRAP) | rt_sigmask(SIGSEGV) | \
		 rt_sigmask(SIGBUS) | rt_sigmask(SIGILL) | \
		 rt_sigmask(SIGFPE) | rt_sigmask(SIGSYS))
#define FORCED_MAX	6

struct guard_bytes {
	struct list_head node;
	unsigned long addr;
	u32 len;
	u8 bytes[VAS_GUARD_MAX];
};

/* Freed with interrupts off, too: so kfree() must do. */
struct vas_guard_task {
	struct list_head bytes;		/* the newest first */
	struct pt_regs regs;
	struct restart_block restart;
	const struct user_regset *fpu;	/* @fpu_state is of it */
	void *fpu_state;
	int fpu_size;
	sigset_t blocked;
	struct k_sigaction trap;	/* an INT3 while it is blocked resets it */
	unsigned int nr_forced;		/* are pending */
	kernel_siginfo_t forced[FORCED_MAX];
};

static void guard_free(struct vas_guard_task *guard)
{
	struct guard_bytes *b, *next;

	list_for_each_entry_safe(b, next, &guard->bytes, node)
		kfree(b);
	kfree(guard->fpu_state);
	kfree(guard);
}

/* --- Where a task is stopped --- */

/* What of ptrace's PTRACE_EVENT_... a task has stopped for; 0 for anything else. */
static int stop_event(struct task_struct *task)
{
	int code = task->last_siginfo ? task->last_siginfo->si_code : 0;

	return code > 0 ? code >> 8 : 0;
}

/* By a signal that it is about to get?  Elsewhere there is an event or a message. */
static bool at_signal(struct task_struct *task)
{
	return task->last_siginfo && !stop_event(task) && !task->ptrace_message;
}

static bool in_get_signal(struct task_struct *task)
{
	return at_signal(task) || stop_event(task) == PTRACE_EVENT_STOP;
}

/* --- Saving --- */

static const struct user_regset *fpu_regset(struct task_struct *task)
{
	const struct user_regset_view *view = task_user_regset_view(task);
	const struct user_regset *found = NULL;

	for (unsigned int i = 0; i < view->n; i++) {
		const struct user_regset *r = &view->regsets[i];

		if (r->core_note_type == NT_X86_XSTATE &&
		    (!r->active || r->active(task, r) > 0))
			return r;
		if (r->core_note_type == NT_PRFPREG)
			found = r;
	}
	return found;
}

static int fpu_save(struct vas_guard_task *guard, struct task_struct *task)
{
	unsigned int size;

	guard->fpu = fpu_regset(task);
	if (!guard->fpu)
		return 0;
	size = guard->fpu->n * guard->fpu->size;
	guard->fpu_state = kzalloc(size, GFP_KERNEL_ACCOUNT);
	if (!guard->fpu_state)
		return -ENOMEM;
	guard->fpu_size = regset_get(task, guard->fpu, size, guard->fpu_state);
	return min(guard->fpu_size, 0);
}

static void signals_save(struct vas_guard_task *guard, struct task_struct *task)
{
	struct sigqueue *q;

	guard->blocked = test_tsk_restore_sigmask(task) ? task->saved_sigmask :
							  task->blocked;
	spin_lock_irq(&task->sighand->siglock);
	guard->trap = task->sighand->action[SIGTRAP - 1];
	list_for_each_entry(q, &task->pending.list, list)
		if (siginmask(q->info.si_signo, FORCED) &&
		    guard->nr_forced < FORCED_MAX)
			guard->forced[guard->nr_forced++] = q->info;
	spin_unlock_irq(&task->sighand->siglock);
}

static int bytes_save(struct vas_guard_task *guard, struct task_struct *task,
		      unsigned long addr, u32 len)
{
	struct guard_bytes *b;

	list_for_each_entry(b, &guard->bytes, node)
		if (b->addr == addr && b->len >= len)
			return 0;
	b = kzalloc(sizeof(*b), GFP_KERNEL_ACCOUNT);
	if (!b)
		return -ENOMEM;
	b->addr = addr;
	b->len = len;
	if (access_process_vm(task, addr, b->bytes, len, FOLL_FORCE) != len) {
		kfree(b);
		return -EFAULT;
	}
	list_add(&b->node, &guard->bytes);
	return 0;
}

/*
 * In which restartable sequence the task is.  The kernel clears it when the task
 * runs elsewhere; put back, it has the task begin the sequence again.
 */
static int rseq_save(struct vas_guard_task *guard, struct task_struct *task)
{
#ifdef CONFIG_RSEQ
	if (task->rseq)
		return bytes_save(guard, task,
				  (unsigned long)&task->rseq->rseq_cs,
				  sizeof(task->rseq->rseq_cs));
#endif
	return 0;
}

static struct vas_guard_task *guard_new(struct task_struct *task)
{
	struct vas_guard_task *guard;
	int err;

	if (stop_event(task) != PTRACE_EVENT_STOP)
		return ERR_PTR(-EBUSY);
	guard = kzalloc(sizeof(*guard), GFP_KERNEL_ACCOUNT);
	if (!guard)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&guard->bytes);
	guard->regs = *task_pt_regs(task);
	guard->restart = task->restart_block;
	signals_save(guard, task);
	err = fpu_save(guard, task);
	if (!err)
		err = rseq_save(guard, task);
	if (err) {
		guard_free(guard);
		return ERR_PTR(err);
	}
	return guard;
}

/* @task is frozen. */
static int guard_save(struct task_struct *task, const struct vas_guard *arg)
{
	if (!task->vas_guard) {
		struct vas_guard_task *guard = guard_new(task);

		if (IS_ERR(guard))
			return PTR_ERR(guard);
		task->vas_guard = guard;
	}
	return arg->len ? bytes_save(task->vas_guard, task, arg->addr, arg->len) :
			  0;
}

long vas_ioctl_guard(void __user *uarg)
{
	struct task_struct *task;
	struct vas_guard arg;
	long err;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.reserved || arg.len > VAS_GUARD_MAX)
		return -EINVAL;
	rcu_read_lock();
	task = find_task_by_vpid(arg.tid);
	if (task)
		get_task_struct(task);
	rcu_read_unlock();
	if (!task)
		return -ESRCH;

	err = ptrace_check_attach(task, false);
	if (!err) {
		err = guard_save(task, &arg);
		ptrace_unfreeze_traced(task);
	}
	put_task_struct(task);
	return err;
}

/* --- Putting it back --- */

/*
 * Has a frozen task go on to get_signal().  One that is at the entry of a system
 * call, before or after ptrace, skips it.
 */
static void drive(struct task_struct *task)
{
	task_pt_regs(task)->orig_ax = -1;
	task->ptrace |= PT_SUSPEND_SECCOMP;
	ptrace_request(task, PTRACE_INTERRUPT, 0, 0);
	ptrace_request(task, PTRACE_CONT, 0, 0);
}

/*
 * Stops a task in get_signal(), which @current traces by PTRACE_SEIZE, and keeps it
 * so.  False if the task is dying, does not stop, or is not traced by us (any more).
 */
static bool guard_stop(struct task_struct *task, unsigned long deadline)
{
	for (;;) {
		if (!ptrace_check_attach(task, false)) {
			if (in_get_signal(task))
				return true;
			drive(task);
			ptrace_unfreeze_traced(task);
		} else if (READ_ONCE(task->exit_state) ||
			   fatal_signal_pending(task) ||
			   ptrace_check_attach(task, true) ||
			   ptrace_request(task, PTRACE_INTERRUPT, 0, 0)) {
			return false;
		}
		if (time_after(jiffies, deadline)) {
			pr_warn("vas: task %d does not stop: it may be damaged by its tracer\n",
				task_pid_nr(task));
			return false;
		}
		schedule_timeout_uninterruptible(1);
	}
}

/* Memory that the tracer has not changed is not written: it would be copied. */
static void bytes_restore(struct task_struct *task, struct guard_bytes *b)
{
	u8 now[VAS_GUARD_MAX];

	if (access_process_vm(task, b->addr, now, b->len, FOLL_FORCE) == b->len &&
	    !memcmp(now, b->bytes, b->len))
		return;
	if (access_process_vm(task, b->addr, b->bytes, b->len,
			      FOLL_FORCE | FOLL_WRITE) != b->len)
		pr_warn("vas: task %d keeps code of its tracer at %lx\n",
			task_pid_nr(task), b->addr);
}

static void registers_restore(const struct vas_guard_task *guard,
			      struct task_struct *task)
{
	user_disable_single_step(task);
	flush_ptrace_hw_breakpoint(task);
	*task_pt_regs(task) = guard->regs;
	task->restart_block = guard->restart;
	if (guard->fpu &&
	    guard->fpu->set(task, guard->fpu, 0, guard->fpu_size,
			    guard->fpu_state, NULL))
		pr_warn("vas: task %d keeps FPU registers of its tracer\n",
			task_pid_nr(task));
}

/*
 * Of signals that code brings about, the task has what it had; what others sent it
 * meanwhile it gets, even the one that it is stopped at.
 */
static void signals_restore(struct vas_guard_task *guard,
			    struct task_struct *task)
{
	struct k_sigaction *trap = &task->sighand->action[SIGTRAP - 1];
	sigset_t forced;
	int signr = 0;

	siginitset(&forced, FORCED);
	spin_lock_irq(&task->sighand->siglock);
	if (at_signal(task)) {
		kernel_siginfo_t *info = task->last_siginfo;

		if (!siginmask(info->si_signo, FORCED) || info->si_code <= 0)
			signr = info->si_signo;
	}
	task->exit_code = signr;
	task->blocked = guard->blocked;
	clear_tsk_restore_sigmask(task);
	if (trap->sa.sa_handler == SIG_DFL)
		*trap = guard->trap;
	flush_sigqueue_mask(&forced, &task->pending);
	for (unsigned int i = 0; i < guard->nr_forced; i++)
		send_signal_locked(guard->forced[i].si_signo, &guard->forced[i],
				   task, PIDTYPE_PID);
	spin_unlock_irq(&task->sighand->siglock);
}

static void guard_restore(struct vas_guard_task *guard,
			  struct task_struct *task, unsigned long deadline)
{
	struct guard_bytes *b;

	if (!guard_stop(task, deadline))
		return;
	list_for_each_entry(b, &guard->bytes, node)
		bytes_restore(task, b);
	registers_restore(guard, task);
	signals_restore(guard, task);
	ptrace_unfreeze_traced(task);
}

/* Takes the guard of one of the tasks that @current traces; NULL if none has any. */
static struct vas_guard_task *guard_take(struct task_struct **of)
{
	struct vas_guard_task *guard = NULL;
	struct task_struct *task;

	/* Who is traced from now on was born so, and has no guard. */
	if (list_empty(&current->ptraced))
		return NULL;
	read_lock(&tasklist_lock);
	list_for_each_entry(task, &current->ptraced, ptrace_entry) {
		guard = task->vas_guard;
		if (guard) {
			task->vas_guard = NULL;
			*of = get_task_struct(task);
			break;
		}
	}
	read_unlock(&tasklist_lock);
	return guard;
}

/* @current exits, and its tracees are still stopped, or run what it has them run. */
void vas_guard_exit(void)
{
	unsigned long deadline = jiffies + GUARD_PATIENCE;
	struct vas_guard_task *guard;
	struct task_struct *task;

	while ((guard = guard_take(&task))) {
		guard_restore(guard, task, deadline);
		guard_free(guard);
		put_task_struct(task);
	}
}

/* @task is traced no more.  The caller holds tasklist_lock for writing. */
void vas_guard_detach(struct task_struct *task)
{
	if (!task->vas_guard)
		return;
	guard_free(task->vas_guard);
	task->vas_guard = NULL;
}
