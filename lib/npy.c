#include "lib/npy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/npy_priv.h"

#define MAGIC "\x93NUMPY"
#define MAGIC_LEN 6
#define VERSION_LEN 2

#define ALIGN 64	 /* numpy/lib/format.py: ARRAY_ALIGN */
#define GROWTH_DIGITS 21 /* the same: GROWTH_AXIS_MAX_DIGITS */
#define TEXT_MAX 2048	 /* 64 dimensions of 19 digits, the rest, and ALIGN */

/* As numpy.save writes them. */
static const char *const descrs[WFS_DTYPE_COUNT] = {
	[WFS_DTYPE_BOOL] = "|b1",
	[WFS_DTYPE_U8] = "|u1",
	[WFS_DTYPE_I8] = "|i1",
	[WFS_DTYPE_I16] = "<i2",
	[WFS_DTYPE_U16] = "<u2",
	[WFS_DTYPE_F16] = "<f2",
	[WFS_DTYPE_I32] = "<i4",
	[WFS_DTYPE_U32] = "<u4",
	[WFS_DTYPE_F32] = "<f4",
	[WFS_DTYPE_C64] = "<c8",
	[WFS_DTYPE_I64] = "<i8",
	[WFS_DTYPE_U64] = "<u8",
	[WFS_DTYPE_F64] = "<f8",
};

bool wfs_npy_has_dtype(enum wfs_dtype dtype)
{
	return (unsigned)dtype < WFS_DTYPE_COUNT && descrs[dtype];
}

/*
 * False if NumPy has no array of that size. It leaves zeros out of the product
 * (PyArray_NewFromDescr), so that an empty array can be too large as well.
 */
static bool find_data_len(enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim, uint64_t *ret)
{
	uint64_t bytes = wfs_dtype_bits(dtype) / 8;
	bool empty = false;

	for (uint32_t i = 0; i < ndim; i++) {
		if (!shape[i])
			empty = true;
		else if (wfs_mul_overflows(bytes, shape[i], &bytes) || bytes > INT64_MAX)
			return false;
	}
	*ret = empty ? 0 : bytes;
	return true;
}

/* ---- the bytes before the text ---- */

struct prefix {
	unsigned version;  /* 1, 2 or 3 */
	uint64_t text_at;  /* where the text begins; 10 or 12 */
	uint64_t text_len; /* N */
};

static int cut(uint64_t file_size, struct wfs_err *err)
{
	return wfs_err_set(err, -EBADMSG, "npy-cut", file_size,
		"a file of %llu bytes has no .npy header yet", (unsigned long long)file_size);
}

/* What is there of it must be right, even if the file ends before it does. */
static int check_version(const uint8_t *buf, uint64_t file_size, struct wfs_err *err)
{
	static const char known[] = "\1\2\3";

	if (file_size > MAGIC_LEN && !memchr(known, buf[MAGIC_LEN], 3))
		return wfs_err_set(err, -EBADMSG, "npy-version", MAGIC_LEN,
			"a .npy file of version %u", buf[MAGIC_LEN]);
	if (file_size > MAGIC_LEN + 1 && buf[MAGIC_LEN + 1])
		return wfs_err_set(err, -EBADMSG, "npy-version", MAGIC_LEN + 1,
			"a .npy file of version %u.%u", buf[MAGIC_LEN], buf[MAGIC_LEN + 1]);
	return file_size < MAGIC_LEN + VERSION_LEN ? cut(file_size, err) : 0;
}

static int read_prefix(
	const uint8_t *buf, uint64_t file_size, struct prefix *ret, struct wfs_err *err)
{
	struct prefix p = {.text_at = MAGIC_LEN + VERSION_LEN};
	int e;

	if (file_size && memcmp(buf, MAGIC, WFS_MIN(file_size, (uint64_t)MAGIC_LEN)) != 0)
		return wfs_err_set(err, -EBADMSG, "npy-magic", 0, "not a .npy file");
	e = check_version(buf, file_size, err);
	if (e)
		return e;
	p.version = buf[MAGIC_LEN];
	p.text_at += p.version == 1 ? 2 : 4;
	if (file_size < p.text_at)
		return cut(file_size, err);
	for (size_t i = MAGIC_LEN + VERSION_LEN; i < p.text_at; i++)
		p.text_len |= (uint64_t)buf[i] << 8 * (i - MAGIC_LEN - VERSION_LEN);
	if (p.text_len > WFS_NPY_MAX_HEADER)
		return wfs_err_set(err, -EBADMSG, "npy-header-too-large", MAGIC_LEN + VERSION_LEN,
			"a header of %llu bytes, and %d are the most",
			(unsigned long long)p.text_len, WFS_NPY_MAX_HEADER);
	*ret = p;
	return 0;
}

