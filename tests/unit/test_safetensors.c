/*
 * The verdict of lib/safetensors.h on files that are right, wrong and cut, and
 * the headers that it builds. What Python's safetensors says of the same files
 * is compared in tests/lib/test_differential.py.
 */
#include "lib/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <cmocka.h>

#include "tests/unit/allocations.h"

#define E(dtype, shape, offsets) \
	"{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A "\"a\":" E("F32", "[2]", "[0,8]")
#define B "\"a\":" E("U8", "[8]", "[0,8]")
#define MANY 100000
#define MANY_SECONDS 3 /* thirty times what it takes, for slow machines and sanitizers */

/* ---- files ---- */

struct file {
	uint8_t *buf;
	size_t len;
};

static void *allocate(size_t size)
{
	void *p = calloc(1, size + !size);

	if (!p)
		abort();
	return p;
}

/* `n` is written as the header's length. */
static struct file make_file_n(const char *json, size_t json_len, uint64_t n, size_t data)
{
	struct file f = { allocate(8 + json_len + data), 8 + json_len + data };

	for (unsigned i = 0; i < 8; i++)
		f.buf[i] = (uint8_t)(n >> 8 * i);
	memcpy(f.buf + 8, json, json_len);
	return f;
}

static struct file make_file(const char *json, size_t data)
{
	return make_file_n(json, strlen(json), strlen(json), data);
}

/* Parses a copy of exactly the bytes that the parser asks for. */
static void parse(const uint8_t *buf, size_t len, struct wfs_safetensors *st, uint8_t **ret_copy,
	struct wfs_err *err)
{
	uint64_t need = wfs_safetensors_need(buf, len);

	assert_true(need <= len);
	*ret_copy = allocate(need);
	memcpy(*ret_copy, buf, need);
	wfs_err_clear(err);
	assert_int_equal(wfs_safetensors_parse(*ret_copy, len, st, err), 0);
	assert_true((st->verdict == WFS_SAFETENSORS_VALID) == (err->reason == NULL));
}

/* `reason` NULL: valid. Returns the offset. */
static uint64_t check(struct file f, enum wfs_safetensors_verdict verdict, const char *reason)
{
	struct wfs_err err;
	struct wfs_safetensors st;
	uint8_t *copy;

	parse(f.buf, f.len, &st, &copy, &err);
	if (st.verdict != verdict || strcmp(reason ? reason : "", err.reason ? err.reason : ""))
		fail_msg("%.*s: verdict %d, %s (%s), not %d, %s", f.len > 8 ? (int)WFS_MIN(f.len - 8, 300u) : 0,
			f.len > 8 ? (char *)f.buf + 8 : "", st.verdict, err.reason, err.text, verdict, reason);
	if (reason)
		assert_int_equal(st.warnings, 0);
	wfs_safetensors_release(&st);
	free(copy);
	free(f.buf);
	return err.offset;
}

static void check_wrong(const char *json, size_t data, const char *reason)
{
	check(make_file(json, data), WFS_SAFETENSORS_WRONG, reason);
}

static void check_valid(const char *json, size_t data, unsigned warnings)
{
	struct file f = make_file(json, data);
	struct wfs_err err;
	struct wfs_safetensors st;
	uint8_t *copy;

	parse(f.buf, f.len, &st, &copy, &err);
	if (st.verdict != WFS_SAFETENSORS_VALID || st.warnings != warnings)
		fail_msg("%s: %s, warnings %x, not %x", json, err.text, st.warnings, warnings);
	wfs_safetensors_release(&st);
	free(copy);
	free(f.buf);
}

/* ---- dtypes ---- */

