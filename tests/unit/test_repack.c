/* Whole copies: made by repack, shared, settled, taken back, and what they count for. */
#include "tests/unit/store_fixture.h"

#include "lib/repack.h"
#include "lib/share.h"

#define EACH (MB + 24)

static const uint64_t first_seeds[] = { 1, 2, 3, 4 }, second_seeds[] = { 1, 2, 9, 4 };

/* Two shards with three tensors in common; the second is composed where the disk shares no blocks. */
struct both {
	uint8_t *a, *b;
	size_t len;
	uint64_t ino_a, ino_b;
};

static const char *layout_of(struct fixture *f, uint64_t ino, size_t *ret_extents)
{
	struct wfs_file *file = get_file(f, ino);
	const char *layout = wfs_file_layout(file, ret_extents);

	wfs_file_unref(file);
	return layout;
}

static void check_layout(struct fixture *f, uint64_t ino, const char *want)
{
	size_t n;

	assert_string_equal(layout_of(f, ino, &n), want);
}

static struct both put_both(struct fixture *f)
{
	struct both both;
	size_t n;

	both.a = shard(4, EACH, first_seeds, &both.len);
	both.b = shard(4, EACH, second_seeds, &both.len);
	both.ino_a = put(f, "a", both.a, both.len);
	both.ino_b = put(f, "b", both.b, both.len);
	assert_int_equal(wfs_collect(f->store), 0);
	if (strcmp(layout_of(f, both.ino_b, &n), "composed") != 0)
		skip(); /* this disk shares blocks: mount/test_shared_blocks */
	/* Header and two tensors beside each other in one file, one in the other, one more. */
	assert_int_equal(n, 3);
	return both;
}

static void check_both(struct fixture *f, const struct both *both)
{
	check_bytes(f, both->ino_a, both->a, both->len);
	check_bytes(f, both->ino_b, both->b, both->len);
}

static void free_both(struct both *both)
{
	free(both->a);
	free(both->b);
}

static void repack(struct fixture *f, uint64_t ino)
{
	struct wfs_file *file = get_file(f, ino);
	struct wfs_repack_progress progress;
	struct wfs_repack *r;
	int more;

	assert_int_equal(wfs_repack_begin(file, &r), 1);
	while ((more = wfs_repack_step(r)) > 0)
		;
	assert_int_equal(more, 0);
	wfs_repack_get_progress(r, &progress);
	assert_int_equal(progress.done, progress.total);
	wfs_repack_end(r);
	wfs_file_unref(file);
	check_layout(f, ino, "whole");
}

static void remove_both(struct fixture *f, const char *first, const char *second)
{
	remove_name(f, first);
	assert_int_equal(wfs_collect(f->store), 0);
	if (second)
		remove_name(f, second);
	assert_int_equal(wfs_collect(f->store), 0);
}

static void test_share_inner(void **state)
{
	uint64_t skip = 99;

	(void)state;
	assert_int_equal(wfs_share_inner(4096, 0, 8192, 4096, &skip), 4096);
	assert_int_equal(skip, 0);
	assert_int_equal(wfs_share_inner(4096, 100, 4196, 8192, &skip), 4096);
	assert_int_equal(skip, 3996);
	assert_int_equal(wfs_share_inner(4096, 1, 4097, 4095 + 4096, &skip), 4096);
	assert_int_equal(wfs_share_inner(4096, 1, 4097, 4095 + 4095, NULL), 0);
	assert_int_equal(wfs_share_inner(4096, 1, 4097, 10, NULL), 0);
	assert_int_equal(wfs_share_inner(4096, 0, 8, 1 << 20, NULL), 0);
	assert_int_equal(wfs_share_inner(0, 0, 0, 1 << 20, NULL), 0);
}

/* What both need stays where it was; what only the repacked one has moves, and its old file goes. */
static void test_counts(void **state)
{
	struct fixture *f = *state;
	struct both both = put_both(f);
	struct wfs_store_stats before = stats(f), after;

	repack(f, both.ino_b);
	assert_int_equal(wfs_collect(f->store), 0);
	after = stats(f);
	assert_int_equal(after.objects, before.objects);
	assert_int_equal(after.stored_bytes, before.stored_bytes);
	assert_int_equal(after.data_files, 2);
	assert_int_equal(after.copied_bytes, both.len - EACH);
	assert_int_equal(after.shared_bytes, 0);
	assert_int_equal(after.pending_bytes, 0);
	check_both(f, &both);
	check_layout(f, both.ino_a, "whole");
	reopen(f, 0);
	check_both(f, &both);
	check_layout(f, both.ino_b, "whole");
	free_both(&both);
}

static void test_removed(void **state)
{
	struct fixture *f = *state;
	static const char *const orders[][2] = { { "a", "b" }, { "b", "a" } };

	for (size_t i = 0; i < WFS_ARRAY_SIZE(orders); i++) {
		struct both both = put_both(f);
		uint64_t left = i == 0 ? both.ino_b : both.ino_a;

		repack(f, both.ino_b);
		remove_both(f, orders[i][0], NULL);
		assert_int_equal(stats(f).data_files, 1);
		assert_int_equal(stats(f).copied_bytes, 0);
		assert_int_equal(stats(f).objects, 5);
		check_bytes(f, left, i == 0 ? both.b : both.a, both.len);
		check_layout(f, left, "whole");
		remove_both(f, orders[i][1], NULL);
		assert_int_equal(stats(f).data_files, 0);
		assert_int_equal(stats(f).objects, 0);
		free_both(&both);
	}
}

