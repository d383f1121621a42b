/*
 * The verdict of lib/npy.h on headers that are right, wrong and cut, the headers
 * that it builds, and data brought into C order and little endian. What NumPy
 * says and makes of the same files is compared in tests/lib/test_npy_differential.py.
 */
#include "lib/npy.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "lib/npy_priv.h"

#include "tests/unit/allocations.h"

#define MAGIC "\x93NUMPY"
#define DICT(descr, shape) "{'descr': " descr ", 'fortran_order': False, 'shape': " shape ", }"

static void *allocate(size_t size)
{
	void *p = calloc(1, size + !size);

	if (!p)
		abort();
	return p;
}

/* ---- files ---- */

struct file {
	uint8_t *buf;
	size_t len;
};

/* `n` is written as the header's length, in as many bytes as the version has. */
static struct file make_file_n(
	unsigned version, const char *text, size_t text_len, uint64_t n, size_t data)
{
	size_t at = version == 1 ? 10 : 12;
	struct file f = {allocate(at + text_len + data), at + text_len + data};

	memcpy(f.buf, MAGIC, 6);
	f.buf[6] = (uint8_t)version;
	for (size_t i = 8; i < at; i++)
		f.buf[i] = (uint8_t)(n >> 8 * (i - 8));
	memcpy(f.buf + at, text, text_len);
	return f;
}

static struct file make_file(unsigned version, const char *text, size_t data)
{
	return make_file_n(version, text, strlen(text), strlen(text), data);
}

/* Parses a copy of exactly the bytes that the parser asks for. */
static int parse(const uint8_t *buf, size_t len, struct wfs_npy *npy, struct wfs_err *err)
{
	uint64_t need = wfs_npy_need(buf, WFS_MIN(len, (size_t)WFS_NPY_PREFIX), len);
	uint8_t *copy;
	int e;

	assert_true(need <= len);
	copy = allocate(need);
	memcpy(copy, buf, need);
	*npy = (struct wfs_npy){.ndim = 99};
	wfs_err_clear(err);
	e = wfs_npy_parse(copy, len, npy, err);
	free(copy);
	assert_true((e == 0) == (err->reason == NULL));
	assert_true((npy->ndim == 99) == (e != 0));
	return e;
}

/* `reason` NULL: valid. Returns the offset. */
static uint64_t check(struct file f, const char *reason, struct wfs_npy *npy)
{
	struct wfs_err err;
	int e = parse(f.buf, f.len, npy, &err);

	assert_true(e == 0 || e == -EBADMSG);
	if (strcmp(reason ? reason : "", err.reason ? err.reason : ""))
		fail_msg("%.*s: %s (%s), not %s", f.len > 10 ? (int)WFS_MIN(f.len - 10, 300u) : 0,
			f.len > 10 ? (char *)f.buf + 10 : "", err.reason, err.text, reason);
	free(f.buf);
	return err.offset;
}

static void check_wrong(const char *text, const char *reason)
{
	struct wfs_npy npy;

	check(make_file(1, text, 0), reason, &npy);
}

static struct wfs_npy check_valid(unsigned version, const char *text, size_t data)
{
	struct wfs_npy npy;

	check(make_file(version, text, data), NULL, &npy);
	return npy;
}

/* ---- verdicts ---- */

static void fields_are_read(void **state)
{
	struct wfs_npy npy =
		check_valid(1, "{'descr': '>f4', 'fortran_order': True, 'shape': (2, 3), } \n", 24);

	(void)state;
	assert_int_equal(npy.dtype, WFS_DTYPE_F32);
	assert_true(npy.big_endian && npy.fortran_order);
	assert_int_equal(npy.ndim, 2);
	assert_int_equal(npy.shape[0], 2);
	assert_int_equal(npy.shape[1], 3);
	assert_int_equal(npy.data_at, 10 + 60);
	assert_int_equal(npy.data_len, 24);
	npy = check_valid(2, DICT("'<f8'", "()"), 8);
	assert_false(npy.big_endian || npy.fortran_order);
	assert_int_equal(npy.ndim, 0);
	assert_int_equal(npy.data_len, 8);
	assert_int_equal(npy.data_at, 12 + strlen(DICT("'<f8'", "()")));
	npy = check_valid(3, DICT("'<f8'", "(5, 0)"), 0);
	assert_int_equal(npy.data_len, 0);
}

