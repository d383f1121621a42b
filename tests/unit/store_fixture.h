/*
 * store_fixture.h - a store in a directory of its own, and short words for what
 * the driver does with one. Included by one test program each.
 */
#ifndef WFS_TESTS_STORE_FIXTURE_H
#define WFS_TESTS_STORE_FIXTURE_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "lib/collect.h"
#include "lib/file.h"
#include "lib/fsck.h"
#include "lib/gate.h"
#include "lib/name.h"
#include "lib/safetensors.h"
#include "lib/seal.h"
#include "lib/store.h"
#include "tests/unit/support.h"

#define MB ((size_t)1 << 20)

struct fixture {
	char *dir;   /* of the test */
	char *path;  /* of the store */
	struct wfs_store *store;
};

static inline struct wfs_store *open_store(const char *path, unsigned digest_bits)
{
	struct wfs_store_options options = { .mode = WFS_STORE_WRITE, .create = true,
		.digest_bits = digest_bits };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *store = NULL;
	int ret = wfs_store_open(path, &options, &store, &err);

	if (ret)
		fail_msg("open %s: %d %s", path, ret, err.text);
	return store;
}

static inline void reopen(struct fixture *f, unsigned digest_bits)
{
	if (f->store)
		assert_int_equal(wfs_store_close(f->store), 0);
	f->store = open_store(f->path, digest_bits);
}

static inline int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = wfs_test_mkdir();
	f->path = wfs_test_path(f->dir, "store");
	f->store = open_store(f->path, 0);
	*state = f;
	return 0;
}

static inline void print_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	(void)ctx;
	print_error("%s: %s: %s\n", finding->kind, finding->where, finding->text);
}

/* Every test ends with a store that fsck, which shares no code with the rest, finds clean. */
static inline void check_clean(struct fixture *f)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	if (f->store)
		assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	assert_int_equal(wfs_fsck(f->path, &options, print_finding, NULL, &summary, &err), 0);
	assert_int_equal(summary.findings, 0);
}

static inline int tear_down(void **state)
{
	struct fixture *f = *state;

	check_clean(f);
	wfs_test_rmdir(f->dir);
	free(f->path);
	free(f->dir);
	free(f);
	return 0;
}

static inline uint64_t make(struct fixture *f, uint64_t parent, const char *name, uint32_t mode)
{
	struct wfs_new new = { .mode = mode, .uid = 7, .gid = 8 };
	struct wfs_attr a;

	assert_int_equal(wfs_name_create(f->store, parent, name, &new, &a), 0);
	return a.ino;
}

static inline struct wfs_file *get_file(struct fixture *f, uint64_t ino)
{
	struct wfs_file *file = NULL;

	assert_int_equal(wfs_file_get(f->store, ino, &file), 0);
	return file;
}

static inline void write_at(struct fixture *f, uint64_t ino, const void *bytes, size_t len,
	uint64_t offset)
{
	struct wfs_file *file = get_file(f, ino);

	wfs_file_open(file, true);
	assert_int_equal(wfs_file_write(file, bytes, len, offset), len);
	wfs_file_close(file, true);
	wfs_file_unref(file);
}

static inline void seal(struct fixture *f, uint64_t ino)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_seal(f->store, ino, &err);

	if (ret)
		fail_msg("seal: %d %s", ret, err.text);
}

/* A file of these bytes in the root, sealed. */
static inline uint64_t put(struct fixture *f, const char *name, const void *bytes, size_t len)
{
	uint64_t ino = make(f, WFS_ROOT_INO, name, S_IFREG | 0644);

	if (len)
		write_at(f, ino, bytes, len, 0);
	seal(f, ino);
	return ino;
}

static inline void check_bytes(struct fixture *f, uint64_t ino, const void *bytes, size_t len)
{
	struct wfs_file *file = get_file(f, ino);
	char *have = malloc(len + 1);
	uint64_t size;

	assert_int_equal(wfs_file_size(file, &size), 0);
	assert_int_equal(size, len);
	assert_int_equal(wfs_file_read(file, have, len + 1, 0), len);
	if (len)
		assert_memory_equal(have, bytes, len);
	free(have);
	wfs_file_unref(file);
}

static inline void remove_name(struct fixture *f, const char *name)
{
	uint64_t ino;
	bool gone;

	assert_int_equal(wfs_name_unlink(f->store, WFS_ROOT_INO, name, &ino, &gone), 0);
	if (gone)
		assert_int_equal(wfs_name_drop(f->store, &ino, 1), 0);
}

static inline struct wfs_store_stats stats(struct fixture *f)
{
	struct wfs_store_stats st;

	assert_int_equal(wfs_store_stats(f->store, &st, NULL), 0);
	return st;
}

/* Bytes that look like nothing else, for each seed others. The caller frees them. */
static inline uint8_t *noise(size_t len, uint64_t seed)
{
	uint8_t *bytes = malloc(len ? len : 1);
	uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;

	for (size_t i = 0; i < len; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		bytes[i] = (uint8_t)(x >> 32);
	}
	return bytes;
}

/* A shard of n tensors of `each` bytes; tensor i holds noise of seed seeds[i]. */
static inline uint8_t *shard(size_t n, size_t each, const uint64_t *seeds, size_t *ret_len)
{
	struct wfs_safetensors_entry *entries = calloc(n, sizeof(*entries));
	uint64_t shape[1] = { each };
	uint64_t data_len;
	uint8_t *head, *all;
	char names[64][16];
	size_t head_len;

	for (size_t i = 0; i < n; i++) {
		entries[i].name_len = (uint32_t)sprintf(names[i], "t%02zu", i);
		entries[i].name = names[i];
		entries[i].ndim = 1;
		entries[i].shape = shape;
		entries[i].dtype = WFS_DTYPE_U8;
	}
	assert_int_equal(wfs_safetensors_build(entries, n, NULL, 0, &head, &head_len, &data_len,
		NULL), 0);
	all = malloc(head_len + data_len);
	memcpy(all, head, head_len);
	for (size_t i = 0; i < n; i++) {
		uint8_t *bytes = noise(each, seeds[i]);

		memcpy(all + head_len + entries[i].begin, bytes, each);
		free(bytes);
	}
	free(head);
	free(entries);
	*ret_len = head_len + data_len;
	return all;
}

#endif
