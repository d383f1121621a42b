#include "lib/npy_priv.h"

#include <errno.h>
#include <string.h>

enum key { KEY_DESCR, KEY_FORTRAN_ORDER, KEY_SHAPE, KEY_COUNT };

static const char *const key_names[KEY_COUNT] = {"descr", "fortran_order", "shape"};

/* A text within the header. */
struct slice {
	const char *at;
	size_t len;
};

struct reader {
	const struct wfs_npy_text *text;
	size_t at; /* next byte to be read */
	struct wfs_npy *npy;
	struct wfs_err *err;
	unsigned seen; /* bit i: enum key i was there */
};

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

static bool slice_is(struct slice s, const char *word)
{
	return strlen(word) == s.len && memcmp(word, s.at, s.len) == 0;
}

/* ---- what is wrong ---- */

static int bad(struct reader *r, const char *reason, size_t at, const char *what)
{
	return wfs_err_set(r->err, -EBADMSG, reason, r->text->offset + at,
		"the header at byte %zu: %s", at, what);
}

/* The next byte is wrong, or there is none. */
static int unexpected(struct reader *r, const char *reason, const char *what)
{
	if (r->at < r->text->len)
		return bad(r, reason, r->at, what);
	if (r->text->whole)
		return bad(r, "npy-header", r->at, "it ends too early");
	return wfs_err_set(r->err, -EBADMSG, "npy-cut", r->text->offset + r->at,
		"the header is cut after %zu bytes", r->at);
}

/* ---- characters ---- */

/* -1: there is none. */
static int peek(const struct reader *r)
{
	return r->at < r->text->len ? (unsigned char)r->text->at[r->at] : -1;
}

static bool take(struct reader *r, char c)
{
	if (peek(r) != c)
		return false;
	r->at++;
	return true;
}

static void skip_blanks(struct reader *r)
{
	while (take(r, ' ') || take(r, '\t'))
		;
}

static void skip_space(struct reader *r)
{
	while (take(r, ' ') || take(r, '\t') || take(r, '\n'))
		;
}

/* ---- values ---- */

static int read_string(struct reader *r, struct slice *ret)
{
	int quote, c;
	size_t start;

	if (!take(r, 'u'))
		take(r, 'U');
	quote = peek(r);
	if (quote != '\'' && quote != '"')
		return unexpected(r, "npy-header", "no string where one should be");
	start = ++r->at;
	for (; (c = peek(r)) != quote; r->at++)
		if (c < 0x20 || c >= 0x7f || c == '\\')
			return unexpected(r, "npy-header", "a character that no name here has");
	*ret = (struct slice){r->text->at + start, r->at - start};
	r->at++;
	return 0;
}

static int read_bool(struct reader *r, bool *ret)
{
	bool value = peek(r) == 'T';

	for (const char *word = value ? "True" : "False"; *word; word++)
		if (!take(r, *word))
			return unexpected(
				r, "npy-header", "fortran_order is neither True nor False");
	*ret = value;
	return 0;
}

static int read_dimension(struct reader *r, uint64_t *ret)
{
	size_t start = r->at;
	uint64_t v = 0;

	if (!is_digit(peek(r)))
		return unexpected(r, "npy-shape", "a dimension is not a number from 0 up");
	for (; is_digit(peek(r)); r->at++)
		if (wfs_mul_overflows(v, 10, &v) ||
			wfs_add_overflows(v, (unsigned)(peek(r) - '0'), &v))
			return bad(r, "npy-shape", start, "a dimension does not fit 64 bits");
	if (r->text->at[start] == '0' && r->at - start > 1)
		return bad(r, "npy-header", start, "a number begins with 0");
	if (r->text->python2)
		take(r, 'L');
	*ret = v;
	return 0;
}

static int read_shape(struct reader *r)
{
	struct wfs_npy *npy = r->npy;
	size_t start = r->at;
	bool comma = true;

	if (!take(r, '('))
		return unexpected(r, "npy-shape", "shape is not a tuple");
	for (npy->ndim = 0; skip_space(r), !take(r, ')'); npy->ndim++) {
		int e;

		if (!comma)
			return unexpected(r, "npy-header", "no comma between dimensions");
		if (npy->ndim == WFS_NPY_MAX_DIMS)
			return bad(r, "npy-shape", r->at, "more than 64 dimensions");
		e = read_dimension(r, &npy->shape[npy->ndim]);
		if (e)
			return e;
		skip_space(r);
		comma = take(r, ',');
	}
	if (npy->ndim == 1 && !comma)
		return bad(r, "npy-shape", start, "shape is a number, not a tuple");
	return 0;
}

/* ---- dtypes ---- */

/* By numpy/_core/src/multiarray/descriptor.c and numpy._core.numerictypes. */
static const struct {
	uint8_t dtype;	   /* enum wfs_dtype */
	const char *codes; /* may stand behind a sign for the byte order; space between them */
	const char *names; /* stand alone */
} spellings[] = {
	{WFS_DTYPE_BOOL, "b1 ?", "bool bool_"},
	{WFS_DTYPE_U8, "u1 B", "uint8 ubyte"},
	{WFS_DTYPE_I8, "i1 b", "int8 byte"},
	{WFS_DTYPE_I16, "i2 h", "int16 short"},
	{WFS_DTYPE_U16, "u2 H", "uint16 ushort"},
	{WFS_DTYPE_F16, "f2 e", "float16 half"},
	{WFS_DTYPE_I32, "i4 i", "int32 intc"},
	{WFS_DTYPE_U32, "u4 I", "uint32 uintc"},
	{WFS_DTYPE_F32, "f4 f", "float32 single"},
	{WFS_DTYPE_C64, "c8 F", "complex64 csingle"},
	{WFS_DTYPE_I64, "i8 l q p n", "int64 int int_ intp long longlong"},
	{WFS_DTYPE_U64, "u8 L Q P N", "uint64 uint uintp ulong ulonglong"},
	{WFS_DTYPE_F64, "f8 d", "float64 double float"},
};

