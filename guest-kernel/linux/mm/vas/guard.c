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
 * When: at the flush of the session by exit_files(), which do_exit() calls before
 * exit_notify() detaches the tracees.  They are stopped, or run what the tracer
 * made them run; those are stopped first.  A guard of a task that its tracer has
 * detached does nothing.
 *
 * Put back into a task that is stopped by a signal or an event, which is in
 * get_signal(), the saved registers have an interrupted system call restarted, or
 * ended by a handler, as ever.  One that is stopped at the entry or exit of a
 * system call will not come by there, so we have to restart it.
 *
 * Locks: session->guard_lock is the outermost; under it, what ptrace takes, and
 * the mmap_lock of the task.
 */
#include <linux/elf.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/ptrace.h>
#include <linux/regset.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/syscall.h>
#include <asm/unistd.h>

#include "internal.h"

/* Longest wait for tasks to stop, of one tracer. */
#define GUARD_PATIENCE	(5 * HZ)

struct guard_bytes {
	struct list_head node;
	unsigned long addr;
	u32 len;
	u8 bytes[VAS_GUARD_MAX];
};

struct vas_guard_task {
	struct list_head node;
	struct task_struct *task;
	struct list_head bytes;
	struct pt_regs regs;
	sigset_t blocked;
	const struct user_regset *fpu;	/* @fpu_state is of it */
	void *fpu_state;
	int fpu_size;
};

static void guard_free(struct vas_guard_task *guard)
{
	struct guard_bytes *b, *next;

	list_for_each_entry_safe(b, next, &guard->bytes, node)
		kfree(b);
	kvfree(guard->fpu_state);
	put_task_struct(guard->task);
	kfree(guard);
}

/* --- Saving --- */

static unsigned long restart_syscall_nr(struct task_struct *task)
{
#ifdef CONFIG_IA32_EMULATION
	if (task->restart_block.arch_data & TS_COMPAT)
		return __NR_ia32_restart_syscall;
#endif
	return __NR_restart_syscall;
}

/* As arch_do_signal_or_restart() where there is no signal. */
static void restart_interrupted(struct task_struct *task, struct pt_regs *regs)
{
	if (syscall_get_nr(task, regs) == -1)
		return;
	switch (syscall_get_error(task, regs)) {
	case -ERESTARTNOHAND:
	case -ERESTARTSYS:
	case -ERESTARTNOINTR:
		regs->ax = regs->orig_ax;
		regs->ip -= 2;
		break;
	case -ERESTART_RESTARTBLOCK:
		regs->ax = restart_syscall_nr(task);
		regs->ip -= 2;
		break;
	}
	regs->orig_ax = -1;
}

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

/* @task is stopped, and stays so. */
static int guard_save(struct vas_guard_task *guard, struct task_struct *task)
{
	guard->regs = *task_pt_regs(task);
	guard->blocked = test_tsk_restore_sigmask(task) ? task->saved_sigmask :
							  task->blocked;
	guard->fpu = fpu_regset(task);
	if (!guard->fpu)
		return 0;
	guard->fpu_size = regset_get_alloc(task, guard->fpu,
					   guard->fpu->n * guard->fpu->size,
					   &guard->fpu_state);
	return min(guard->fpu_size, 0);
}

static struct vas_guard_task *guard_find(struct vas_session *session,
					 struct task_struct *task)
{
	struct vas_guard_task *guard;

	list_for_each_entry(guard, &session->guards, node)
		if (guard->task == task)
			return guard;
	return NULL;
}

static struct vas_guard_task *guard_add(struct vas_session *session,
					struct task_struct *task)
{
	struct vas_guard_task *guard = kzalloc(sizeof(*guard),
					       GFP_KERNEL_ACCOUNT);
	int err;

	if (!guard)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&guard->bytes);
	guard->task = get_task_struct(task);
	err = guard_save(guard, task);
	if (err) {
		guard_free(guard);
		return ERR_PTR(err);
	}
	list_add(&guard->node, &session->guards);
	return guard;
}