static void there_are_22_dtypes(void **state)
{
	static const char *const names[] = { "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8",
		"F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16",
		"BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64" };
	static const unsigned bits[] = { 8, 4, 6, 6, 8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32,
		32, 64, 64, 64, 64 };
	char json[200];

	(void)state;
	assert_int_equal(WFS_ARRAY_SIZE(names), WFS_DTYPE_COUNT);
	for (unsigned i = 0; i < WFS_DTYPE_COUNT; i++) {
		enum wfs_dtype found = WFS_DTYPE_COUNT;

		assert_string_equal(wfs_dtype_name(i), names[i]);
		assert_int_equal(wfs_dtype_bits(i), bits[i]);
		assert_int_equal(wfs_dtype_find(names[i], strlen(names[i]), &found), 1);
		assert_int_equal(found, i);
		snprintf(json, sizeof(json), "{\"a\":" E("%s", "[8]", "[0,%u]") "}      ", names[i],
			bits[i]);
		json[strlen(json) / 8 * 8] = '\0';
		check_valid(json, bits[i], 0);
	}
}

static void other_names_are_no_dtypes(void **state)
{
	static const char *const names[] = { "", "f32", "F3", "F322", "F32 ", "F8", "U128" };
	enum wfs_dtype found;

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(names); i++)
		assert_int_equal(wfs_dtype_find(names[i], strlen(names[i]), &found), 0);
}

/* ---- verdicts ---- */

static void short_files_are_incomplete(void **state)
{
	static const uint8_t bytes[8] = { 2 };

	(void)state;
	for (size_t len = 0; len < 8; len++) {
		struct file f = { allocate(len), len };

		memcpy(f.buf, bytes, len);
		assert_int_equal(check(f, WFS_SAFETENSORS_INCOMPLETE, "header-too-small"), len);
	}
}

static void short_files_may_be_too_large_already(void **state)
{
	struct file f = { allocate(4), 4 };

	(void)state;
	f.buf[3] = 6; /* 6 << 24 is more than 100,000,000 */
	check(f, WFS_SAFETENSORS_WRONG, "header-too-large");
	f = (struct file){ allocate(4), 4 };
	f.buf[3] = 5;
	check(f, WFS_SAFETENSORS_INCOMPLETE, "header-too-small");
}

static void header_length_is_limited(void **state)
{
	struct file f = make_file_n("{}", 2, WFS_SAFETENSORS_MAX_HEADER + 1, 0);

	(void)state;
	assert_int_equal(wfs_safetensors_need(f.buf, UINT64_MAX), 8);
	assert_int_equal(check(f, WFS_SAFETENSORS_WRONG, "header-too-large"), 0);
	f = make_file_n("{}", 2, WFS_SAFETENSORS_MAX_HEADER, 0);
	assert_int_equal(wfs_safetensors_need(f.buf, UINT64_MAX), WFS_SAFETENSORS_MAX_HEADER + 8);
	assert_int_equal(wfs_safetensors_need(f.buf, 10), 10);
	check(f, WFS_SAFETENSORS_INCOMPLETE, "header-cut");
	f = make_file_n("{}", 2, UINT64_MAX, 0);
	check(f, WFS_SAFETENSORS_WRONG, "header-too-large");
}