static void forms_of_the_dict(void **state)
{
	static const char *const texts[] = {"{'shape':(3,),'descr':'|u1','fortran_order':False}",
		"{\"descr\":\"|u1\",'shape':(3,),'fortran_order':True}\n",
		" \t{ 'descr' : '|u1' , 'fortran_order' : False , 'shape' : ( 3 , ) , } \t ",
		"{\n'descr':\n'|u1',\t'fortran_order':False,\n'shape':(\n3,\n)\n}\n \n\t\n",
		"{u'descr':u'|u1','fortran_order':False,U'shape':(3,)}", DICT("'u1'", "(3L,)"),
		DICT("'u1'", "(1L, 3L)"), DICT("'u1'", "(3, 1,)")};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(texts); i++)
		for (unsigned version = 1; version <= 2; version++)
			check_valid(version, texts[i], 3);
}

static void what_is_no_such_dict(void **state)
{
	static const char *const texts[] = {"", " ", "\n", "{", "{}", "[]", "None", "{'descr'",
		"{'descr':", "{'descr':'u1'", "{'descr':'u1',,'fortran_order':False,'shape':(3,)}",
		"{,'descr':'u1','fortran_order':False,'shape':(3,)}",
		"{'descr':'u1' 'fortran_order':False,'shape':(3,)}",
		"{'descr' 'u1','fortran_order':False,'shape':(3,)}",
		"{'descr':'u1','fortran_order':False}", "{'descr':'u1','shape':(3,)}",
		"{'fortran_order':False,'shape':(3,)}",
		"{'descr':'u1','descr':'u1','fortran_order':False,'shape':(3,)}",
		"{'descr':'u1','fortran_order':False,'shape':(3,),'x':1}",
		"{'descr':'u1','fortran_order':0,'shape':(3,)}",
		"{'descr':'u1','fortran_order':Falsy,'shape':(3,)}",
		"{'descr':'u1','fortran_order':Falsee,'shape':(3,)}",
		"{'descr':'u1','fortran_order':None,'shape':(3,)}",
		"{'descr':None,'fortran_order':False,'shape':(3,)}",
		"{'descr':b'u1','fortran_order':False,'shape':(3,)}",
		"{'descr':'\\x751','fortran_order':False,'shape':(3,)}",
		"{'descr':'u\n1','fortran_order':False,'shape':(3,)}",
		"{'descr':'u1''','fortran_order':False,'shape':(3,)}",
		"{'descr':u 'u1','fortran_order':False,'shape':(3,)}", DICT("'u1'", "(03,)"),
		DICT("'u1'", "(3 4,)"), DICT("'u1'", "(3LL,)"), DICT("'u1'", "(3l,)"),
		DICT("'u1'", "(0x3,)"), DICT("'u1'", "(3,)") "x", DICT("'u1'", "(3,)") "\n ",
		DICT("'u1'", "(3,)") "\v", DICT("'u1'", "(3,)") "#", "\n" DICT("'u1'", "(3,)"),
		"({'descr':'u1'})"};
	struct wfs_npy npy;

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(texts); i++)
		check_wrong(texts[i], "npy-header");
	check(make_file(3, DICT("'u1'", "(3L,)"), 3), "npy-header", &npy);
	check(make_file_n(1, DICT("'u1'", "(3,)") "\0", strlen(DICT("'u1'", "(3,)")) + 1,
		      strlen(DICT("'u1'", "(3,)")) + 1, 3),
		"npy-header", &npy);
}

