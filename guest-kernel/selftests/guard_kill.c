// SPDX-License-Identifier: GPL-2.0
/*
 * Guards: a tracer is killed after any number of its instructions, and its victims,
 * which count all that they do, notice nothing.  GUARD_SECONDS in the environment
 * says how long for each victim: thousands of kills take hours where all is
 * emulated.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

#include "vas_guard.h"

#define RW	(PROT_READ | PROT_WRITE)
#define SECONDS	"10"

/* What the victim counts. */
struct board {
	volatile ulong rounds;		/* each writes a byte, but in SEQUENCE */
	volatile ulong wrong;
	volatile ulong int3s, traps;
	volatile bool stop;
};

/* Victims: what each does in its rounds, or who watches it. */
enum { PLAIN, FILTER_ERRNO, FILTER_KILL, INT3, SEQUENCE };

FIXTURE(kill)
{
	struct board *board;
	int pipe[2];
	ulong bytes;		/* that came out of the pipe */
	pid_t victim;		/* 0: it has ended, by: */
	int status;
};

FIXTURE_SETUP(kill)
{
	cpu_set_t one;

	/* Each step is three tasks' turn: that takes long between emulated CPUs. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	self->board = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->board);
	ASSERT_EQ(0, pipe(self->pipe));
	ASSERT_EQ(0, fcntl(self->pipe[0], F_SETFL, O_NONBLOCK));
}

FIXTURE_TEARDOWN(kill)
{
	if (self->victim > 0) {
		kill(self->victim, SIGKILL);
		waitpid(self->victim, NULL, 0);
	}
	munmap(self->board, PAGE);
	close(self->pipe[0]);
	close(self->pipe[1]);
}

/* --- Victims --- */

static struct board *board;

static void on_trap(int signr)
{
	board->traps++;
}

static void on_poke(int signr)
{
}

/* All system calls but the few that the victim needs end in @action. */
static void filter(uint32_t action)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_SIZE(code), code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		board->wrong++;
}

/* Also the one that holds a system call's result. */
static bool registers_change(void)
{
	ulong changed;

	asm volatile("mov $0x1212, %%rax\n\t"
		     "mov $0x3434, %%rdx\n\t"
		     "mov $0x5656, %%r8\n\t"
		     "mov $0x7878, %%r11\n\t"
		     "mov $3000, %%ecx\n"
		     "1:\tdec %%ecx\n\t"
		     "jnz 1b\n\t"
		     "xor $0x1212, %%rax\n\t"
		     "xor $0x3434, %%rdx\n\t"
		     "xor $0x5656, %%r8\n\t"
		     "xor $0x7878, %%r11\n\t"
		     "or %%rdx, %%rax\n\t"
		     "or %%r8, %%rax\n\t"
		     "or %%r11, %%rax\n\t"
		     : "=a" (changed) : : "rcx", "rdx", "r8", "r11", "cc");
	return changed;
}

/*
 * A restartable sequence that waits for ever: it is left when the kernel has it
 * begin again, to where it is sent then.
 */
static void restartable_sequence(void)
{
	struct rseq *area = __builtin_thread_pointer() + __rseq_offset;

	asm volatile(".pushsection .data.rseq_cs, \"aw\"\n\t"
		     ".balign 32\n"
		     "3:\t.long 0, 0\n\t"
		     ".quad 1f, 2f - 1f, 4f\n\t"
		     ".popsection\n\t"
		     "lea 3b(%%rip), %%rax\n\t"
		     "mov %%rax, %0\n"
		     "1:\tjmp 1b\n"
		     "2:\t.byte 0x0f, 0xb9, 0x3d\n\t"
		     ".long %c1\n"	/* it must stand before where it is sent */
		     "4:\n\t"
		     : "=m" (area->rseq_cs) : "i" (RSEQ_SIG) : "rax", "memory");
}

/* Code of the victim that the tracer overwrites. */
__attribute__((noipa, aligned(64)))
static int answer(void)
{
	return 42;
}

static pid_t victim(struct board *b, int fd, int what)
{
	struct sched_param none = {};
	pid_t pid;

	board = b;
	signal(SIGTRAP, on_trap);
	signal(SIGUSR1, on_poke);	/* before the first one comes */
	pid = fork();
	if (pid)
		return pid;
	/* It is never at rest, and each step of its tracer is to come before it. */
	sched_setscheduler(0, SCHED_IDLE, &none);
	if (what == FILTER_ERRNO)
		filter(SECCOMP_RET_ERRNO | EPERM);
	if (what == FILTER_KILL)
		filter(SECCOMP_RET_KILL_PROCESS);
	while (!b->stop) {
		if (what == SEQUENCE)
			restartable_sequence();
		else if (write(fd, "x", 1) != 1)
			b->wrong++;
		if (what == INT3) {
			b->int3s++;
			asm volatile("int3");
		}
		if (registers_change() || answer() != 42)
			b->wrong++;
		b->rounds++;
	}
	_exit(0);
}

/* --- The tracer --- */

/*
 * As CRIU: runs a system call in the victim, over its code, with all signals
 * blocked, and puts everything back.  Another descriptor of the session changes
 * nothing.
 */