/* A third file comes to objects that have moved, and one that repeats a tensor of the first. */
static void test_shared_later(void **state)
{
	struct fixture *f = *state;
	const uint64_t third[] = { 9, 9, 1, 5 };
	struct both both = put_both(f);
	size_t len;
	uint8_t *c = shard(4, EACH, third, &len);
	uint64_t ino;

	repack(f, both.ino_b);
	ino = put(f, "c", c, len);
	check_layout(f, ino, "composed");
	repack(f, ino);
	assert_int_equal(wfs_collect(f->store), 0);
	check_bytes(f, ino, c, len);
	remove_both(f, "b", "a");
	/* All that is left is c's; the tensor that it has twice is there twice. */
	check_bytes(f, ino, c, len);
	assert_int_equal(stats(f).data_files, 1);
	assert_int_equal(stats(f).copied_bytes, EACH);
	reopen(f, 0);
	check_bytes(f, ino, c, len);
	free(c);
	free_both(&both);
}

/* Written in place: the whole copy is the staging file, unless somebody else reads it. */
static void test_written(void **state)
{
	struct fixture *f = *state;
	struct both both = put_both(f);
	struct wfs_file *in, *out;
	uint64_t clone;

	repack(f, both.ino_b);
	assert_int_equal(wfs_collect(f->store), 0);
	write_at(f, both.ino_b, "new", 3, EACH);
	memcpy(both.b + EACH, "new", 3);
	assert_int_equal(stats(f).copied_bytes, 0);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).data_files, 2); /* the base's, and the copy that is written */
	check_both(f, &both);
	seal(f, both.ino_b);
	assert_int_equal(wfs_collect(f->store), 0);
	check_both(f, &both);
	check_layout(f, both.ino_b, "composed");
	repack(f, both.ino_b);

	clone = make(f, WFS_ROOT_INO, "clone", S_IFREG | 0644);
	in = get_file(f, both.ino_b);
	out = get_file(f, clone);
	assert_int_equal(wfs_file_copy(in, 0, out, 0, UINT64_MAX / 2), both.len);
	wfs_file_unref(in);
	wfs_file_unref(out);
	check_layout(f, clone, "whole");
	write_at(f, both.ino_b, "more", 4, 2 * EACH);
	check_bytes(f, clone, both.b, both.len);
	memcpy(both.b + 2 * EACH, "more", 4);
	seal(f, both.ino_b);
	remove_name(f, "clone");
	assert_int_equal(wfs_collect(f->store), 0);
	check_both(f, &both);
	free_both(&both);
}

/* Not gone on with, or overtaken: the file is as it was, and nothing of the copy stays. */
static void test_abandoned(void **state)
{
	struct fixture *f = *state;
	struct both both = put_both(f);
	struct wfs_file *file = get_file(f, both.ino_b);
	struct wfs_repack *r, *other;

	assert_int_equal(wfs_repack_begin(file, &r), 1);
	wfs_repack_end(r);
	assert_int_equal(wfs_repack_begin(file, &r), 1);
	assert_int_equal(wfs_repack_begin(file, &other), 1);
	assert_int_equal(wfs_repack_step(other), 0);
	assert_int_equal(wfs_repack_step(r), -ETXTBSY);
	wfs_repack_end(r);
	wfs_repack_end(other);
	assert_int_equal(wfs_repack_begin(file, &r), 0); /* it is whole */
	write_at(f, both.ino_b, "x", 1, 0);
	both.b[0] = 'x';
	assert_int_equal(wfs_repack_begin(file, &r), -EAGAIN);
	wfs_file_open(file, true);
	assert_int_equal(wfs_repack_begin(file, &r), -ETXTBSY);
	wfs_file_close(file, true);
	wfs_file_unref(file);
	assert_int_equal(wfs_collect(f->store), 0);
	assert_int_equal(stats(f).data_files, 2);
	check_both(f, &both);
	free_both(&both);
}

static void test_written_meanwhile(void **state)
{
	struct fixture *f = *state;
	struct both both = put_both(f);
	struct wfs_file *file = get_file(f, both.ino_b);
	struct wfs_repack *r;

	assert_int_equal(wfs_repack_begin(file, &r), 1);
	write_at(f, both.ino_b, "x", 1, 100);
	both.b[100] = 'x';
	assert_int_equal(wfs_repack_step(r), -ETXTBSY);
	wfs_repack_end(r);
	wfs_file_unref(file);
	check_both(f, &both);
	free_both(&both);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_share_inner),
		cmocka_unit_test_setup_teardown(test_counts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_removed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_shared_later, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_written, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_abandoned, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_written_meanwhile, set_up, tear_down),
	};

	return cmocka_run_group_tests_name("repack", tests, NULL, NULL);
}
