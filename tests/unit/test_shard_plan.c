/* Shards: lib/shard_plan.h, lib/shard_name.h, lib/shard_index.h. */
#include "lib/shard_index.h"
#include "lib/shard_name.h"
#include "lib/shard_plan.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MANY 1000000
#define MANY_NAMES 200000

/* ---- plans ---- */

struct plan_case {
	const char *what;
	uint64_t max;
	size_t n;
	uint64_t sizes[8];
	uint64_t storage[8];
	uint32_t shards;
	uint32_t shard[8];
};

static const struct plan_case plan_cases[] = {
	{"all fit", 10, 3, {3, 3, 4}, {0}, 1, {0, 0, 0}},
	{"one byte too many", 10, 3, {3, 3, 5}, {0}, 2, {0, 0, 1}},
	{"exactly max fits", 10, 3, {10, 10, 1}, {0}, 3, {0, 1, 2}},
	{"nothing is reordered", 10, 6, {6, 6, 2, 6, 2, 2}, {0}, 3, {0, 1, 1, 2, 2, 2}},
	{"the large one comes before the open one", 10, 4, {4, 11, 4, 4}, {0}, 3, {1, 0, 1, 2}},
	{"large ones only", 10, 3, {11, 12, 13}, {0}, 3, {0, 1, 2}},
	{"a large one last", 10, 2, {4, 11}, {0}, 2, {1, 0}},
	{"zero-size tensors", 10, 4, {0, 10, 0, 1}, {0}, 2, {0, 0, 0, 1}},
	{"zero-size tensors only", 10, 2, {0, 0}, {0}, 1, {0, 0}},
	{"limit 0", 0, 4, {0, 1, 0, 1}, {0}, 3, {2, 0, 2, 1}},
	{"a storage counts once", 10, 4, {6, 6, 4, 1}, {7, 7, 0, 0}, 2, {0, 0, 0, 1}},
	{"a storage goes back to its first", 10, 5, {6, 6, 6, 6, 4}, {7, 0, 7, 8, 8}, 3,
		{0, 1, 0, 2, 2}},
	{"a large storage", 10, 4, {1, 20, 1, 20}, {0, 7, 0, 7}, 2, {1, 0, 1, 0}},
	{"storages across each other", 10, 6, {9, 9, 9, 1, 1, 1}, {3, 1, 2, 1, 2, 3}, 3,
		{0, 1, 2, 1, 2, 0}},
	{"storage number of all ones", 10, 3, {9, 9, 1}, {UINT64_MAX, UINT64_MAX, 0}, 1, {0, 0, 0}},
	{"sums beyond 64 bits", UINT64_MAX, 4, {UINT64_MAX, UINT64_MAX, 1, UINT64_MAX - 1}, {0}, 3,
		{0, 1, 2, 2}},
	{"a limit below the largest size", UINT64_MAX - 1, 3, {1, UINT64_MAX, UINT64_MAX - 1}, {0},
		3, {1, 0, 2}},
};

static void check_plan(const struct plan_case *c, const uint64_t *storage)
{
	uint32_t shard[8], shards = 99;

	assert_int_equal(wfs_shard_plan(c->sizes, storage, c->n, c->max, shard, &shards), 0);
	if (shards != c->shards)
		fail_msg("%s: %u shards", c->what, shards);
	for (size_t i = 0; i < c->n; i++)
		if (shard[i] != c->shard[i])
			fail_msg("%s: tensor %zu is in shard %u", c->what, i, shard[i]);
}

static void test_plans(void **state)
{
	static const uint64_t none[8];

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(plan_cases); i++) {
		check_plan(&plan_cases[i], plan_cases[i].storage);
		if (memcmp(plan_cases[i].storage, none, sizeof(none)) == 0)
			check_plan(&plan_cases[i], NULL);
	}
}

static void test_plan_of_nothing(void **state)
{
	uint32_t shard = 7, shards = 7;

	(void)state;
	assert_int_equal(wfs_shard_plan(NULL, NULL, 0, 10, &shard, &shards), 0);
	assert_int_equal(shards, 0);
	assert_int_equal(shard, 7);
}

