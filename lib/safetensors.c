#include "lib/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lib/safetensors_priv.h"

/* ---- the first 8 bytes ---- */

/* Bytes that are missing count as zero: they can only make N larger. */
static uint64_t read_length(const uint8_t *head, uint64_t file_size)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < WFS_SAFETENSORS_PREFIX && i < file_size; i++)
		n |= (uint64_t)head[i] << 8 * i;
	return n;
}

uint64_t wfs_safetensors_need(const uint8_t *head, uint64_t file_size)
{
	uint64_t n = read_length(head, file_size);

	if (file_size < WFS_SAFETENSORS_PREFIX)
		return file_size;
	if (n > WFS_SAFETENSORS_MAX_HEADER)
		return WFS_SAFETENSORS_PREFIX;
	return WFS_MIN(WFS_SAFETENSORS_PREFIX + n, file_size);
}

static int check_length(struct wfs_safetensors *st, uint64_t n, uint64_t file_size,
	struct wfs_err *err)
{
	if (n > WFS_SAFETENSORS_MAX_HEADER)
		return wfs_err_set(err, -EBADMSG, "header-too-large", 0,
			"a header of %llu bytes, and 100000000 are the most", (unsigned long long)n);
	if (file_size >= WFS_SAFETENSORS_PREFIX)
		return 0;
	st->verdict = WFS_SAFETENSORS_INCOMPLETE;
	return wfs_err_set(err, -EBADMSG, "header-too-small", file_size,
		"a file of %llu bytes has no header yet", (unsigned long long)file_size);
}

/* ---- shapes ---- */

/* The next dimension of a shape that was found right; false at its end. */
static bool next_dim(const char **p, uint64_t *ret)
{
	const char *c = *p;
	uint64_t v = 0;

	while (*c != ']' && (*c < '0' || *c > '9'))
		c++;
	if (*c == ']')
		return false;
	for (; *c >= '0' && *c <= '9'; c++)
		v = v * 10 + (uint64_t)(*c - '0');
	*p = c;
	*ret = v;
	return true;
}

size_t wfs_safetensors_shape(const struct wfs_safetensors *st,
	const struct wfs_safetensors_tensor *t, uint64_t *dims, size_t max)
{
	const char *p = st->json + t->shape_at;
	uint64_t dim;

	for (size_t i = 0; i < max && next_dim(&p, &dim); i++)
		dims[i] = dim;
	return t->ndim;
}

int wfs_shape_text(const uint64_t *dims, size_t ndim, char **ret)
{
	size_t used = 0, room = 3 + 22 * ndim; /* 20 digits, ", " */
	char *text = malloc(room);

	if (!text)
		return -ENOMEM;
	text[used++] = '[';
	for (size_t i = 0; i < ndim; i++)
		used += (size_t)snprintf(text + used, room - used, "%s%llu", i ? ", " : "",
			(unsigned long long)dims[i]);
	strcpy(text + used, "]");
	*ret = text;
	return 0;
}

void wfs_st_size_times(struct wfs_st_size *size, uint64_t dim)
{
	size->overflows |= wfs_mul_overflows(size->elements, dim, &size->elements);
}

const char *wfs_st_size_bytes(const struct wfs_st_size *size, enum wfs_dtype dtype, uint64_t *ret)
{
	uint64_t bits;

	if (size->overflows || wfs_mul_overflows(size->elements, wfs_dtype_bits(dtype), &bits))
		return "shape-overflow";
	if (bits % 8)
		return "shape-misaligned";
	*ret = bits / 8;
	return NULL;
}

/* ---- tensors against each other and against the file ---- */

/* By place in the file; empty tensors at one place in the order of the header. */
static int compare_tensors(const void *left, const void *right)
{
	const struct wfs_safetensors_tensor *a = left, *b = right;

	if (a->begin != b->begin)
		return a->begin < b->begin ? -1 : 1;
	if (a->end != b->end)
		return a->end < b->end ? -1 : 1;
	return a->shape_at < b->shape_at ? -1 : a->shape_at > b->shape_at;
}

