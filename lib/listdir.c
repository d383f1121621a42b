#include "lib/listdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

static bool is_dots(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

int wfs_listdir(int at_fd, const char *path, int (*fn)(void *ctx, int dir_fd, const char *name),
	void *ctx)
{
	int fd = openat(at_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *e;
	int ret = dir ? 0 : -errno;

	if (!dir && fd >= 0)
		close(fd);
	while (dir && ret == 0) {
		errno = 0;
		e = readdir(dir);
		if (!e) {
			ret = -errno;
			break;
		}
		if (!is_dots(e->d_name))
			ret = fn(ctx, fd, e->d_name);
	}
	if (dir)
		closedir(dir);
	return ret;
}

struct other {
	bool (*is_own)(const char *name);
	char *name;
};

static int find_other(void *ctx, int dir_fd, const char *name)
{
	struct other *other = ctx;

	(void)dir_fd;
	if (other->is_own(name))
		return 0;
	snprintf(other->name, NAME_MAX + 1, "%s", name);
	return 1;
}

int wfs_listdir_other(int dir_fd, bool (*is_own)(const char *name), char *ret_name)
{
	struct other other = { is_own, ret_name };

	return wfs_listdir(dir_fd, ".", find_other, &other);
}
