// SPDX-License-Identifier: GPL-2.0
/*
 * Guards: a tracer that dies while tasks run its code leaves them as they were.
 */
#include <elf.h>
#include <poll.h>

#include "vas_guard.h"

#define RW	(PROT_READ | PROT_WRITE)

/* What parent, tracer and victim tell each other. */
struct board {
	volatile ulong rounds;		/* of the victim */
	volatile ulong wrong;		/* what it found wrong */
	volatile ulong result;		/* of its system call */
	volatile bool ready, stop, borrowed;
};

/* Code of the victim that the tracer overwrites. */
__attribute__((noipa, aligned(64)))
static int answer(void)
{
	return 42;
}

/* Counts rounds; in each, the registers hold what they should. */
static void spin(struct board *b)
{
	ulong r12 = 0x1212121212121212, r13 = 0x1313131313131313;
	double x = 1.5;

	b->ready = true;
	while (!b->stop) {
		ulong a = r12, c = r13;
		double y = x;

		asm volatile("mov $20000, %%ecx\n1:\tdec %%ecx\n\tjnz 1b"
			     : "+r" (a), "+r" (c), "+x" (y) : : "ecx");
		if (a != r12 || c != r13 || y != 1.5 || answer() != 42)
			b->wrong++;
		b->rounds++;
	}
}

FIXTURE(guard)
{
	struct board *board;
	int pipe[2];
	pid_t victim;
};

FIXTURE_SETUP(guard)
{
	self->board = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->board);
	ASSERT_EQ(0, pipe(self->pipe));
}

FIXTURE_TEARDOWN(guard)
{
	kill(self->victim, SIGKILL);
	waitpid(self->victim, NULL, 0);
	munmap(self->board, PAGE);
}

/* What the victim does. */
enum { SPIN, READ, SLEEP, POLL };

static pid_t victim(struct board *b, int fd, int what)
{
	sigset_t usr1, all;
	pid_t pid = fork();
	char c = 0;

	if (pid)
		return pid;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_SETMASK, &usr1, NULL);
	sigfillset(&all);
	b->ready = true;
	switch (what) {
	case READ:
		b->result = read(fd, &c, 1) == 1 && c == 'x';
		break;
	case SLEEP:
		b->result = usleep(300000) == 0;
		break;
	case POLL: {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		struct timespec t = { .tv_sec = 60 };

		b->result = ppoll(&p, 1, &t, &all) == 1;
		break;
	}
	}
	spin(b);
	_exit(0);
}

/* For a tracer, which ends if that fails. */
static int stop_guarded(pid_t pid)
{
	int session = vas_session();

	seize(pid, PTRACE_O_TRACESYSGOOD);
	if (guard_bytes(session, pid, NULL, 0))
		_exit(1);
	return session;
}

/* How far the tracer comes with the victim before it dies. */
enum { STOPPED, CHANGED, TRAPPED, RUNNING, LOOPING, ENTERING, DONE, STAGES };

/*
 * As CRIU: runs a system call in the victim, over code of its own, with all
 * signals blocked.
 */
static void borrow(pid_t pid, int stage)
{
	struct user_regs_struct regs;
	struct user_fpregs_struct fp;
	uint64_t code = 0xcccccccccccc050f;	/* syscall; int3 */
	uint64_t mask = ~0UL;
	int status;

	if (stage == STOPPED)
		return;
	ptrace(PTRACE_SETSIGMASK, pid, 8, &mask);
	ptrace(PTRACE_GETFPREGS, pid, 0, &fp);
	memset(fp.xmm_space, 0x55, sizeof(fp.xmm_space));
	ptrace(PTRACE_SETFPREGS, pid, 0, &fp);
	if (stage == LOOPING)
		code = 0xfeeb;		/* jmp . */
	ptrace(PTRACE_POKEDATA, pid, answer, code);
	ptrace(PTRACE_GETREGS, pid, 0, &regs);
	regs.rip = (ulong)answer;
	regs.rax = stage == RUNNING ? SYS_pause : SYS_getpid;
	regs.orig_rax = -1;
	regs.rbx = regs.rcx = regs.r12 = regs.r13 = regs.r14 = 0xdead;
	regs.rsp = 0xdead0000;
	ptrace(PTRACE_SETREGS, pid, 0, &regs);
	switch (stage) {
	case TRAPPED:
		ptrace(PTRACE_CONT, pid, 0, 0);
		waitpid(pid, &status, __WALL);
		break;
	case RUNNING:
	case LOOPING:
		ptrace(PTRACE_CONT, pid, 0, 0);
		usleep(10000);
		break;
	case ENTERING:
		ptrace(PTRACE_SYSCALL, pid, 0, 0);
		waitpid(pid, &status, __WALL);
		break;
	case DONE:
		ptrace(PTRACE_CONT, pid, 0, 0);
		break;	/* dies while it runs */
	}
}

