/* Dirty to sealed and back: sharing, counts, space, copies. */
#include <pthread.h>
#include <unistd.h>

#include "lib/content.h"
#include "lib/store_priv.h"
#include "tests/unit/store_fixture.h"

static void test_empty(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = put(f, "empty", NULL, 0);

	check_bytes(f, ino, "", 0);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).data_files, 0);
	assert_int_equal(stats(f).dirty, 0);
}

/* Up to WFS_SMALL_FILE the bytes are in the database, past it in the data file. */
static void test_small_and_large(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(WFS_SMALL_FILE + 1, 1);
	uint64_t small = put(f, "small", bytes, WFS_SMALL_FILE);
	uint64_t large;

	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).data_files, 0);
	large = put(f, "large", bytes, WFS_SMALL_FILE + 1);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).data_files, 1);
	check_bytes(f, small, bytes, WFS_SMALL_FILE);
	check_bytes(f, large, bytes, WFS_SMALL_FILE + 1);
	reopen(f, 0);
	check_bytes(f, small, bytes, WFS_SMALL_FILE);
	check_bytes(f, large, bytes, WFS_SMALL_FILE + 1);
	free(bytes);
}

static void test_equal_files_share(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 2);
	uint64_t a = put(f, "a", bytes, MB);
	uint64_t b = put(f, "b", bytes, MB);

	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).objects, 1);
	assert_int_equal(stats(f).manifests, 1);
	assert_int_equal(stats(f).data_files, 1);
	remove_name(f, "a");
	assert_int_equal(wfs_collect(f->store), 0);
	check_bytes(f, b, bytes, MB);
	remove_name(f, "b");
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).objects, 0);
	assert_int_equal(stats(f).data_files, 0);
	(void)a;
	free(bytes);
}

/* Two shards with one tensor in common: it is stored once, the rest of the second stays. */
static void test_tensors_share(void **state)
{
	struct fixture *f = *state;
	const uint64_t first[] = { 1, 2, 3 }, second[] = { 4, 2, 5 };
	size_t len_a, len_b;
	uint8_t *a = shard(3, MB, first, &len_a), *b = shard(3, MB, second, &len_b);
	uint64_t ino_a = put(f, "a.safetensors", a, len_a);
	uint64_t ino_b = put(f, "b.safetensors", b, len_b);
	struct wfs_piece *pieces;
	size_t n;

	assert_int_equal(wfs_collect(f->store), 0);
	/* 5 tensors, and one header: both are alike. */
	assert_int_equal(stats(f).objects, 6);
	assert_int_equal(wfs_file_pieces(f->store, ino_b, &pieces, &n), 0);
	assert_int_equal(n, 4);
	assert_int_equal(pieces[0].refs, 2);
	assert_int_equal(pieces[1].refs, 1);
	assert_int_equal(pieces[2].refs, 2);
	assert_int_equal(pieces[3].offset + pieces[3].length, len_b);
	free(pieces);
	check_bytes(f, ino_a, a, len_a);
	check_bytes(f, ino_b, b, len_b);
	/* What is shared was punched out: about 5 MB of disk for 6 MB of tensors. */
	assert_true(stats(f).disk_bytes < 5 * MB + MB / 2);
	remove_name(f, "a.safetensors");
	assert_int_equal(wfs_collect(f->store), 0);
	check_bytes(f, ino_b, b, len_b);
	assert_true(stats(f).disk_bytes < 3 * MB + MB / 2);
	free(a);
	free(b);
}

/* Bytes that go past a buffer (fs/op_file.c) come from one place, and end where it does. */
static void test_spans(void **state)
{
	struct fixture *f = *state;
	const uint64_t first[] = { 1, 2, 3, 4 }, second[] = { 4, 2, 3, 5, 1 };
	size_t len_a, len_b, spans = 0;
	uint8_t *a = shard(4, MB, first, &len_a), *b = shard(5, MB, second, &len_b);
	uint8_t *have = malloc(len_b);
	struct wfs_file *file;
	struct wfs_content *c;

	put(f, "a", a, len_a);
	file = get_file(f, put(f, "b", b, len_b));
	c = wfs_file_content(file);
	for (uint64_t at = 0; at < len_b; at += 99991) {
		for (size_t len = 1; len < 3 * MB; len = len * 5 + 4096) {
			struct wfs_span span;
			int found = wfs_span_begin(&span, c, at, len);

			assert_true(found >= 0);
			if (!found)
				continue;
			assert_true(span.len > 0 && span.len <= len);
			assert_int_equal(pread(span.fd, have, span.len, (off_t)span.offset), span.len);
			assert_memory_equal(have, b + at, span.len);
			wfs_span_end(&span);
			spans++;
		}
	}
	assert_true(spans > 0);
	wfs_content_unref(c);
	wfs_file_unref(file);
	free(have);
	free(a);
	free(b);
}