static void test_plan_of_too_many(void **state)
{
	uint64_t size = 1;
	uint32_t shard = 7, shards = 7;

	(void)state;
	assert_int_equal(
		wfs_shard_plan(&size, NULL, (size_t)WFS_SHARD_PLAN_MAX + 1, 10, &shard, &shards),
		-EOVERFLOW);
	assert_int_equal(shard, 7);
	assert_int_equal(shards, 7);
}

/* Every second tensor shares a storage with one from the other end; each tenth is large. */
static void test_plan_of_many(void **state)
{
	WFS_AUTO_FREE uint64_t *sizes = calloc(MANY, sizeof(*sizes));
	WFS_AUTO_FREE uint64_t *storage = calloc(MANY, sizeof(*storage));
	WFS_AUTO_FREE uint32_t *shard = calloc(MANY, sizeof(*shard));
	uint32_t shards;

	(void)state;
	assert_true(sizes && storage && shard);
	for (size_t i = 0; i < MANY; i++) {
		sizes[i] = i % 10 ? i % 7 : 1000;
		storage[i] = i % 2 ? 1 + WFS_MIN(i, MANY - i) : 0;
	}
	assert_int_equal(wfs_shard_plan(sizes, storage, MANY, 100, shard, &shards), 0);
	assert_true(shards > MANY / 10);
	for (size_t i = 1; i < MANY; i += 2)
		assert_int_equal(shard[i], shard[MANY - i]);
	for (size_t i = 0; i < MANY; i++)
		assert_true(shard[i] < shards);
}

/* ---- names ---- */

static const struct {
	const char *name;
	const char *base;
	const char *variant;
	bool is_index;
	uint32_t number, count;
} names[] = {
	{"model.safetensors", "model", NULL, false, 0, 0},
	{"model.fp16.safetensors", "model", "fp16", false, 0, 0},
	{"model-00001-of-00003.safetensors", "model", NULL, false, 1, 3},
	{"model.fp16-00001-of-00003.safetensors", "model", "fp16", false, 1, 3},
	{"adapter_model.safetensors", "adapter_model", NULL, false, 0, 0},
	{"diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model", "fp16", false, 0,
		0},
	{"model.safetensors.index.json", "model", NULL, true, 0, 0},
	{"model.safetensors.index.fp16.json", "model", "fp16", true, 0, 0},
	{"model.a.b.safetensors", "model", "a.b", false, 0, 0},
	{"model.safetensors.index.a.b.json", "model", "a.b", true, 0, 0},
	{"model..safetensors", "model", "", false, 0, 0},
	{"model.safetensors.index..json", "model", "", true, 0, 0},
	{"model-00001-of-00001.safetensors", "model", NULL, false, 1, 1},
	{"model-00000-of-00023.safetensors", "model", NULL, false, 0, 23},
	{"model-100000-of-123456.safetensors", "model", NULL, false, 100000, 123456},
	{"model-4294967295-of-4294967295.safetensors", "model", NULL, false, UINT32_MAX,
		UINT32_MAX},
	{"m-1-00001-of-00002.safetensors", "m-1", NULL, false, 1, 2},
	{"m-00001-of-00002-00003-of-00004.safetensors", "m-00001-of-00002", NULL, false, 3, 4},
	{"\303\244 b.safetensors", "\303\244 b", NULL, false, 0, 0},
	/* No numbers of a shard. */
	{"model-0001-of-0003.safetensors", "model-0001-of-0003", NULL, false, 0, 0},
	{"model-00004-of-00003.safetensors", "model-00004-of-00003", NULL, false, 0, 0},
	{"model-00000-of-00000.safetensors", "model-00000-of-00000", NULL, false, 0, 0},
	{"model-00001-of-4294967296.safetensors", "model-00001-of-4294967296", NULL, false, 0, 0},
	{"model00001-of-00003.safetensors", "model00001-of-00003", NULL, false, 0, 0},
	{"model-00001_of_00003.safetensors", "model-00001_of_00003", NULL, false, 0, 0},
	{"00001-of-00003.safetensors", "00001-of-00003", NULL, false, 0, 0},
	{"m-00001-of-00003.fp16.safetensors", "m-00001-of-00003", "fp16", false, 0, 0},
	/* The base of an index may have dots. */
	{"model.fp16.safetensors.index.json", "model.fp16", NULL, true, 0, 0},
	{"a.safetensors.index.safetensors.index.json", "a", "safetensors.index", true, 0, 0},
	{"a.safetensors.index.safetensors", "a", "safetensors.index", false, 0, 0},
};

