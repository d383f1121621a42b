/*
 * worker.c - one piece of work on files, timed.
 *
 *     bench-worker read FILE BLOCK            sequential reads of BLOCK bytes
 *     bench-worker map FILE THREADS           every page of a mapping, in equal parts, touched by THREADS threads
 *     bench-worker random FILE BLOCK COUNT    reads of BLOCK bytes at aligned places, the same in each run
 *     bench-worker write FILE BLOCK SIZE      SIZE bytes that do not repeat, in writes of BLOCK bytes, to close(2)
 *     bench-worker create|stat|open|remove DIR COUNT   small files, in 20 directories
 *     bench-worker faults FILE THREADS        as map, in single pages in a random order
 *
 * Prints the seconds that the work took, without the start of the process.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DIRECTORIES 20
#define SMALL 2000 /* bytes of a small file */
#define PAGE 4096

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next_random(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *state;

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || n == 0)
		errx(2, "%s: not a number above 0", text);
	return n;
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static uint64_t size_of(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		err(1, "fstat");
	return (uint64_t)st.st_size;
}

static void *block_of(size_t size)
{
	void *p;

	if (posix_memalign(&p, PAGE, size) != 0)
		errx(1, "no memory");
	memset(p, 1, size);
	return p;
}

/* ---- one large file ---- */

static void work_read(const char *path, size_t block)
{
	int fd = open_or_die(path, O_RDONLY);
	void *buf = block_of(block);
	ssize_t n;

	while ((n = read(fd, buf, block)) > 0)
		;
	if (n < 0)
		err(1, "%s", path);
	close(fd);
}

static void work_random(const char *path, size_t block, uint64_t count)
{
	int fd = open_or_die(path, O_RDONLY);
	uint64_t blocks = size_of(fd) / block, state = 1;
	void *buf = block_of(block);

	for (uint64_t i = 0; i < count; i++)
		if (pread(fd, buf, block, (off_t)(next_random(&state) % blocks * block)) != (ssize_t)block)
			err(1, "%s", path);
	close(fd);
}

static void work_write(const char *path, size_t block, uint64_t size)
{
	int fd = open_or_die(path, O_WRONLY | O_CREAT | O_TRUNC);
	uint64_t *buf = block_of(block);
	uint64_t state = (uint64_t)getpid() << 32;

	for (size_t i = 0; i < block / 8; i++)
		buf[i] = next_random(&state);
	for (uint64_t done = 0; done < size; done += block) {
		for (size_t i = 0; i < block / 8; i += PAGE / 8)
			buf[i] = next_random(&state); /* no page is as another */
		if (write(fd, buf, block) != (ssize_t)block)
			err(1, "%s", path);
	}
	if (close(fd) != 0)
		err(1, "%s", path);
}

struct part {
	const unsigned char *begin;
	size_t pages;
	bool shuffled;
	unsigned sum;
	pthread_t thread;
};

static void *touch(void *arg)
{
	struct part *p = arg;
	uint64_t state = 7;

	for (size_t i = 0; i < p->pages; i++)
		p->sum += p->begin[(p->shuffled ? next_random(&state) % p->pages : i) * PAGE];
	return NULL;
}

static void work_map(const char *path, size_t threads, bool shuffled)
{
	int fd = open_or_die(path, O_RDONLY);
	uint64_t size = size_of(fd);
	unsigned char *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	struct part *parts = calloc(threads, sizeof(*parts));
	size_t pages = size / PAGE / threads;

	if (map == MAP_FAILED || !parts)
		err(1, "%s", path);
	close(fd);
	for (size_t i = 0; i < threads; i++) {
		parts[i] = (struct part){ .begin = map + i * pages * PAGE, .pages = pages, .shuffled = shuffled };
		if (pthread_create(&parts[i].thread, NULL, touch, &parts[i]) != 0)
			errx(1, "no thread");
	}
	for (size_t i = 0; i < threads; i++)
		pthread_join(parts[i].thread, NULL);
	free(parts);
	munmap(map, size);
}

/* ---- many small files ---- */

enum small { CREATE, STAT, OPEN, REMOVE };

static void one_small(enum small what, const char *path, char *buf)
{
	struct stat st;
	int fd;

	switch (what) {
	case CREATE:
		fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
		if (write(fd, path, strlen(path)) < 0 || write(fd, buf, SMALL) != SMALL || close(fd) != 0)
			err(1, "%s", path);
		break;
	case STAT:
		if (stat(path, &st) != 0)
			err(1, "%s", path);
		break;
	case OPEN:
		fd = open_or_die(path, O_RDONLY);
		if (read(fd, buf, 2 * SMALL) < SMALL)
			err(1, "%s", path);
		close(fd);
		break;
	case REMOVE:
		if (unlink(path) != 0)
			err(1, "%s", path);
		break;
	}
}

static void work_small(enum small what, const char *directory, uint64_t count)
{
	char path[4096], *buf = block_of(2 * SMALL);

	for (unsigned i = 0; i < DIRECTORIES && what == CREATE; i++) {
		snprintf(path, sizeof(path), "%s/%u", directory, i);
		if (mkdir(path, 0755) != 0 && errno != EEXIST)
			err(1, "%s", path);
	}
	for (uint64_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%u/%llu", directory, (unsigned)(i % DIRECTORIES),
			(unsigned long long)i);
		one_small(what, path, buf);
	}
}

static void work(int argc, char **argv)
{
	static const char *const smalls[] = { "create", "stat", "open", "remove" };
	const char *name = argc > 3 ? argv[1] : "";

	if (argc == 4 && !strcmp(name, "read"))
		return work_read(argv[2], number(argv[3]));
	if (argc == 4 && (!strcmp(name, "map") || !strcmp(name, "faults")))
		return work_map(argv[2], number(argv[3]), *name == 'f');
	if (argc == 5 && !strcmp(name, "random"))
		return work_random(argv[2], number(argv[3]), number(argv[4]));
	if (argc == 5 && !strcmp(name, "write"))
		return work_write(argv[2], number(argv[3]), number(argv[4]));
	for (unsigned i = 0; i < sizeof(smalls) / sizeof(*smalls); i++)
		if (argc == 4 && !strcmp(name, smalls[i]))
			return work_small((enum small)i, argv[2], number(argv[3]));
	errx(2, "no such work; the beginning of tests/bench/worker.c lists what there is");
}

int main(int argc, char **argv)
{
	double begin = now();

	work(argc, argv);
	printf("%.6f\n", now() - begin);
	return 0;
}