static void shapes(void **state)
{
	static const char *const wrong[] = {DICT("'u1'", "3"), DICT("'u1'", "(3)"),
		DICT("'u1'", "[3]"), DICT("'u1'", "None"), DICT("'u1'", "(,)"),
		DICT("'u1'", "(-1,)"), DICT("'u1'", "(True,)"), DICT("'u1'", "(+1,)"),
		DICT("'u1'", "(18446744073709551616,)"), DICT("'u1'", "(9223372036854775808,)"),
		DICT("'f4'", "(2305843009213693952,)"), DICT("'u1'", "(4294967296, 4294967296)"),
		DICT("'u1'", "(0, 9223372036854775808)"),
		DICT("'f8'", "(4294967296, 0, 4294967296)")};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(wrong); i++)
		check_wrong(wrong[i], "npy-shape");
	check_wrong(DICT("'u1'", "(9223372036854775807,)"), "npy-short");
	check_valid(1, DICT("'u1'", "(0, 9223372036854775807)"), 0);
}

static void at_most_64_dimensions(void **state)
{
	char text[600];
	struct wfs_npy npy;

	(void)state;
	for (unsigned n = 63; n <= 65; n++) {
		size_t at = (size_t)sprintf(text, "{'descr':'u1','fortran_order':False,'shape':(");

		for (unsigned i = 0; i < n; i++)
			at += (size_t)sprintf(text + at, "1,");
		sprintf(text + at, ")}");
		check(make_file(1, text, 1), n > 64 ? "npy-shape" : NULL, &npy);
		assert_true(n > 64 || npy.ndim == n);
	}
}

/* ---- dtypes ---- */

static void dtypes_of_both(void **state)
{
	static const struct {
		const char *spellings; /* without byte order; space between */
		const char *names;     /* that stand alone */
		enum wfs_dtype dtype;
		size_t bytes;
	} cases[] = {{"b1 ?", "bool bool_", WFS_DTYPE_BOOL, 1},
		{"u1 B", "uint8 ubyte", WFS_DTYPE_U8, 1}, {"i1 b", "int8 byte", WFS_DTYPE_I8, 1},
		{"i2 h", "int16 short", WFS_DTYPE_I16, 2},
		{"u2 H", "uint16 ushort", WFS_DTYPE_U16, 2},
		{"f2 e", "float16 half", WFS_DTYPE_F16, 2},
		{"i4 i", "int32 intc", WFS_DTYPE_I32, 4},
		{"u4 I", "uint32 uintc", WFS_DTYPE_U32, 4},
		{"f4 f", "float32 single", WFS_DTYPE_F32, 4},
		{"c8 F", "complex64 csingle", WFS_DTYPE_C64, 8},
		{"i8 l q p n", "int64 int int_ intp long longlong", WFS_DTYPE_I64, 8},
		{"u8 L Q P N", "uint64 uint uintp ulong ulonglong", WFS_DTYPE_U64, 8},
		{"f8 d", "float64 double float", WFS_DTYPE_F64, 8}};
	char list[64], text[128], *rest;

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases) * 6; i++) {
		size_t c = i / 6;
		const char *sign = (const char *const[]){"<", ">", "=", "|", "", ""}[i % 6];

		strcpy(list, i % 6 == 5 ? cases[c].names : cases[c].spellings);
		for (char *word = strtok_r(list, " ", &rest); word;
			word = strtok_r(NULL, " ", &rest)) {
			struct wfs_npy npy;

			snprintf(text, sizeof(text), DICT("'%s%s'", "(1,)"), sign, word);
			npy = check_valid(1, text, cases[c].bytes);
			assert_int_equal(npy.dtype, cases[c].dtype);
			assert_int_equal(npy.big_endian, *sign == '>' && cases[c].bytes > 1);
		}
	}
}