/* Nearly every header is in order already. */
static void sort_tensors(struct wfs_safetensors *st)
{
	for (size_t i = 1; i < st->n_tensors; i++) {
		if (compare_tensors(&st->tensors[i - 1], &st->tensors[i]) > 0) {
			qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), compare_tensors);
			return;
		}
	}
}

static uint64_t place_of(const struct wfs_safetensors_tensor *t)
{
	return WFS_SAFETENSORS_PREFIX + (uint64_t)t->shape_at;
}

static int check_place(const struct wfs_safetensors_tensor *t, uint64_t previous_end,
	struct wfs_err *err)
{
	const char *reason = t->begin > previous_end ? "offsets-gap" : "offsets-overlap";

	if (t->begin == previous_end && t->end >= t->begin)
		return 0;
	return wfs_err_set(err, -EBADMSG, reason, place_of(t),
		"tensor '%.*s' is at [%llu, %llu], and the tensors before it end at %llu",
		WFS_ST_SHOW(t->name, t->name_len), (unsigned long long)t->begin,
		(unsigned long long)t->end, (unsigned long long)previous_end);
}

static int check_size(const struct wfs_safetensors *st, const struct wfs_safetensors_tensor *t,
	struct wfs_err *err)
{
	struct wfs_st_size size = { 1, false };
	const char *p = st->json + t->shape_at;
	const char *reason;
	uint64_t dim, bytes;

	while (next_dim(&p, &dim))
		wfs_st_size_times(&size, dim);
	reason = wfs_st_size_bytes(&size, t->dtype, &bytes);
	if (reason)
		return wfs_err_set(err, -EBADMSG, reason, place_of(t),
			"tensor '%.*s': a shape that %s cannot have",
			WFS_ST_SHOW(t->name, t->name_len), wfs_dtype_name(t->dtype));
	if (bytes == t->end - t->begin)
		return 0;
	return wfs_err_set(err, -EBADMSG, "shape-mismatch", place_of(t),
		"tensor '%.*s': dtype and shape make %llu bytes, data_offsets %llu",
		WFS_ST_SHOW(t->name, t->name_len), (unsigned long long)bytes,
		(unsigned long long)(t->end - t->begin));
}

static int check_tensors(struct wfs_safetensors *st, struct wfs_err *err)
{
	uint64_t end = 0;

	sort_tensors(st);
	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];
		unsigned bytes = wfs_dtype_bits(t->dtype) / 8;
		int e = check_place(t, end, err);

		if (!e)
			e = check_size(st, t, err);
		if (e)
			return e;
		end = t->end;
		/* In the file, not in the data: it is the file that gets mapped. */
		if (bytes > 1 && (WFS_SAFETENSORS_PREFIX + st->header_len + t->begin) % bytes)
			st->warnings |= WFS_ST_WARN_UNALIGNED;
	}
	st->data_len = end;
	return 0;
}

static int check_file_size(struct wfs_safetensors *st, uint64_t file_size, struct wfs_err *err)
{
	uint64_t want;

	if (wfs_add_overflows(WFS_SAFETENSORS_PREFIX + st->header_len, st->data_len, &want))
		return wfs_err_set(err, -EBADMSG, "shape-overflow", WFS_NO_OFFSET,
			"no file can be as long as this header says");
	if (want == file_size)
		return 0;
	if (want < file_size)
		return wfs_err_set(err, -EBADMSG, "data-long", want,
			"%llu bytes are left over after the last tensor", (unsigned long long)(file_size - want));
	st->verdict = WFS_SAFETENSORS_INCOMPLETE;
	return wfs_err_set(err, -EBADMSG, "data-short", want, "%llu of %llu bytes are missing",
		(unsigned long long)(want - file_size), (unsigned long long)want);
}

/* ---- the verdict ---- */

static int check_utf8(const struct wfs_safetensors *st, size_t len, bool whole,
	struct wfs_err *err)
{
	size_t at;
	enum wfs_utf8 utf8 = wfs_utf8_check(st->json, len, &at);