/* Within one file, too. */
static void test_repeated_tensor(void **state)
{
	struct fixture *f = *state;
	const uint64_t seeds[] = { 1, 1, 2, 1 };
	size_t len;
	uint8_t *a = shard(4, MB, seeds, &len);
	uint64_t ino = put(f, "a.safetensors", a, len);

	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).objects, 3);
	check_bytes(f, ino, a, len);
	reopen(f, 0);
	check_bytes(f, ino, a, len);
	free(a);
}

/* Digests of 4 bits, within one file. */
static void test_collisions_in_a_file(void **state)
{
	struct fixture *f = *state;
	uint64_t seeds[40];
	size_t len;
	uint8_t *a;
	uint64_t ino;

	reopen(f, 4);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(seeds); i++)
		seeds[i] = i / 2; /* each content twice */
	a = shard(WFS_ARRAY_SIZE(seeds), 4000, seeds, &len);
	ino = put(f, "a.safetensors", a, len);
	assert_int_equal(stats(f).objects, 1 + WFS_ARRAY_SIZE(seeds) / 2);
	check_bytes(f, ino, a, len);
	reopen(f, 4);
	check_bytes(f, ino, a, len);
	remove_name(f, "a.safetensors"); /* fsck knows digests of 128 bits */
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).objects, 0);
	free(a);
}

/* Digests of 4 bits: nearly everything collides, and must stay apart. */
static void test_collisions(void **state)
{
	struct fixture *f = *state;
	uint64_t inos[64];

	reopen(f, 4);
	for (size_t i = 0; i < 64; i++) {
		uint8_t *bytes = noise(1000, i / 2); /* each content twice */
		char name[16];

		sprintf(name, "f%zu", i);
		inos[i] = put(f, name, bytes, 1000);
		free(bytes);
	}
	assert_int_equal(stats(f).objects, 32);
	for (size_t i = 0; i < 64; i++) {
		uint8_t *bytes = noise(1000, i / 2);

		check_bytes(f, inos[i], bytes, 1000);
		free(bytes);
	}
	/* Ordinals stay apart when some of them die and others come. */
	for (size_t i = 0; i < 64; i += 3) {
		char name[16];

		sprintf(name, "f%zu", i);
		remove_name(f, name);
	}
	assert_int_equal(wfs_collect(f->store), 0);
	for (size_t i = 100; i < 120; i++) {
		uint8_t *bytes = noise(1000, i);
		char name[16];

		sprintf(name, "f%zu", i);
		check_bytes(f, put(f, name, bytes, 1000), bytes, 1000);
		free(bytes);
	}
	/* fsck recomputes digests with all bits: the store goes before it looks. */
	for (size_t i = 0; i < 120; i++) {
		struct wfs_attr a;
		char name[16];

		sprintf(name, "f%zu", i);
		if (wfs_name_lookup(f->store, WFS_ROOT_INO, name, &a) == 0)
			remove_name(f, name);
	}
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).objects, 0);
}

/* The sole owner of its data file is written in place. */
static void test_unseal_in_place(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 3);
	uint64_t ino = put(f, "a", bytes, MB);
	struct wfs_attr before, after;

	assert_int_equal(wfs_name_getattr(f->store, ino, &before), 0);
	write_at(f, ino, "new", 3, 1000);
	memcpy(bytes + 1000, "new", 3);
	assert_int_equal(wfs_name_getattr(f->store, ino, &after), 0);
	assert_int_equal(after.data_file, 1);
	assert_true(after.mtime_ns >= before.mtime_ns);
	assert_int_equal(stats(f).objects, 0);
	check_bytes(f, ino, bytes, MB);
	seal(f, ino);
	check_bytes(f, ino, bytes, MB);
	assert_int_equal(stats(f).data_files, 1);
	free(bytes);
}

#define WRITERS 8

struct writer {
	struct fixture *f;
	pthread_barrier_t *begin;
	uint64_t ino, offset;
	pthread_t thread;
	ssize_t wrote;
};

