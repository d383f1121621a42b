/*
 * worker.c - one piece of work on files, timed.
 *
 *     bench-worker read FILE BLOCK            sequential reads of BLOCK bytes
 *     bench-worker map FILE THREADS           every page of a mapping, by THREADS threads
 *     bench-worker random FILE BLOCK COUNT    reads of BLOCK bytes, always at the same places
 *     bench-worker write FILE BLOCK SIZE      SIZE new bytes, BLOCK at a time, to close(2)
 *     bench-worker create|stat|open|remove DIR COUNT   small files, in 20 directories
 *     bench-worker faults FILE THREADS        as map, in single pages in a random order
 *     bench-worker hash BLOCK SIZE            XXH3-128 of SIZE bytes of memory, BLOCK at a time
 *     bench-worker shards DIR COUNT SIZE      COUNT shards of new bytes, SIZE in all
 *
 * Prints the seconds that the work took, without the start of the process; of `shards` the time
 * (CLOCK_MONOTONIC) when the last was closed: they are on the disk before the first is.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>

#include <xxhash.h>

#include "tests/bench/common.h"

#define DIRECTORIES 20
#define SMALL 2000 /* bytes of a small file */
#define BLOCK (1u << 20)
#define TENSORS 64 /* in a shard */
#define MAX_SHARDS 256

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
	free(buf);
}

static void work_random(const char *path, size_t block, uint64_t count)
{
	int fd = open_or_die(path, O_RDONLY);
	uint64_t blocks = size_of(fd) / block, state = 1;
	void *buf = block_of(block);

	for (uint64_t i = 0; i < count; i++)
		if (pread(fd, buf, block, (off_t)(next_random(&state) % blocks * block)) !=
			(ssize_t)block)
			err(1, "%s", path);
	close(fd);
	free(buf);
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
	free(buf);
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
		parts[i] = (struct part){
			.begin = map + i * pages * PAGE,
			.pages = pages,
			.shuffled = shuffled,
		};
		if (pthread_create(&parts[i].thread, NULL, touch, &parts[i]) != 0)
			errx(1, "no thread");
	}
	for (size_t i = 0; i < threads; i++)
		pthread_join(parts[i].thread, NULL);
	free(parts);
	munmap(map, size);
}

/* ---- hashing ---- */

/* From memory, as the page cache is: more of it than fits in a processor's caches. */
static void work_hash(size_t block, uint64_t size)
{
	size_t room = size < (UINT64_C(1) << 28) ? (size_t)size : (size_t)1 << 28;
	unsigned char *memory = block_of(room);
	XXH3_state_t *state = XXH3_createState();
	double begin;
	uint64_t done = 0;

	if (!state || block > room)
		errx(1, "no memory, or more of a block than there is");
	XXH3_128bits_reset(state);
	begin = now();
	for (size_t at = 0; done < size; done += block) {
		XXH3_128bits_update(state, memory + at, block);
		at = at + 2 * block <= room ? at + block : 0;
	}
	printf("%.6f\n", now() - begin);
	if (XXH3_128bits_digest(state).low64 == 0)
		warnx("a digest of 0");
	XXH3_freeState(state);
	free(memory);
}

static int write_shard(const char *path, uint64_t size, uint64_t *state)
{
	uint64_t each = size / TENSORS, header, *block = block_of(BLOCK);
	char text[16384];
	int n = snprintf(text, sizeof(text), "{");
	int fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);

	for (unsigned i = 0; i < TENSORS; i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n,
			"%s\"t%u\":{\"dtype\":\"U8\",\"shape\":[%llu],"
			"\"data_offsets\":[%llu,%llu]}", i ? "," : "", i, (unsigned long long)each,
			(unsigned long long)(i * each), (unsigned long long)((i + 1) * each));
	n += snprintf(text + n, sizeof(text) - (size_t)n, "}");
	while (n % 8 != 0)
		text[n++] = ' ';
	header = (uint64_t)n; /* little endian, as every processor that this runs on */
	write_or_die(fd, &header, sizeof(header));
	write_or_die(fd, text, header);
	for (uint64_t done = 0; done < each * TENSORS; done += BLOCK) {
		uint64_t rest = each * TENSORS - done;

		for (size_t i = 0; i < BLOCK / 8; i += PAGE / 8)
			block[i] = next_random(state);
		write_or_die(fd, block, rest < BLOCK ? (size_t)rest : BLOCK);
	}
	free(block);
	return fd;
}

static void work_shards(const char *directory, uint64_t count, uint64_t size)
{
	uint64_t state = ((uint64_t)getpid() << 32) ^ (uint64_t)(now() * 1e6);
	int fds[MAX_SHARDS];
	char path[4096];

	if (count > MAX_SHARDS)
		errx(2, "at most %u shards", MAX_SHARDS);
	for (uint64_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%llu.safetensors", directory,
			(unsigned long long)i);
		fds[i] = write_shard(path, size / count, &state);
		if (fsync(fds[i]) != 0)
			err(1, "%s", path);
	}
	for (uint64_t i = 0; i < count; i++)
		if (close(fds[i]) != 0)
			err(1, "shard %llu", (unsigned long long)i);
	printf("%.6f\n", now());
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
		if (write(fd, path, strlen(path)) < 0 || write(fd, buf, SMALL) != SMALL ||
			close(fd) != 0)
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
	free(buf);
}

/* True: it has printed what there is to say. */
static bool work(int argc, char **argv)
{
	static const char *const smalls[] = { "create", "stat", "open", "remove" };
	const char *name = argc > 3 ? argv[1] : "";

	if (argc == 4 && !strcmp(name, "read")) {
		work_read(argv[2], number(argv[3]));
		return false;
	}
	if (argc == 4 && (!strcmp(name, "map") || !strcmp(name, "faults"))) {
		work_map(argv[2], number(argv[3]), *name == 'f');
		return false;
	}
	if (argc == 5 && !strcmp(name, "random")) {
		work_random(argv[2], number(argv[3]), number(argv[4]));
		return false;
	}
	if (argc == 5 && !strcmp(name, "write")) {
		work_write(argv[2], number(argv[3]), number(argv[4]));
		return false;
	}
	if (argc == 4 && !strcmp(name, "hash")) {
		work_hash(number(argv[2]), number(argv[3]));
		return true;
	}
	if (argc == 5 && !strcmp(name, "shards")) {
		work_shards(argv[2], number(argv[3]), number(argv[4]));
		return true;
	}
	for (unsigned i = 0; i < sizeof(smalls) / sizeof(*smalls); i++)
		if (argc == 4 && !strcmp(name, smalls[i])) {
			work_small((enum small)i, argv[2], number(argv[3]));
			return false;
		}
	errx(2, "no such work; the beginning of tests/bench/worker.c lists what there is");
}

int main(int argc, char **argv)
{
	double begin = now();

	if (!work(argc, argv))
		printf("%.6f\n", now() - begin);
	return 0;
}