static int build_name(char *buf, size_t size, size_t i)
{
	if (names[i].is_index)
		return wfs_shard_index_name(buf, size, names[i].base, names[i].variant);
	return wfs_shard_name(
		buf, size, names[i].base, names[i].variant, names[i].number, names[i].count);
}

static void test_names(void **state)
{
	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(names); i++) {
		struct wfs_shard_name n;
		char buf[WFS_SHARD_NAME_SIZE];

		assert_int_equal(build_name(buf, sizeof(buf), i), 0);
		assert_string_equal(buf, names[i].name);
		if (!wfs_shard_name_parse(names[i].name, &n))
			fail_msg("%s is refused", names[i].name);
		assert_string_equal(n.base, names[i].base);
		assert_int_equal(n.has_variant, names[i].variant != NULL);
		assert_string_equal(n.variant, names[i].variant ? names[i].variant : "");
		assert_int_equal(n.is_index, names[i].is_index);
		assert_int_equal(n.number, names[i].number);
		assert_int_equal(n.count, names[i].count);
	}
}

/* What other writers make, and transformers loads. */
static void test_names_with_zeros(void **state)
{
	struct wfs_shard_name n;

	(void)state;
	assert_true(wfs_shard_name_parse("model-00001-of-000163.safetensors", &n));
	assert_string_equal(n.base, "model");
	assert_int_equal(n.number, 1);
	assert_int_equal(n.count, 163);
}

static void test_no_names(void **state)
{
	static const char *const cases[] = {"", "model", "model.bin", ".safetensors",
		".fp16.safetensors", "-00001-of-00002.safetensors", "safetensors",
		"model.safetensors.json", "model.safetensors.index", "model.safetensors.indexjson",
		"model.safetensors.index.jso", "model.safetensors.indexed.json", "model.index.json",
		".safetensors.index.json", "model.safetensors.index.json ", "a/model.safetensors",
		"a/model.safetensors.index.json", "model.SAFETENSORS", "model.safetensors.tmp"};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		struct wfs_shard_name n = {.number = 77};

		if (wfs_shard_name_parse(cases[i], &n))
			fail_msg("'%s' is taken", cases[i]);
		assert_int_equal(n.number, 77);
	}
}

static void test_name_lengths(void **state)
{
	char base[300], buf[WFS_SHARD_NAME_SIZE], large[400];
	struct wfs_shard_name n;

	(void)state;
	memset(base, 'x', sizeof(base));
	base[255 - strlen(".safetensors")] = '\0';
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), base, NULL, 0, 0), 0);
	assert_int_equal(strlen(buf), 255);
	assert_true(wfs_shard_name_parse(buf, &n));
	assert_string_equal(n.base, base);

	assert_int_equal(wfs_shard_name(buf, sizeof(buf), base, "", 0, 0), -ENAMETOOLONG);
	assert_string_equal(buf, "");
	assert_int_equal(wfs_shard_name(large, sizeof(large), base, "", 0, 0), -ENAMETOOLONG);
	assert_int_equal(wfs_shard_index_name(large, sizeof(large), base, NULL), -ENAMETOOLONG);
	snprintf(large, sizeof(large), "y%s.safetensors", base);
	assert_false(wfs_shard_name_parse(large, &n));

	assert_int_equal(wfs_shard_name(buf, 17, "model", NULL, 0, 0), -ENAMETOOLONG);
	assert_int_equal(wfs_shard_name(buf, 18, "model", NULL, 0, 0), 0);
	assert_int_equal(wfs_shard_name(NULL, 0, "model", NULL, 0, 0), -ENAMETOOLONG);
}