static void every_reason_is_given(void **state)
{
	(void)state;
	check_wrong("", 0, "header-not-json");
	check_wrong("{\"\xff\":" E("F32", "[2]", "[0,8]") "}", 8, "header-not-utf8");
	check_wrong("{}\xe2\x82", 0, "header-not-utf8");
	check_wrong("{}}", 0, "header-not-json");
	check_wrong("[]", 0, "header-not-object");
	check_wrong("\"x\"", 0, "header-not-object");
	check_wrong("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "metadata-invalid");
	check_wrong("{\"__metadata__\":[]}", 0, "metadata-invalid");
	check_wrong("{\"__metadata__\":{\"a\":1}}", 0, "metadata-invalid");
	check_wrong("{\"a\":1}", 0, "entry-invalid");
	check_wrong("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "entry-invalid");
	check_wrong("{\"a\":[\"F32\",[2]]}", 8, "entry-invalid");
	check_wrong("{\"a\":[\"F32\",[2],[0,8],0]}", 8, "entry-invalid");
	check_wrong("{\"a\":[{\"F32\":{}},[2],[0,8]]}", 8, "entry-invalid");
	check_wrong("{\"a\":[{},[2],[0,8]]}", 8, "entry-invalid");
	check_wrong("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8, "entry-duplicate-key");
	check_wrong("{\"a\":" E("F33", "[2]", "[0,8]") "}", 8, "dtype-unknown");
	check_wrong("{\"a\":" E("F32", "[-0]", "[0,8]") "}", 8, "shape-invalid");
	check_wrong("{\"a\":" E("F32", "[18446744073709551616]", "[0,8]") "}", 8, "shape-invalid");
	check_wrong("{\"a\":" E("F32", "[2]", "[0,8.0]") "}", 8, "offsets-invalid");
	check_wrong("{\"a\":" E("F32", "[2]", "[0]") "}", 8, "offsets-invalid");
	check_wrong("{\"a\":" E("F32", "[2]", "[0,8,8]") "}", 8, "offsets-invalid");
	check_wrong("{" A ",\"b\":" E("F32", "[2]", "[9,17]") "}", 17, "offsets-gap");
	check_wrong("{" A ",\"b\":" E("F32", "[2]", "[4,12]") "}", 12, "offsets-overlap");
	check_wrong("{" A ",\"b\":" E("F32", "[1]", "[8,4]") "}", 8, "offsets-overlap");
	check_wrong("{\"a\":" E("F32", "[9223372036854775808,4,0]", "[0,0]") "}", 0,
		"shape-overflow");
	check_wrong("{\"a\":" E("F32", "[2305843009213693952]", "[0,8]") "}", 8, "shape-overflow");
	check_wrong("{\"a\":" E("F4", "[3]", "[0,1]") "}", 1, "shape-misaligned");
	check_wrong("{\"a\":" E("F32", "[3]", "[0,8]") "}", 8, "shape-mismatch");
	check_wrong("{\"a\":" E("F32", "[1]", "[0,8]") "}", 8, "shape-mismatch");
	check_wrong("{" A "}", 9, "data-long");
	check(make_file("{" A "}", 7), WFS_SAFETENSORS_INCOMPLETE, "data-short");
}

static void offsets_point_at_the_fault(void **state)
{
	static const char json[] = "{\"a\":{\"dtype\":\"F33\"}}";
	size_t whole = 8 + strlen("{" A "}");

	(void)state;
	assert_int_equal(check(make_file(json, 0), WFS_SAFETENSORS_WRONG, "dtype-unknown"),
		8 + (strstr(json, "\"F33") - json));
	assert_int_equal(check(make_file("{\"a\":\"\n\"}", 0), WFS_SAFETENSORS_WRONG, "entry-invalid"),
		8 + 5);
	assert_int_equal(check(make_file("{} x", 0), WFS_SAFETENSORS_WRONG, "header-not-json"), 11);
	assert_int_equal(check(make_file("{" A "}", 9), WFS_SAFETENSORS_WRONG, "data-long"),
		whole + 8);
	assert_int_equal(check(make_file("{" A "}", 1), WFS_SAFETENSORS_INCOMPLETE, "data-short"),
		whole + 8);
}

static void messages_name_the_tensor(void **state)
{
	struct file f = make_file("{\"layer.0\":" E("F32", "[3]", "[0,8]") "}", 8);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;

	(void)state;
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, &err), 0);
	assert_non_null(strstr(err.text, "'layer.0'"));
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, NULL), 0);
	assert_int_equal(st.verdict, WFS_SAFETENSORS_WRONG);
	free(f.buf);
}

static void every_warning_is_given(void **state)
{
	(void)state;
	check_valid("{" B "}", 8, 0);
	check_valid(" {" B "}  ", 8, WFS_ST_WARN_LEADING_SPACE);
	check_valid("{" B "} \n ", 8, WFS_ST_WARN_PADDING);
	check_valid("{" B "," B "}   ", 8, WFS_ST_WARN_DUPLICATE);
	check_valid("{\"__metadata__\":{\"k\":\"\",\"\\u006b\":\"\"}}", 0, WFS_ST_WARN_DUPLICATE);
	check_valid("{\"__metadata__\":null}", 0, WFS_ST_WARN_NULL_METADATA);
	check_valid("{\"a\":[\"U8\",[2],[0,2]]}", 2, WFS_ST_WARN_ENTRY_FORM);
	check_valid("{\"a\":{\"dtype\":{\"U8\":null},\"shape\":[],\"data_offsets\":[0,1]}}", 1,
		WFS_ST_WARN_ENTRY_FORM);
	check_valid("{\"a\":{\"dtype\":\"U8\",\"x\":[],\"shape\":[],\"data_offsets\":[0,1]}}", 1,
		WFS_ST_WARN_UNKNOWN_KEY);
	check_valid("{" A "}", 8, WFS_ST_WARN_UNALIGNED);
}