uint64_t wfs_npy_need(const uint8_t *head, size_t head_len, uint64_t file_size)
{
	uint64_t least = WFS_MIN(file_size, (uint64_t)WFS_NPY_PREFIX);
	struct prefix p;

	if (head_len < least || read_prefix(head, file_size, &p, NULL) != 0)
		return least;
	return WFS_MIN(file_size, WFS_MAX(least, p.text_at + p.text_len));
}

/* ---- the verdict ---- */

static int check_file_size(const struct wfs_npy *npy, uint64_t file_size, struct wfs_err *err)
{
	/* No overflow: data_len is below 2^63. */
	uint64_t want = npy->data_at + npy->data_len;

	if (want == file_size)
		return 0;
	if (want < file_size)
		return wfs_err_set(err, -EBADMSG, "npy-long", want,
			"%llu bytes are left over behind the array",
			(unsigned long long)(file_size - want));
	return wfs_err_set(err, -EBADMSG, "npy-short", want, "%llu of %llu bytes are missing",
		(unsigned long long)(want - file_size), (unsigned long long)want);
}

static int judge(const uint8_t *buf, uint64_t file_size, struct wfs_npy *npy, struct wfs_err *err)
{
	struct wfs_npy_text text;
	struct prefix p;
	int e = read_prefix(buf, file_size, &p, err);

	if (e)
		return e;
	text = (struct wfs_npy_text){.at = (const char *)buf + p.text_at,
		.len = WFS_MIN(p.text_len, file_size - p.text_at),
		.whole = p.text_len <= file_size - p.text_at,
		.python2 = p.version < 3,
		.offset = p.text_at};
	e = wfs_npy_read_header(&text, npy, err);
	if (e)
		return e;
	if (!find_data_len(npy->dtype, npy->shape, npy->ndim, &npy->data_len))
		return wfs_err_set(err, -EBADMSG, "npy-shape", p.text_at,
			"a shape of more bytes than an array can have");
	npy->data_at = p.text_at + p.text_len;
	return check_file_size(npy, file_size, err);
}

int wfs_npy_parse(const uint8_t *buf, uint64_t file_size, struct wfs_npy *ret, struct wfs_err *err)
{
	struct wfs_npy npy = {.ndim = 0};
	int e = judge(buf, file_size, &npy, err);

	if (!e)
		*ret = npy;
	return e;
}

/* ---- building ---- */

/* Text that cannot be too long: see TEXT_MAX. */
struct text {
	char at[TEXT_MAX];
	size_t len;
};

static void WFS_PRINTF(2, 3) put(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->at + t->len, sizeof(t->at) - t->len, fmt, ap);
	va_end(ap);
	t->len += (size_t)n;
}

/* As Python's repr() of a tuple: (), (3,), (3, 4). Returns the digits of the first. */
static size_t put_shape(struct text *t, const uint64_t *shape, uint32_t ndim)
{
	size_t start = t->len + 1, digits = 0;

	put(t, "(");
	for (uint32_t i = 0; i < ndim; i++) {
		put(t, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
		if (!i)
			digits = t->len - start;
	}
	put(t, "%s)", ndim == 1 ? "," : "");
	return digits;
}

static void put_header(struct text *t, enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim)
{
	const size_t text_at = MAGIC_LEN + VERSION_LEN + 2;
	size_t digits;

	put(t, MAGIC "%c%c%c%c", 1, 0, 0, 0);
	put(t, "{'descr': '%s', 'fortran_order': False, 'shape': ", descrs[dtype]);
	digits = put_shape(t, shape, ndim);
	put(t, ", }%*s", ndim ? GROWTH_DIGITS - (int)digits : 0, "");
	/* NumPy adds 1 to ALIGN spaces, never 0. */
	put(t, "%*s\n", ALIGN - (int)((t->len + 1) % ALIGN), "");
	t->at[text_at - 2] = (char)((t->len - text_at) & 0xff);
	t->at[text_at - 1] = (char)((t->len - text_at) >> 8);
}

int wfs_npy_build(enum wfs_dtype dtype, const uint64_t *shape, uint32_t ndim, uint8_t **ret_buf,
	size_t *ret_len)
{
	struct text t = {.len = 0};
	uint64_t data_len;
	uint8_t *buf;

	if (!wfs_npy_has_dtype(dtype) || ndim > WFS_NPY_MAX_DIMS ||
		!find_data_len(dtype, shape, ndim, &data_len))
		return -EINVAL;
	put_header(&t, dtype, shape, ndim);
	buf = malloc(t.len);
	if (!buf)
		return -ENOMEM;
	memcpy(buf, t.at, t.len);
	*ret_buf = buf;
	*ret_len = t.len;
	return 0;
}