static void test_wrong_parts_of_names(void **state)
{
	char buf[WFS_SHARD_NAME_SIZE];

	(void)state;
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), "", NULL, 0, 0), -EINVAL);
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), "a/b", NULL, 0, 0), -EINVAL);
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), "a", "b/c", 0, 0), -EINVAL);
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), "a", NULL, 1, 0), -EINVAL);
	assert_int_equal(wfs_shard_name(buf, sizeof(buf), "a", NULL, 4, 3), -EINVAL);
	assert_int_equal(wfs_shard_index_name(buf, sizeof(buf), "", NULL), -EINVAL);
	assert_int_equal(wfs_shard_index_name(buf, sizeof(buf), "a", "b/c"), -EINVAL);
}

/* ---- reading an index ---- */

static int parse(const char *text, struct wfs_shard_index *ret, struct wfs_err *err)
{
	return wfs_shard_index_parse(text, strlen(text), ret, err);
}

static void assert_entry(
	const struct wfs_shard_index *index, size_t i, const char *tensor, const char *shard)
{
	assert_true(i < index->n);
	assert_int_equal(index->entries[i].tensor_len, strlen(tensor));
	assert_memory_equal(index->entries[i].tensor, tensor, strlen(tensor));
	assert_string_equal(index->entries[i].shard, shard);
}

static void test_index_is_read(void **state)
{
	struct wfs_shard_index index;

	(void)state;
	assert_int_equal(parse("{\"weight_map\": {\"b\": \"1.safetensors\", \"\": \"..x\", "
			       "\"\\ud83d\\ude00/\\n\": \"\303\244\"}, \"more\": [1], "
			       "\"metadata\": {\"total_size\": 8}}",
				 &index, NULL),
		0);
	assert_int_equal(index.n, 3);
	assert_entry(&index, 0, "b", "1.safetensors");
	assert_entry(&index, 1, "", "..x");
	assert_entry(&index, 2, "\360\237\230\200/\n", "\303\244");
	assert_true(index.has_metadata);
	assert_int_equal(json_integer_value(json_object_get(index.metadata, "total_size")), 8);
	wfs_shard_index_release(&index);
	assert_null(index.entries);
	wfs_shard_index_release(&index);
}

static void test_index_metadata(void **state)
{
	struct wfs_shard_index index;

	(void)state;
	assert_int_equal(parse("{\"weight_map\": {}}", &index, NULL), 0);
	assert_int_equal(index.n, 0);
	assert_false(index.has_metadata);
	assert_null(index.metadata);
	wfs_shard_index_release(&index);

	assert_int_equal(parse("{\"weight_map\": {}, \"metadata\": null}", &index, NULL), 0);
	assert_true(index.has_metadata);
	assert_null(index.metadata);
	wfs_shard_index_release(&index);
}

/* Python's json keeps the last value, at the place of the first. */
static void test_index_duplicates(void **state)
{
	struct wfs_shard_index index;

	(void)state;
	assert_int_equal(
		parse("{\"weight_map\": {\"x\": \"1\"}, \"metadata\": {\"a\": 1, \"a\": 2}, "
		      "\"weight_map\": {\"a\": \"1\", \"b\": \"2\", \"a\": \"3\"}}",
			&index, NULL),
		0);
	assert_int_equal(index.n, 2);
	assert_entry(&index, 0, "a", "3");
	assert_entry(&index, 1, "b", "2");
	assert_int_equal(json_integer_value(json_object_get(index.metadata, "a")), 2);
	wfs_shard_index_release(&index);
}