static void warnings_have_texts(void **state)
{
	char text[400];
	char small[10];

	(void)state;
	for (unsigned i = 0; i < WFS_ST_WARN_COUNT; i++) {
		wfs_safetensors_warning_text(1u << i, text, sizeof(text));
		assert_true(strlen(text) > 0 && !strchr(text, ';'));
	}
	wfs_safetensors_warning_text(0, text, sizeof(text));
	assert_string_equal(text, "");
	wfs_safetensors_warning_text(WFS_ST_WARN_PADDING | WFS_ST_WARN_DUPLICATE, text,
		sizeof(text));
	assert_non_null(strstr(text, "; "));
	wfs_safetensors_warning_text(~0u, small, sizeof(small));
	assert_int_equal(strlen(small), sizeof(small) - 1);
	wfs_safetensors_warning_text(~0u, small, 0);
}

/* ---- what is read ---- */

static void tensors_come_in_order_of_place(void **state)
{
	struct file f = make_file("{\"b\":" E("U8", "[2,3]", "[1,7]") ",\"e\":" E("U8", "[0]", "[1,1]")
		",\"\\u0061\\u0000/\":" E("I8", " [ ] ", "[0,1]") ",\"b\":" E("I8", "[6]", "[1,7]") "}", 7);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;
	uint64_t dims[4] = { 0 };

	(void)state;
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, &err), 0);
	assert_int_equal(st.verdict, WFS_SAFETENSORS_VALID);
	assert_int_equal(st.n_tensors, 3);
	assert_int_equal(st.data_len, 7);
	assert_int_equal(st.header_len, f.len - 8 - 7);
	assert_int_equal(st.tensors[0].name_len, 3);
	assert_memory_equal(st.tensors[0].name, "a\0/", 3);
	assert_int_equal(st.tensors[0].ndim, 0);
	assert_int_equal(wfs_safetensors_shape(&st, &st.tensors[0], dims, 4), 0);
	assert_memory_equal(st.tensors[1].name, "e", 1);
	assert_memory_equal(st.tensors[2].name, "b", 1);
	assert_int_equal(st.tensors[2].dtype, WFS_DTYPE_I8);
	assert_int_equal(wfs_safetensors_shape(&st, &st.tensors[2], dims, 4), 1);
	assert_int_equal(dims[0], 6);
	wfs_safetensors_release(&st);
	wfs_safetensors_release(&st);
	free(f.buf);
}

static void shapes_are_read_as_far_as_asked(void **state)
{
	struct file f = make_file("{\"a\":" E("U8", "[ 0 ,18446744073709551615,\n3]", "[0,0]") "}", 0);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;
	uint64_t dims[3] = { 7, 7, 7 };

	(void)state;
	/* 0 first: the product never overflows. */
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, &err), 0);
	assert_int_equal(st.verdict, WFS_SAFETENSORS_VALID);
	assert_int_equal(wfs_safetensors_shape(&st, st.tensors, dims, 2), 3);
	assert_true(dims[0] == 0 && dims[1] == UINT64_MAX && dims[2] == 7);
	wfs_safetensors_release(&st);
	free(f.buf);
}