/* A tracer that borrows the victim, and is killed. */
static bool trace_and_die(struct board *b, pid_t pid, int stage, bool guarded)
{
	pid_t tracer = fork();
	bool borrowed;

	if (!tracer) {
		if (!guarded)
			seize(pid, PTRACE_O_TRACESYSGOOD);
		else if (guard_bytes(stop_guarded(pid), pid, answer, 8))
			_exit(1);
		borrow(pid, stage);
		b->borrowed = true;
		if (stage != DONE)
			pause();
		kill(getpid(), SIGKILL);
	}
	while (!b->borrowed && waitpid(tracer, NULL, WNOHANG) == 0)
		usleep(1000);
	kill(tracer, SIGKILL);
	waitpid(tracer, NULL, 0);
	borrowed = b->borrowed;
	b->borrowed = false;
	return borrowed;
}

static bool goes_on(struct board *b, pid_t pid)
{
	ulong before = b->rounds;

	for (int i = 0; i < 10000 && b->rounds < before + 3; i++) {
		if (waitpid(pid, NULL, WNOHANG) == pid)
			return false;
		usleep(1000);
	}
	return b->rounds >= before + 3;
}

static ulong blocked(pid_t pid)
{
	char path[64], line[128];
	ulong mask = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "SigBlk: %lx", &mask);
	if (f)
		fclose(f);
	return mask;
}

static void wait_ready(struct board *b)
{
	while (!b->ready)
		usleep(1000);
	usleep(20000);		/* it is in its system call */
}

TEST_F(guard, a_task_that_runs_is_as_it_was_at_every_stage)
{
	struct board *b = self->board;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	for (int round = 0; round < 3; round++) {
		for (int stage = STOPPED; stage < STAGES; stage++) {
			ASSERT_TRUE(trace_and_die(b, self->victim, stage, true));
			ASSERT_TRUE(goes_on(b, self->victim)) {
				TH_LOG("stage %d", stage);
			}
			EXPECT_EQ(0, b->wrong);
			EXPECT_EQ(1UL << (SIGUSR1 - 1), blocked(self->victim));
		}
	}
}

/* It is stopped just before the INT3 of its tracer reaches it: a matter of luck. */
TEST_F(guard, a_trap_that_is_on_its_way_does_not_kill)
{
	struct board *b = self->board;
	time_t begun = time(NULL);

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	for (int i = 0; i < 200 && may_go_on(begun); i++) {
		ASSERT_TRUE(trace_and_die(b, self->victim, DONE, true));
		ASSERT_TRUE(goes_on(b, self->victim)) {
			TH_LOG("round %d", i);
		}
	}
	EXPECT_EQ(0, b->wrong);
}

/* Else the tests above would show nothing. */
TEST_F(guard, without_a_guard_it_is_lost)
{
	struct board *b = self->board;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	ASSERT_TRUE(trace_and_die(b, self->victim, TRAPPED, false));
	EXPECT_FALSE(goes_on(b, self->victim));
}

static void in_system_call(struct __test_metadata *_metadata, struct board *b,
			   int *pipe, pid_t *pid, int what)
{
	for (int stage = STOPPED; stage < STAGES; stage++) {
		memset(b, 0, sizeof(*b));
		*pid = victim(b, pipe[0], what);
		wait_ready(b);
		EXPECT_TRUE(trace_and_die(b, *pid, stage, true));
		if (what != SLEEP) {
			usleep(10000);
			EXPECT_EQ(0, b->rounds);	/* it waits as before */
			EXPECT_EQ(1, write(pipe[1], "x", 1));
		}
		EXPECT_TRUE(goes_on(b, *pid)) {
			TH_LOG("stage %d", stage);
		}
		EXPECT_EQ(1, b->result);
		EXPECT_EQ(0, b->wrong);
		EXPECT_EQ(1UL << (SIGUSR1 - 1), blocked(*pid));
		kill(*pid, SIGKILL);
		waitpid(*pid, NULL, 0);
		if (what == POLL) {
			char c;

			EXPECT_EQ(1, read(pipe[0], &c, 1));
		}
	}
}

TEST_F(guard, a_read_is_restarted)
{
	in_system_call(_metadata, self->board, self->pipe, &self->victim, READ);
}

TEST_F(guard, a_poll_with_its_own_signal_mask_is_restarted)
{
	in_system_call(_metadata, self->board, self->pipe, &self->victim, POLL);
}

TEST_F(guard, a_sleep_goes_on)
{
	in_system_call(_metadata, self->board, self->pipe, &self->victim, SLEEP);
}

/* A guard is of a traced task; after a detach the task is its own master. */
TEST_F(guard, a_detached_task_is_left_alone)
{
	struct board *b = self->board;
	uint64_t none = 0;
	pid_t tracer;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	tracer = fork();
	if (!tracer) {
		stop_guarded(self->victim);
		ptrace(PTRACE_SETSIGMASK, self->victim, 8, &none);
		ptrace(PTRACE_DETACH, self->victim, 0, 0);
		_exit(0);
	}
	waitpid(tracer, NULL, 0);
	EXPECT_TRUE(goes_on(b, self->victim));
	EXPECT_EQ(0, blocked(self->victim));
}

