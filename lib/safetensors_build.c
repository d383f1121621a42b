#include "lib/safetensors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/array.h"
#include "lib/safetensors_names.h"
#include "lib/safetensors_priv.h"

#define METADATA_KEY "__metadata__"

/* Text that grows. Once it failed, what is put to it is lost, so that only the
 * end needs to look. */
struct text {
	char *at; /* owned */
	size_t len;
	size_t max;
	int failure; /* 0, -ENOMEM, or -EFBIG: more than a header may hold */
};

/* ---- text ---- */

static void put_bytes(struct text *t, const char *bytes, size_t len)
{
	if (!t->failure && len > WFS_SAFETENSORS_MAX_HEADER + WFS_SAFETENSORS_PREFIX - t->len)
		t->failure = -EFBIG;
	if (!t->failure)
		t->failure = WFS_ARRAY_ROOM_FOR(len, t->at, t->len, t->max);
	if (t->failure || !len)
		return;
	memcpy(t->at + t->len, bytes, len);
	t->len += len;
}

static void put(struct text *t, const char *s)
{
	put_bytes(t, s, strlen(s));
}

static void put_u64(struct text *t, uint64_t v)
{
	char digits[24];

	put_bytes(t, digits,
		(size_t)snprintf(digits, sizeof(digits), "%llu", (unsigned long long)v));
}

/* As serde_json does: a short escape where JSON has one, else \u00XX. */
static void put_escape(struct text *t, unsigned char c)
{
	static const char from[] = "\"\\\b\f\n\r\t";
	static const char to[] = "\"\\bfnrt";
	const char *found = c ? strchr(from, c) : NULL;
	char escape[8];

	if (found)
		snprintf(escape, sizeof(escape), "\\%c", to[found - from]);
	else
		snprintf(escape, sizeof(escape), "\\u%04x", c);
	put(t, escape);
}

static void put_string(struct text *t, const char *s, size_t len)
{
	size_t done = 0;

	put(t, "\"");
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		if (c >= 0x20 && c != '"' && c != '\\')
			continue;
		put_bytes(t, s + done, i - done);
		put_escape(t, c);
		done = i + 1;
	}
	put_bytes(t, s + done, len - done);
	put(t, "\"");
}

static void put_metadata(struct text *t, const struct wfs_safetensors_meta *meta, size_t n)
{
	put(t, "\"" METADATA_KEY "\":{");
	for (size_t i = 0; i < n; i++) {
		put(t, i ? "," : "");
		put_string(t, meta[i].key, meta[i].key_len);
		put(t, ":");
		put_string(t, meta[i].value, meta[i].value_len);
	}
	put(t, "}");
}

static void put_entry(struct text *t, const struct wfs_safetensors_entry *e)
{
	put_string(t, e->name, e->name_len);
	put(t, ":{\"dtype\":\"");
	put(t, wfs_dtype_name(e->dtype));
	put(t, "\",\"shape\":[");
	for (uint32_t i = 0; i < e->ndim; i++) {
		put(t, i ? "," : "");
		put_u64(t, e->shape[i]);
	}
	put(t, "],\"data_offsets\":[");
	put_u64(t, e->begin);
	put(t, ",");
	put_u64(t, e->end);
	put(t, "]}");
}

static void put_header(struct text *t, const struct wfs_safetensors_entry *entries, size_t n,
	const struct wfs_safetensors_meta *meta, size_t n_meta)
{
	static const char length_later[WFS_SAFETENSORS_PREFIX];

	put_bytes(t, length_later, sizeof(length_later));
	put(t, "{");
	if (n_meta)
		put_metadata(t, meta, n_meta);
	for (size_t i = 0; i < n; i++) {
		put(t, i || n_meta ? "," : "");
		put_entry(t, &entries[i]);
	}
	put(t, "}");
	while (!t->failure && t->len % 8)
		put(t, " ");
}

static void set_length(struct text *t)
{
	uint64_t n = t->len - WFS_SAFETENSORS_PREFIX;

	for (unsigned i = 0; i < WFS_SAFETENSORS_PREFIX; i++)
		t->at[i] = (char)(n >> 8 * i & 0xff);
}

/* ---- what a header can say ---- */

static int check_text(const char *text, size_t len, struct wfs_err *err)
{
	if (wfs_utf8_check(text, len, NULL) == WFS_UTF8_VALID)
		return 0;
	return wfs_err_set(err, -EINVAL, "name-not-utf8", WFS_NO_OFFSET,
		"a name or a metadata text of %zu bytes is not UTF-8", len);
}

static struct wfs_text entry_text(const void *owner, uint32_t i)
{
	const struct wfs_safetensors_entry *entries = owner;

	return (struct wfs_text){ entries[i].name, entries[i].name_len };
}

static struct wfs_text key_text(const void *owner, uint32_t i)
{
	const struct wfs_safetensors_meta *meta = owner;

	return (struct wfs_text){ meta[i].key, meta[i].key_len };
}