	if (utf8 == WFS_UTF8_VALID || (utf8 == WFS_UTF8_CUT && !whole))
		return 0;
	return wfs_err_set(err, -EBADMSG, "header-not-utf8", WFS_SAFETENSORS_PREFIX + at,
		"the header is not UTF-8 at byte %zu", at);
}

static void drop_tables(struct wfs_safetensors *st)
{
	free(st->tensors);
	free(st->meta);
	free(st->strings);
	st->tensors = NULL;
	st->meta = NULL;
	st->strings = NULL;
	st->n_tensors = 0;
	st->n_meta = 0;
	st->has_meta = false;
}

/* All that is said by the header itself; on failure no tables are left. */
static int judge_header(struct wfs_safetensors *st, uint64_t file_size, struct wfs_err *err)
{
	uint64_t seen = WFS_MIN(st->header_len, file_size - WFS_SAFETENSORS_PREFIX);
	bool whole = seen == st->header_len;
	int e = check_utf8(st, seen, whole, err);

	if (!e)
		e = wfs_st_read_header(st, seen, whole, err);
	if (!e && !whole) {
		st->verdict = WFS_SAFETENSORS_INCOMPLETE;
		e = wfs_err_set(err, -EBADMSG, "header-cut", file_size,
			"the header is cut after %llu of %llu bytes", (unsigned long long)seen,
			(unsigned long long)st->header_len);
	}
	if (!e)
		e = check_tensors(st, err);
	if (e)
		drop_tables(st);
	return e;
}

static int judge(const uint8_t *buf, uint64_t file_size, struct wfs_safetensors *st,
	struct wfs_err *err)
{
	uint64_t n = read_length(buf, file_size);
	int e = check_length(st, n, file_size, err);

	if (file_size >= WFS_SAFETENSORS_PREFIX)
		st->header_len = n;
	if (e)
		return e;
	st->json = (const char *)buf + WFS_SAFETENSORS_PREFIX;
	e = judge_header(st, file_size, err);
	return e ? e : check_file_size(st, file_size, err);
}

/* Growing left a quarter of slack in the arrays. */
static void give_back_slack(struct wfs_safetensors *st)
{
	void *p;

	p = st->n_tensors ? reallocarray(st->tensors, st->n_tensors, sizeof(*st->tensors)) : NULL;
	if (p)
		st->tensors = p;
	p = st->n_meta ? reallocarray(st->meta, st->n_meta, sizeof(*st->meta)) : NULL;
	if (p)
		st->meta = p;
}

int wfs_safetensors_parse(const uint8_t *buf, uint64_t file_size, struct wfs_safetensors *ret,
	struct wfs_err *err)
{
	int e;

	*ret = (struct wfs_safetensors){ .verdict = WFS_SAFETENSORS_WRONG };
	e = judge(buf, file_size, ret, err);
	if (e == -ENOMEM) {
		wfs_safetensors_release(ret);
		return e;
	}
	if (e)
		ret->warnings = 0;
	else
		ret->verdict = WFS_SAFETENSORS_VALID;
	give_back_slack(ret);
	return 0;
}

void wfs_safetensors_release(struct wfs_safetensors *st)
{
	drop_tables(st);
	/* Nothing in particular, but not "valid". */
	*st = (struct wfs_safetensors){ .verdict = WFS_SAFETENSORS_WRONG };
}

void wfs_safetensors_warning_text(unsigned warnings, char *buf, size_t size)
{
	static const char *const texts[WFS_ST_WARN_COUNT] = {
		"white space before the header's {",
		"padding other than spaces after the header",
		"a tensor name or metadata key is there twice, the last counts",
		"__metadata__ is null",
		"an entry or a dtype is not in its usual form",
		"unknown keys in an entry",
		"a tensor is not aligned to its element size",
	};
	size_t at = 0;

	if (size)
		*buf = '\0';
	for (unsigned i = 0; i < WFS_ST_WARN_COUNT && at < size; i++)
		if (warnings & 1u << i)
			at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? "; " : "",
				texts[i]);
}
