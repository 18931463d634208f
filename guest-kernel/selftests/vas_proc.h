/* SPDX-License-Identifier: GPL-2.0 */
/* What /proc and /sys say, and swap. Part of vas_test.h. */
#ifndef VAS_PROC_H
#define VAS_PROC_H

static inline int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -errno;
	ret = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

/* The number after @key in @file (in kB where the file has kB); -1 if none. */
static inline long proc_value(const char *file, const char *key)
{
	char line[512];
	size_t len = strlen(key);
	long value = -1;
	FILE *f = fopen(file, "re");

	if (!f)
		return -1;
	while (value < 0 && fgets(line, sizeof(line), f)) {
		char *p = line;

		if (!strncmp(p, key, len) && (p[len] == ':' || p[len] == ' '))
			value = strtol(p + len + 1, NULL, 10);
	}
	fclose(f);
	return value;
}

static inline long pid_status(pid_t pid, const char *key)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return proc_value(path, key);
}

/* How many VMAs. */
static inline int map_count(pid_t pid)
{
	char path[64];
	int n = 0, c;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "re");
	while ((c = fgetc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

static inline long meminfo(const char *key)
{
	/* Sum up what CPUs count on their own. */
	write_file("/proc/sys/vm/stat_refresh", "1");
	return proc_value("/proc/meminfo", key);
}

/* The value of @key in smaps of the VMA that begins at @addr; -1 if none. */
static inline long smaps_value(pid_t pid, ulong addr, const char *key)
{
	char path[64], line[512];
	size_t len = strlen(key);
	long value = -1;
	bool here = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (value < 0 && fgets(line, sizeof(line), f)) {
		ulong start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == addr;
		else if (here && !strncmp(line, key, len) && line[len] == ':')
			value = strtol(line + len + 1, NULL, 10);
	}
	fclose(f);
	return value;
}

/* Has the VMA that begins at @addr this of smaps' VmFlags, two letters? */
static inline bool vm_flag(pid_t pid, ulong addr, const char *flag)
{
	char path[64], line[512];
	bool here = false, has = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		ulong start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == addr;
		else if (here && !strncmp(line, "VmFlags:", 8))
			has = strstr(line + 8, flag);
	}
	if (f)
		fclose(f);
	return has;
}

static inline bool kernel_has(const char *path)
{
	return access(path, F_OK) == 0;
}

/* Swap on zram; nothing else uses that. */
#define SWAP	(512 * MiB)
static inline int swap_on(void)
{
	static char page[PAGE];
	int fd;

	if (write_file("/sys/block/zram0/disksize", "512M"))
		return -1;
	fd = open("/dev/zram0", O_RDWR | O_CLOEXEC);
	*(uint32_t *)(page + 1024) = 1;				/* version */
	*(uint32_t *)(page + 1028) = SWAP / PAGE - 1;	/* last page */
	memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
	if (fd < 0 || write(fd, page, PAGE) != PAGE || close(fd))
		return -1;
	return swapon("/dev/zram0", 0);
}

static inline void swap_off(void)
{
	swapoff("/dev/zram0");
	write_file("/sys/block/zram0/reset", "1");
}

/* A file's text without its newline; "" if it cannot be read. */
static inline const char *read_file(const char *path)
{
	static char text[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	return text;
}

static inline const char *vas_sysfs(uint64_t id, const char *file)
{
	static char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/vas/%lu/%s", id, file);
	return path;
}

#endif /* VAS_PROC_H */
