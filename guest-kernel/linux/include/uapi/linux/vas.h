/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/vas: virtual address spaces (VAS) that outlive the tasks they were
 * captured from.  This header is the single definition of the interface;
 * mvas-abi mirrors it for Rust and tests every size and offset against it.
 *
 * Two kinds of file:
 *
 *  - the *session*, an open of /dev/vas (needs CAP_CHECKPOINT_RESTORE or
 *    CAP_SYS_ADMIN in the initial user namespace).  A VAS is created in a
 *    session and is *transient* until VAS_IOC_COMMIT makes all VASes of the
 *    session permanent, at once.  Closing the session, however that happens,
 *    deletes what it did not commit, and ends the hiding of captured memory.
 *  - the *VAS file*, returned by VAS_IOC_CREATE and VAS_IOC_OPEN.  It pins the
 *    VAS: its memory is freed when it was deleted and its last file is closed.
 *
 * With VAS_FEATURE_STORE there is a snapshot store outside of this machine
 * (docs/STORE.md).  A *drain* puts VASes there as one snapshot; a drained VAS
 * may turn *cold*: its memory is only in the store until it is attached.
 * Without the store, the ioctls of it fail with EOPNOTSUPP.
 *
 * All structs are the same for 32 and 64 bit.  Reserved fields and unknown
 * flags must be zero: else EINVAL.
 */
#ifndef _UAPI_LINUX_VAS_H
#define _UAPI_LINUX_VAS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VAS_ABI_VERSION		5

/*
 * Longest name, with its terminating NUL.  A name is of [A-Za-z0-9._:@+-] and
 * does not begin with '.'.
 */
#define VAS_NAME_MAX		128

/*
 * A label is text that the kernel does not read: what user space says of a
 * snapshot, such as its name.  Zeroes follow it, one at least.  The store takes
 * only UTF-8 without control characters: else EINVAL.
 */
#define VAS_LABEL_MAX		1024

/* struct vas_info.features */
#define VAS_FEATURE_PAGEMAP_HIDE	(1ULL << 0)
#define VAS_FEATURE_STORE	(1ULL << 1)	/* the store is there now */

struct vas_info {
	__u32 abi_version;	/* out: VAS_ABI_VERSION */
	__u32 reserved;
	__u64 features;		/* out: VAS_FEATURE_* */
};

struct vas_create {
	char  name[VAS_NAME_MAX];	/* in: unique, else EEXIST */
	__u32 mode;		/* in: permission bits 0777, as of a file */
	__u32 flags;		/* in: 0 */
	__u64 id;		/* out: never 0, never used again until reboot */
};

/* By id, or by name where id is 0.  access: VAS_ACCESS_* that the file gets. */
#define VAS_ACCESS_READ		(1U << 0)	/* stat, ranges, usage, attach, get label */
#define VAS_ACCESS_WRITE	(1U << 1)	/* capture, evict, delete, set label */

struct vas_open {
	__u64 id;		/* in, out */
	char  name[VAS_NAME_MAX];	/* in, out */
	__u32 access;		/* in: VAS_ACCESS_* */
	__u32 flags;		/* in: 0 */
};

/*
 * Share all eligible memory of a task with an empty VAS, copy-on-write: private
 * VMAs that were ever written, anonymous or of a regular file, and are not hugetlb,
 * PFN-mapped, DAX, of a file and MERGEABLE, or registered with userfaultfd.  All or
 * nothing; the target sees no difference.  With @len, only what lies in
 * [start, start + len).
 *
 * Of a file's mapping the VAS has the pages that were written, and not the file's.
 *
 * Of droppable memory (MAP_DROPPABLE), where the C library keeps the state of
 * its random numbers, the VAS notes only that it is there, written or not: a VMA
 * like the others, without pages.
 *
 * With HIDE, until the session closes, the captured VMAs are without pages for
 * this process, those of droppable memory, too: PAGEMAP_SCAN reports none, and
 * what smaps counts is zero.
 *
 * What a running thread writes meanwhile may be in the VAS or not.  With STOPPED
 * that is an error: no thread of the process may run, and the caller sees to it
 * that none goes on before the ioctl returns.
 *
 * ENOTEMPTY: it holds a capture; ENOENT: it was deleted; ESTALE: HIDE, and the
 * session has closed; EBUSY: STOPPED, and it runs; ESRCH: the task has exited or
 * is being OOM-killed; EACCES: no ptrace access; ENOMEM; EINTR: a fatal signal.
 */
#define VAS_CAPTURE_HIDE	(1U << 0)
#define VAS_CAPTURE_STOPPED	(1U << 1)	/* by ptrace, or by a signal */