static bool list_has(const char *list, struct slice word)
{
	while (*list) {
		size_t len = strcspn(list, " ");

		if (len == word.len && memcmp(list, word.at, len) == 0)
			return true;
		list += len + strspn(list + len, " ");
	}
	return false;
}

static bool find_dtype(struct slice code, bool sign, enum wfs_dtype *ret)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(spellings); i++) {
		if (list_has(spellings[i].codes, code) ||
			(!sign && list_has(spellings[i].names, code))) {
			*ret = (enum wfs_dtype)spellings[i].dtype;
			return true;
		}
	}
	return false;
}

/* `code` without the sign for the byte order. O8 is NumPy's old name of O. */
static bool is_object(struct slice code)
{
	size_t i = 1;

	if (slice_is(code, "object") || slice_is(code, "object_"))
		return true;
	while (i < code.len && is_digit(code.at[i]))
		i++;
	return code.len && code.at[0] == 'O' && i == code.len;
}

static bool has_shape_or_fields(struct slice code)
{
	return code.len && (is_digit(code.at[0]) || memchr(code.at, ',', code.len) ||
				   memchr(code.at, '(', code.len));
}

static int refuse_descr(struct reader *r, struct slice s, struct slice code)
{
	const char *reason = "npy-dtype";

	if (is_object(code))
		reason = "npy-object";
	else if (has_shape_or_fields(code))
		reason = "npy-structured";
	return wfs_err_set(r->err, -EBADMSG, reason,
		r->text->offset + (size_t)(s.at - r->text->at) - 1,
		"safetensors has no dtype for the descr '%.*s'", (int)WFS_MIN(s.len, 64u), s.at);
}

static int read_descr(struct reader *r)
{
	struct slice s, code;
	bool sign;
	int e;

	if (peek(r) == '[' || peek(r) == '(')
		return bad(
			r, "npy-structured", r->at, "descr is not a string, but of several parts");
	e = read_string(r, &s);
	if (e)
		return e;
	sign = s.len && memchr("<>=|", s.at[0], 4);
	code = (struct slice){s.at + sign, s.len - sign};
	if (!find_dtype(code, sign, &r->npy->dtype))
		return refuse_descr(r, s, code);
	r->npy->big_endian = sign && s.at[0] == '>' && wfs_dtype_bits(r->npy->dtype) > 8;
	return 0;
}

/* ---- the dict ---- */

static int read_key(struct reader *r, enum key *ret)
{
	size_t start = r->at;
	struct slice s;
	unsigned i = 0;
	int e = read_string(r, &s);

	if (e)
		return e;
	while (i < KEY_COUNT && !slice_is(s, key_names[i]))
		i++;
	if (i == KEY_COUNT)
		return bad(r, "npy-header", start, "a key other than descr, fortran_order, shape");
	if (r->seen & 1u << i)
		return bad(r, "npy-header", start, "a key is there twice");
	r->seen |= 1u << i;
	*ret = (enum key)i;
	return 0;
}

static int read_pair(struct reader *r)
{
	enum key key = KEY_COUNT;
	int e = read_key(r, &key);

	if (e)
		return e;
	skip_space(r);
	if (!take(r, ':'))
		return unexpected(r, "npy-header", "no colon behind a key");
	skip_space(r);
	if (key == KEY_DESCR)
		return read_descr(r);
	return key == KEY_SHAPE ? read_shape(r) : read_bool(r, &r->npy->fortran_order);
}

static int read_dict(struct reader *r)
{
	bool comma = true;

	if (!take(r, '{'))
		return unexpected(r, "npy-header", "it is not a dict");
	while (skip_space(r), !take(r, '}')) {
		int e = comma ? read_pair(r)
			      : unexpected(r, "npy-header", "no comma behind a value");

		if (e)
			return e;
		skip_space(r);
		comma = take(r, ',');
	}
	if (r->seen != (1u << KEY_COUNT) - 1)
		return bad(r, "npy-header", r->at - 1, "descr, fortran_order or shape is missing");
	return 0;
}

/* Python takes spaces in a last line without an end as an indented statement. */
static int read_padding(struct reader *r)
{
	size_t start = r->at;
	bool lines;

	skip_space(r);
	if (r->at < r->text->len || !r->text->whole)
		return unexpected(r, "npy-header", "something follows the dict");
	lines = memchr(r->text->at + start, '\n', r->at - start) != NULL;
	if (lines && r->text->at[r->at - 1] != '\n')
		return bad(r, "npy-header", r->at, "the last line does not end");
	return 0;
}

int wfs_npy_read_header(const struct wfs_npy_text *text, struct wfs_npy *npy, struct wfs_err *err)
{
	struct reader r = {.text = text, .npy = npy, .err = err};
	int e;

	skip_blanks(&r);
	e = read_dict(&r);
	return e ? e : read_padding(&r);
}
