/* SPDX-License-Identifier: GPL-2.0 */
/* Memory cgroups, right below the root. */
#ifndef VAS_CGROUP_H
#define VAS_CGROUP_H

#include "vas_test.h"

#define CG	"/sys/fs/cgroup"

static inline bool cgroups_on(void)
{
	return !write_file(CG "/cgroup.subtree_control", "+memory");
}

static inline int cgroup(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), CG "/%s", name);
	return mkdir(path, 0755) && errno != EEXIST ? -errno : 0;
}

static inline long cgroup_value(const char *name, const char *file)
{
	char path[128];

	snprintf(path, sizeof(path), CG "/%s/%s", name, file);
	return strtol(read_file(path), NULL, 10);
}

/* A value of memory.stat, memory.events or cgroup.stat. */
static inline long cgroup_key(const char *name, const char *file,
			      const char *key)
{
	char path[128];

	snprintf(path, sizeof(path), CG "/%s/%s", name, file);
	return proc_value(path, key);
}

static inline int cgroup_write(const char *name, const char *file,
			       const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), CG "/%s/%s", name, file);
	return write_file(path, text);
}

static inline int cgroup_limit(const char *name, ulong bytes)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", bytes);
	return cgroup_write(name, "memory.max", text);
}

static inline int cgroup_enter(const char *name, pid_t pid)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pid);
	return cgroup_write(name, "cgroup.procs", text);
}

static inline int cgroup_remove(const char *name)
{
	char path[128];
	int err = -EBUSY;

	snprintf(path, sizeof(path), CG "/%s", name);
	for (int i = 0; i < 50 && err == -EBUSY; i++) {
		err = rmdir(path) ? -errno : 0;
		usleep(20000);
	}
	return err;
}

/* Long enough for what a worker should not charge. */
static inline void settle(void)
{
	usleep(500000);
}

#endif /* VAS_CGROUP_H */