static void metadata_is_read(void **state)
{
	struct file f = make_file(
		"{\"__metadata__\":{\"format\":\"pt\",\"n\":\"\\u0031\",\"format\":\"tf\"}}", 0);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;

	(void)state;
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, &err), 0);
	assert_true(st.has_meta);
	assert_int_equal(st.n_meta, 2);
	assert_memory_equal(st.meta[0].key, "format", 6);
	assert_memory_equal(st.meta[0].value, "tf", 2);
	assert_memory_equal(st.meta[1].value, "1", 1);
	wfs_safetensors_release(&st);
	free(f.buf);
}

/* ---- truncation ---- */

static const char good_json[] =
	" {\"__metadata__\":{\"k\\n\":\"\\ud83d\\ude00\xc3\xa9\"},\"\xe4\xb8\xad\\u00e9\":"
	E("BF16", "[ 2, 3]", "[8,20]") ",\"a\":[{\"F32\":null},[2],[0,8]],\"x\":{\"more\":"
	"[1,-2.5e+3,true,false,null,{\"k\":[{}]}],\"shape\":[0,18446744073709551615],"
	"\"dtype\":\"F6_E2M3\",\"data_offsets\":[20,20]}}\n\t ";

static void beginnings_of_a_good_file_are_incomplete(void **state)
{
	struct file f = make_file(good_json, 20);

	(void)state;
	for (size_t len = 0; len < f.len; len++) {
		struct wfs_err err;
		struct wfs_safetensors st;
		uint8_t *copy;

		parse(f.buf, len, &st, &copy, &err);
		if (st.verdict != WFS_SAFETENSORS_INCOMPLETE)
			fail_msg("%zu bytes are %d: %s", len, st.verdict, err.text);
		wfs_safetensors_release(&st);
		free(copy);
	}
	check(f, WFS_SAFETENSORS_VALID, NULL);
}

/* N promises more than is there; what is there is wrong already, or not yet. */
static void check_cut(const char *json, const char *reason)
{
	check(make_file_n(json, strlen(json), 1000, 0),
		reason ? WFS_SAFETENSORS_WRONG : WFS_SAFETENSORS_INCOMPLETE,
		reason ? reason : "header-cut");
}

static void what_is_certain_is_said_of_a_cut_header(void **state)
{
	(void)state;
	check_cut("", NULL);
	check_cut("  {", NULL);
	check_cut("{}", NULL);
	check_cut("{\"a\":{\"dtype\":\"F3", NULL);
	check_cut("{\"a\xe2\x82", NULL);
	check_cut("{\"a\":{\"shape\":[2}", "header-not-json");
	check_cut("{\"a\":{\"shape\":[2", NULL);
	check_cut("{" A ",\"b\":" E("F32", "[2]", "[100,108]"), NULL);
	check_cut("{\"a\xe2\x28", "header-not-utf8");
	check_cut("{}x", "header-not-json");
	check_cut("[", "header-not-object");
	check_cut("{\"a\":3", "entry-invalid");
	check_cut("{\"a\":{\"shape\":[-", "shape-invalid");
	check_cut("{\"a\":{\"shape\":[2.", "shape-invalid");
	check_cut("{\"a\":{\"shape\":\"", "shape-invalid");
	check_cut("{\"a\":{\"dtype\":\"F33\"", "dtype-unknown");
	check_cut("{\"a\":{\"dtype\":\"F32\",\"dtype\":", "entry-duplicate-key");
	check_cut("{\"__metadata__\":null,\"__metadata__\":", "metadata-invalid");
	check_cut("{\"a\":{\"x\":\"\\udc00", "header-not-json");
	check_cut("{\"a\":{\"x\":1e999", "header-not-json");
}

/* ---- size ---- */

static struct file make_many(void)
{
	size_t max = (size_t)MANY * 120;
	char *json = allocate(max);
	struct file f;
	size_t at = 1;

	json[0] = '{';
	for (size_t i = 0; i < MANY; i++)
		at += (size_t)snprintf(json + at, max - at, "%s\"model.layers.%zu.mlp.weight\":"
			E("U8", "[1,1]", "[%zu,%zu]"), i ? "," : "", i, i, i + 1);
	json[at++] = '}';
	f = make_file_n(json, at, at, MANY);
	free(json);
	return f;
}