/* All names of a table are UTF-8 and differ. */
static int check_names(size_t n, struct wfs_text (*text_of)(const void *owner, uint32_t i),
	const void *owner, struct wfs_err *err)
{
	struct wfs_names names;
	uint32_t at;
	int e = 0;

	wfs_names_init(&names, text_of, owner);
	for (uint32_t i = 0; !e && i < n; i++) {
		struct wfs_text text = text_of(owner, i);

		e = check_text(text.at, text.len, err);
		if (!e)
			e = wfs_names_add(&names, text, &at);
		if (e > 0)
			e = wfs_err_set(err, -EINVAL, "duplicate-name", WFS_NO_OFFSET,
				"'%.*s' is there twice", WFS_ST_SHOW(text.at, text.len));
	}
	wfs_names_release(&names);
	return e;
}

/* A tensor of that name would be read as metadata, and refused. */
static int check_reserved(const struct wfs_safetensors_entry *e, struct wfs_err *err)
{
	if (e->name_len != strlen(METADATA_KEY) || memcmp(e->name, METADATA_KEY, e->name_len) != 0)
		return 0;
	return wfs_err_set(err, -EINVAL, "duplicate-name", WFS_NO_OFFSET,
		"a tensor cannot have the name " METADATA_KEY);
}

/* More than any header can hold, said before anything of that size is allocated. */
static int check_counts(size_t n, size_t n_meta, struct wfs_err *err)
{
	if (n <= WFS_SAFETENSORS_MAX_HEADER / 40 && n_meta <= WFS_SAFETENSORS_MAX_HEADER / 6)
		return 0;
	return wfs_err_set(err, -EINVAL, "header-too-large", WFS_NO_OFFSET,
		"%zu tensors and %zu metadata texts do not fit a header", n, n_meta);
}

static int check_input(const struct wfs_safetensors_entry *entries, size_t n,
	const struct wfs_safetensors_meta *meta, size_t n_meta, struct wfs_err *err)
{
	int e = check_counts(n, n_meta, err);

	for (size_t i = 0; !e && i < n; i++)
		e = check_reserved(&entries[i], err);
	for (size_t i = 0; !e && i < n_meta; i++)
		e = check_text(meta[i].value, meta[i].value_len, err);
	if (!e)
		e = check_names(n, entry_text, entries, err);
	return e ? e : check_names(n_meta, key_text, meta, err);
}

/* ---- places ---- */

static int compare_entries(const void *left, const void *right)
{
	const struct wfs_safetensors_entry *a = left, *b = right;
	size_t common = WFS_MIN(a->name_len, b->name_len);
	int order;

	if (a->dtype != b->dtype)
		return a->dtype > b->dtype ? -1 : 1;
	order = common ? memcmp(a->name, b->name, common) : 0;
	if (order)
		return order;
	return a->name_len < b->name_len ? -1 : a->name_len > b->name_len;
}

static const char *find_bytes(const struct wfs_safetensors_entry *e, uint64_t *ret)
{
	struct wfs_st_size size = { 1, false };

	for (uint32_t i = 0; i < e->ndim; i++)
		wfs_st_size_times(&size, e->shape[i]);
	return wfs_st_size_bytes(&size, e->dtype, ret);
}

static int place(struct wfs_safetensors_entry *entries, size_t n, uint64_t *ret_end,
	struct wfs_err *err)
{
	uint64_t end = 0;

	for (size_t i = 0; i < n; i++) {
		struct wfs_safetensors_entry *e = &entries[i];
		uint64_t bytes;
		const char *reason = find_bytes(e, &bytes);

		e->begin = end;
		if (!reason && wfs_add_overflows(end, bytes, &end))
			reason = "shape-overflow";
		if (reason)
			return wfs_err_set(err, -EINVAL, reason, WFS_NO_OFFSET,
				"tensor '%.*s': a shape that %s cannot have",
				WFS_ST_SHOW(e->name, e->name_len), wfs_dtype_name(e->dtype));
		e->end = end;
	}
	*ret_end = end;
	return 0;
}

int wfs_safetensors_build(struct wfs_safetensors_entry *entries, size_t n,
	const struct wfs_safetensors_meta *meta, size_t n_meta, uint8_t **ret_buf, size_t *ret_len,
	uint64_t *ret_data_len, struct wfs_err *err)
{
	struct text t = { .at = NULL };
	uint64_t end = 0;
	int e = check_input(entries, n, meta, n_meta, err);

	if (e)
		return e;
	if (n)
		qsort(entries, n, sizeof(*entries), compare_entries);
	e = place(entries, n, &end, err);
	if (e)
		return e;
	put_header(&t, entries, n, meta, n_meta);
	if (t.failure) {
		free(t.at);
		return t.failure == -ENOMEM ? -ENOMEM :
			wfs_err_set(err, -EINVAL, "header-too-large", WFS_NO_OFFSET,
				"the header would be longer than 100000000 bytes");
	}
	set_length(&t);
	*ret_buf = (uint8_t *)t.at;
	*ret_len = t.len;
	*ret_data_len = end;
	return 0;
}