static void dtypes_that_safetensors_has_not(void **state)
{
	static const struct {
		const char *descr, *reason;
	} cases[] = {{"'|O'", "npy-object"}, {"'O'", "npy-object"}, {"'O8'", "npy-object"},
		{"'object'", "npy-object"}, {"[('a', '<f4')]", "npy-structured"},
		{"[]", "npy-structured"}, {"('<f4', (2,))", "npy-structured"},
		{"'f4,f4'", "npy-structured"}, {"'(2,)f4'", "npy-structured"},
		{"'3f4'", "npy-structured"}, {"'<f16'", "npy-dtype"}, {"'<c16'", "npy-dtype"},
		{"'<U3'", "npy-dtype"}, {"'|S4'", "npy-dtype"}, {"'<M8[ns]'", "npy-dtype"},
		{"'|V2'", "npy-dtype"}, {"'T'", "npy-dtype"}, {"''", "npy-dtype"},
		{"'<'", "npy-dtype"}, {"'<float32'", "npy-dtype"}, {"'<<f4'", "npy-dtype"},
		{"'f4 '", "npy-dtype"}, {"'f04'", "npy-dtype"}, {"'bfloat16'", "npy-dtype"},
		{"'''u1'''", "npy-dtype"}};
	char text[128];

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		snprintf(text, sizeof(text), DICT("%s", "(1,)"), cases[i].descr);
		check_wrong(text, cases[i].reason);
	}
}

/* ---- what is around the dict ---- */

static void magic_and_version(void **state)
{
	struct file f = make_file(1, DICT("'u1'", "()"), 1);
	struct wfs_npy npy;
	struct wfs_err err;

	(void)state;
	for (size_t at = 0; at < 8; at++) {
		const char *reason = at < 6 ? "npy-magic" : "npy-version";

		f.buf[at] ^= 0x40;
		for (size_t len = at + 1; len < 20; len++) {
			assert_int_equal(parse(f.buf, len, &npy, &err), -EBADMSG);
			assert_string_equal(err.reason, reason);
			assert_int_equal(err.offset, at < 6 ? 0 : at);
		}
		f.buf[at] ^= 0x40;
	}
	f.buf[6] = 4;
	assert_int_equal(check(f, "npy-version", &npy), 6);
}

static void long_headers(void **state)
{
	static const size_t lens[] = {9999, 10000, 10001, 65535};
	char *text = allocate(70000);
	struct wfs_npy npy;

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(lens) * 3; i++) {
		size_t len = lens[i / 3];

		memset(text, ' ', len);
		memcpy(text, DICT("'u1'", "()"), strlen(DICT("'u1'", "()")));
		check(make_file_n(1 + (unsigned)i % 3, text, len, len, 1),
			len > 10000 ? "npy-header-too-large" : NULL, &npy);
	}
	check(make_file_n(2, "", 0, UINT32_MAX, 0), "npy-header-too-large", &npy);
	free(text);
}

/* Every beginning is cut, then short; one byte more is long. */
static void every_length(void **state)
{
	static const char text[] = "{'descr':'<f4','fortran_order':False,'shape':(2L,),} \n";
	struct wfs_npy npy;
	struct wfs_err err;

	(void)state;
	for (unsigned version = 1; version <= 2; version++) {
		struct file f = make_file(version, text, 8 + 3);
		size_t whole = f.len - 3;

		for (size_t len = 0; len < whole; len++) {
			assert_int_equal(parse(f.buf, len, &npy, &err), -EBADMSG);
			assert_string_equal(err.reason, len < whole - 8 ? "npy-cut" : "npy-short");
			assert_int_equal(err.offset, len < whole - 8 ? len : whole);
		}
		assert_int_equal(parse(f.buf, whole, &npy, &err), 0);
		assert_int_equal(check(f, "npy-long", &npy), whole);
	}
}

