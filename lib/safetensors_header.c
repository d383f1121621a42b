#include "lib/safetensors_priv.h"

#include <errno.h>
#include <string.h>

#include "lib/json_text.h"
#include "lib/safetensors_names.h"

#define METADATA_KEY "__metadata__"
#define DTYPE_RAW_MAX 72 /* the longest name, 11 characters, each escaped as \u0041 */

struct reader {
	struct wfs_json json;
	struct wfs_safetensors *st;
	struct wfs_err *err;
	bool whole;           /* the text is all of the header */
	bool saw_metadata;
	char *strings_next;   /* first free byte of st->strings */
	size_t max_tensors;   /* elements that st->tensors has room for */
	size_t max_meta;
	struct wfs_names tensor_names;
	struct wfs_names meta_keys;
};

enum field { FIELD_DTYPE, FIELD_SHAPE, FIELD_OFFSETS, FIELD_COUNT };

static const char *const field_names[FIELD_COUNT] = { "dtype", "shape", "data_offsets" };

/* ---- what is wrong ---- */

static uint64_t file_offset(size_t at)
{
	return WFS_SAFETENSORS_PREFIX + (uint64_t)at;
}

/* json->failure as a reason. */
static int text_error(struct reader *r)
{
	if (r->json.failure == WFS_JSON_CUT && !r->whole) {
		r->st->verdict = WFS_SAFETENSORS_INCOMPLETE;
		return wfs_err_set(r->err, -EBADMSG, "header-cut", file_offset(r->json.at),
			"the header is cut after %zu of %llu bytes", r->json.len,
			(unsigned long long)r->st->header_len);
	}
	return wfs_err_set(r->err, -EBADMSG, "header-not-json", file_offset(r->json.at),
		"the header is not JSON at byte %zu: %s", r->json.at, r->json.why);
}

static int entry_error(struct reader *r, const struct wfs_safetensors_tensor *t,
	const char *reason, size_t at, const char *what)
{
	return wfs_err_set(r->err, -EBADMSG, reason, file_offset(at), "tensor '%.*s': %s",
		WFS_ST_SHOW(t->name, t->name_len), what);
}

static int metadata_error(struct reader *r, const char *what)
{
	return wfs_err_set(r->err, -EBADMSG, "metadata-invalid", file_offset(r->json.at),
		METADATA_KEY " %s", what);
}

/* ---- texts and arrays ---- */

/*
 * The string itself: in the header, or unescaped in st->strings. That buffer
 * never moves, since it is made for all that could follow when it is first
 * needed; pages of it that stay untouched cost nothing.
 */
static int take_text(struct reader *r, const struct wfs_json_string *s, struct wfs_text *ret)
{
	if (!s->escaped) {
		*ret = (struct wfs_text){ s->raw, s->len };
		return 0;
	}
	if (!r->st->strings) {
		r->st->strings = malloc(r->json.len - (size_t)(s->raw - r->json.text));
		if (!r->st->strings)
			return -ENOMEM;
		r->strings_next = r->st->strings;
	}
	*ret = (struct wfs_text){ r->strings_next, wfs_json_unescape(s, r->strings_next) };
	r->strings_next += ret->len;
	return 0;
}

/* Room for element n of *array. Small steps: the header may be hostile, and
 * growing a large block moves no bytes. */
static int reserve(void **array, size_t size, size_t n, size_t *max)
{
	size_t want = n + n / 4 + 16;
	void *grown;

	if (n < *max)
		return 0;
	grown = reallocarray(*array, want, size);
	if (!grown)
		return -ENOMEM;
	*array = grown;
	*max = want;
	return 0;
}

static struct wfs_text tensor_text(const void *owner, uint32_t i)
{
	const struct wfs_safetensors *st = owner;

	return (struct wfs_text){ st->tensors[i].name, st->tensors[i].name_len };
}

static struct wfs_text meta_text(const void *owner, uint32_t i)
{
	const struct wfs_safetensors *st = owner;

	return (struct wfs_text){ st->meta[i].key, st->meta[i].key_len };
}

static int store_tensor(struct reader *r, const struct wfs_safetensors_tensor *t)
{
	struct wfs_safetensors *st = r->st;
	void *array = st->tensors;
	uint32_t i;
	int e = reserve(&array, sizeof(*t), st->n_tensors, &r->max_tensors);

	st->tensors = array;
	if (!e)
		e = wfs_names_add(&r->tensor_names, (struct wfs_text){ t->name, t->name_len }, &i);
	if (e < 0)
		return e;
	if (e > 0)
		st->warnings |= WFS_ST_WARN_DUPLICATE;
	else
		st->n_tensors++;
	st->tensors[i] = *t;
	return 0;
}