static int guard_add_bytes(struct vas_guard_task *guard,
			   const struct vas_guard *arg)
{
	struct guard_bytes *b;

	list_for_each_entry(b, &guard->bytes, node)
		if (b->addr == arg->addr && b->len >= arg->len)
			return 0;
	b = kzalloc(sizeof(*b), GFP_KERNEL_ACCOUNT);
	if (!b)
		return -ENOMEM;
	b->addr = arg->addr;
	b->len = arg->len;
	if (access_process_vm(guard->task, b->addr, b->bytes, b->len,
			      FOLL_FORCE) != b->len) {
		kfree(b);
		return -EFAULT;
	}
	list_add_tail(&b->node, &guard->bytes);
	return 0;
}

long vas_ioctl_guard(struct vas_session *session, void __user *uarg)
{
	struct vas_guard_task *guard;
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

	mutex_lock(&session->guard_lock);
	err = ptrace_check_attach(task, false);
	if (err)
		goto out;
	guard = guard_find(session, task);
	if (!guard)
		guard = guard_add(session, task);
	if (IS_ERR(guard))
		err = PTR_ERR(guard);
	else if (arg.len)
		err = guard_add_bytes(guard, &arg);
	ptrace_unfreeze_traced(task);
out:
	mutex_unlock(&session->guard_lock);
	put_task_struct(task);
	return err;
}

/* --- Putting it back --- */

/* Signals that the code of the tracer brings about, as by its INT3. */
#define FORCED	(rt_sigmask(SIGTRAP) | rt_sigmask(SIGSEGV) | \
		 rt_sigmask(SIGBUS) | rt_sigmask(SIGILL) | \
		 rt_sigmask(SIGFPE) | rt_sigmask(SIGSYS))

/* Will a stopped task get such a signal when it goes on? */
static bool forced_pending(struct task_struct *task)
{
	bool pending;

	spin_lock_irq(&task->sighand->siglock);
	pending = task->pending.signal.sig[0] & ~task->blocked.sig[0] & FORCED;
	spin_unlock_irq(&task->sighand->siglock);
	return pending;
}

/*
 * Stops a task that @current traces by PTRACE_SEIZE, and keeps it so.  Where a
 * forced signal is on its way, it stops at that one: there it can be taken away.
 * False if the task is dying, does not stop, or is not traced by us (any more).
 */
static bool guard_stop(struct task_struct *task, unsigned long deadline)
{
	for (;;) {
		if (!ptrace_check_attach(task, false)) {
			if (!forced_pending(task))
				return true;
			ptrace_request(task, PTRACE_CONT, 0, 0);
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

/* Code that the tracer has not changed is not written: it would be copied. */
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

static bool at_syscall(struct task_struct *task)
{
	return (task->exit_code & ~0x80) == SIGTRAP &&
	       (task->ptrace_message == PTRACE_EVENTMSG_SYSCALL_ENTRY ||
		task->ptrace_message == PTRACE_EVENTMSG_SYSCALL_EXIT);
}

static void guard_restore(struct vas_guard_task *guard, unsigned long deadline)
{
	struct task_struct *task = guard->task;
	struct guard_bytes *b;
	bool syscall;

	if (!guard_stop(task, deadline))
		return;
	syscall = at_syscall(task);
	list_for_each_entry(b, &guard->bytes, node)
		bytes_restore(task, b);
	*task_pt_regs(task) = guard->regs;
	if (syscall)
		restart_interrupted(task, task_pt_regs(task));
	if (guard->fpu &&
	    guard->fpu->set(task, guard->fpu, 0, guard->fpu_size,
			    guard->fpu_state, NULL))
		pr_warn("vas: task %d keeps FPU registers of its tracer\n",
			task_pid_nr(task));
	spin_lock_irq(&task->sighand->siglock);
	task->blocked = guard->blocked;
	if (syscall || siginmask(task->exit_code, FORCED))
		task->exit_code = 0;	/* or the task would get that signal */
	spin_unlock_irq(&task->sighand->siglock);
	clear_tsk_restore_sigmask(task);
	ptrace_unfreeze_traced(task);
}

/* The process that traces exits; or another that has the session. */
void vas_guard_exit(struct vas_session *session)
{
	unsigned long deadline = jiffies + GUARD_PATIENCE;
	struct vas_guard_task *guard;

	mutex_lock(&session->guard_lock);
	list_for_each_entry(guard, &session->guards, node)
		guard_restore(guard, deadline);
	mutex_unlock(&session->guard_lock);
}

void vas_guard_close(struct vas_session *session)
{
	struct vas_guard_task *guard, *next;

	list_for_each_entry_safe(guard, next, &session->guards, node)
		guard_free(guard);
}