static const struct {
	const char *text;
	const char *reason;
} wrong_indexes[] = {
	{"", "index-not-json"},
	{"{", "index-not-json"},
	{"{\"weight_map\": {}} x", "index-not-json"},
	{"{\"weight_map\": {\"\xff\": \"a\"}}", "index-not-json"},
	{"\xef\xbb\xbf{\"weight_map\": {}}", "index-not-json"},
	{"{\"weight_map\": {\"\\ud800\": \"a\"}}", "index-not-json"},
	{"{\"weight_map\": {}, \"metadata\": {\"a\": 18446744073709551616}}", "index-not-json"},
	{"{\"weight_map\": {}, \"metadata\": {\"a\": 1e400}}", "index-not-json"},
	{"{\"weight_map\": {}, \"metadata\": {\"a\": NaN}}", "index-not-json"},
	{"{\"weight_map\": {\"a\\u0000b\": \"a\"}}", "index-tensor-name"},
	{"[]", "index-not-object"},
	{"7", "index-not-object"},
	{"{}", "index-weight-map"},
	{"{\"weight_map\": null}", "index-weight-map"},
	{"{\"weight_map\": [\"a\"]}", "index-weight-map"},
	{"{\"weight_map\": {\"t\": 1}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": null}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \".\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"..\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"../a\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"/a\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"a\\u0000b\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"t\": \"\\u0000\"}}", "index-shard-name"},
	{"{\"weight_map\": {\"s\": \"a\", \"t\": \"b/c\"}}", "index-shard-name"},
};

static void assert_refused(const char *text, size_t len, const char *reason)
{
	struct wfs_shard_index index = {.n = 77};
	struct wfs_err err = WFS_ERR_INIT;

	assert_int_equal(wfs_shard_index_parse(text, len, &index, &err), -EBADMSG);
	assert_string_equal(err.reason, reason);
	assert_int_equal(wfs_shard_index_parse(text, len, &index, NULL), -EBADMSG);
	assert_int_equal(index.n, 77);
}

static void test_wrong_indexes(void **state)
{
	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(wrong_indexes); i++)
		assert_refused(wrong_indexes[i].text, strlen(wrong_indexes[i].text),
			wrong_indexes[i].reason);
}

static void test_nul_is_not_json(void **state)
{
	static const char text[] = "{\"weight_map\": {}, \"metadata\": {\"a\": 1\0}}";

	(void)state;
	assert_refused(text, sizeof(text) - 1, "index-not-json");
}

static void test_index_error_names_the_tensor(void **state)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_shard_index index;

	(void)state;
	assert_int_equal(parse("{\"weight_map\": {\"t.weight\": 1}}", &index, &err), -EBADMSG);
	assert_string_equal(err.text, "tensor 't.weight': its shard is not a file name");
	wfs_err_clear(&err);
	assert_int_equal(parse("{\"weight_map\": }", &index, &err), -EBADMSG);
	assert_int_equal(err.offset, 16);
}

static void test_shard_name_length(void **state)
{
	char text[400], name[300];
	struct wfs_shard_index index;

	(void)state;
	memset(name, 'x', sizeof(name));
	name[255] = '\0';
	snprintf(text, sizeof(text), "{\"weight_map\": {\"t\": \"%s\"}}", name);
	assert_int_equal(parse(text, &index, NULL), 0);
	assert_entry(&index, 0, "t", name);
	wfs_shard_index_release(&index);
	snprintf(text, sizeof(text), "{\"weight_map\": {\"t\": \"%sx\"}}", name);
	assert_refused(text, strlen(text), "index-shard-name");
}

/* An index with `levels` containers in each other, its own two included. */
static size_t nested(char *text, unsigned levels)
{
	size_t at = (size_t)sprintf(text, "{\"weight_map\": {}, \"metadata\": {\"a\": ");

	memset(text + at, '[', levels - 2);
	at += levels - 2;
	memset(text + at, ']', levels - 2);
	at += levels - 2;
	return at + (size_t)sprintf(text + at, "}}");
}