/* What is wrong is said even if the file ends later than that, but too early. */
static void a_cut_header_is_judged(void **state)
{
	struct wfs_npy npy;

	(void)state;
	assert_int_equal(
		check(make_file_n(1, "{'descr':'|O'", 13, 100, 0), "npy-object", &npy), 19);
	assert_int_equal(
		check(make_file_n(1, "{'descr':'f4'}", 14, 100, 0), "npy-header", &npy), 23);
	assert_int_equal(check(make_file_n(1, "{'descr':'f4' ", 14, 100, 0), "npy-cut", &npy), 24);
}

static void how_much_is_needed(void **state)
{
	struct file f = make_file(1, DICT("'u1'", "()"), 100);

	(void)state;
	assert_int_equal(wfs_npy_need(NULL, 0, 0), 0);
	assert_int_equal(wfs_npy_need(NULL, 0, 5), 5);
	assert_int_equal(wfs_npy_need(NULL, 0, f.len), WFS_NPY_PREFIX);
	assert_int_equal(wfs_npy_need(f.buf, 12, f.len), f.len - 100);
	assert_int_equal(wfs_npy_need(f.buf, 12, 20), 20);
	f.buf[8] = 0;
	assert_int_equal(wfs_npy_need(f.buf, 12, f.len), WFS_NPY_PREFIX);
	f.buf[9] = 0xff;
	assert_int_equal(wfs_npy_need(f.buf, 12, f.len), WFS_NPY_PREFIX);
	f.buf[0] = 0;
	assert_int_equal(wfs_npy_need(f.buf, 12, f.len), WFS_NPY_PREFIX);
	free(f.buf);
}

/* ---- building ---- */

static void check_built(
	enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim, const char *text)
{
	struct wfs_npy npy;
	struct wfs_err err;
	uint8_t *buf = NULL;
	size_t len = 0, text_len = strlen(text);

	assert_int_equal(wfs_npy_build(dtype, shape, ndim, &buf, &len), 0);
	assert_int_equal(len % 64, 0);
	assert_memory_equal(buf, MAGIC "\1\0", 8);
	assert_int_equal(buf[8] | buf[9] << 8, len - 10);
	assert_memory_equal(buf + 10, text, text_len);
	for (size_t i = 10 + text_len; i < len - 1; i++)
		assert_int_equal(buf[i], ' ');
	assert_int_equal(buf[len - 1], '\n');
	parse(buf, len, &npy, &err);
	assert_true(!err.reason || !strcmp(err.reason, "npy-short"));
	free(buf);
}

static void headers_are_built(void **state)
{
	static const uint64_t shape[64] = {2, 3}, most[1] = {INT64_MAX};
	char text[300];
	size_t at;

	(void)state;
	check_built(
		WFS_DTYPE_F32, shape, 0, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
	check_built(WFS_DTYPE_BOOL, shape, 1,
		"{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }");
	check_built(WFS_DTYPE_C64, shape, 3,
		"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3, 0), }");
	check_built(WFS_DTYPE_U8, most, 1,
		"{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807,), }");
	at = (size_t)sprintf(text, "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3");
	for (unsigned i = 2; i < 64; i++)
		at += (size_t)sprintf(text + at, ", 0");
	sprintf(text + at, "), }");
	check_built(WFS_DTYPE_I64, shape, 64, text);
}

/* The most that TEXT_MAX of npy.c must hold. */
static void the_longest_header(void **state)
{
	uint64_t shape[64] = {0};
	uint8_t *buf = NULL;
	size_t len = 0;

	(void)state;
	for (size_t i = 0; i < 62; i++)
		shape[i] = 1;
	shape[62] = INT64_MAX;
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U8, shape, 64, &buf, &len), 0);
	assert_true(len < 2048);
	free(buf);
}