static void many_tensors_are_read_in_no_time(void **state)
{
	struct file f = make_many();
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;
	clock_t start = clock();

	(void)state;
	assert_int_equal(wfs_safetensors_parse(f.buf, f.len, &st, &err), 0);
	assert_true(clock() - start < MANY_SECONDS * CLOCKS_PER_SEC);
	assert_int_equal(st.verdict, WFS_SAFETENSORS_VALID);
	assert_int_equal(st.n_tensors, MANY);
	assert_int_equal(st.tensors[MANY - 1].begin, MANY - 1);
	wfs_safetensors_release(&st);
	free(f.buf);
}

/* ---- corpus ---- */

static struct file read_corpus_file(const char *dir, const char *name)
{
	struct file f = { NULL, 0 };
	char path[512];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	f.len = (size_t)st.st_size;
	f.buf = allocate(f.len);
	assert_int_equal(read(fd, f.buf, f.len), f.len);
	close(fd);
	return f;
}

static void check_corpus_file(const char *dir, const char *name, bool valid)
{
	struct file f = read_corpus_file(dir, name);
	struct wfs_err err;
	struct wfs_safetensors st;
	uint8_t *copy;
	size_t len;

	parse(f.buf, f.len, &st, &copy, &err);
	len = err.reason ? strlen(err.reason) : 0;
	if (valid ? st.verdict != WFS_SAFETENSORS_VALID :
		    !len || strncmp(name, err.reason, len) != 0 || name[len] != '-')
		fail_msg("%s/%s: verdict %d, %s", dir, name, st.verdict, err.text);
	wfs_safetensors_release(&st);
	free(copy);
	free(f.buf);
}

static void walk_corpus(const char *path, bool valid)
{
	DIR *dir = opendir(path);
	struct dirent *d;
	size_t n = 0;

	if (!dir)
		fail_msg("no %s: the test runs in the root of the sources", path);
	while ((d = readdir(dir))) {
		if (!strstr(d->d_name, ".safetensors"))
			continue;
		check_corpus_file(path, d->d_name, valid);
		n++;
	}
	closedir(dir);
	assert_true(n > 50);
}

static void corpus_has_the_verdicts_of_its_names(void **state)
{
	(void)state;
	walk_corpus("tests/corpus/valid", true);
	walk_corpus("tests/corpus/invalid", false);
}

/* ---- building ---- */

/* Written by safetensors 0.8.0 for the same tensors. */
static const char written[] =
	"{\"__metadata__\":{\"k\":\"v\\u0000\"},\"d\":" E("F64", "[1]", "[0,8]") ",\"c\":"
	E("C64", "[1]", "[8,16]") ",\"a\\\"\\\\\\b\\t\\n\\f\\r\\u0001\x7f\xc3\xa9/\":"
	E("F32", "[0]", "[16,16]") ",\"b\":" E("F32", "[2,1]", "[16,24]") ",\"z\":"
	E("U8", "[]", "[24,25]") ",\"e\":" E("BOOL", "[3]", "[25,28]") "}";

static const uint64_t dims[] = { 2, 1, 0, 3 };

static const struct wfs_safetensors_entry sample[] = {
	{ "z", 1, 0, NULL, WFS_DTYPE_U8, 0, 0 },
	{ "b", 1, 2, dims, WFS_DTYPE_F32, 0, 0 },
	{ "a\"\\\b\t\n\f\r\x01\x7f\xc3\xa9/", 13, 1, dims + 2, WFS_DTYPE_F32, 0, 0 },
	{ "e", 1, 1, dims + 3, WFS_DTYPE_BOOL, 0, 0 },
	{ "c", 1, 1, dims + 1, WFS_DTYPE_C64, 0, 0 },
	{ "d", 1, 1, dims + 1, WFS_DTYPE_F64, 0, 0 },
};

static int build_sample(uint8_t **buf, size_t *len, uint64_t *data_len)
{
	static const struct wfs_safetensors_meta meta = { "k", "v\0", 1, 2 };
	struct wfs_safetensors_entry entries[WFS_ARRAY_SIZE(sample)];

	memcpy(entries, sample, sizeof(sample));
	return wfs_safetensors_build(entries, WFS_ARRAY_SIZE(sample), &meta, 1, buf, len, data_len,
		NULL);
}