static void test_index_depth(void **state)
{
	char text[1000];
	struct wfs_shard_index index;
	size_t len = nested(text, WFS_SHARD_INDEX_MAX_DEPTH);
	WFS_AUTO_FREE char *made = NULL;

	(void)state;
	assert_int_equal(wfs_shard_index_parse(text, len, &index, NULL), 0);
	assert_int_equal(wfs_shard_index_build(NULL, 0, index.metadata, &made, &len, NULL), 0);
	wfs_shard_index_release(&index);
	assert_int_equal(wfs_shard_index_parse(made, len, &index, NULL), 0);
	wfs_shard_index_release(&index);
	len = nested(text, WFS_SHARD_INDEX_MAX_DEPTH + 1);
	assert_refused(text, len, "index-too-deep");
	/* Brackets in a string do not count. */
	memset(text, '[', sizeof(text));
	len = (size_t)sprintf(text, "{\"weight_map\": {\"\\\"%0*d\": \"a\"}}", 500, 0);
	memset(strchr(text, '0'), '[', 400);
	assert_int_equal(wfs_shard_index_parse(text, len, &index, NULL), 0);
	wfs_shard_index_release(&index);
}

static void test_index_bounds(void **state)
{
	size_t len = WFS_SHARD_INDEX_MAX_TEXT + 1;
	WFS_AUTO_FREE char *text = malloc(len);

	(void)state;
	assert_non_null(text);
	memset(text, ' ', len);
	assert_refused(text, len, "index-too-large");
	assert_refused(text, len - 1, "index-not-json");
	memset(text, ',', len);
	assert_refused(text, WFS_SHARD_INDEX_MAX_VALUES, "index-not-json");
	assert_refused(text, (size_t)WFS_SHARD_INDEX_MAX_VALUES + 1, "index-too-many");
}

/* ---- writing an index ---- */

static void assert_built(
	const struct wfs_index_entry *entries, size_t n, const char *metadata, const char *want)
{
	json_t *object = metadata ? json_loads(metadata, JSON_ALLOW_NUL, NULL) : NULL;
	WFS_AUTO_FREE char *text = NULL;
	size_t len = 0;

	assert_int_equal(object != NULL, metadata != NULL);
	assert_int_equal(wfs_shard_index_build(entries, n, object, &text, &len, NULL), 0);
	json_decref(object);
	assert_int_equal(len, strlen(want));
	assert_string_equal(text, want);
}

static void test_index_is_written(void **state)
{
	static const struct wfs_index_entry entry = {"b", 1, "\303\244\"\\|"};

	(void)state;
	assert_built(NULL, 0, NULL, "{\n  \"weight_map\": {}\n}\n");
	assert_built(NULL, 0, "{}", "{\n  \"metadata\": {},\n  \"weight_map\": {}\n}\n");
	assert_built(&entry, 0, "{}", "{\n  \"metadata\": {},\n  \"weight_map\": {}\n}\n");
	assert_built(&entry, 1, NULL,
		"{\n  \"weight_map\": {\n    \"b\": \"\\u00e4\\\"\\\\|\"\n  }\n}\n");
}

static void test_index_order_and_escapes(void **state)
{
	static const struct wfs_index_entry entries[] = {
		{"\360\220\200\200", 4, "s"}, /* U+10000 sorts behind U+FFFF; by UTF-16 before it */
		{"\357\277\277", 3, "s"},
		{"b\0c", 3, "s"},
		{"b", 1, "s"},
		{"\b\f\n\r\t\001\037 ~\177", 10, "s"},
		{"", 0, "s"},
	};

	(void)state;
	assert_built(entries, 6, NULL,
		"{\n  \"weight_map\": {\n"
		"    \"\": \"s\",\n"
		"    \"\\b\\f\\n\\r\\t\\u0001\\u001f ~\\u007f\": \"s\",\n"
		"    \"b\": \"s\",\n"
		"    \"b\\u0000c\": \"s\",\n"
		"    \"\\uffff\": \"s\",\n"
		"    \"\\ud800\\udc00\": \"s\"\n"
		"  }\n}\n");
}

static void test_index_metadata_is_written(void **state)
{
	(void)state;
	assert_built(NULL, 0,
		"{\"total_size\": 9223372036854775807, \"b\": [], \"a\": {}, \"e\": [{}, [1, -2]],"
		" \"d\": {\"z\": true, \"y\": false, \"\303\244\": null}, \"c\": \"\\u0000/\"}",
		"{\n  \"metadata\": {\n"
		"    \"a\": {},\n"
		"    \"b\": [],\n"
		"    \"c\": \"\\u0000/\",\n"
		"    \"d\": {\n      \"y\": false,\n      \"z\": true,\n      \"\\u00e4\": null\n  "
		"  },\n"
		"    \"e\": [\n      {},\n      [\n        1,\n        -2\n      ]\n    ],\n"
		"    \"total_size\": 9223372036854775807\n"
		"  },\n  \"weight_map\": {}\n}\n");
}