static int store_meta(struct reader *r, struct wfs_text key, struct wfs_text value)
{
	struct wfs_safetensors *st = r->st;
	void *array = st->meta;
	uint32_t i;
	int e = reserve(&array, sizeof(*st->meta), st->n_meta, &r->max_meta);

	st->meta = array;
	if (!e)
		e = wfs_names_add(&r->meta_keys, key, &i);
	if (e < 0)
		return e;
	if (e > 0)
		st->warnings |= WFS_ST_WARN_DUPLICATE;
	else
		st->n_meta++;
	st->meta[i] = (struct wfs_safetensors_meta){ key.at, value.at, (uint32_t)key.len,
		(uint32_t)value.len };
	return 0;
}

/* ---- the fields of an entry ---- */

/* The next value is of kind `want`; if not, the entry is wrong for `reason`. */
static int expect(struct reader *r, const struct wfs_safetensors_tensor *t,
	enum wfs_json_kind want, const char *reason, const char *what)
{
	enum wfs_json_kind kind;

	if (!wfs_json_peek(&r->json, &kind))
		return text_error(r);
	return kind == want ? 0 : entry_error(r, t, reason, r->json.at, what);
}

static int read_u64(struct reader *r, const struct wfs_safetensors_tensor *t, const char *reason,
	uint64_t *ret)
{
	static const char what[] = "not an unsigned 64-bit integer";
	struct wfs_json_number n;
	size_t at;
	int e = expect(r, t, WFS_JSON_NUMBER, reason, what);

	if (e)
		return e;
	at = r->json.at;
	if (!wfs_json_number(&r->json, &n) && (n.is_u64 || r->json.failure == WFS_JSON_BAD))
		return text_error(r);
	if (!n.is_u64)
		return entry_error(r, t, reason, at, what);
	*ret = n.value;
	return 0;
}

static int read_dtype_name(struct reader *r, struct wfs_safetensors_tensor *t,
	const struct wfs_json_string *s, size_t at)
{
	char plain[DTYPE_RAW_MAX];
	enum wfs_dtype dtype;
	size_t len = 0;
	int found;

	if (s->escaped && s->len <= sizeof(plain))
		len = wfs_json_unescape(s, plain);
	found = s->escaped ? wfs_dtype_find(plain, len, &dtype) :
			     wfs_dtype_find(s->raw, s->len, &dtype);
	if (found) {
		t->dtype = (uint8_t)dtype;
		return 0;
	}
	return wfs_err_set(r->err, -EBADMSG, "dtype-unknown", file_offset(at),
		"tensor '%.*s': no dtype '%.*s'", WFS_ST_SHOW(t->name, t->name_len),
		WFS_ST_SHOW(s->raw, s->len));
}

/* {"F32": null}, which is how serde writes an enum's variant in full. */
static int read_dtype_object(struct reader *r, struct wfs_safetensors_tensor *t)
{
	static const char what[] = "dtype is an object, but not of one dtype and null";
	size_t start = r->json.at;
	struct wfs_json_string s;
	bool more;
	int e;

	r->st->warnings |= WFS_ST_WARN_ENTRY_FORM;
	if (!wfs_json_enter(&r->json) || !wfs_json_more(&r->json, &more))
		return text_error(r);
	if (!more)
		return entry_error(r, t, "entry-invalid", start, what);
	if (!wfs_json_key(&r->json, &s))
		return text_error(r);
	e = read_dtype_name(r, t, &s, start);
	if (!e)
		e = expect(r, t, WFS_JSON_NULL, "entry-invalid", what);
	if (e)
		return e;
	if (!wfs_json_skip(&r->json) || !wfs_json_more(&r->json, &more))
		return text_error(r);
	return more ? entry_error(r, t, "entry-invalid", start, what) : 0;
}

