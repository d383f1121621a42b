/* Marks on objects: what they keep from being read, when they go, and what heals them. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>

#include "lib/content.h"
#include "lib/damage.h"
#include "lib/datafile.h"
#include "lib/verify.h"

#define LEN (MB / 4 + 1) /* too much for the database */

static uint8_t *content(uint64_t seed)
{
	uint8_t *bytes = malloc(LEN);

	for (size_t i = 0; i < LEN; i++)
		bytes[i] = (uint8_t)((seed + i) * UINT64_C(0x9E3779B97F4A7C15) >> 40);
	return bytes;
}

/* What verify finds; the caller frees. */
static struct wfs_verify_bad *verify(struct fixture *f, size_t *ret_n)
{
	const struct wfs_verify_options options = { .threads = 2 };
	struct wfs_verify_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_verify_bad *bad = NULL;

	assert_int_equal(wfs_verify(f->store, &options, &bad, ret_n, &summary, &err), 0);
	return bad;
}

static size_t mark(struct fixture *f)
{
	size_t n, changed, all = 0;
	struct wfs_verify_bad *bad = verify(f, &n);

	for (size_t i = 0; i < n; i++) {
		const struct wfs_damage d = { .object = bad[i].object, .data_file = bad[i].data_file,
			.offset = bad[i].offset, .reason = bad[i].reason };

		assert_int_equal(wfs_damage_set(f->store, &d, 1, &changed), 0);
		all += changed;
	}
	free(bad);
	return all;
}

/* Change the byte at `at` of the only piece of a sealed file. */
static void flip(struct fixture *f, uint64_t ino, uint64_t at)
{
	char path[WFS_DATAFILE_PATH_SIZE];
	struct wfs_file *file = get_file(f, ino);
	struct wfs_content *c = wfs_file_content(file);
	WFS_AUTO_FREE char *full = NULL;
	uint8_t byte;
	int fd;

	assert_int_equal(c->n, 1);
	assert_non_null(c->extents[0].df);
	wfs_datafile_path(c->extents[0].df->id, path);
	full = wfs_test_path(f->path, "%s", path);
	fd = open(full, O_RDWR);
	assert_true(fd >= 0);
	at += c->extents[0].offset;
	assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
	close(fd);
	wfs_content_unref(c);
	wfs_file_unref(file);
}

static void expect_error(struct fixture *f, uint64_t ino)
{
	struct wfs_file *file = get_file(f, ino);
	char byte;

	assert_int_equal(wfs_file_read(file, &byte, 1, 0), -EIO);
	wfs_file_unref(file);
}

static void test_mark_and_unmark(void **state)
{
	struct fixture *f = *state;
	WFS_AUTO_FREE uint8_t *bytes = content(1);
	uint64_t ino = put(f, "a", bytes, LEN);

	assert_int_equal(mark(f), 0);
	flip(f, ino, 1000);
	assert_int_equal(mark(f), 1);
	assert_true(wfs_damage_is_any(f->store));
	expect_error(f, ino);
	reopen(f, 0);
	expect_error(f, ino);
	/* It is what was stored after all: verify finds that, and the mark goes. */
	{
		struct wfs_file *file = get_file(f, ino);
		struct wfs_content *c = wfs_file_content(file);
		WFS_AUTO_FREE char *full = NULL;
		char path[WFS_DATAFILE_PATH_SIZE];
		int fd;

		wfs_datafile_path(c->extents[0].df->id, path);
		full = wfs_test_path(f->path, "%s", path);
		fd = open(full, O_RDWR);
		assert_int_equal(pwrite(fd, bytes, LEN, 0), LEN);
		close(fd);
		assert_int_equal(mark(f), 1);
		/* Also for who had it open all the time. */
		check_bytes(f, ino, bytes, LEN);
		wfs_content_unref(c);
		wfs_file_unref(file);
	}
	assert_false(wfs_damage_is_any(f->store));
}

