/*
 * probe.c - what one operation on one file costs.
 *
 *     bench-probe PASSES < PATHS
 *
 * Does each of the operations below on every path, one operation after the other, and prints for
 * each a line "NAME<TAB>MICROSECONDS<TAB>…", a number for each path. The paths should not have been
 * looked at since the mount: lookup and the first open are then the first of their kind, and later
 * passes leave them out. Beside each file a copy and a new file are made and removed again.
 */
#include <stdbool.h>
#include <stdio.h>

#include "tests/bench/common.h"

#define MAX_PATHS 10000
#define ROOM 4096

static char *paths[MAX_PATHS];
static size_t n_paths;

static void die(const char *path)
{
	err(1, "%s", path);
}

/* ---- the operations ---- */

static void op_lookup(const char *path)
{
	struct stat st;

	if (lstat(path, &st) != 0)
		die(path);
}

/* Asks the file system itself, whatever the kernel remembers. */
static void op_getattr(const char *path)
{
	struct statx stx;

	if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS,
		    &stx) != 0)
		die(path);
}

static void op_open(const char *path)
{
	char buf[PAGE];
	int fd = open_or_die(path, O_RDONLY);

	if (pread(fd, buf, sizeof(buf), 0) <= 0)
		die(path);
	close(fd);
}

static void beside(char name[ROOM], const char *path, const char *ending)
{
	if (snprintf(name, ROOM, "%s.%s", path, ending) >= ROOM)
		errx(2, "%s: too long", path);
}

static void op_copy(const char *path)
{
	char name[ROOM];
	int from = open_or_die(path, O_RDONLY), to;
	uint64_t left = size_of(from);

	beside(name, path, "copy");
	to = open_or_die(name, O_WRONLY | O_CREAT | O_EXCL);
	while (left > 0) {
		ssize_t n = copy_file_range(from, NULL, to, NULL, left, 0);

		if (n <= 0)
			die(name);
		left -= (uint64_t)n;
	}
	if (close(to) != 0)
		die(name);
	close(from);
}

static void op_rename(const char *path)
{
	char from[ROOM], to[ROOM];

	beside(from, path, "copy");
	beside(to, path, "moved");
	if (rename(from, to) != 0)
		die(from);
}

static void op_remove(const char *path)
{
	char name[ROOM];

	beside(name, path, "moved");
	if (unlink(name) != 0)
		die(name);
}

static void op_create(const char *path)
{
	char name[ROOM];

	beside(name, path, "new");
	close(open_or_die(name, O_WRONLY | O_CREAT | O_EXCL));
}

static void op_remove_new(const char *path)
{
	char name[ROOM];

	beside(name, path, "new");
	if (unlink(name) != 0)
		die(name);
}

static const struct {
	const char *name; /* NULL: not timed */
	void (*run)(const char *path);
	bool first; /* only in the first pass */
} ops[] = {
	{ "lookup", op_lookup, true },
	{ "getattr", op_getattr, false },
	{ "first open and read", op_open, true },
	{ "open and read", op_open, false },
	{ "copy", op_copy, false },
	{ "rename", op_rename, false },
	{ "remove", op_remove, false },
	{ "create", op_create, false },
	{ NULL, op_remove_new, false },
};

/* Lookup is to cost one lookup: the directories above are known. */
static void look_at_directory(const char *path)
{
	char name[ROOM];
	char *slash;

	snprintf(name, sizeof(name), "%s", path);
	slash = strrchr(name, '/');
	if (!slash)
		return;
	*slash = '\0';
	op_lookup(name);
}

static void read_paths(void)
{
	char line[ROOM];

	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (n_paths == MAX_PATHS || !(paths[n_paths++] = strdup(line)))
			errx(2, "too many paths");
		look_at_directory(line);
	}
}

int main(int argc, char **argv)
{
	uint64_t passes = argc == 2 ? number(argv[1]) : 0;

	if (passes == 0)
		errx(2, "usage: bench-probe PASSES < PATHS");
	read_paths();
	for (uint64_t pass = 0; pass < passes; pass++)
		for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++) {
			if (ops[i].first && pass > 0)
				continue;
			if (ops[i].name)
				printf("%s", ops[i].name);
			for (size_t j = 0; j < n_paths; j++) {
				double begin = now();

				ops[i].run(paths[j]);
				if (ops[i].name)
					printf("\t%.2f", (now() - begin) * 1e6);
			}
			if (ops[i].name)
				puts("");
		}
	return 0;
}