/* What a guard saved is over with the detach: a later one saves anew. */
TEST_F(guard, a_task_that_is_seized_again_has_its_second_state)
{
	struct board *b = self->board;
	uint64_t none = 0;
	pid_t tracer;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	tracer = fork();
	if (!tracer) {
		int session = stop_guarded(self->victim);

		ptrace(PTRACE_SETSIGMASK, self->victim, 8, &none);
		ptrace(PTRACE_DETACH, self->victim, 0, 0);
		seize(self->victim, 0);
		_exit(guard_bytes(session, self->victim, answer, 8) != 0);
	}
	EXPECT_EQ(0, exit_status(tracer));
	EXPECT_TRUE(goes_on(b, self->victim));
	EXPECT_EQ(0, blocked(self->victim));
}

/* The last that was saved is put back first. */
TEST_F(guard, ranges_that_overlap_are_as_they_were)
{
	struct board *b = self->board;
	pid_t tracer;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	tracer = fork();
	if (!tracer) {
		int session = stop_guarded(self->victim);
		char *at = (char *)answer;
		bool failed = guard_bytes(session, self->victim, at, 8);

		ptrace(PTRACE_POKEDATA, self->victim, at, -1L);
		failed |= guard_bytes(session, self->victim, at + 4, 8);
		ptrace(PTRACE_POKEDATA, self->victim, at + 4, -1L);
		_exit(failed);
	}
	EXPECT_EQ(0, exit_status(tracer));
	EXPECT_TRUE(goes_on(b, self->victim));
	EXPECT_EQ(0, b->wrong);
}

TEST_F(guard, a_victim_that_is_killed_meanwhile_keeps_nobody)
{
	struct board *b = self->board;
	pid_t tracer;

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	tracer = fork();
	if (!tracer) {
		stop_guarded(self->victim);
		kill(self->victim, SIGKILL);
		_exit(0);
	}
	EXPECT_EQ(tracer, waitpid(tracer, NULL, 0));
	EXPECT_EQ(self->victim, waitpid(self->victim, NULL, 0));
}

TEST_F(guard, what_is_not_stopped_by_the_caller_is_refused)
{
	struct board *b = self->board;
	struct vas_guard arg;
	int session = vas_session();

	self->victim = victim(b, self->pipe[0], SPIN);
	wait_ready(b);
	EXPECT_EQ(-ESRCH, guard_bytes(session, self->victim, NULL, 0));
	EXPECT_EQ(-ESRCH, guard_bytes(session, getpid(), NULL, 0));
	EXPECT_EQ(-ESRCH, guard_bytes(session, 0, NULL, 0));
	EXPECT_EQ(-ESRCH, guard_bytes(session, -1, NULL, 0));
	EXPECT_EQ(-ESRCH, guard_bytes(session, 4194303, NULL, 0));
	ptrace(PTRACE_SEIZE, self->victim, 0, 0);
	EXPECT_EQ(-ESRCH, guard_bytes(session, self->victim, NULL, 0));
	ptrace(PTRACE_DETACH, self->victim, 0, 0);
	seize(self->victim, 0);
	EXPECT_EQ(-EFAULT, guard_bytes(session, self->victim, NULL, 8));
	EXPECT_EQ(-EFAULT, guard_bytes(session, self->victim, (void *)-8L, 8));
	EXPECT_EQ(-EINVAL, guard_bytes(session, self->victim, answer,
				       VAS_GUARD_MAX + 1));
	arg = (struct vas_guard){ .tid = self->victim, .flags = 1 };
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(session, VAS_IOC_GUARD, &arg)));
	arg = (struct vas_guard){ .tid = self->victim, .reserved = 1 };
	EXPECT_EQ(-EINVAL, ret_errno(ioctl(session, VAS_IOC_GUARD, &arg)));
	EXPECT_EQ(-EFAULT, ret_errno(ioctl(session, VAS_IOC_GUARD, NULL)));
	EXPECT_EQ(0, guard_bytes(session, self->victim, answer, VAS_GUARD_MAX));
	EXPECT_EQ(0, guard_bytes(session, self->victim, answer, VAS_GUARD_MAX));
	ptrace(PTRACE_DETACH, self->victim, 0, 0);

	/* At a signal: the tracer may still take it away. */
	ptrace(PTRACE_SEIZE, self->victim, 0, 0);
	kill(self->victim, SIGWINCH);
	EXPECT_EQ(self->victim, waitpid(self->victim, NULL, __WALL));
	EXPECT_EQ(-EBUSY, guard_bytes(session, self->victim, NULL, 0));
	ptrace(PTRACE_DETACH, self->victim, 0, 0);
	close(session);
	EXPECT_TRUE(goes_on(b, self->victim));
}

TEST_HARNESS_MAIN
