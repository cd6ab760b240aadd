/* A constant text under every name that is read here, by libfuse 3: what a server in C would cost if its views cost nothing.

   cc -O2 floor.c $(pkg-config --cflags --libs fuse3) */

#define FUSE_USE_VERSION 31

#include <errno.h>
#include <fuse.h>
#include <string.h>

#define LINE "MemTotal:         262144 kB\n"
#define SIX LINE LINE LINE LINE LINE LINE

/* 1.5 kB, the size of a /proc/meminfo. */
static const char text[] = SIX SIX SIX SIX SIX SIX SIX SIX SIX;

static const char *const names[] = {"meminfo", "cpuinfo", "stat", "swaps", "diskstats", "uptime", "loadavg"};

static int is_file(const char *path)
{
	if (strncmp(path, "/proc/", 6))
		return 0;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(path + 6, names[i]))
			return 1;
	return 0;
}

static int get_attributes(const char *path, struct stat *attributes, struct fuse_file_info *file)
{
	(void)file;
	memset(attributes, 0, sizeof *attributes);
	if (!strcmp(path, "/") || !strcmp(path, "/proc")) {
		attributes->st_mode = S_IFDIR | 0555;
		attributes->st_nlink = 2;
		return 0;
	}
	if (!is_file(path))
		return -ENOENT;
	attributes->st_mode = S_IFREG | 0444;
	attributes->st_nlink = 1;
	return 0;
}

static int open_file(const char *path, struct fuse_file_info *file)
{
	(void)path;
	file->direct_io = 1; /* as its size is not known before it is read */
	return 0;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
	(void)path;
	(void)file;
	size_t length = sizeof text - 1;
	if ((size_t)offset >= length)
		return 0;
	if (size > length - offset)
		size = length - offset;
	memcpy(buffer, text + offset, size);
	return size;
}

static const struct fuse_operations operations = {.getattr = get_attributes, .open = open_file, .read = read_file};

int main(int argc, char *argv[])
{
	return fuse_main(argc, argv, &operations, NULL);
}
