// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata of a snapshot that makes no sense, or means harm, is refused.  The
 * host's store never keeps such, so it goes to the decoder directly (debug flavor).
 */
#include <linux/virtio_vas.h>

#include "vas_test.h"

#define DECODER	"/sys/kernel/debug/vas/meta"

/* What a load gets: two VASes, one with two VMAs and three runs, one with a VMA. */
struct image {
	struct virtio_vas_snapshot snapshot;
	struct virtio_vas_meta head;
	struct virtio_vas_meta_vas vas;
	struct virtio_vas_meta_vma vma[2];
	struct virtio_vas_meta_run run[3];
	struct virtio_vas_meta_vas other;
	struct virtio_vas_meta_vma other_vma;
};

static const struct image good = {
	.snapshot = { .name = "good", .blocks = 4, .packed_pages = 600 },
	.head = { VIRTIO_VAS_META_MAGIC, VIRTIO_VAS_META_VERSION, 2 },
	.vas = { .name = "one", .mode = 0600, .vmas = 2, .runs = 3 },
	.vma = {
		{ BASE, BASE + 8 * MiB, BASE / PAGE, PROT_READ | PROT_WRITE,
		  VIRTIO_VAS_VMA_ACCOUNT | VIRTIO_VAS_VMA_WIPEONFORK },
		{ BASE + 8 * MiB, BASE + 16 * MiB, 0, PROT_READ, VIRTIO_VAS_VMA_NORESERVE },
	},
	.run = {
		{ BASE, 1024, VIRTIO_VAS_KIND_BLOCKS, 1 },
		{ BASE + 4 * MiB, 600, VIRTIO_VAS_KIND_PACKED, 0 },
		{ BASE + 8 * MiB, 2048, VIRTIO_VAS_KIND_BLOCKS, 0 },
	},
	.other = { .name = "two", .mode = 0, .vmas = 1 },
	.other_vma = { 0, PAGE, 1, PROT_NONE,
		       VIRTIO_VAS_VMA_DROPPABLE | VIRTIO_VAS_VMA_WIPEONFORK },
};