/* What Python's repr() gives for each. */
static const struct {
	double value;
	const char *text;
} reals[] = {
	{0.0, "0.0"},
	{-0.0, "-0.0"},
	{1.0, "1.0"},
	{-1.5, "-1.5"},
	{0.1, "0.1"},
	{0.0001, "0.0001"},
	{0.00001, "1e-05"},
	{0.00012345, "0.00012345"},
	{123456.789, "123456.789"},
	{1e15, "1000000000000000.0"},
	{1e16, "1e+16"},
	{1.5e16, "1.5e+16"},
	{9007199254740993.0, "9007199254740992.0"},
	{13476831232.0, "13476831232.0"},
	{1e22, "1e+22"},
	{1e23, "1e+23"},
	{1e100, "1e+100"},
	{5e-324, "5e-324"},
	{2.2250738585072014e-308, "2.2250738585072014e-308"},
	{1.7976931348623157e308, "1.7976931348623157e+308"},
	{0.30000000000000004, "0.30000000000000004"},
	{0x1p-44, "5.684341886080802e-14"}, /* not the nearest of 16 digits */
	{1125899906842624.25, "1125899906842624.2"},
	{1125899906842624.75, "1125899906842624.8"},
};

static void test_reals(void **state)
{
	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(reals); i++) {
		json_t *metadata = json_pack("{s: f}", "a", reals[i].value);
		WFS_AUTO_FREE char *text = NULL;
		char want[100];
		size_t len;

		assert_int_equal(wfs_shard_index_build(NULL, 0, metadata, &text, &len, NULL), 0);
		json_decref(metadata);
		snprintf(want, sizeof(want),
			"{\n  \"metadata\": {\n    \"a\": %s\n  },\n  \"weight_map\": {}\n}\n",
			reals[i].text);
		assert_string_equal(text, want);
	}
}

static void assert_not_built(
	const struct wfs_index_entry *entries, size_t n, const json_t *metadata, const char *reason)
{
	struct wfs_err err = WFS_ERR_INIT;
	char *text = NULL;
	size_t len = 77;

	assert_int_equal(wfs_shard_index_build(entries, n, metadata, &text, &len, &err), -EINVAL);
	assert_string_equal(err.reason, reason);
	assert_null(text);
	assert_int_equal(len, 77);
}

static void test_index_cannot_be_written(void **state)
{
	static const struct wfs_index_entry twice[] = {{"b", 1, "s"}, {"a", 1, "s"}, {"b", 1, "t"}};
	static const struct wfs_index_entry bad_shard = {"a", 1, "x/y"};
	static const struct wfs_index_entry bad_tensor = {"a\xff", 2, "s"};
	static const struct wfs_index_entry bad_bytes = {"a", 1, "s\xff"};
	json_t *list = json_array(), *object = json_object();

	(void)state;
	json_object_set_new_nocheck(object, "a", json_string_nocheck("\xed\xa0\x80"));
	assert_not_built(twice, 3, NULL, "index-duplicate");
	assert_not_built(&bad_shard, 1, NULL, "index-shard-name");
	assert_not_built(&bad_tensor, 1, NULL, "index-not-utf8");
	assert_not_built(&bad_bytes, 1, NULL, "index-not-utf8");
	assert_not_built(twice, 1, list, "index-metadata");
	assert_not_built(twice, 1, object, "index-not-utf8");
	json_decref(list);
	json_decref(object);
}

static void test_metadata_cannot_be_too_deep(void **state)
{
	json_t *value = json_object();

	(void)state;
	for (unsigned i = 1; i < WFS_SHARD_INDEX_MAX_DEPTH; i++)
		value = json_pack("{s: o}", "a", value);
	assert_not_built(NULL, 0, value, "index-too-deep");
	json_decref(value);
}