static void *writer_main(void *ctx)
{
	struct writer *w = ctx;
	struct wfs_file *file;

	if (wfs_file_get(w->f->store, w->ino, &file) != 0)
		return NULL;
	wfs_file_open(file, true);
	pthread_barrier_wait(w->begin);
	w->wrote = wfs_file_write(file, "written", 7, w->offset);
	wfs_file_close(file, true);
	wfs_file_unref(file);
	return NULL;
}

/* Several write a sealed file for the first time, at once: what each wrote is there. */
static void test_writers_at_once(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 4);
	pthread_barrier_t begin;

	pthread_barrier_init(&begin, NULL, WRITERS);
	for (int round = 0; round < 20; round++) {
		struct writer w[WRITERS];
		char name[32], shared[32];
		uint64_t ino;

		sprintf(name, "a%d", round);
		sprintf(shared, "b%d", round);
		bytes[0] = (uint8_t)round;
		ino = put(f, name, bytes, MB);
		if (round % 2)
			put(f, shared, bytes, MB);
		for (size_t i = 0; i < WRITERS; i++) {
			w[i] = (struct writer){ .f = f, .begin = &begin, .ino = ino,
				.offset = 1000 + i * 100000 };
			assert_int_equal(pthread_create(&w[i].thread, NULL, writer_main, &w[i]), 0);
		}
		for (size_t i = 0; i < WRITERS; i++) {
			pthread_join(w[i].thread, NULL);
			assert_int_equal(w[i].wrote, 7);
			memcpy(bytes + w[i].offset, "written", 7);
		}
		check_bytes(f, ino, bytes, MB);
		remove_name(f, name);
		if (round % 2)
			remove_name(f, shared);
		free(bytes);
		bytes = noise(MB, 5 + (uint64_t)round);
	}
	pthread_barrier_destroy(&begin);
	free(bytes);
}

/* A copy shares the manifest; writing one of the two leaves the other. */
/* A sealer that was told of a failed sync, and records it when the file was already emptied and written anew. */
static void test_failed_sync_is_recorded_late(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 9);
	uint64_t ino = put(f, "a", bytes, MB);
	struct wfs_file *file = NULL;
	struct wfs_attr a;

	assert_int_equal(wfs_file_get(f->store, ino, &file), 0);
	wfs_file_open(file, true);
	assert_int_equal(wfs_file_write(file, bytes, MB, 0), MB); /* it is dirty */
	assert_int_equal(wfs_name_getattr(f->store, ino, &a), 0);
	wfs_datafile_set_unsure(&f->store->datafiles, a.data_file, true);
	wfs_store_report_unsure(f->store, a.data_file);
	assert_int_equal(wfs_file_truncate(file, 0), 0);
	assert_int_equal(wfs_file_write(file, bytes, MB, 0), MB);
	wfs_file_close(file, true);
	wfs_file_unref(file);
	wfs_store_report_unsure(f->store, a.data_file);
	seal(f, ino); /* a sealed file with such a record is a finding of fsck */
	check_bytes(f, ino, bytes, MB);
	free(bytes);
}

static void test_clone(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 4);
	uint64_t a = make(f, WFS_ROOT_INO, "a", S_IFREG | 0644);
	uint64_t b = make(f, WFS_ROOT_INO, "b", S_IFREG | 0644);
	struct wfs_file *in, *out;

	write_at(f, a, bytes, MB, 0); /* dirty: sealed by the copy */
	in = get_file(f, a);
	out = get_file(f, b);
	wfs_file_open(out, true);
	assert_int_equal(wfs_file_copy(in, 0, out, 0, UINT64_MAX / 2), MB);
	wfs_file_close(out, true);
	assert_false(wfs_file_is_dirty(out));
	assert_int_equal(stats(f).manifests, 1);
	wfs_file_unref(in);
	wfs_file_unref(out);
	write_at(f, b, "other", 5, MB - 2);
	check_bytes(f, a, bytes, MB);
	bytes = realloc(bytes, MB + 3);
	memcpy(bytes + MB - 2, "other", 5);
	check_bytes(f, b, bytes, MB + 3);
	seal(f, b);
	assert_int_equal(wfs_collect(f->store), 0);
	check_bytes(f, b, bytes, MB + 3);
	free(bytes);
}