/* The mark goes with the last file that has the object. */
static void test_mark_goes_with_its_object(void **state)
{
	struct fixture *f = *state;
	WFS_AUTO_FREE uint8_t *bytes = content(2);
	uint64_t ino = put(f, "a", bytes, LEN), gone;
	uint64_t *ids;
	size_t n;
	bool is_gone;

	flip(f, ino, 5);
	assert_int_equal(mark(f), 1);
	assert_int_equal(wfs_name_unlink(f->store, WFS_ROOT_INO, "a", &gone, &is_gone), 0);
	assert_true(is_gone);
	assert_int_equal(wfs_name_drop(f->store, &gone, 1), 0);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(wfs_damage_list(f->store, &ids, &n), 0);
	assert_int_equal(n, 0);
	free(ids);
	/* Its data file is another's now, perhaps: no place of it is bad any more. */
	check_bytes(f, put(f, "b", bytes, LEN), bytes, LEN);
}

/* What is found at a place says nothing of an object that has moved, or is gone. */
static void test_stale_news(void **state)
{
	struct fixture *f = *state;
	WFS_AUTO_FREE uint8_t *bytes = content(3);
	uint64_t ino = put(f, "a", bytes, LEN);
	const struct wfs_damage stale[] = {
		{ .object = 1, .data_file = 77, .offset = 0, .reason = WFS_DAMAGE_CHANGED },
		{ .object = 1, .data_file = 0, .offset = 0, .reason = WFS_DAMAGE_CHANGED },
		{ .object = 99, .data_file = 1, .offset = 0, .reason = WFS_DAMAGE_CHANGED },
	};
	size_t changed;

	assert_int_equal(wfs_damage_set(f->store, stale, WFS_ARRAY_SIZE(stale), &changed), 0);
	assert_int_equal(changed, 0);
	assert_false(wfs_damage_is_any(f->store));
	check_bytes(f, ino, bytes, LEN);
}

/* An equal file takes the place of what is damaged: known or not. */
static void test_healed_by_an_equal_file(void **state)
{
	struct fixture *f = *state;
	WFS_AUTO_FREE uint8_t *bytes = content(4);
	uint64_t a = put(f, "a", bytes, LEN), b;

	for (int known = 0; known < 2; known++) {
		flip(f, a, 77);
		if (known)
			assert_int_equal(mark(f), 1);
		b = put(f, known ? "c" : "b", bytes, LEN);
		assert_false(wfs_damage_is_any(f->store));
		check_bytes(f, a, bytes, LEN);
		check_bytes(f, b, bytes, LEN);
		assert_int_equal(wfs_collect(f->store), 0);
	}
}

static void remove_all(struct fixture *f)
{
	for (unsigned i = 0; i < 200; i++) {
		uint64_t ino;
		char name[8];
		bool gone;

		snprintf(name, sizeof(name), "%u", i);
		if (wfs_name_unlink(f->store, WFS_ROOT_INO, name, &ino, &gone) == 0)
			assert_int_equal(wfs_name_drop(f->store, &ino, 1), 0);
	}
	assert_int_equal(wfs_collect(f->store), 0);
	assert_false(wfs_damage_is_any(f->store));
}

/*
 * With digests of few bits other contents have the digest of what is damaged, too. Where there is
 * more than one nobody can say whose bytes are lost: nothing is healed, nothing is shared.
 */
static void test_no_healing_by_chance(void **state)
{
	struct fixture *f = *state;
	uint64_t inos[40];

	reopen(f, 4);
	for (uint64_t i = 0; i < 40; i++) {
		WFS_AUTO_FREE uint8_t *bytes = content(1000 + i * 7);
		char name[8];

		snprintf(name, sizeof(name), "%u", (unsigned)i);
		inos[i] = put(f, name, bytes, LEN);
	}
	/* One change in sixteen keeps a digest of four bits. */
	for (uint64_t at = 9; mark(f) == 0; at++)
		flip(f, inos[0], at);
	for (uint64_t i = 100; i < 130; i++) {
		WFS_AUTO_FREE uint8_t *bytes = content(1000 + i * 7);
		char name[8];

		snprintf(name, sizeof(name), "%u", (unsigned)i);
		check_bytes(f, put(f, name, bytes, LEN), bytes, LEN);
	}
	expect_error(f, inos[0]);
	for (uint64_t i = 1; i < 40; i++) {
		WFS_AUTO_FREE uint8_t *bytes = content(1000 + i * 7);

		check_bytes(f, inos[i], bytes, LEN);
	}
	remove_all(f); /* fsck knows digests of all bits only */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_mark_and_unmark, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_mark_goes_with_its_object, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stale_news, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_healed_by_an_equal_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_healing_by_chance, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
