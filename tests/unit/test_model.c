/* Model directories: read from shards and index, cut, written tensor by tensor, settled. */
#include "tests/unit/store_fixture.h"

#include "lib/compose.h"
#include "lib/model_write.h"
#include "lib/npy.h"
#include "lib/store_priv.h"

#define EACH ((size_t)100000) /* bytes of a tensor: too many for the database */

static uint64_t make_dir(struct fixture *f, const char *name)
{
	return make(f, WFS_ROOT_INO, name, S_IFDIR | 0755);
}

static uint64_t put_in(
	struct fixture *f, uint64_t dir, const char *name, const void *bytes, size_t len)
{
	uint64_t ino = make(f, dir, name, S_IFREG | 0640);

	write_at(f, ino, bytes, len, 0);
	seal(f, ino);
	return ino;
}

/* A shard with tensors of these names; tensor i holds noise of seed base + i. */
static void put_shard(struct fixture *f, uint64_t dir, const char *name, const char *const *tensors,
	size_t n, uint64_t base)
{
	struct wfs_safetensors_entry *entries = calloc(n + 1, sizeof(*entries));
	const struct wfs_safetensors_meta meta = {"made by", "a test", 7, 6};
	uint64_t shape[1] = {EACH}, data_len;
	size_t head_len;
	uint8_t *head, *all;

	for (size_t i = 0; i < n; i++)
		entries[i] = (struct wfs_safetensors_entry){.name = tensors[i],
			.name_len = (uint32_t)strlen(tensors[i]),
			.ndim = 1,
			.shape = shape,
			.dtype = WFS_DTYPE_U8};
	assert_int_equal(
		wfs_safetensors_build(entries, n, &meta, 1, &head, &head_len, &data_len, NULL), 0);
	all = malloc(head_len + data_len);
	memcpy(all, head, head_len);
	for (size_t i = 0; i < n; i++) {
		uint8_t *bytes = noise(EACH, base + i);

		memcpy(all + head_len + entries[i].begin, bytes, EACH);
		free(bytes);
	}
	put_in(f, dir, name, all, head_len + data_len);
	free(all);
	free(head);
	free(entries);
}

static struct wfs_model *get_model(struct fixture *f, uint64_t dir)
{
	struct wfs_model *m;

	assert_int_equal(wfs_model_get(f->store, dir, NULL, &m), 0);
	return m;
}

static size_t find(const struct wfs_model *m, const char *name)
{
	size_t i;

	if (!wfs_model_find(m, name, strlen(name), &i))
		fail_msg("no tensor %s", name);
	return i;
}

/* The tensor's bytes, as its safetensors file has them at its end. */
static void check_tensor(const struct wfs_model *m, const char *name, uint64_t seed)
{
	uint8_t *want = noise(EACH, seed), *have = malloc(EACH);
	struct wfs_content *c;

	assert_int_equal(wfs_model_tensor_file(m, find(m, name), WFS_TENSOR_SAFETENSORS, &c), 0);
	assert_int_equal(wfs_content_read(c, have, EACH, c->size - EACH), EACH);
	assert_memory_equal(have, want, EACH);
	wfs_content_unref(c);
	free(want);
	free(have);
}

static bool has_name(struct fixture *f, uint64_t dir, const char *name)
{
	struct wfs_attr a;

	return wfs_name_lookup(f->store, dir, name, &a) == 0;
}

static void drop(struct fixture *f, struct wfs_gone *gone)
{
	if (gone->n)
		assert_int_equal(wfs_name_drop(f->store, gone->inos, gone->n), 0);
	free(gone->inos);
	*gone = (struct wfs_gone){.inos = NULL};
}

static struct wfs_model_name name_of(uint64_t dir, const char *tensor)
{
	return (struct wfs_model_name){.dir = dir, .tensor = tensor, .tensor_len = strlen(tensor)};
}

/* A nameless npy file of noise, to be put. */
static uint64_t make_npy(struct fixture *f, uint64_t dir, uint64_t seed, size_t cut)
{
	struct wfs_new new = {.mode = S_IFREG | 0600, .uid = 7, .gid = 8};
	uint64_t shape[1] = {EACH};
	uint8_t *bytes = noise(EACH, seed), *head;
	struct wfs_attr a;
	size_t len;

	assert_int_equal(wfs_name_create_unnamed(f->store, dir, &new, &a), 0);
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U8, shape, 1, &head, &len), 0);
	write_at(f, a.ino, head, len, 0);
	write_at(f, a.ino, bytes, EACH - cut, len);
	free(head);
	free(bytes);
	return a.ino;
}