static int read_dtype(struct reader *r, struct wfs_safetensors_tensor *t)
{
	struct wfs_json_string s;
	enum wfs_json_kind kind;
	size_t at;

	if (!wfs_json_peek(&r->json, &kind))
		return text_error(r);
	at = r->json.at;
	if (kind == WFS_JSON_OBJECT)
		return read_dtype_object(r, t);
	if (kind != WFS_JSON_STRING)
		return entry_error(r, t, "entry-invalid", at, "dtype is not a string");
	if (!wfs_json_string(&r->json, &s))
		return text_error(r);
	return read_dtype_name(r, t, &s, at);
}

static int read_shape(struct reader *r, struct wfs_safetensors_tensor *t)
{
	uint64_t dim;
	bool more;
	int e = expect(r, t, WFS_JSON_ARRAY, "shape-invalid", "shape is not an array");

	if (e)
		return e;
	t->shape_at = (uint32_t)r->json.at;
	t->ndim = 0;
	if (!wfs_json_enter(&r->json) || !wfs_json_more(&r->json, &more))
		return text_error(r);
	while (more) {
		e = read_u64(r, t, "shape-invalid", &dim);
		if (e)
			return e;
		t->ndim++;
		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
	}
	return 0;
}

static int read_offsets(struct reader *r, struct wfs_safetensors_tensor *t)
{
	static const char what[] = "data_offsets is not an array of two numbers";
	uint64_t *const ends[] = { &t->begin, &t->end };
	bool more;
	int e = expect(r, t, WFS_JSON_ARRAY, "offsets-invalid", what);

	if (!e && !wfs_json_enter(&r->json))
		return text_error(r);
	for (size_t i = 0; !e && i < WFS_ARRAY_SIZE(ends); i++) {
		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
		if (!more)
			return entry_error(r, t, "offsets-invalid", r->json.at - 1, what);
		e = read_u64(r, t, "offsets-invalid", ends[i]);
	}
	if (e)
		return e;
	if (!wfs_json_more(&r->json, &more))
		return text_error(r);
	return more ? entry_error(r, t, "offsets-invalid", r->json.at - 1, what) : 0;
}

static int read_field(struct reader *r, struct wfs_safetensors_tensor *t, enum field field)
{
	switch (field) {
	case FIELD_DTYPE:
		return read_dtype(r, t);
	case FIELD_SHAPE:
		return read_shape(r, t);
	default:
		return read_offsets(r, t);
	}
}

/* ---- entries ---- */

static int read_member(struct reader *r, struct wfs_safetensors_tensor *t, unsigned *seen)
{
	struct wfs_json_string key;
	unsigned field = 0;

	if (!wfs_json_key(&r->json, &key))
		return text_error(r);
	while (field < FIELD_COUNT && !wfs_json_string_is(&key, field_names[field]))
		field++;
	if (field == FIELD_COUNT) {
		r->st->warnings |= WFS_ST_WARN_UNKNOWN_KEY;
		return wfs_json_skip(&r->json) ? 0 : text_error(r);
	}
	if (*seen & 1u << field)
		return entry_error(r, t, "entry-duplicate-key",
			(size_t)(key.raw - r->json.text) - 1, field_names[field]);
	*seen |= 1u << field;
	return read_field(r, t, (enum field)field);
}

static int read_entry_object(struct reader *r, struct wfs_safetensors_tensor *t)
{
	unsigned seen = 0;
	bool more;

	for (;;) {
		int e;

		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
		if (!more)
			break;
		e = read_member(r, t, &seen);
		if (e)
			return e;
	}
	if (seen == (1u << FIELD_COUNT) - 1)
		return 0;
	return entry_error(r, t, "entry-invalid", r->json.at - 1,
		"dtype, shape or data_offsets is missing");
}

/* ["F32", [2], [0, 8]], which is how serde writes a struct without its names. */
static int read_entry_array(struct reader *r, struct wfs_safetensors_tensor *t)
{
	static const char what[] = "an array that is not dtype, shape, data_offsets";
	bool more;

	r->st->warnings |= WFS_ST_WARN_ENTRY_FORM;
	for (unsigned field = 0; field < FIELD_COUNT; field++) {
		int e;

		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
		if (!more)
			return entry_error(r, t, "entry-invalid", r->json.at - 1, what);
		e = read_field(r, t, (enum field)field);
		if (e)
			return e;
	}
	if (!wfs_json_more(&r->json, &more))
		return text_error(r);
	return more ? entry_error(r, t, "entry-invalid", r->json.at - 1, what) : 0;
}