struct vas_capture {
	__s32 pidfd;		/* in: needs PTRACE_MODE_ATTACH */
	__u32 flags;		/* in: VAS_CAPTURE_* */
	__u64 vmas;		/* out: captured VMAs */
	__u64 pages;		/* out: resident 4 KiB pages now shared, huge ones too */
	__u64 huge_pages;	/* out: of these, PMD-mapped (in 4 KiB pages) */
	__u64 swap_pages;	/* out: swap entries now shared */
	__u64 copied_pages;	/* out: pinned pages that had to be copied */
	__u64 start;		/* in: page aligned; 0 where len is 0 */
	__u64 len;		/* in: page aligned; 0: all.  Not with HIDE */
};

/*
 * Replace memory of a task by the memory of a VAS, copy-on-write, keeping the
 * target's VMA flags, but for two: what was droppable is droppable again, and
 * empty, and so neither locked nor committed memory; what was to be wiped on fork
 * (MADV_WIPEONFORK) is so again, and with VAS_ATTACH_CLONE it is empty, as in a
 * fork's child.
 *
 * With a @snapshot, /proc/PID/vas of the target tells it from now on, and a
 * random number that no other attach has; len must be 0 then.
 *
 * [src, src + len) of the VAS appears at dst; len 0 means the whole VAS at the
 * addresses it was captured from.  The target must have eligible VMAs (see above;
 * but they need not have been written, droppable ones take only what was
 * droppable, and ones of files only what was of a file, at the same offset) wherever
 * the VAS has memory, in whatever pieces.  Whole or not at all:
 *
 * ENODATA: nothing was captured yet; ENOENT: it has nothing in the range (a
 * whole VAS may have nothing: that of a task that has only just begun); EFAULT:
 * the target has nothing mapped where it should; EBUSY: or something that is not
 * eligible, or with STOPPED, it runs; EPERM: or that is sealed; others as for a
 * capture.
 *
 * A cold VAS is filled from the store first, all of it; it stays cold if that
 * fails.  ESTALE: its snapshot is no longer in the store; ENODEV, EIO: the store
 * is gone, or failed; ENOMEM: also where there are not enough huge pages.
 */
#define VAS_ATTACH_CLONE	(1U << 0)	/* others go on from this memory, too */
#define VAS_ATTACH_STOPPED	(1U << 1)	/* as for a capture */

struct vas_attach {
	__s32 pidfd;		/* in: needs PTRACE_MODE_ATTACH */
	__u32 flags;		/* in: VAS_ATTACH_* */
	__u64 src;		/* in: page aligned */
	__u64 len;		/* in: page aligned; 0: all */
	__u64 dst;		/* in: page aligned; ignored where len is 0 */
	__u64 vmas;		/* out */
	__u64 pages;		/* out: resident pages now shared */
	__u8  snapshot[16];	/* in: identity of the snapshot, or zeroes */
};

struct vas_stat {
	__u64 id;
	char  name[VAS_NAME_MAX];
	__u32 mode;
	__u32 uid;		/* owner, in the caller's user namespace */
	__u32 gid;
	__u32 state;		/* VAS_STATE_* */
	__u64 created_ns;	/* CLOCK_REALTIME */
	__u64 vmas;
	__u64 bytes;		/* sum of the lengths of its VMAs */
	__u64 pages;		/* resident 4 KiB pages */
	__u64 huge_pages;	/* of these, PMD-mapped */
	__u64 swap_pages;
	__u64 attaches;		/* attaches since it was created */
	__u64 users;		/* open VAS files, this one included */
	__u32 store;		/* VAS_STORE_* */
	__s32 drain_error;	/* errno of the last drain that failed, else 0 */
	__u64 drained_pages;	/* 4 KiB pages that are in the store */
	__u64 stored_ns;	/* STORED, COLD: created_ns of its snapshot there, which
				 * tells it from a later one of that name; else 0 */
	__u64 reserved;
};

#define VAS_STATE_EMPTY		0	/* created, nothing captured yet */
#define VAS_STATE_TRANSIENT	1	/* captured, goes with its session */
#define VAS_STATE_COMMITTED	2	/* lives until it is deleted */

#define VAS_STORE_HOT		0	/* in this machine's memory only */
#define VAS_STORE_DRAINING	1	/* on its way to the store; usable as ever */
#define VAS_STORE_STORED	2	/* in memory and in the store */
#define VAS_STORE_COLD		3	/* in the store only: no resident pages */

struct vas_range {
	__u64 start;
	__u64 end;
	__u64 pages;		/* resident; of a cold VAS, in the store */
	__u32 prot;		/* PROT_* at the time of the capture */
	__u32 flags;		/* VAS_RANGE_* */
};