static void headers_are_those_of_python(void **state)
{
	uint8_t *buf;
	uint64_t data_len;
	size_t len;

	(void)state;
	assert_int_equal(build_sample(&buf, &len, &data_len), 0);
	assert_int_equal(data_len, 28);
	assert_int_equal(len, 8 + (strlen(written) + 7) / 8 * 8);
	assert_true(buf[0] + 256u * buf[1] == len - 8 && buf[2] == 0 && buf[7] == 0);
	assert_memory_equal(buf + 8, written, strlen(written));
	for (size_t i = 8 + strlen(written); i < len; i++)
		assert_int_equal(buf[i], ' ');
	check((struct file){ buf, len }, WFS_SAFETENSORS_INCOMPLETE, "data-short");
}

static void no_tensors_make_16_bytes(void **state)
{
	uint8_t *buf;
	uint64_t data_len;
	size_t len;

	(void)state;
	assert_int_equal(wfs_safetensors_build(NULL, 0, NULL, 0, &buf, &len, &data_len, NULL), 0);
	assert_int_equal(len, 16);
	assert_int_equal(data_len, 0);
	assert_memory_equal(buf, "\x08\0\0\0\0\0\0\0{}      ", 16);
	check((struct file){ buf, len }, WFS_SAFETENSORS_VALID, NULL);
}

static void check_refused(struct wfs_safetensors_entry *entries, size_t n,
	const struct wfs_safetensors_meta *meta, size_t n_meta, const char *reason)
{
	struct wfs_err err = WFS_ERR_INIT;
	uint8_t *buf;
	uint64_t data_len;
	size_t len;

	assert_int_equal(wfs_safetensors_build(entries, n, meta, n_meta, &buf, &len, &data_len,
				 &err), -EINVAL);
	assert_string_equal(err.reason, reason);
}

static void builder_refuses_what_would_not_load(void **state)
{
	static const uint64_t huge[] = { UINT64_C(1) << 32, UINT64_C(1) << 32 };
	static const uint64_t half[] = { UINT64_C(1) << 60 };
	struct wfs_safetensors_entry overflow = { "a", 1, 2, huge, WFS_DTYPE_U8, 0, 0 };
	struct wfs_safetensors_entry misaligned = { "a", 1, 1, dims + 3, WFS_DTYPE_F4, 0, 0 };
	struct wfs_safetensors_entry no_text = { "\xff", 1, 0, NULL, WFS_DTYPE_U8, 0, 0 };
	struct wfs_safetensors_entry reserved = { "__metadata__", 12, 0, NULL, WFS_DTYPE_U8, 0, 0 };
	struct wfs_safetensors_entry twice[] = { { "a", 1, 0, NULL, WFS_DTYPE_U8, 0, 0 },
		{ "b", 1, 0, NULL, WFS_DTYPE_U8, 0, 0 }, { "a", 1, 0, NULL, WFS_DTYPE_F32, 0, 0 } };
	struct wfs_safetensors_entry sum[16];
	struct wfs_safetensors_meta pairs[] = { { "k", "v", 1, 1 }, { "k", "w", 1, 1 } };
	struct wfs_safetensors_meta bad_value = { "k", "\x80", 1, 1 };

	(void)state;
	check_refused(&overflow, 1, NULL, 0, "shape-overflow");
	check_refused(&misaligned, 1, NULL, 0, "shape-misaligned");
	check_refused(&no_text, 1, NULL, 0, "name-not-utf8");
	check_refused(&reserved, 1, NULL, 0, "duplicate-name");
	check_refused(twice, 3, NULL, 0, "duplicate-name");
	check_refused(twice, 2, pairs, 2, "duplicate-name");
	check_refused(twice, 2, &bad_value, 1, "name-not-utf8");
	check_refused(twice, SIZE_MAX, NULL, 0, "header-too-large");
	for (size_t i = 0; i < 16; i++)
		sum[i] = (struct wfs_safetensors_entry){ "0123456789abcdef" + i, 1, 1, half,
			WFS_DTYPE_U8, 0, 0 };
	check_refused(sum, 16, NULL, 0, "shape-overflow");
}