static void test_truncate(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(MB, 5);
	uint64_t ino = put(f, "a", bytes, MB);
	struct wfs_file *file = get_file(f, ino);

	wfs_file_open(file, true);
	assert_int_equal(wfs_file_truncate(file, MB / 2), 0);
	check_bytes(f, ino, bytes, MB / 2);
	assert_int_equal(wfs_file_truncate(file, MB), 0);
	memset(bytes + MB / 2, 0, MB / 2);
	check_bytes(f, ino, bytes, MB);
	/* Nobody seals what is open for writing. */
	assert_int_equal(wfs_seal(f->store, ino, NULL), -EBUSY);
	wfs_file_close(file, true);
	seal(f, ino);
	check_bytes(f, ino, bytes, MB);
	wfs_file_open(file, true);
	assert_int_equal(wfs_file_truncate(file, 0), 0);
	wfs_file_close(file, true);
	check_bytes(f, ino, "", 0);
	wfs_file_unref(file);
	seal(f, ino);
	free(bytes);
}

/* Reads around every boundary of a composed file, of every small size. */
static void test_composed_reads(void **state)
{
	struct fixture *f = *state;
	const uint64_t first[] = { 1, 2, 3, 4 }, second[] = { 9, 2, 8, 4 };
	size_t each = 100003, len, boundary = 0;
	uint8_t *a = shard(4, each, first, &len), *b = shard(4, each, second, &len);
	struct wfs_piece *pieces;
	uint8_t buf[64];
	struct wfs_file *file;
	uint64_t ino;
	size_t n;

	put(f, "a.safetensors", a, len);
	ino = put(f, "b.safetensors", b, len);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(wfs_file_pieces(f->store, ino, &pieces, &n), 0);
	assert_int_equal(n, 5);
	file = get_file(f, ino);
	for (size_t i = 0; i < n; i++) {
		boundary = pieces[i].offset;
		for (size_t back = 0; back <= 20 && back <= boundary; back++) {
			size_t want = WFS_MIN(sizeof(buf), len - (boundary - back));

			assert_int_equal(wfs_file_read(file, buf, sizeof(buf), boundary - back), want);
			assert_memory_equal(buf, b + boundary - back, want);
		}
	}
	assert_int_equal(wfs_file_read(file, buf, sizeof(buf), len), 0);
	assert_int_equal(wfs_file_read(file, buf, sizeof(buf), len - 1), 1);
	wfs_file_unref(file);
	free(pieces);
	free(a);
	free(b);
}

static void test_sparse(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "sparse", S_IFREG | 0644);
	struct wfs_file *file;
	char buf[16];

	write_at(f, ino, "end", 3, 8 * MB);
	seal(f, ino);
	file = get_file(f, ino);
	assert_int_equal(wfs_file_seek(file, 0, SEEK_DATA), 8 * MB);
	assert_int_equal(wfs_file_seek(file, 0, SEEK_HOLE), 0);
	assert_int_equal(wfs_file_seek(file, 8 * MB + 3, SEEK_DATA), -ENXIO);
	assert_int_equal(wfs_file_read(file, buf, 8, 8 * MB - 5), 8);
	assert_memory_equal(buf, "\0\0\0\0\0end", 8);
	wfs_file_unref(file);
	assert_true(stats(f).disk_bytes < MB);
}

/* A writer makes the seal of its file impossible until it is gone. */
static void test_writer_keeps_dirty(void **state)
{
	struct fixture *f = *state;
	uint64_t ino = make(f, WFS_ROOT_INO, "a", S_IFREG | 0644);
	struct wfs_file *file = get_file(f, ino);

	wfs_file_open(file, true);
	assert_int_equal(wfs_file_write(file, "x", 1, 0), 1);
	assert_int_equal(wfs_seal(f->store, ino, NULL), -EBUSY);
	assert_true(wfs_file_close(file, true));
	wfs_file_unref(file);
	seal(f, ino);
}

/* mtime and what else stat shows do not change when a file is sealed. */
static void test_attributes_stay(void **state)
{
	struct fixture *f = *state;
	struct wfs_attr want = { .mtime_ns = 1234567890123456789, .atime_ns = -5 };
	uint64_t ino = make(f, WFS_ROOT_INO, "a", S_IFREG | 0644);
	struct wfs_attr before, after;

	write_at(f, ino, "bytes", 5, 0);
	assert_int_equal(wfs_name_setattr(f->store, ino, WFS_SET_MTIME | WFS_SET_ATIME, &want,
		&before), 0);
	assert_int_equal(before.mtime_ns, want.mtime_ns);
	seal(f, ino);
	assert_int_equal(wfs_name_getattr(f->store, ino, &after), 0);
	assert_int_equal(after.mtime_ns, want.mtime_ns);
	assert_int_equal(after.atime_ns, -5);
	assert_int_equal(after.ctime_ns, before.ctime_ns);
	assert_int_equal(after.size, 5);
	assert_int_equal(after.blocks, before.blocks);
}