static void not_everything_is_built(void **state)
{
	uint64_t shape[65] = {UINT64_C(1) << 61, 2, 0};
	uint8_t *buf = NULL;
	size_t len = 7;

	(void)state;
	assert_false(wfs_npy_has_dtype(WFS_DTYPE_COUNT));
	for (unsigned i = 0; i < WFS_DTYPE_COUNT; i++) {
		bool both = wfs_dtype_bits(i) >= 8 && i != WFS_DTYPE_BF16 &&
			    strncmp(wfs_dtype_name(i), "F8", 2) != 0;

		assert_int_equal(wfs_npy_has_dtype(i), both);
		assert_int_equal(wfs_npy_build(i, shape, 0, &buf, &len), both ? 0 : -EINVAL);
		free(buf);
		buf = NULL;
	}
	len = 7;
	assert_int_equal(wfs_npy_build(WFS_DTYPE_F32, shape, 1, &buf, &len), -EINVAL);
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U16, shape, 2, &buf, &len), -EINVAL);
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U16, shape, 3, &buf, &len), -EINVAL);
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U8, shape + 2, 63, &buf, &len), 0);
	free(buf);
	buf = NULL;
	len = 7;
	assert_int_equal(wfs_npy_build(WFS_DTYPE_U8, shape, 65, &buf, &len), -EINVAL);
	assert_null(buf);
	assert_int_equal(len, 7);
}

/* ---- data ---- */

static void bytes_are_turned_round(void **state)
{
	uint8_t buf[17];

	(void)state;
	for (unsigned bytes = 1; bytes <= 8; bytes *= 2) {
		for (unsigned i = 0; i < 17; i++)
			buf[i] = (uint8_t)i;
		wfs_npy_swap(buf + 1, 16 / bytes, bytes); /* not aligned */
		assert_int_equal(buf[0], 0);
		for (unsigned i = 0; i < 16; i++)
			assert_int_equal(
				buf[1 + i], 1 + (i / bytes * bytes + bytes - 1 - i % bytes));
		wfs_npy_swap(buf + 1, 16 / bytes, bytes);
		for (unsigned i = 0; i < 17; i++)
			assert_int_equal(buf[i], i);
	}
}

/* A file in memory, and what was written. Bytes before data_at must not be read. */
struct memory {
	const struct wfs_npy *npy;
	uint8_t *from; /* the data */
	uint8_t *to;
	uint64_t written;
	size_t read_most; /* bytes that one read gives */
	long calls_left;  /* before one fails; -1: none does */
	bool ends;	  /* the failing read finds the end of the file */
};

static ssize_t read_memory(void *ctx, void *buf, size_t len, uint64_t offset)
{
	struct memory *m = ctx;

	assert_true(offset >= m->npy->data_at && len);
	offset -= m->npy->data_at;
	assert_true(offset <= m->npy->data_len && len <= m->npy->data_len - offset);
	if (m->calls_left == 0)
		return m->ends ? 0 : -ENXIO;
	m->calls_left -= m->calls_left > 0;
	len = WFS_MIN(len, m->read_most);
	memcpy(buf, m->from + offset, len);
	return (ssize_t)len;
}

static int append_memory(void *ctx, const void *buf, size_t len)
{
	struct memory *m = ctx;

	assert_true(m->written + len <= m->npy->data_len);
	if (m->calls_left == 0)
		return -ENXIO;
	m->calls_left -= m->calls_left > 0;
	memcpy(m->to + m->written, buf, len);
	m->written += len;
	return 0;
}

/* One element after the other, by the definition of the orders. */
static void naive(const struct wfs_npy *npy, const uint8_t *from, uint8_t *to)
{
	unsigned bytes = wfs_dtype_bits(npy->dtype) / 8;
	unsigned unit = npy->dtype == WFS_DTYPE_C64 ? 4 : bytes;

	for (uint64_t at = 0; at < npy->data_len / bytes; at++) {
		uint64_t rest = at, place = 0;

		for (uint32_t i = npy->ndim; npy->fortran_order && i-- > 0;) {
			uint64_t step = 1;

			for (uint32_t k = 0; k < i; k++)
				step *= npy->shape[k];
			place += rest % npy->shape[i] * step;
			rest /= npy->shape[i];
		}
		if (!npy->fortran_order)
			place = at;
		for (unsigned b = 0; b < bytes; b++)
			to[at * bytes + b] =
				from[place * bytes +
					(npy->big_endian ? b / unit * unit + unit - 1 - b % unit
							 : b)];
	}
}