static void borrow(pid_t pid, bool detach)
{
	uint64_t all = ~0UL, blocked;
	struct user_regs_struct old, regs;
	long code;

	ptrace(PTRACE_GETSIGMASK, pid, 8, &blocked);
	ptrace(PTRACE_SETSIGMASK, pid, 8, &all);
	code = ptrace(PTRACE_PEEKDATA, pid, answer, 0);
	ptrace(PTRACE_POKEDATA, pid, answer, 0xcccccccccccc050f);
	ptrace(PTRACE_GETREGS, pid, 0, &old);
	regs = old;
	regs.rip = (ulong)answer;
	regs.rax = SYS_getpid;
	regs.orig_rax = -1;
	regs.rsp = regs.rdx = regs.r8 = 0xdead;
	ptrace(PTRACE_SETREGS, pid, 0, &regs);
	ptrace(PTRACE_SYSCALL, pid, 0, 0);	/* to its entry */
	waitpid(pid, NULL, __WALL);
	ptrace(PTRACE_SYSCALL, pid, 0, 0);	/* to its exit */
	waitpid(pid, NULL, __WALL);
	ptrace(PTRACE_CONT, pid, 0, 0);		/* to the INT3 */
	waitpid(pid, NULL, __WALL);
	if (!detach)
		_exit(0);
	ptrace(PTRACE_SETREGS, pid, 0, &old);
	ptrace(PTRACE_POKEDATA, pid, answer, code);
	ptrace(PTRACE_SETSIGMASK, pid, 8, &blocked);
	ptrace(PTRACE_DETACH, pid, 0, 0);
	_exit(0);
}

/*
 * Kills a tracer after @steps instructions from the guard on; which it was, if it
 * came so far.  This tracer does not put back everything: an INT3 of the victim and
 * its own are one signal, and the sequence that the victim was in is forgotten.  So
 * such a victim is never let go.
 */
static ulong kill_after(ulong steps, pid_t pid, bool detach)
{
	pid_t tracer = fork();
	int status, signr = 0;
	ulong n;

	if (!tracer) {
		int session = vas_session();

		dup(session);
		seize(pid, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
		if (guard_bytes(session, pid, answer, 8))
			_exit(1);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		borrow(pid, detach);
	}
	waitpid(tracer, &status, 0);
	if (!WIFSTOPPED(status))
		return 0;
	for (n = 0; n < steps; n++) {
		ptrace(PTRACE_SINGLESTEP, tracer, 0, signr);
		waitpid(tracer, &status, __WALL);
		if (!WIFSTOPPED(status))
			return n;
		signr = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
	}
	kill(tracer, SIGKILL);
	waitpid(tracer, &status, 0);
	return n;
}

/* --- Whether all is well --- */

static void drain_pipe(FIXTURE_DATA(kill) *self)
{
	char bytes[4096];
	ssize_t n;

	while ((n = read(self->pipe[0], bytes, sizeof(bytes))) > 0)
		self->bytes += n;
}

/* Waits for @rounds more, or the end, for which that is too few. */
static bool goes_on(FIXTURE_DATA(kill) *self, ulong rounds)
{
	ulong until = self->board->rounds + rounds;

	for (int i = 0; i < 10000 && self->board->rounds < until; i++) {
		if (waitpid(self->victim, &self->status, WNOHANG)) {
			self->victim = 0;
			break;
		}
		drain_pipe(self);
		kill(self->victim, SIGUSR1);
		usleep(1000);
	}
	return self->board->rounds >= until;
}

static void kills(struct __test_metadata *_metadata, FIXTURE_DATA(kill) *self,
		  int what)
{
	time_t end = time(NULL) + atoi(getenv("GUARD_SECONDS") ?: SECONDS);
	bool detach = what != INT3 && what != SEQUENCE;
	struct board *b = self->board;
	ulong all, done = 0;

	srandom(getpid() ^ time(NULL));
	self->victim = victim(b, self->pipe[1], what);
	ASSERT_TRUE(goes_on(self, 3));
	all = kill_after(-1UL, self->victim, detach);
	do {
		ulong steps = random() % all;

		kill_after(steps, self->victim, detach);
		ASSERT_TRUE(goes_on(self, 3)) {
			TH_LOG("killed after %lu of %lu steps", steps, all);
		}
		ASSERT_EQ(0, b->wrong) {
			TH_LOG("killed after %lu of %lu steps", steps, all);
		}
		done++;
	} while (time(NULL) < end);
	b->stop = true;
	while (self->victim && goes_on(self, 1))
		;
	drain_pipe(self);
	EXPECT_EQ(0, self->victim);
	EXPECT_EQ(0, self->status);
	EXPECT_EQ(b->int3s, b->traps);
	EXPECT_EQ(what == SEQUENCE ? 0 : b->rounds, self->bytes);
	TH_LOG("%lu kills within %lu steps, %lu rounds", done, all, b->rounds);
}

TEST_F(kill, a_victim_that_writes_writes_each_byte_once)
{
	kills(_metadata, self, PLAIN);
}

TEST_F(kill, a_filter_that_refuses_does_not_see_it)
{
	kills(_metadata, self, FILTER_ERRNO);
}

TEST_F(kill, a_filter_that_kills_does_not_see_it)
{
	kills(_metadata, self, FILTER_KILL);
}

TEST_F(kill, a_victim_that_traps_gets_each_trap)
{
	kills(_metadata, self, INT3);
}

TEST_F(kill, a_restartable_sequence_begins_again)
{
	kills(_metadata, self, SEQUENCE);
}

TEST_HARNESS_MAIN