/* 0, or -errno of the decoder. */
static int decode(const void *image, size_t len)
{
	int fd = open(DECODER, O_WRONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return -errno;
	ret = ret_errno(write(fd, image, len));
	close(fd);
	return ret == (int)len ? 0 : ret;
}

#define NEED_DECODER							\
	do {								\
		if (!kernel_has(DECODER))				\
			SKIP(return, "no CONFIG_VAS_META_TEST");	\
	} while (0)

TEST(what_is_right_is_decoded)
{
	NEED_DECODER;
	EXPECT_EQ(0, decode(&good, sizeof(good)));
}

/* An edit of one field, after which nothing of the image may be believed. */
#define BAD(field, value)						\
	do {								\
		struct image bad = good;				\
									\
		bad.field = (value);					\
		EXPECT_EQ(-EBADMSG, decode(&bad, sizeof(bad)))		\
			TH_LOG("%s = %s", #field, #value);		\
	} while (0)

TEST(heads_that_lie_are_refused)
{
	NEED_DECODER;
	BAD(head.magic, 0);
	BAD(head.version, 1);
	BAD(head.version, 3);
	BAD(head.reserved, 1);
	BAD(head.vases, 0);
	BAD(head.vases, 1);			/* bytes are left */
	BAD(head.vases, 3);
	BAD(head.vases, VAS_DRAIN_MAX);
	BAD(vas.name[0], 0);
	BAD(vas.name[0], '.');
	BAD(vas.name[1], '/');
	BAD(vas.name[1], '\n');
	BAD(vas.mode, 01000);
	BAD(vas.reserved, 1);
	BAD(vas.vmas, 0);
	BAD(vas.vmas, 1);
	BAD(vas.vmas, 3);
	BAD(vas.vmas, ~0U);
	BAD(vas.runs, 2);
	BAD(vas.runs, 4);
	BAD(vas.runs, ~0U);
	BAD(other.runs, 1);
}

TEST(a_name_without_an_end_is_refused)
{
	struct image bad = good;

	NEED_DECODER;
	memset(bad.vas.name, 'a', sizeof(bad.vas.name));
	EXPECT_EQ(-EBADMSG, decode(&bad, sizeof(bad)));
}

TEST(too_many_vases_are_refused)
{
	struct image bad = good;

	NEED_DECODER;
	bad.head.vases = VAS_DRAIN_MAX + 1;
	EXPECT_EQ(-E2BIG, decode(&bad, sizeof(bad)));
	bad.head.vases = ~0U;
	EXPECT_EQ(-E2BIG, decode(&bad, sizeof(bad)));
}

TEST(vmas_that_cannot_be_are_refused)
{
	NEED_DECODER;
	BAD(vma[0].start, BASE + 1);
	BAD(vma[0].end, BASE + 8 * MiB - 1);
	BAD(vma[0].end, BASE);			/* empty */
	BAD(vma[0].end, BASE - PAGE);		/* backwards */
	BAD(vma[0].end, BASE + 8 * MiB + PAGE);	/* into the next */
	BAD(vma[1].start, 0);			/* before the last */
	BAD(vma[1].end, 1UL << 56);		/* not the user's, on any CPU */
	BAD(vma[1].end, -PAGE);
	BAD(vma[1].end, 0);
	BAD(vma[0].pgoff, ~0UL);
	BAD(vma[0].pgoff, (~0UL >> 12) - 2047);	/* overflows at the end */
	BAD(vma[0].prot, 8);
	BAD(vma[0].prot, PROT_GROWSDOWN);
	BAD(vma[0].flags, 32);
	BAD(vma[0].flags, VIRTIO_VAS_VMA_FILE);		/* with blocks */
	BAD(vma[0].flags, VIRTIO_VAS_VMA_DROPPABLE);	/* with pages */
	BAD(vma[1].flags, VIRTIO_VAS_VMA_DROPPABLE);
	BAD(other_vma.end, 0);
}

TEST(runs_that_cannot_be_are_refused)
{
	NEED_DECODER;
	BAD(run[0].start, BASE + PAGE);		/* no place for a block */
	BAD(run[1].start, BASE + 4 * MiB + 1);
	BAD(run[1].start, BASE);		/* over the last */
	BAD(run[1].start, BASE + 4 * MiB - PAGE);
	BAD(run[0].start, BASE - 2 * MiB);	/* in no VMA */
	BAD(run[2].start, BASE + 16 * MiB);
	BAD(run[2].start, 1UL << 63);
	BAD(run[2].start, -HUGE);
	BAD(run[1].start, BASE + 8 * MiB - PAGE);	/* out of its VMA */
	BAD(run[0].pages, 0);
	BAD(run[0].pages, 511);
	BAD(run[0].pages, 1536);		/* over the next */
	BAD(run[2].pages, ~0U & ~511U);
	BAD(run[1].pages, ~0U);
	BAD(run[0].kind, 2);
	BAD(run[0].index, 3);			/* of its two blocks, one is there */
	BAD(run[0].index, ~0UL);
	BAD(run[1].index, 1);
	BAD(run[1].index, ~0UL - 599);
	BAD(snapshot.blocks, 3);
	BAD(snapshot.packed_pages, 599);
	BAD(snapshot.blocks, 1UL << 32);	/* more than a request can name */
	BAD(snapshot.packed_pages, 1UL << 32);
}

TEST(what_is_cut_short_or_too_long_is_refused)
{
	char more[sizeof(good) + 8] = {};

	NEED_DECODER;
	for (size_t len = sizeof(good.snapshot); len < sizeof(good); len++) {
		EXPECT_EQ(-EBADMSG, decode(&good, len)) TH_LOG("%lu bytes", len);
	}
	memcpy(more, &good, sizeof(good));
	EXPECT_EQ(-EBADMSG, decode(more, sizeof(good) + 1));
	EXPECT_EQ(-EBADMSG, decode(more, sizeof(good) + 8));
}

/* More than this machine would commit is no reason to panic. */
TEST(more_memory_than_there_is_is_refused)
{
	struct image bad = good;
	long committed;

	NEED_DECODER;
	committed = meminfo("Committed_AS");
	bad.vma[1].end = 1UL << 46;
	bad.vma[1].flags = VIRTIO_VAS_VMA_ACCOUNT;
	EXPECT_EQ(-ENOMEM, decode(&bad, sizeof(bad)));
	EXPECT_GE(committed + 1024, meminfo("Committed_AS"));
}

/* What is wrong by one bit is still right, or refused; KASAN and DEBUG_VM look on. */
TEST(any_flipped_bit_is_survived)
{
	int accepted = 0, refused = 0;

	NEED_DECODER;
	for (size_t bit = 0; bit < sizeof(good) * 8; bit++) {
		struct image bad = good;
		int ret;

		((unsigned char *)&bad)[bit / 8] ^= 1 << bit % 8;
		ret = decode(&bad, sizeof(bad));
		ASSERT_TRUE(!ret || ret == -EBADMSG || ret == -E2BIG || ret == -ENOMEM)
			TH_LOG("bit %lu: %d", bit, ret);
		accepted += !ret;
		refused += ret != 0;
	}
	TH_LOG("%d accepted, %d refused", accepted, refused);
	EXPECT_LT(0, accepted);			/* a letter of a name */
	EXPECT_LT(0, refused);
	EXPECT_EQ(0, decode(&good, sizeof(good)));
}

/* As many VASes as there may be, each with memory: and all of it is given back. */
TEST(what_was_decoded_is_freed)
{
	struct {
		struct virtio_vas_snapshot snapshot;
		struct virtio_vas_meta head;
		struct {
			struct virtio_vas_meta_vas vas;
			struct virtio_vas_meta_vma vma;
		} vases[VAS_DRAIN_MAX];
	} *many = calloc(1, sizeof(*many));
	long committed;

	NEED_DECODER;
	ASSERT_NE(NULL, many);
	many->snapshot = good.snapshot;
	many->head = good.head;
	many->head.vases = VAS_DRAIN_MAX;
	for (int i = 0; i < VAS_DRAIN_MAX; i++) {
		many->vases[i].vas = good.other;
		many->vases[i].vma = good.vma[0];
	}
	committed = meminfo("Committed_AS");
	EXPECT_EQ(0, decode(many, sizeof(*many)));
	many->vases[VAS_DRAIN_MAX - 1].vma.flags = 16;
	EXPECT_EQ(-EBADMSG, decode(many, sizeof(*many)));
	EXPECT_GE(committed + 64 * 1024, meminfo("Committed_AS"));
	free(many);
}

TEST_HARNESS_MAIN
