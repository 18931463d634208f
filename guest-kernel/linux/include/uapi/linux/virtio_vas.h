/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * virtio-vas: moves 2 MiB blocks between guest memory and the host's snapshot
 * store.  This header is the single definition of the numbers and layouts;
 * docs/VIRTIO-VAS.md says what they mean, and mvas-abi mirrors them for Rust
 * and tests every size and offset against this header.
 *
 * A request is one descriptor chain: readable struct virtio_vas_request and
 * its payload, then writable struct virtio_vas_response and its payload.
 * Reserved fields and unknown flags must be zero.
 */
#ifndef _UAPI_LINUX_VIRTIO_VAS_H
#define _UAPI_LINUX_VIRTIO_VAS_H

#include <linux/types.h>

/* The device id; not assigned by OASIS. */
#define VIRTIO_VAS_DEVICE_ID	0x8056
#define VIRTIO_VAS_VERSION	3

/* Queues: every operation may be sent on either. */
#define VIRTIO_VAS_REQUESTQ	0
#define VIRTIO_VAS_RELEASEQ	1
#define VIRTIO_VAS_QUEUES	2

#define VIRTIO_VAS_BLOCK_SIZE	(1U << 21)	/* bytes */
#define VIRTIO_VAS_PAGE_SIZE	(1U << 12)	/* bytes */
#define VIRTIO_VAS_BLOCK_PAGES	512		/* pages in a block */

#define VIRTIO_VAS_MAX_ENTRIES	65536		/* of a request's array */
#define VIRTIO_VAS_MAX_BYTES	(1U << 20)	/* of one META or FETCH */
#define VIRTIO_VAS_MAX_HANDLES	64
#define VIRTIO_VAS_MAX_META	64		/* MiB of a snapshot's metadata */

/* With its NUL; of [A-Za-z0-9._:@+-], beginning with a letter or a digit. */
#define VIRTIO_VAS_NAME_MAX	128
/* UTF-8 without control characters, with its NUL. */
#define VIRTIO_VAS_LABEL_MAX	1024

struct virtio_vas_config {
	__le32 version;		/* VIRTIO_VAS_VERSION */
	__le32 max_entries;	/* in a request's array */
	__le32 max_meta;	/* of a snapshot, in MiB */
	__le32 reserved;
};

/* struct virtio_vas_request.op */
#define VIRTIO_VAS_OP_CREATE	1	/* in: name */
#define VIRTIO_VAS_OP_PUBLISH	2	/* in: __le64 gpa[count] of blocks */
#define VIRTIO_VAS_OP_COPY	3	/* in: __le64 gpa[count] of pages */
#define VIRTIO_VAS_OP_META	4	/* in: count bytes; arg: their offset */
#define VIRTIO_VAS_OP_COMMIT	5
#define VIRTIO_VAS_OP_OPEN	6	/* in: name; out: snapshot */
#define VIRTIO_VAS_OP_FETCH	7	/* arg: offset; out: bytes */
#define VIRTIO_VAS_OP_MAP	8	/* in: map[count] */
#define VIRTIO_VAS_OP_RELEASE	9	/* in: range[count] */
#define VIRTIO_VAS_OP_CLOSE	10
#define VIRTIO_VAS_OP_LIST	11	/* arg: how many to skip; out: snapshot[] */
#define VIRTIO_VAS_OP_DELETE	12	/* in: name; arg: created_ns, or 0 */
#define VIRTIO_VAS_OP_LABEL	13	/* in: label; of the handle, a draft, or
					 * where that is 0 of a complete snapshot */

struct virtio_vas_request {
	__le32 op;		/* VIRTIO_VAS_OP_* */
	__le32 count;		/* entries or bytes of the payload, else 0 */
	__le64 handle;		/* of a snapshot, else 0 */
	__le64 arg;		/* as the operation says, else 0 */
	__le64 reserved;
};