static void header_of_100_mb_is_the_largest(void **state)
{
	size_t fixed = strlen("{\"\":" E("U8", "[]", "[0,1]") "}");
	uint32_t name_len = (uint32_t)(WFS_SAFETENSORS_MAX_HEADER - fixed);
	char *name = allocate(name_len + 1);
	struct wfs_safetensors_entry e = { name, name_len, 0, NULL, WFS_DTYPE_U8, 0, 0 };
	uint8_t *buf;
	uint64_t data_len;
	size_t len;

	(void)state;
	memset(name, 'x', name_len + 1);
	assert_int_equal(wfs_safetensors_build(&e, 1, NULL, 0, &buf, &len, &data_len, NULL), 0);
	assert_int_equal(len, WFS_SAFETENSORS_MAX_HEADER + 8);
	check((struct file){ buf, len }, WFS_SAFETENSORS_INCOMPLETE, "data-short");
	e.name_len++;
	check_refused(&e, 1, NULL, 0, "header-too-large");
	free(name);
}

/* ---- failing allocations ---- */

static int parse_good(const struct file *f)
{
	struct wfs_safetensors st;
	struct wfs_err err = WFS_ERR_INIT;
	int e = wfs_safetensors_parse(f->buf, f->len, &st, &err);

	if (!e && st.verdict != WFS_SAFETENSORS_VALID)
		e = -EBADMSG;
	if (e)
		assert_true(!st.tensors && !st.meta && !st.strings);
	wfs_safetensors_release(&st);
	return e;
}

static void any_allocation_may_fail_in_parse(void **state)
{
	struct file f;
	long n = 0;
	int e;

	(void)state;
	f = make_file(good_json, 20);
	do {
		allocations_left = n++;
		e = parse_good(&f);
		allocations_left = -1;
		assert_true(e == 0 || e == -ENOMEM);
	} while (e);
	assert_true(n > 4);
	free(f.buf);
}

static void any_allocation_may_fail_in_build(void **state)
{
	uint8_t *buf;
	uint64_t data_len;
	size_t len;
	long n = 0;
	int e;

	(void)state;
	do {
		allocations_left = n++;
		e = build_sample(&buf, &len, &data_len);
		allocations_left = -1;
		assert_true(e == 0 || e == -ENOMEM);
	} while (e);
	assert_true(n > 4);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(there_are_22_dtypes),
		cmocka_unit_test(other_names_are_no_dtypes),
		cmocka_unit_test(short_files_are_incomplete),
		cmocka_unit_test(short_files_may_be_too_large_already),
		cmocka_unit_test(header_length_is_limited),
		cmocka_unit_test(every_reason_is_given),
		cmocka_unit_test(offsets_point_at_the_fault),
		cmocka_unit_test(messages_name_the_tensor),
		cmocka_unit_test(every_warning_is_given),
		cmocka_unit_test(warnings_have_texts),
		cmocka_unit_test(tensors_come_in_order_of_place),
		cmocka_unit_test(shapes_are_read_as_far_as_asked),
		cmocka_unit_test(metadata_is_read),
		cmocka_unit_test(beginnings_of_a_good_file_are_incomplete),
		cmocka_unit_test(what_is_certain_is_said_of_a_cut_header),
		cmocka_unit_test(many_tensors_are_read_in_no_time),
		cmocka_unit_test(corpus_has_the_verdicts_of_its_names),
		cmocka_unit_test(headers_are_those_of_python),
		cmocka_unit_test(no_tensors_make_16_bytes),
		cmocka_unit_test(builder_refuses_what_would_not_load),
		cmocka_unit_test(header_of_100_mb_is_the_largest),
		cmocka_unit_test(any_allocation_may_fail_in_parse),
		cmocka_unit_test(any_allocation_may_fail_in_build),
	};

	return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
