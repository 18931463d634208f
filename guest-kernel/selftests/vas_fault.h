/* SPDX-License-Identifier: GPL-2.0 */
/* Fault injection, where the kernel has it: the debug flavor. */
#ifndef VAS_FAULT_H
#define VAS_FAULT_H

#include "vas_test.h"

#define FAULTS	"/sys/kernel/debug/"

/* The next-but-n allocation of this process fails; 0 ends it. */
static inline int fail_nth(int n)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", n);
	return write_file("/proc/self/fail-nth", text);
}

/* Did it? Then what was asked for is reset to 0. */
static inline bool has_failed(void)
{
	return read_file("/proc/self/fail-nth")[0] == '0';
}

/* Of both kinds of allocation. */
static inline void fault_set(const char *file, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), FAULTS "failslab/%s", file);
	write_file(path, value);
	snprintf(path, sizeof(path), FAULTS "fail_page_alloc/%s", file);
	write_file(path, value);
}

static inline bool fault_set_up(void)
{
	if (access("/proc/self/fail-nth", F_OK))
		return false;
	fault_set("ignore-gfp-wait", "N");
	fault_set("verbose", "0");
	write_file(FAULTS "fail_page_alloc/min-order", "0");
	write_file(FAULTS "fail_page_alloc/ignore-gfp-highmem", "N");
	return true;
}

#endif /* VAS_FAULT_H */