/* struct virtio_vas_response.status */
#define VIRTIO_VAS_S_OK		0
#define VIRTIO_VAS_S_BAD_REQUEST	1	/* lengths, op, count, reserved */
#define VIRTIO_VAS_S_BAD_RANGE	2	/* not aligned, not RAM, twice */
#define VIRTIO_VAS_S_BAD_HANDLE	3
#define VIRTIO_VAS_S_NOT_FOUND	4	/* or not granted */
#define VIRTIO_VAS_S_EXISTS	5
#define VIRTIO_VAS_S_STATE	6	/* draft or complete; published twice */
#define VIRTIO_VAS_S_NO_SPACE	7
#define VIRTIO_VAS_S_BAD_META	8
#define VIRTIO_VAS_S_LIMIT	9	/* too many handles, too much metadata */
#define VIRTIO_VAS_S_HOST	10	/* the host failed; its log says why */
#define VIRTIO_VAS_S_CHANGED	11	/* the label is not the one expected */

struct virtio_vas_response {
	__le32 status;		/* VIRTIO_VAS_S_* */
	__le32 done;		/* entries that took effect, bytes or structs */
	__le64 value;		/* as the operation says, else 0 */
};

struct virtio_vas_name {
	char name[VIRTIO_VAS_NAME_MAX];	/* zeroes after it */
};

struct virtio_vas_label {
	char name[VIRTIO_VAS_NAME_MAX];		/* of a complete snapshot, else zeroes */
	char label[VIRTIO_VAS_LABEL_MAX];	/* zeroes after it */
	char expected[VIRTIO_VAS_LABEL_MAX];	/* what a complete one has, else zeroes */
};

/* struct virtio_vas_map.kind, struct virtio_vas_meta_run.kind */
#define VIRTIO_VAS_KIND_BLOCKS	0	/* what PUBLISH made; index: a block */
#define VIRTIO_VAS_KIND_PACKED	1	/* what COPY made */

struct virtio_vas_map {
	__le64 gpa;		/* of a block */
	__le32 index;		/* BLOCKS: block; PACKED: pages from 512 * index */
	__le32 kind;		/* VIRTIO_VAS_KIND_* */
};

/* Whole blocks. */
struct virtio_vas_range {
	__le64 gpa;
	__le64 bytes;
};

struct virtio_vas_snapshot {
	char   name[VIRTIO_VAS_NAME_MAX];
	__le64 created_ns;	/* CLOCK_REALTIME */
	__le64 meta_bytes;
	__le64 blocks;		/* that PUBLISH made */
	__le64 packed_pages;	/* that COPY made */
	__le64 bytes;		/* of host memory, all its blocks */
	__le64 reserved;
	char   label[VIRTIO_VAS_LABEL_MAX];
};

/*
 * A snapshot's metadata: struct virtio_vas_meta; then for each VAS a struct
 * virtio_vas_meta_vas, its VMAs and its runs, both ascending.
 */
#define VIRTIO_VAS_META_MAGIC	0x4d534156	/* "VASM" */
#define VIRTIO_VAS_META_VERSION	2

struct virtio_vas_meta {
	__le32 magic;		/* VIRTIO_VAS_META_MAGIC */
	__le32 version;		/* VIRTIO_VAS_META_VERSION */
	__le32 vases;
	__le32 reserved;
};

struct virtio_vas_meta_vas {
	char   name[VIRTIO_VAS_NAME_MAX];
	__le32 mode;		/* permission bits */
	__le32 vmas;
	__le32 runs;
	__le32 reserved;
};

/* struct virtio_vas_meta_vma.flags */
#define VIRTIO_VAS_VMA_ACCOUNT		(1U << 0)
#define VIRTIO_VAS_VMA_NORESERVE	(1U << 1)
#define VIRTIO_VAS_VMA_DROPPABLE	(1U << 2)	/* it has no runs */
#define VIRTIO_VAS_VMA_WIPEONFORK	(1U << 3)
#define VIRTIO_VAS_VMA_FILE		(1U << 4)	/* of a file's private mapping: it has no
							 * blocks, and elsewhere the file's pages */

struct virtio_vas_meta_vma {
	__le64 start;
	__le64 end;
	__le64 pgoff;
	__le32 prot;		/* PROT_* */
	__le32 flags;		/* VIRTIO_VAS_VMA_* */
};

struct virtio_vas_meta_run {
	__le64 start;
	__le32 pages;
	__le32 kind;		/* VIRTIO_VAS_KIND_* */
	__le64 index;		/* of its first block, or of its first packed page */
};

#endif /* _UAPI_LINUX_VIRTIO_VAS_H */
