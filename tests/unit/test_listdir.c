/* Names in a directory of the disk: lib/listdir.h. The Makefile puts the __wrap_ functions in its way. */
#include "lib/listdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/unit/support.h"

#define FILES 300

static bool open_fails;
static int reads_left = -1; /* until one fails; -1: none does */

DIR *__real_fdopendir(int fd);
DIR *__wrap_fdopendir(int fd);
struct dirent64 *__real_readdir64(DIR *dir);
struct dirent64 *__wrap_readdir64(DIR *dir);

DIR *__wrap_fdopendir(int fd)
{
	if (open_fails) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_fdopendir(fd);
}

struct dirent64 *__wrap_readdir64(DIR *dir)
{
	if (reads_left == 0) {
		errno = EIO;
		return NULL;
	}
	reads_left -= reads_left > 0;
	return __real_readdir64(dir);
}

/* ---- a directory ---- */

struct fixture {
	char *path;
	int fd;
};

/* A descriptor that is not closed makes the next one larger. */
static int next_fd(void)
{
	WFS_AUTO_CLOSE int fd = open("/", O_RDONLY | O_CLOEXEC);

	return fd;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char name[32];

	assert_non_null(f);
	f->path = wfs_test_mkdir();
	f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(f->fd >= 0);
	assert_int_equal(mkdirat(f->fd, "full", 0700), 0);
	assert_int_equal(mkdirat(f->fd, "empty", 0700), 0);
	assert_int_equal(symlinkat("full", f->fd, "link"), 0);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "full/%d", i);
		assert_int_equal(mknodat(f->fd, name, S_IFREG | 0600, 0), 0);
	}
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	close(f->fd);
	wfs_test_rmdir(f->path);
	free(f->path);
	free(f);
	return 0;
}

struct seen {
	unsigned times[FILES];
	unsigned n, stop_at;
};

static int see(void *ctx, int dir_fd, const char *name)
{
	struct seen *seen = ctx;
	struct stat st;
	int i = atoi(name);

	assert_int_equal(fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_in_range(i, 0, FILES - 1);
	seen->times[i]++;
	return ++seen->n == seen->stop_at ? 7 : 0;
}

static void test_each_once(void **state)
{
	struct fixture *f = *state;
	struct seen seen = { .n = 0 };

	assert_int_equal(wfs_listdir(f->fd, "full", see, &seen), 0);
	assert_int_equal(seen.n, FILES);
	for (int i = 0; i < FILES; i++)
		assert_int_equal(seen.times[i], 1);
	assert_int_equal(wfs_listdir(f->fd, "empty", see, &seen), 0);
	assert_int_equal(seen.n, FILES);
}

static void test_stops(void **state)
{
	struct fixture *f = *state;
	struct seen seen = { .stop_at = 5 };

	assert_int_equal(wfs_listdir(f->fd, "full", see, &seen), 7);
	assert_int_equal(seen.n, 5);
}

static void test_not_a_directory(void **state)
{
	struct fixture *f = *state;
	struct seen seen = { .n = 0 };
	int ret = wfs_listdir(f->fd, "link", see, &seen);

	assert_true(ret == -ELOOP || ret == -ENOTDIR);
	assert_int_equal(wfs_listdir(f->fd, "full/0", see, &seen), -ENOTDIR);
	assert_int_equal(wfs_listdir(f->fd, "absent", see, &seen), -ENOENT);
	assert_int_equal(seen.n, 0);
}

static void test_failures(void **state)
{
	struct fixture *f = *state;
	struct seen seen = { .n = 0 };

	open_fails = true;
	assert_int_equal(wfs_listdir(f->fd, "full", see, &seen), -ENOMEM);
	open_fails = false;
	assert_int_equal(seen.n, 0);
	/* A directory that cannot be read to its end is not a shorter one. */
	reads_left = 100;
	assert_int_equal(wfs_listdir(f->fd, "full", see, &seen), -EIO);
	reads_left = -1;
	assert_in_range(seen.n, 98, 100);
}

static void test_descriptors(void **state)
{
	int fd = next_fd();

	test_each_once(state);
	test_stops(state);
	test_not_a_directory(state);
	test_failures(state);
	assert_int_equal(next_fd(), fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_each_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stops, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_not_a_directory, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_failures, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_descriptors, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