static void test_totals(void **state)
{
	json_t *other = json_pack("{s: s, s: i}", "format", "pt", "total_size", 3), *made = NULL;
	json_t *list = json_array();

	(void)state;
	assert_int_equal(wfs_shard_index_totals(other, 5, INT64_MAX, &made), 0);
	assert_int_equal(json_object_size(made), 3);
	assert_int_equal(json_integer_value(json_object_get(made, "total_parameters")), 5);
	assert_int_equal(json_integer_value(json_object_get(made, "total_size")), INT64_MAX);
	assert_string_equal(json_string_value(json_object_get(made, "format")), "pt");
	assert_int_equal(json_integer_value(json_object_get(other, "total_size")), 3);
	json_decref(made);
	assert_int_equal(wfs_shard_index_totals(NULL, 0, 0, &made), 0);
	assert_int_equal(json_object_size(made), 2);
	json_decref(made);
	made = NULL;
	assert_int_equal(wfs_shard_index_totals(NULL, UINT64_C(1) << 63, 0, &made), -EOVERFLOW);
	assert_int_equal(wfs_shard_index_totals(NULL, 0, UINT64_MAX, &made), -EOVERFLOW);
	assert_int_equal(wfs_shard_index_totals(list, 0, 0, &made), -EINVAL);
	assert_null(made);
	json_decref(list);
	json_decref(other);
}

/* Names in an order that is not theirs, then read back. */
static void test_index_of_many(void **state)
{
	WFS_AUTO_FREE struct wfs_index_entry *entries = calloc(MANY_NAMES, sizeof(*entries));
	WFS_AUTO_FREE char *strings = malloc((size_t)MANY_NAMES * 16);
	WFS_AUTO_FREE char *text = NULL;
	struct wfs_shard_index index;
	size_t len;

	(void)state;
	assert_true(entries && strings);
	for (size_t i = 0; i < MANY_NAMES; i++) {
		char *name = strings + i * 16;
		int n = snprintf(name, 16, "t.%08zu", (i * 7919) % MANY_NAMES);

		entries[i] = (struct wfs_index_entry){name, (size_t)n, "model.safetensors"};
	}
	assert_int_equal(wfs_shard_index_build(entries, MANY_NAMES, NULL, &text, &len, NULL), 0);
	assert_int_equal(wfs_shard_index_parse(text, len, &index, NULL), 0);
	assert_int_equal(index.n, MANY_NAMES);
	for (size_t i = 0; i < MANY_NAMES; i++) {
		char want[16];

		snprintf(want, sizeof(want), "t.%08zu", i);
		assert_string_equal(index.entries[i].tensor, want);
	}
	wfs_shard_index_release(&index);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plans),
		cmocka_unit_test(test_plan_of_nothing),
		cmocka_unit_test(test_plan_of_too_many),
		cmocka_unit_test(test_plan_of_many),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_names_with_zeros),
		cmocka_unit_test(test_no_names),
		cmocka_unit_test(test_name_lengths),
		cmocka_unit_test(test_wrong_parts_of_names),
		cmocka_unit_test(test_index_is_read),
		cmocka_unit_test(test_index_metadata),
		cmocka_unit_test(test_index_duplicates),
		cmocka_unit_test(test_wrong_indexes),
		cmocka_unit_test(test_nul_is_not_json),
		cmocka_unit_test(test_index_error_names_the_tensor),
		cmocka_unit_test(test_shard_name_length),
		cmocka_unit_test(test_index_depth),
		cmocka_unit_test(test_index_bounds),
		cmocka_unit_test(test_index_is_written),
		cmocka_unit_test(test_index_order_and_escapes),
		cmocka_unit_test(test_index_metadata_is_written),
		cmocka_unit_test(test_reals),
		cmocka_unit_test(test_index_cannot_be_written),
		cmocka_unit_test(test_metadata_cannot_be_too_deep),
		cmocka_unit_test(test_totals),
		cmocka_unit_test(test_index_of_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