#define VAS_RANGE_HUGE		(1U << 0)	/* holds PMD-mapped pages, or would if
						 * it were not cold */

struct vas_ranges {
	__u64 start;		/* in: first address of interest; out: where to go on, 0 at the end */
	__u64 ranges;		/* in: pointer to struct vas_range[count] */
	__u32 count;		/* in: capacity; out: filled */
	__u32 reserved;
};

#define VAS_DELETE_FORCE	(1U << 0)	/* even while other VAS files are open: it
						 * loses its name and id now, its memory
						 * with the last file.  Without: EBUSY */
struct vas_delete {
	__u32 flags;
	__u32 reserved;
};

/*
 * Of the resident pages of a VAS: those that nobody else maps, and the others.
 * Exact for each page when it is looked at; a huge page counts as a whole.  A page
 * that is being moved counts as shared, one that others have only in swap as own.
 */
struct vas_usage {
	__u64 own_pages;	/* out */
	__u64 shared_pages;	/* out */
};

/*
 * A new VAS has an empty label.  It can be changed until the VAS is deleted:
 * ENOENT.
 */
struct vas_label {
	char  label[VAS_LABEL_MAX];	/* SET_LABEL: in; GET_LABEL: out */
};

/*
 * Puts VASes, which the caller may read, into the store as one snapshot, with
 * the label that the first of them has when it is complete.  Goes on in the
 * background, also when the caller ends; VAS_IOC_STAT tells how far.  The VASes
 * are usable as ever meanwhile.  Deleting one of them gives it up.
 *
 * Fails at once with EEXIST: the store has the name; ENODATA: a VAS is empty;
 * EBUSY: being drained; EALREADY: in the store; ENOENT, EACCES.  And, with SYNC
 * from here, else in @drain_error: ENOSPC: the store is full; ECANCELED: a VAS
 * was deleted; EINVAL: it takes no such label; EMFILE: the list of where its pages
 * are is longer than a store takes, 24 bytes for each run of pages (64 MiB: 2.8
 * million runs); EIO, ENODEV, ENOMEM.  After a failure the store has nothing of it,
 * and the VASes are hot.
 */
#define VAS_DRAIN_SYNC		(1U << 0)	/* wait until it is in the store */
#define VAS_DRAIN_MAX		4096		/* VASes of a snapshot */

struct vas_drain {
	char  name[VAS_NAME_MAX];	/* in: of the snapshot; as of a VAS, and begins
					 * with a letter or a digit */
	__u64 ids;		/* in: pointer to __u64[count], ids of VASes */
	__u32 count;
	__u32 flags;		/* in: VAS_DRAIN_* */
	__u64 reserved[2];
};

/*
 * Turns a VAS cold: lets its pages go, which the store has.  ENODATA: it is
 * empty; EBUSY: being drained; ENOENT: not in the store (any more).
 */
struct vas_evict {
	__u32 flags;		/* in: 0 */
	__u32 reserved;
	__u64 pages;		/* out: pages that it had */
};

struct vas_store_snapshot {
	char  name[VAS_NAME_MAX];
	__u64 created_ns;	/* CLOCK_REALTIME of the host */
	__u64 meta_bytes;	/* size of its description */
	__u64 blocks;		/* of 2 MiB, that were huge pages */
	__u64 packed_pages;	/* 4 KiB pages that were copied */
	__u64 bytes;		/* of the store */
	__u64 reserved;
	char  label[VAS_LABEL_MAX];
};

/* What complete snapshots there are in the store, for this machine. */
struct vas_store_list {
	__u64 skip;		/* in: how many to leave out */
	__u64 snapshots;	/* in: pointer to struct vas_store_snapshot[count] */
	__u32 count;		/* in: capacity; out: filled */
	__u32 reserved;
	__u64 total;		/* out: how many there are */
};

/*
 * Makes the VASes of a snapshot in the store, under their names, cold.  They
 * belong to the caller and to the session, transient until it commits.  All or
 * nothing.  They come in the order in which they were drained, and the first has
 * the snapshot's label.  Needs CAP_DAC_OVERRIDE: the store knows no owners.
 * ENOENT: no such snapshot; EEXIST: a VAS of such a name is here; EBADMSG: its
 * description makes no sense; E2BIG: more than VAS_DRAIN_MAX VASes.
 */
struct vas_store_load {
	char  name[VAS_NAME_MAX];	/* in: of the snapshot */
	__u64 ids;		/* in: pointer to __u64[count], out: ids of the VASes */
	__u32 count;		/* in: capacity; out: how many VASes there are, of
				 * which the first are in ids */
	__u32 flags;		/* in: 0 */
	__u64 reserved[2];
};