static struct memory make_memory(const struct wfs_npy *npy)
{
	struct memory m = {.npy = npy,
		.from = allocate(npy->data_len),
		.to = allocate(npy->data_len),
		.read_most = SIZE_MAX,
		.calls_left = -1};

	for (uint64_t i = 0; i < npy->data_len; i++)
		m.from[i] = (uint8_t)(i * 2654435761u >> 13);
	return m;
}

static void free_memory(struct memory *m)
{
	free(m->from);
	free(m->to);
}

static void check_order(
	const struct wfs_npy *npy, const struct wfs_npy_room *room, size_t read_most)
{
	struct memory m = make_memory(npy);
	uint8_t *want = allocate(npy->data_len);

	m.read_most = read_most;
	naive(npy, m.from, want);
	if (room)
		assert_int_equal(wfs_npy_to_c_within(npy, room, read_memory, append_memory, &m), 0);
	else
		assert_int_equal(wfs_npy_to_c(npy, read_memory, append_memory, &m), 0);
	assert_int_equal(m.written, npy->data_len);
	assert_memory_equal(m.to, want, npy->data_len);
	free(want);
	free_memory(&m);
}

static struct wfs_npy make_npy(enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim)
{
	struct wfs_npy npy = {.dtype = dtype,
		.fortran_order = true,
		.ndim = ndim,
		.data_at = 128,
		.data_len = wfs_dtype_bits(dtype) / 8};

	for (uint32_t i = 0; i < ndim; i++) {
		npy.shape[i] = shape[i];
		npy.data_len *= shape[i];
	}
	return npy;
}

static const enum wfs_dtype by_size[] = {
	WFS_DTYPE_I8, WFS_DTYPE_F16, WFS_DTYPE_F32, WFS_DTYPE_F64, WFS_DTYPE_C64};

/* Sizes so small that every way to split and to read comes up. */
static void data_in_small_rooms(void **state)
{
	static const uint64_t shapes[][6] = {{0}, {1}, {7}, {5, 3}, {3, 5}, {64, 64}, {1, 9, 1, 4},
		{200, 3}, {3, 200}, {2, 3, 4}, {4, 3, 2}, {7, 1, 5, 3}, {2, 2, 2, 2, 2, 2},
		{3, 70, 5}, {70, 3, 2, 3}, {2, 3, 5, 7, 2, 3}};
	static const size_t sizes[] = {8, 11, 64, 100, 500, 4096}, gaps[] = {0, 7, 40, 4096};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(shapes) * WFS_ARRAY_SIZE(by_size) * 2; i++) {
		const uint64_t *shape = shapes[i % WFS_ARRAY_SIZE(shapes)];
		uint32_t ndim = 0;
		struct wfs_npy npy;

		while (ndim < 6 && shape[ndim])
			ndim++;
		npy = make_npy(by_size[i / WFS_ARRAY_SIZE(shapes) / 2], shape, ndim);
		npy.big_endian = i & 1;
		for (size_t k = 0; k < 6 * 6 * 4; k++)
			check_order(&npy,
				&(struct wfs_npy_room){
					sizes[k / 24], sizes[k / 4 % 6], gaps[k % 4]},
				k % 5 ? SIZE_MAX : 3);
	}
}

static void data_in_the_usual_room(void **state)
{
	static const uint64_t shapes[][4] = {
		{1500, 3, 2, 500}, {2, 3, 40, 100}, {3000, 1500, 1, 1}, {9, 5, 100000, 1}};
	static const uint64_t empty[3] = {5, 0, 7};
	struct wfs_npy npy;

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(shapes) * 2; i++) {
		npy = make_npy(by_size[i % WFS_ARRAY_SIZE(by_size)], shapes[i / 2], 4);
		npy.big_endian = i & 1;
		check_order(&npy, NULL, SIZE_MAX);
		npy.fortran_order = false;
		check_order(&npy, NULL, 1000);
	}
	npy = make_npy(WFS_DTYPE_F32, empty, 3);
	check_order(&npy, NULL, SIZE_MAX);
	npy = make_npy(WFS_DTYPE_F32, empty, 0);
	check_order(&npy, NULL, SIZE_MAX);
}