static int read_entry(struct reader *r, const struct wfs_json_string *key)
{
	struct wfs_safetensors_tensor t = { .name = NULL };
	enum wfs_json_kind kind;
	struct wfs_text name;
	int e = take_text(r, key, &name);

	if (e)
		return e;
	t.name = name.at;
	t.name_len = (uint32_t)name.len;
	if (!wfs_json_peek(&r->json, &kind))
		return text_error(r);
	if (kind != WFS_JSON_OBJECT && kind != WFS_JSON_ARRAY)
		return entry_error(r, &t, "entry-invalid", r->json.at, "not an object");
	if (!wfs_json_enter(&r->json))
		return text_error(r);
	e = kind == WFS_JSON_OBJECT ? read_entry_object(r, &t) : read_entry_array(r, &t);
	return e ? e : store_tensor(r, &t);
}

/* ---- metadata ---- */

static int read_pair(struct reader *r)
{
	struct wfs_json_string raw_key, raw_value;
	struct wfs_text key, value;
	enum wfs_json_kind kind;
	int e;

	if (!wfs_json_key(&r->json, &raw_key) || !wfs_json_peek(&r->json, &kind))
		return text_error(r);
	if (kind != WFS_JSON_STRING)
		return metadata_error(r, "has a value that is not a string");
	if (!wfs_json_string(&r->json, &raw_value))
		return text_error(r);
	e = take_text(r, &raw_key, &key);
	if (!e)
		e = take_text(r, &raw_value, &value);
	return e ? e : store_meta(r, key, value);
}

static int read_pairs(struct reader *r)
{
	bool more;
	int e;

	r->st->has_meta = true;
	if (!wfs_json_enter(&r->json))
		return text_error(r);
	for (;;) {
		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
		if (!more)
			return 0;
		e = read_pair(r);
		if (e)
			return e;
	}
}

static int read_metadata(struct reader *r)
{
	enum wfs_json_kind kind;

	if (r->saw_metadata)
		return metadata_error(r, "is there twice");
	r->saw_metadata = true;
	if (!wfs_json_peek(&r->json, &kind))
		return text_error(r);
	if (kind == WFS_JSON_OBJECT)
		return read_pairs(r);
	if (kind != WFS_JSON_NULL)
		return metadata_error(r, "is not an object");
	r->st->warnings |= WFS_ST_WARN_NULL_METADATA;
	return wfs_json_skip(&r->json) ? 0 : text_error(r);
}

/* ---- the header ---- */

static int read_top(struct reader *r)
{
	enum wfs_json_kind kind;
	size_t at;

	if (!wfs_json_peek(&r->json, &kind))
		return text_error(r);
	at = r->json.at;
	if (at > 0)
		r->st->warnings |= WFS_ST_WARN_LEADING_SPACE;
	if (kind == WFS_JSON_OBJECT)
		return wfs_json_enter(&r->json) ? 0 : text_error(r);
	if (!wfs_json_skip(&r->json) && r->json.failure == WFS_JSON_BAD)
		return text_error(r);
	return wfs_err_set(r->err, -EBADMSG, "header-not-object", file_offset(at),
		"the header is JSON, but not an object");
}

static int read_end(struct reader *r)
{
	size_t at = r->json.at;

	if (!wfs_json_end(&r->json))
		return text_error(r);
	for (; at < r->json.len; at++)
		if (r->json.text[at] != ' ')
			r->st->warnings |= WFS_ST_WARN_PADDING;
	return 0;
}

static int read_all(struct reader *r)
{
	struct wfs_json_string key;
	bool more;
	int e = read_top(r);

	while (!e) {
		if (!wfs_json_more(&r->json, &more))
			return text_error(r);
		if (!more)
			return read_end(r);
		if (!wfs_json_key(&r->json, &key))
			return text_error(r);
		if (wfs_json_string_is(&key, METADATA_KEY))
			e = read_metadata(r);
		else
			e = read_entry(r, &key);
	}
	return e;
}

int wfs_st_read_header(struct wfs_safetensors *st, size_t len, bool whole, struct wfs_err *err)
{
	struct reader r = { .st = st, .err = err, .whole = whole };
	int e;

	wfs_json_init(&r.json, st->json, len);
	wfs_names_init(&r.tensor_names, tensor_text, st);
	wfs_names_init(&r.meta_keys, meta_text, st);
	e = read_all(&r);
	wfs_names_release(&r.tensor_names);
	wfs_names_release(&r.meta_keys);
	return e;
}