/*
 * Removes a snapshot from the store.  A VAS that is in memory stays, and is hot
 * again sooner or later; one that is cold is lost: delete it first.  Needs
 * CAP_DAC_OVERRIDE.  ENOENT: no such snapshot, or not the one that is meant.
 */
struct vas_store_delete {
	char  name[VAS_NAME_MAX];	/* in: of the snapshot */
	__u64 created_ns;	/* in: only the one made then; 0: whichever it is */
	__u32 flags;		/* in: 0 */
	__u32 reserved;
};

/*
 * Gives a snapshot in the store another label, if it still has the one that is
 * expected: of several who change what they have read, one does it, others read
 * once more.  Needs CAP_DAC_OVERRIDE.  ENOENT: no such snapshot, or it is not
 * complete yet; ESTALE: it has another label.
 */
struct vas_store_label {
	char  name[VAS_NAME_MAX];	/* in: of the snapshot */
	char  label[VAS_LABEL_MAX];	/* in */
	char  expected[VAS_LABEL_MAX];	/* in */
};

/*
 * Saves the registers and signals of a task that the caller traces by PTRACE_SEIZE
 * and has stopped by PTRACE_INTERRUPT, if there is no guard of it yet, and @len
 * bytes of its memory.  Where the calling thread exits while it traces the task,
 * however that happens, all of it is put back before the task goes on, and what the
 * task was made to do meanwhile is cut short.  So call it before changing anything.
 * A detach ends the guard.
 *
 * ESRCH: not traced by the caller, or not stopped; EBUSY: stopped elsewhere than by
 * PTRACE_INTERRUPT or a group stop; EFAULT: no such memory; ENOMEM.
 */
#define VAS_GUARD_MAX		64

struct vas_guard {
	__s32 tid;		/* in */
	__u32 flags;		/* in: 0 */
	__u64 addr;		/* in: memory that will be changed, too */
	__u32 len;		/* in: of it; up to VAS_GUARD_MAX */
	__u32 reserved;
};

#define VAS_IOC_MAGIC		0xD7

/* on a session */
#define VAS_IOC_INFO		_IOR(VAS_IOC_MAGIC, 0x00, struct vas_info)
#define VAS_IOC_CREATE		_IOWR(VAS_IOC_MAGIC, 0x01, struct vas_create)	/* returns a VAS file, O_CLOEXEC */
#define VAS_IOC_OPEN		_IOWR(VAS_IOC_MAGIC, 0x02, struct vas_open)	/* returns a VAS file, O_CLOEXEC */
#define VAS_IOC_COMMIT		_IO(VAS_IOC_MAGIC, 0x03)	/* makes all of the session permanent;
								 * ENODATA if one of them is empty */
#define VAS_IOC_DRAIN		_IOW(VAS_IOC_MAGIC, 0x04, struct vas_drain)
#define VAS_IOC_STORE_LIST	_IOWR(VAS_IOC_MAGIC, 0x05, struct vas_store_list)
#define VAS_IOC_STORE_LOAD	_IOWR(VAS_IOC_MAGIC, 0x06, struct vas_store_load)
#define VAS_IOC_STORE_DELETE	_IOW(VAS_IOC_MAGIC, 0x07, struct vas_store_delete)
#define VAS_IOC_GUARD		_IOW(VAS_IOC_MAGIC, 0x08, struct vas_guard)
#define VAS_IOC_STORE_LABEL	_IOW(VAS_IOC_MAGIC, 0x09, struct vas_store_label)

/* on a VAS file */
#define VAS_IOC_CAPTURE		_IOWR(VAS_IOC_MAGIC, 0x10, struct vas_capture)
#define VAS_IOC_ATTACH		_IOWR(VAS_IOC_MAGIC, 0x11, struct vas_attach)
#define VAS_IOC_STAT		_IOR(VAS_IOC_MAGIC, 0x12, struct vas_stat)
#define VAS_IOC_RANGES		_IOWR(VAS_IOC_MAGIC, 0x13, struct vas_ranges)
#define VAS_IOC_DELETE		_IOW(VAS_IOC_MAGIC, 0x14, struct vas_delete)
#define VAS_IOC_EVICT		_IOWR(VAS_IOC_MAGIC, 0x15, struct vas_evict)
#define VAS_IOC_GET_LABEL	_IOR(VAS_IOC_MAGIC, 0x16, struct vas_label)
#define VAS_IOC_SET_LABEL	_IOW(VAS_IOC_MAGIC, 0x17, struct vas_label)
#define VAS_IOC_USAGE		_IOR(VAS_IOC_MAGIC, 0x18, struct vas_usage)

#endif /* _UAPI_LINUX_VAS_H */