static void sixty_four_dimensions(void **state)
{
	uint64_t shape[64];
	struct wfs_npy npy;

	(void)state;
	for (unsigned i = 0; i < 64; i++)
		shape[i] = i % 6 ? 1 : 2;
	npy = make_npy(WFS_DTYPE_F16, shape, 64);
	check_order(&npy, NULL, SIZE_MAX);
	check_order(&npy, &(struct wfs_npy_room){32, 32, 4}, SIZE_MAX);
}

/* 0 once nothing fails. */
static int fail_at(const struct wfs_npy *npy, long calls, bool ends)
{
	static const struct wfs_npy_room rooms[] = {{64, 64, 0}, {16, 64, 0}, {64, 32, 64}};
	int e = 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(rooms); i++) {
		struct memory m = make_memory(npy);
		int one;

		m.calls_left = calls;
		m.ends = ends;
		one = wfs_npy_to_c_within(npy, &rooms[i], read_memory, append_memory, &m);
		assert_true(one == 0 || one == -ENXIO || (ends && one == -EIO));
		assert_true(one || m.written == npy->data_len);
		free_memory(&m);
		e = e ? e : one;
	}
	return e;
}

static void failures_are_passed_on(void **state)
{
	static const uint64_t shape[3] = {5, 4, 3};
	struct wfs_npy npy = make_npy(WFS_DTYPE_F32, shape, 3);

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		long calls = 0;

		npy.fortran_order = i & 1;
		while (fail_at(&npy, calls, i & 2) != 0)
			calls++;
		assert_true(calls > 5);
	}
}

static void without_memory(void **state)
{
	static const uint64_t shape[2] = {5, 4};
	struct wfs_npy npy = make_npy(WFS_DTYPE_F32, shape, 2);
	struct memory m;
	uint8_t *buf = NULL;
	size_t len = 0;
	int e[4];

	(void)state;
	m = make_memory(&npy);
	for (long i = 0; i < 3; i++) {
		allocations_left = i;
		e[i] = wfs_npy_to_c(&npy, read_memory, append_memory, &m);
	}
	allocations_left = 0;
	e[3] = wfs_npy_build(WFS_DTYPE_F32, shape, 2, &buf, &len);
	allocations_left = -1;
	assert_int_equal(e[0], -ENOMEM);
	assert_int_equal(e[1], -ENOMEM);
	assert_int_equal(e[2], 0);
	assert_int_equal(e[3], -ENOMEM);
	assert_null(buf);
	free_memory(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fields_are_read),
		cmocka_unit_test(forms_of_the_dict),
		cmocka_unit_test(what_is_no_such_dict),
		cmocka_unit_test(shapes),
		cmocka_unit_test(at_most_64_dimensions),
		cmocka_unit_test(dtypes_of_both),
		cmocka_unit_test(dtypes_that_safetensors_has_not),
		cmocka_unit_test(magic_and_version),
		cmocka_unit_test(long_headers),
		cmocka_unit_test(every_length),
		cmocka_unit_test(a_cut_header_is_judged),
		cmocka_unit_test(how_much_is_needed),
		cmocka_unit_test(headers_are_built),
		cmocka_unit_test(the_longest_header),
		cmocka_unit_test(not_everything_is_built),
		cmocka_unit_test(bytes_are_turned_round),
		cmocka_unit_test(data_in_small_rooms),
		cmocka_unit_test(data_in_the_usual_room),
		cmocka_unit_test(sixty_four_dimensions),
		cmocka_unit_test(failures_are_passed_on),
		cmocka_unit_test(without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