static int put_tensor(
	struct fixture *f, uint64_t dir, const char *tensor, uint64_t ino, struct wfs_err *err)
{
	struct wfs_model_name name = name_of(dir, tensor);
	struct wfs_gone gone = {.inos = NULL};
	int ret = wfs_model_put(f->store, &name, WFS_TENSOR_NPY, ino, &gone, err);

	drop(f, &gone);
	return ret;
}

static void put_noise(struct fixture *f, uint64_t dir, const char *tensor, uint64_t seed)
{
	struct wfs_err err = WFS_ERR_INIT;

	if (put_tensor(f, dir, tensor, make_npy(f, dir, seed, 0), &err) != 0)
		fail_msg("put %s: %s", tensor, err.text);
}

static void settle(struct fixture *f, uint64_t dir)
{
	struct wfs_gone gone = {.inos = NULL};

	assert_int_equal(wfs_model_settle(f->store, dir, &gone, NULL), 0);
	drop(f, &gone);
	assert_false(wfs_model_is_pending(f->store, dir));
}

/* ---- reading ---- */

static void test_read(void **state)
{
	static const char *const first[] = {"a", "c"}, *const second[] = {"a", "b"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	static const char index[] = "{\"weight_map\": {"
				    "\"a\": \"model-00002-of-00002.safetensors\","
				    "\"c\": \"model-00001-of-00002.safetensors\"}}";
	struct wfs_model *m = get_model(f, dir), *again;
	size_t i;

	assert_int_equal(m->n, 0);
	wfs_model_unref(m);
	put_shard(f, dir, "model-00001-of-00002.safetensors", first, 2, 10);
	put_shard(f, dir, "model-00002-of-00002.safetensors", second, 2, 20);
	put_in(f, dir, "config.json", "{}", 2);
	m = get_model(f, dir);
	assert_int_equal(m->n, 3);
	assert_int_equal(wfs_model_find(m, "none", 4, &i), 0);
	check_tensor(m, "a", 10); /* the first that has it */
	check_tensor(m, "b", 21);
	check_tensor(m, "c", 11);
	again = get_model(f, dir);
	assert_ptr_equal(again, m);
	wfs_model_unref(again);
	wfs_model_unref(m);
	/* What the index says comes before. */
	put_in(f, dir, "model.safetensors.index.json", index, sizeof(index) - 1);
	m = get_model(f, dir);
	check_tensor(m, "a", 20);
	wfs_model_unref(m);
}

static void test_left_out(void **state)
{
	static const char *const names[] = {"a"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_model *m;

	put_shard(f, dir, "model-00001-of-00002.safetensors", names, 1, 1);
	put_in(f, dir, "model-00002-of-00002.safetensors", "\0\0\0", 3);
	m = get_model(f, dir);
	assert_int_equal(m->n, 1);
	assert_non_null(strstr(m->left_out, "model-00002"));
	wfs_model_unref(m);
	put_in(f, dir, "model.safetensors.index.json", "{", 1);
	m = get_model(f, dir);
	assert_int_equal(m->n, 1);
	assert_false(m->has_index);
	assert_non_null(strstr(m->left_out, "index"));
	wfs_model_unref(m);
	/* What it holds would be lost. */
	assert_int_equal(put_tensor(f, dir, "b", make_npy(f, dir, 2, 0), &err), -EBUSY);
	assert_string_equal(err.reason, "shards-left-out");
}

static void test_cut(void **state)
{
	static const char *const names[] = {"a", "b", "c", "d", "e"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	const struct wfs_cut *cut, *again;
	struct wfs_model *m;

	put_shard(f, dir, "model.safetensors", names, 5, 1);
	m = get_model(f, dir);
	assert_int_equal(wfs_model_cut(m, 2 * EACH, &cut, NULL), 0);
	assert_int_equal(cut->n, 4); /* three shards and the index */
	assert_string_equal(cut->files[0].name, "model-00001-of-00003.safetensors");
	assert_string_equal(cut->files[3].name, "model.safetensors.index.json");
	assert_int_equal(wfs_model_cut(m, 2 * EACH, &again, NULL), 0);
	assert_ptr_equal(cut, again);
	assert_int_equal(wfs_model_cut(m, UINT64_MAX, &cut, NULL), 0);
	assert_int_equal(cut->n, 1);
	/* Cut as it is: the same bytes, header and metadata included. */
	assert_int_equal(cut->files[0].content->size, m->shards[0].content->size);
	assert_null(wfs_cut_find(cut, "model-00001-of-00003.safetensors"));
	wfs_model_unref(m);
	/* Nothing is kept of a model that is gone for long. */
	for (int i = 0; i < 100; i++)
		wfs_model_tidy(f->store);
}

/* ---- writing ---- */

static void test_new_model(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_model *m;
	struct wfs_attr a;

	put_noise(f, dir, "x", 1);
	put_noise(f, dir, "y", 2);
	put_noise(f, dir, "x", 3); /* the first was never seen */
	assert_true(wfs_model_is_pending(f->store, dir));
	assert_false(has_name(f, dir, "model.safetensors"));
	settle(f, dir);
	m = get_model(f, dir);
	assert_int_equal(m->n, 2);
	check_tensor(m, "x", 3);
	check_tensor(m, "y", 2);
	assert_int_equal(m->shards[0].st.n_meta, 1);
	assert_memory_equal(m->shards[0].st.meta[0].key, "format", 6);
	wfs_model_unref(m);
	assert_int_equal(wfs_name_lookup(f->store, dir, "model.safetensors", &a), 0);
	assert_int_equal(a.verdict, WFS_VERDICT_VALID);
	assert_int_equal(a.mode & 0777, 0600);
	assert_int_equal(a.uid, 7);
}

/* Only the shard that changes is another file; each keeps its metadata. */
static void test_layout_stays(void **state)
{
	static const char *const first[] = {"a", "b"}, *const second[] = {"c", "d"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_attr one, two, one_later, two_later;
	struct wfs_model *m;

	put_shard(f, dir, "model-00001-of-00002.safetensors", first, 2, 10);
	put_shard(f, dir, "model-00002-of-00002.safetensors", second, 2, 20);
	wfs_name_lookup(f->store, dir, "model-00001-of-00002.safetensors", &one);
	wfs_name_lookup(f->store, dir, "model-00002-of-00002.safetensors", &two);
	put_noise(f, dir, "c", 99);
	put_noise(f, dir, "e", 98); /* goes into the last */
	settle(f, dir);
	wfs_name_lookup(f->store, dir, "model-00001-of-00002.safetensors", &one_later);
	wfs_name_lookup(f->store, dir, "model-00002-of-00002.safetensors", &two_later);
	assert_int_equal(one.ino, one_later.ino);
	assert_int_not_equal(two.ino, two_later.ino);
	assert_int_equal(two_later.mode & 0777, 0640);
	assert_true(has_name(f, dir, "model.safetensors.index.json"));
	m = get_model(f, dir);
	check_tensor(m, "c", 99);
	check_tensor(m, "d", 21);
	check_tensor(m, "e", 98);
	assert_memory_equal(m->shards[1].st.meta[0].key, "made by", 7);
	wfs_model_unref(m);
}

static void remove_tensor(struct fixture *f, uint64_t dir, const char *tensor)
{
	struct wfs_model_name name = name_of(dir, tensor);
	struct wfs_gone gone = {.inos = NULL};

	assert_int_equal(wfs_model_remove(f->store, &name, &gone, NULL), 0);
	drop(f, &gone);
}

static void test_remove(void **state)
{
	static const char *const first[] = {"a"}, *const second[] = {"b", "c"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_model_name none = name_of(dir, "none");
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_model *m;

	put_shard(f, dir, "model-00001-of-00002.safetensors", first, 1, 10);
	put_shard(f, dir, "model-00002-of-00002.safetensors", second, 2, 20);
	assert_int_equal(wfs_model_remove(f->store, &none, &gone, NULL), -ENOENT);
	remove_tensor(f, dir, "a");
	put_noise(f, dir, "new", 5);
	remove_tensor(f, dir, "new"); /* before it was in a shard */
	settle(f, dir);
	/* One shard is left, and so it needs no number and no index. */
	assert_true(has_name(f, dir, "model.safetensors"));
	assert_false(has_name(f, dir, "model-00001-of-00002.safetensors"));
	assert_false(has_name(f, dir, "model-00002-of-00002.safetensors"));
	assert_false(has_name(f, dir, "model.safetensors.index.json"));
	remove_tensor(f, dir, "b");
	remove_tensor(f, dir, "c");
	settle(f, dir);
	m = get_model(f, dir); /* a file that loads */
	assert_int_equal(m->n_shards, 1);
	assert_int_equal(m->n, 0);
	wfs_model_unref(m);
}

static void test_reshard(void **state)
{
	static const char *const names[] = {"a", "b", "c", "d", "e"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_model *m;

	put_shard(f, dir, "model.safetensors", names, 5, 1);
	assert_int_equal(
		wfs_xattr_set(f->store, dir, WFS_XATTR_MAX_SHARD_SIZE, "no size", 7, 0), -EINVAL);
	assert_int_equal(wfs_xattr_set(f->store, dir, WFS_XATTR_MAX_SHARD_SIZE, "200KB", 5, 0), 0);
	assert_int_equal(wfs_model_reshard(f->store, dir, &gone, NULL), 0);
	drop(f, &gone);
	m = get_model(f, dir);
	assert_int_equal(m->n_shards, 3);
	for (size_t i = 0; i < 5; i++)
		check_tensor(m, names[i], i + 1);
	wfs_model_unref(m);
	put_noise(f, dir, "f", 6); /* planned by the same limit */
	put_noise(f, dir, "g", 7);
	settle(f, dir);
	m = get_model(f, dir);
	assert_int_equal(m->n_shards, 4);
	assert_true(has_name(f, dir, "model-00004-of-00004.safetensors"));
	assert_false(has_name(f, dir, "model-00001-of-00003.safetensors"));
	wfs_model_unref(m);
}

/* The bytes are stored once, whoever else has them. */
static void test_clone(void **state)
{
	static const char *const names[] = {"a"};
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m"), other = make_dir(f, "other"), ino;
	struct wfs_new new = {.mode = S_IFREG | 0644};
	struct wfs_model_name from = name_of(dir, "a");
	struct wfs_gone gone = {.inos = NULL};
	uint64_t stored;
	struct wfs_model *m;

	put_shard(f, dir, "model.safetensors", names, 1, 1);
	stored = stats(f).stored_bytes;
	assert_int_equal(
		wfs_model_clone(f->store, &from, WFS_TENSOR_NPY, &new, &ino, &gone, NULL), 0);
	assert_int_equal(put_tensor(f, other, "b", ino, NULL), 0);
	settle(f, other);
	assert_in_range(stats(f).stored_bytes, stored, stored + 2000);
	m = get_model(f, other);
	check_tensor(m, "b", 1);
	wfs_model_unref(m);
	from = name_of(dir, "none");
	assert_int_equal(
		wfs_model_clone(f->store, &from, WFS_TENSOR_NPY, &new, &ino, &gone, NULL), -ENOENT);
}

static void test_refused(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m"), ino;
	struct wfs_err err = WFS_ERR_INIT;

	assert_int_equal(put_tensor(f, dir, "x", make_npy(f, dir, 1, 1), &err), -EBADMSG);
	assert_string_equal(err.reason, "npy-short");
	wfs_err_clear(&err);
	ino = make_npy(f, dir, 1, 0);
	assert_int_equal(put_tensor(f, dir, "__metadata__", ino, &err), -EBADMSG);
	assert_string_equal(err.reason, "tensor-name");
	wfs_err_clear(&err);
	assert_int_equal(put_tensor(f, dir, "\xff", ino, &err), -EBADMSG);
	assert_string_equal(err.reason, "tensor-name");
	assert_false(wfs_model_is_pending(f->store, dir));
}

/* What waited when the process ended waits on, and comes. */
static void test_after_the_end(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "m");
	struct wfs_model *m;

	put_noise(f, dir, "x", 1);
	reopen(f, 0);
	assert_true(wfs_model_is_pending(f->store, dir));
	settle(f, dir);
	m = get_model(f, dir);
	check_tensor(m, "x", 1);
	wfs_model_unref(m);
}

static void test_npy_shares(void **state)
{
	static const char *const names[] = {"a"};
	struct fixture *f = *state;
	uint64_t shape[1] = {EACH};
	uint8_t *bytes = noise(EACH, 1), *head, *all;
	struct wfs_piece *pieces;
	uint64_t stored, ino;
	size_t len, n;

	put_shard(f, make_dir(f, "m"), "model.safetensors", names, 1, 1);
	stored = stats(f).stored_bytes;
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U8, shape, 1, &head, &len), 0);
	all = malloc(len + EACH);
	memcpy(all, head, len);
	memcpy(all + len, bytes, EACH);
	ino = put(f, "a.npy", all, len + EACH);
	assert_int_equal(stats(f).stored_bytes, stored + len);
	assert_int_equal(wfs_file_pieces(f->store, ino, &pieces, &n), 0);
	assert_int_equal(n, 2);
	check_bytes(f, ino, all, len + EACH);
	free(pieces);
	free(all);
	free(head);
	free(bytes);
}

/* ---- links ---- */

static uint64_t make_link(struct fixture *f, uint64_t parent, const char *name, const char *target)
{
	struct wfs_new new = {.mode = S_IFLNK | 0777, .target = target};
	struct wfs_attr a;

	assert_int_equal(wfs_name_create(f->store, parent, name, &new, &a), 0);
	return a.ino;
}

static void test_follow(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = make_dir(f, "d"), blob;
	struct wfs_attr a;

	blob = put(f, "blob", "x", 1);
	make_link(f, dir, "one", "../blob");
	make_link(f, dir, "two", "./one");
	make_link(f, dir, "out", "/etc/passwd");
	make_link(f, dir, "above", "../../blob");
	make_link(f, dir, "circle", "circle");
	make_link(f, dir, "gone", "nothing");
	make_link(f, dir, "through", "one/x");
	assert_int_equal(wfs_name_follow(f->store, dir, "one", &a), 0);
	assert_int_equal(a.ino, blob);
	assert_int_equal(wfs_name_follow(f->store, dir, "two", &a), 0);
	assert_int_equal(a.ino, blob);
	assert_int_equal(wfs_name_follow(f->store, dir, "out", &a), -ENOENT);
	assert_int_equal(wfs_name_follow(f->store, dir, "above", &a), -ENOENT);
	assert_int_equal(wfs_name_follow(f->store, dir, "circle", &a), -ELOOP);
	assert_int_equal(wfs_name_follow(f->store, dir, "gone", &a), -ENOENT);
	assert_int_equal(wfs_name_follow(f->store, dir, "through", &a), -ENOTDIR);
}

/* ---- put together ---- */

/* Parts of parts, across every border. */
static void test_compose(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = noise(3000, 1), have[3000];
	struct wfs_composer p;
	struct wfs_content *whole, *part;

	assert_int_equal(wfs_compose_begin(&p, &f->store->datafiles), 0);
	for (size_t at = 0; at < 3000; at += 100)
		assert_int_equal(wfs_compose_bytes(&p, bytes + at, 100), 0);
	assert_int_equal(wfs_compose_bytes(&p, bytes, 0), -EUCLEAN);
	whole = wfs_compose_end(&p);
	assert_int_equal(whole->n, 1); /* neighbours in memory */
	for (uint64_t from = 0; from < 3000; from += 333) {
		assert_int_equal(wfs_compose_begin(&p, &f->store->datafiles), 0);
		assert_int_equal(wfs_compose_part(&p, whole, from, 3000 - from), 0);
		assert_int_equal(wfs_compose_part(&p, whole, 2999, 2), -EUCLEAN);
		part = wfs_compose_end(&p);
		assert_int_equal(wfs_content_read(part, have, sizeof(have), 0), 3000 - from);
		assert_memory_equal(have, bytes + from, 3000 - from);
		wfs_content_unref(part);
	}
	wfs_content_unref(whole);
	free(bytes);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_read),
		TEST(test_left_out),
		TEST(test_cut),
		TEST(test_new_model),
		TEST(test_layout_stays),
		TEST(test_remove),
		TEST(test_reshard),
		TEST(test_clone),
		TEST(test_refused),
		TEST(test_after_the_end),
		TEST(test_npy_shares),
		TEST(test_follow),
		TEST(test_compose),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