/* Removing checkpoints in any order gives back what the others do not need. */
static uint64_t data_file_of(struct fixture *f, uint64_t ino)
{
	struct wfs_attr a;

	assert_int_equal(wfs_name_getattr(f->store, ino, &a), 0);
	return a.data_file;
}

/* What a sealed small file leaves is the next one's staging file; what is somebody's stays his. */
static void test_data_files_are_used_again(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(WFS_SMALL_FILE, 1), *others = noise(MB, 2);
	uint64_t a = make(f, WFS_ROOT_INO, "a", S_IFREG | 0600);
	uint64_t first = data_file_of(f, a), b, c;
	char *path;

	write_at(f, a, bytes, WFS_SMALL_FILE, 0);
	seal(f, a);
	b = make(f, WFS_ROOT_INO, "b", S_IFREG | 0600);
	assert_int_not_equal(data_file_of(f, b), first); /* not collected yet */
	assert_int_equal(wfs_collect(f->store), 0);
	c = make(f, WFS_ROOT_INO, "c", S_IFREG | 0600);
	assert_int_equal(data_file_of(f, c), first);
	check_bytes(f, c, "", 0);
	check_bytes(f, a, bytes, WFS_SMALL_FILE);
	write_at(f, c, others, MB, 0);
	assert_int_equal(wfs_collect(f->store), 0);
	check_bytes(f, c, others, MB);
	seal(f, c);
	remove_name(f, "c");
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).pending_bytes, 0);
	assert_int_equal(stats(f).data_files, 1); /* that of b */
	reopen(f, 0);
	check_bytes(f, a, bytes, WFS_SMALL_FILE);
	check_bytes(f, b, "", 0);
	path = wfs_test_path(f->path, "data/%02x/%016llx", (unsigned)(first & 0xff),
		(unsigned long long)first);
	assert_int_not_equal(access(path, F_OK), 0); /* a closed store keeps none */
	free(path);
	free(bytes);
	free(others);
}

static void test_remove_in_any_order(void **state)
{
	struct fixture *f = *state;
	static const size_t orders[][3] = { { 0, 1, 2 }, { 2, 1, 0 }, { 1, 0, 2 } };
	size_t len[3];
	uint8_t *shards[3];

	for (size_t i = 0; i < 3; i++) {
		uint64_t seeds[] = { 100, 200 + i, 300 + i / 2, 400 };

		shards[i] = shard(4, MB, seeds, &len[i]);
	}
	for (size_t o = 0; o < WFS_ARRAY_SIZE(orders); o++) {
		static const char *const names[] = { "a.safetensors", "b.safetensors",
			"c.safetensors" };
		uint64_t inos[3];

		for (size_t i = 0; i < 3; i++)
			inos[i] = put(f, names[i], shards[i], len[i]);
		for (size_t k = 0; k < 3; k++) {
			remove_name(f, names[orders[o][k]]);
			assert_int_equal(wfs_collect(f->store), 0);
			for (size_t j = k + 1; j < 3; j++)
				check_bytes(f, inos[orders[o][j]], shards[orders[o][j]],
					len[orders[o][j]]);
			if (k == 1) /* one is left: 4 MB, and the database; unpunched it were 8 */
				assert_true(stats(f).disk_bytes < 6 * MB);
		}
		assert_int_equal(stats(f).data_files, 0);
		assert_int_equal(stats(f).objects, 0);
	}
	for (size_t i = 0; i < 3; i++)
		free(shards[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_empty, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_small_and_large, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_equal_files_share, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_tensors_share, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_spans, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_repeated_tensor, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_collisions, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_collisions_in_a_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_unseal_in_place, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_writers_at_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_clone, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_truncate, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_composed_reads, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_sparse, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_writer_keeps_dirty, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_attributes_stay, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_data_files_are_used_again, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_remove_in_any_order, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_failed_sync_is_recorded_late, set_up, tear_down),
	};

	return cmocka_run_group_tests_name("seal", tests, NULL, NULL);
}
