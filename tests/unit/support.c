#include "tests/unit/support.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static _Noreturn void give_up(const char *what)
{
	fprintf(stderr, "test support: %s: %s\n", what, strerror(errno));
	exit(99);
}

char *wfs_test_path(const char *dir, const char *fmt, ...)
{
	WFS_AUTO_FREE char *name = NULL;
	char *path;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&name, fmt, ap) < 0)
		give_up(fmt);
	va_end(ap);
	if (asprintf(&path, "%s/%s", dir, name) < 0)
		give_up(name);
	return path;
}

static void make_parents(const char *path)
{
	WFS_AUTO_FREE char *copy = strdup(path);

	if (!copy)
		give_up(path);
	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, 0700) != 0 && errno != EEXIST)
			give_up(copy);
		*p = '/';
	}
}

char *wfs_test_mkdir(void)
{
	const char *base = getenv("TMPDIR");
	char *path = wfs_test_path(base && *base ? base : "build/tests/tmp", "wfs-XXXXXX");

	make_parents(path);
	if (!mkdtemp(path))
		give_up(path);
	return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void wfs_test_rmdir(const char *path)
{
	if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
		give_up(path);
}

void wfs_test_write(const char *path, const void *bytes, size_t len)
{
	WFS_AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, bytes, len) != (ssize_t)len)
		give_up(path);
}

void *wfs_test_read(const char *path, size_t *ret_len)
{
	WFS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *bytes;

	if (fd < 0 || fstat(fd, &st) != 0)
		give_up(path);
	bytes = malloc((size_t)st.st_size + 1);
	if (!bytes || read(fd, bytes, (size_t)st.st_size) != st.st_size)
		give_up(path);
	*ret_len = (size_t)st.st_size;
	return bytes;
}
