#include "lib/shard_index.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lib/array.h"
#include "lib/utf8.h"

#define MAX_FILE_NAME 255
#define SHOWN_MAX 64

/* The two arguments of "%.*s" for a text in a message. */
#define SHOW(text, len) (int)wfs_utf8_prefix((text), (len), SHOWN_MAX), (text)

/* A file beside the index, and nothing else. */
static bool is_file_name(const char *name, size_t len)
{
	return len > 0 && len <= MAX_FILE_NAME && !memchr(name, '/', len) &&
	       !memchr(name, '\0', len) && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* ---- parsing ---- */

struct bounds {
	uint32_t values;
	unsigned depth;
};

static int check_one(struct bounds *b, char c, size_t at, struct wfs_err *err)
{
	if (c == ',' || c == '[' || c == '{')
		b->values++;
	if (c == '[' || c == '{')
		b->depth++;
	else if ((c == ']' || c == '}') && b->depth > 0)
		b->depth--;
	if (b->depth > WFS_SHARD_INDEX_MAX_DEPTH)
		return wfs_err_set(err, -EBADMSG, "index-too-deep", at,
			"the index is more than %d levels deep", WFS_SHARD_INDEX_MAX_DEPTH);
	if (b->values > WFS_SHARD_INDEX_MAX_VALUES)
		return wfs_err_set(err, -EBADMSG, "index-too-many", at,
			"the index has more than %u values", WFS_SHARD_INDEX_MAX_VALUES);
	return 0;
}

/* Three bytes of text can cost jansson some hundred of memory, so values are counted first. */
static int check_bounds(const char *text, size_t len, struct wfs_err *err)
{
	struct bounds b = {0, 0};
	bool quoted = false;
	int e = 0;

	if (len > WFS_SHARD_INDEX_MAX_TEXT)
		return wfs_err_set(err, -EBADMSG, "index-too-large", WFS_NO_OFFSET,
			"the index has %zu bytes, more than 64 MiB", len);
	for (size_t i = 0; !e && i < len; i++) {
		if (text[i] == '"')
			quoted = !quoted;
		else if (quoted)
			i += text[i] == '\\';
		else
			e = check_one(&b, text[i], i, err);
	}
	return e;
}

static int load_error(const json_error_t *error, struct wfs_err *err)
{
	enum json_error_code code = json_error_code(error);
	uint64_t at = error->position < 0 ? WFS_NO_OFFSET : (uint64_t)error->position;

	/* Where jansson itself runs out of memory, it mostly says nothing. */
	if (code == json_error_out_of_memory || !*error->text)
		return -ENOMEM;
	if (code == json_error_null_byte_in_key)
		return wfs_err_set(
			err, -EBADMSG, "index-tensor-name", at, "a key of the index holds NUL");
	return wfs_err_set(
		err, -EBADMSG, "index-not-json", at, "the index is not JSON: %s", error->text);
}

static int load(const char *text, size_t len, json_t **ret, struct wfs_err *err)
{
	json_error_t error;
	int e = check_bounds(text, len, err);
	const char *nul = len ? memchr(text, '\0', len) : NULL;

	if (e)
		return e;
	if (nul) /* jansson passes over one that follows a number */
		return wfs_err_set(err, -EBADMSG, "index-not-json", (uint64_t)(nul - text),
			"the index is not JSON: it holds NUL");
	*ret = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
	if (!*ret)
		return load_error(&error, err);
	if (json_is_object(*ret))
		return 0;
	return wfs_err_set(err, -EBADMSG, "index-not-object", WFS_NO_OFFSET,
		"the index is JSON, but not an object");
}

static int take_entry(
	const char *tensor, const json_t *shard, struct wfs_index_entry *ret, struct wfs_err *err)
{
	size_t len = strlen(tensor);

	if (!json_is_string(shard) ||
		!is_file_name(json_string_value(shard), json_string_length(shard)))
		return wfs_err_set(err, -EBADMSG, "index-shard-name", WFS_NO_OFFSET,
			"tensor '%.*s': its shard is not a file name", SHOW(tensor, len));
	*ret = (struct wfs_index_entry){tensor, len, json_string_value(shard)};
	return 0;
}

static int take_map(json_t *map, struct wfs_shard_index *index, struct wfs_err *err)
{
	int e = 0;

	if (!json_is_object(map))
		return wfs_err_set(err, -EBADMSG, "index-weight-map", WFS_NO_OFFSET,
			"the index has no weight_map, or it is not an object");
	if (json_object_size(map) == 0)
		return 0;
	index->entries = calloc(json_object_size(map), sizeof(*index->entries));
	if (!index->entries)
		return -ENOMEM;
	for (void *i = json_object_iter(map); !e && i; i = json_object_iter_next(map, i)) {
		e = take_entry(json_object_iter_key(i), json_object_iter_value(i),
			&index->entries[index->n], err);
		index->n += !e;
	}
	return e;
}

int wfs_shard_index_parse(
	const char *text, size_t len, struct wfs_shard_index *ret, struct wfs_err *err)
{
	struct wfs_shard_index index = {.root = NULL};
	json_t *metadata;
	int e = load(text, len, &index.root, err);

	if (!e)
		e = take_map(json_object_get(index.root, "weight_map"), &index, err);
	if (e) {
		wfs_shard_index_release(&index);
		return e;
	}
	metadata = json_object_get(index.root, "metadata");
	index.has_metadata = metadata != NULL;
	index.metadata = json_is_object(metadata) ? metadata : NULL;
	*ret = index;
	return 0;
}

void wfs_shard_index_release(struct wfs_shard_index *index)
{
	free(index->entries);
	json_decref(index->root);
	*index = (struct wfs_shard_index){.root = NULL};
}

/* ---- text ---- */

/* Text that grows, always with room for a NUL. Once it failed, what is put to it is lost. */
struct text {
	char *at; /* owned */
	size_t len;
	size_t max;
	int failure; /* 0, -ENOMEM, or -EINVAL: not UTF-8 */
};

static void put_bytes(struct text *t, const char *bytes, size_t len)
{
	if (!t->failure)
		t->failure = WFS_ARRAY_ROOM_FOR(len + 1, t->at, t->len, t->max);
	if (t->failure)
		return;
	memcpy(t->at + t->len, bytes, len);
	t->len += len;
}

static void put(struct text *t, const char *s)
{
	put_bytes(t, s, strlen(s));
}

static void put_line(struct text *t, unsigned depth)
{
	put(t, "\n");
	for (unsigned i = 0; i < depth; i++)
		put(t, "  ");
}

/* ---- strings ---- */

static void put_unit(struct text *t, unsigned unit)
{
	static const char hex[] = "0123456789abcdef";
	const char escape[] = {'\\', 'u', hex[unit >> 12], hex[unit >> 8 & 15], hex[unit >> 4 & 15],
		hex[unit & 15]};

	put_bytes(t, escape, sizeof(escape));
}

static void put_escape(struct text *t, unsigned c)
{
	static const char from[] = "\"\\\b\f\n\r\t";
	static const char to[] = "\"\\bfnrt";
	const char *found = c && c < 0x80 ? strchr(from, (int)c) : NULL;

	if (found) {
		put_bytes(t, (const char[]){'\\', to[found - from]}, 2);
	} else if (c < 0x10000) {
		put_unit(t, c);
	} else {
		put_unit(t, 0xd800 + ((c - 0x10000) >> 10));
		put_unit(t, 0xdc00 + ((c - 0x10000) & 0x3ff));
	}
}

/* The character at s, which is valid UTF-8; *at moves behind it. */
static unsigned take_char(const char *s, size_t *at)
{
	unsigned c = (unsigned char)s[(*at)++];
	unsigned more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0;

	if (more)
		c &= 0x3fu >> more;
	for (; more; more--)
		c = c << 6 | ((unsigned char)s[(*at)++] & 0x3fu);
	return c;
}

static bool is_plain(char c)
{
	return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

static void put_string(struct text *t, const char *s, size_t len)
{
	size_t start, at = 0;

	if (wfs_utf8_check(s, len, NULL) != WFS_UTF8_VALID) {
		t->failure = t->failure ? t->failure : -EINVAL;
		return;
	}
	put(t, "\"");
	while (at < len) {
		for (start = at; at < len && is_plain(s[at]); at++)
			;
		put_bytes(t, s + start, at - start);
		if (at < len)
			put_escape(t, take_char(s, &at));
	}
	put(t, "\"");
}

/* ---- reals, as Python's repr() writes them ---- */

#define MAX_DIGITS 17 /* that many give every double back */

struct decimal {
	char digits[MAX_DIGITS + 1]; /* the first is not '0' */
	int n;
	int point; /* digits before the decimal point; may be negative */
};

/* `v`, finite as all reals of jansson, rounded to n digits. The decimal point of a locale is passed
 * over. */
static void round_to(double v, int n, struct decimal *ret)
{
	char text[48];
	const char *p = text;

	snprintf(text, sizeof(text), "%.*e", n - 1, v);
	ret->n = 0;
	for (; *p != 'e'; p++)
		if (*p >= '0' && *p <= '9')
			ret->digits[ret->n++] = *p;
	ret->digits[n] = '\0';
	ret->point = atoi(p + 1) + 1;
}

static bool reads_back(const struct decimal *d, double v)
{
	char text[48];

	snprintf(text, sizeof(text), "%se%d", d->digits, d->point - d->n);
	return strtod(text, NULL) == v;
}

/* The next larger one of n digits. False if that has fewer, and was tried before. */
static bool round_up(struct decimal *d)
{
	int i = d->n - 1;

	while (i >= 0 && d->digits[i] == '9')
		i--;
	if (i < 0)
		return false;
	d->digits[i]++;
	memset(d->digits + i + 1, '0', (size_t)(d->n - i - 1));
	return true;
}

/* The doubles below a power of two are closer than those above it: what lies nearest among n
 * digits may be another double, and the next larger one still this. */
static void find_shortest(double v, struct decimal *ret)
{
	for (int n = 1; n <= MAX_DIGITS; n++) {
		round_to(v, n, ret);
		if (reads_back(ret, v) || (round_up(ret) && reads_back(ret, v)))
			return;
	}
}

static void put_zeros(struct text *t, int n)
{
	for (; n > 0; n--)
		put(t, "0");
}

static void put_exponent(struct text *t, const struct decimal *d)
{
	char exponent[16];

	put_bytes(t, d->digits, 1);
	put(t, d->n > 1 ? "." : "");
	put(t, d->digits + 1);
	snprintf(exponent, sizeof(exponent), "e%+03d", d->point - 1);
	put(t, exponent);
}

static void put_fixed(struct text *t, const struct decimal *d)
{
	int whole = WFS_MAX(0, WFS_MIN(d->point, d->n));

	if (d->point <= 0)
		put(t, "0");
	put_bytes(t, d->digits, (size_t)whole);
	put_zeros(t, d->point - d->n);
	put(t, ".");
	put_zeros(t, -d->point);
	put(t, whole < d->n ? d->digits + whole : "0");
}

static void put_real(struct text *t, double v)
{
	struct decimal d = {.digits = "0", .n = 1, .point = 1};

	if (__builtin_signbit(v))
		put(t, "-");
	if (v != 0)
		find_shortest(v < 0 ? -v : v, &d);
	if (d.point > 16 || d.point <= -4)
		put_exponent(t, &d);
	else
		put_fixed(t, &d);
}

/* ---- metadata ---- */

/* The text itself is a container, too. */
#define MAX_LEVELS (WFS_SHARD_INDEX_MAX_DEPTH - 1)

struct pair {
	const char *key;
	size_t len;
	const json_t *value;
};

/* A container that is being written. */
struct level {
	const json_t *array; /* or, for an object: */
	struct pair *pairs;  /* owned, sorted */
	size_t n;
	size_t at; /* next element */
};

/* By code point: the order of UTF-8's bytes is the same. */
static int compare_texts(const char *a, size_t a_len, const char *b, size_t b_len)
{
	size_t common = WFS_MIN(a_len, b_len);
	int order = common ? memcmp(a, b, common) : 0;

	if (order)
		return order;
	return a_len < b_len ? -1 : a_len > b_len;
}

static int compare_pairs(const void *left, const void *right)
{
	const struct pair *a = left, *b = right;

	return compare_texts(a->key, a->len, b->key, b->len);
}

static int sort_pairs(const json_t *object, struct level *ret)
{
	json_t *o = (json_t *)object; /* jansson's iterators want it so; nothing is changed */
	size_t n = 0;

	ret->pairs = calloc(ret->n, sizeof(*ret->pairs));
	if (!ret->pairs)
		return -ENOMEM;
	for (void *i = json_object_iter(o); i; i = json_object_iter_next(o, i)) {
		const char *key = json_object_iter_key(i);

		ret->pairs[n++] = (struct pair){key, strlen(key), json_object_iter_value(i)};
	}
	qsort(ret->pairs, n, sizeof(*ret->pairs), compare_pairs);
	return 0;
}

static void put_scalar(struct text *t, const json_t *v)
{
	char digits[32];

	switch (json_typeof(v)) {
	case JSON_STRING:
		put_string(t, json_string_value(v), json_string_length(v));
		return;
	case JSON_INTEGER:
		snprintf(digits, sizeof(digits), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
		put(t, digits);
		return;
	case JSON_REAL:
		put_real(t, json_real_value(v));
		return;
	default:
		put(t, json_is_true(v) ? "true" : json_is_false(v) ? "false" : "null");
	}
}

/* Write a scalar or an empty container; of any other container its beginning, which is then
 * stack[*depth - 1]. */
static int begin_value(
	struct text *t, const json_t *v, struct level *stack, unsigned *depth, struct wfs_err *err)
{
	bool is_object = json_is_object(v);
	size_t n = is_object ? json_object_size(v) : json_array_size(v);
	struct level *level = &stack[*depth];

	if (!is_object && !json_is_array(v)) {
		put_scalar(t, v);
		return 0;
	}
	if (*depth == MAX_LEVELS)
		return wfs_err_set(err, -EINVAL, "index-too-deep", WFS_NO_OFFSET,
			"the metadata is too many levels deep");
	if (n == 0) {
		put(t, is_object ? "{}" : "[]");
		return 0;
	}
	put(t, is_object ? "{" : "[");
	*level = (struct level){.array = v, .n = n};
	++*depth;
	return is_object ? sort_pairs(v, level) : 0;
}

/* What stands before the next element of a container, and the element. */
static const json_t *next_element(struct text *t, struct level *level, unsigned indent)
{
	const struct pair *pair = level->pairs ? &level->pairs[level->at] : NULL;

	put(t, level->at ? "," : "");
	put_line(t, indent);
	if (!pair)
		return json_array_get(level->array, level->at++);
	put_string(t, pair->key, pair->len);
	put(t, ": ");
	level->at++;
	return pair->value;
}

static void end_container(struct text *t, struct level *level, unsigned indent)
{
	put_line(t, indent);
	put(t, level->pairs ? "}" : "]");
	free(level->pairs);
}

/* The metadata is one level below the text's own. */
static int put_metadata(struct text *t, const json_t *metadata, struct wfs_err *err)
{
	struct level stack[MAX_LEVELS];
	unsigned depth = 0;
	int e;

	put_line(t, 1);
	put(t, "\"metadata\": ");
	e = begin_value(t, metadata, stack, &depth, err);
	while (depth > 0) {
		struct level *level = &stack[depth - 1];

		if (e || level->at == level->n) {
			end_container(t, level, depth);
			depth--;
		} else {
			e = begin_value(t, next_element(t, level, depth + 1), stack, &depth, err);
		}
	}
	put(t, ",");
	return e;
}

int wfs_shard_index_totals(
	const json_t *other, uint64_t total_parameters, uint64_t total_size, json_t **ret)
{
	json_t *made;

	if (other && !json_is_object(other))
		return -EINVAL;
	if (total_parameters > INT64_MAX || total_size > INT64_MAX)
		return -EOVERFLOW;
	made = other ? json_copy((json_t *)other) : json_object();
	if (!made)
		return -ENOMEM;
	if (json_object_set_new(
		    made, "total_parameters", json_integer((json_int_t)total_parameters)) != 0 ||
		json_object_set_new(made, "total_size", json_integer((json_int_t)total_size)) !=
			0) {
		json_decref(made);
		return -ENOMEM;
	}
	*ret = made;
	return 0;
}

/* ---- the map ---- */

static int compare_entries(const void *left, const void *right)
{
	const struct wfs_index_entry *a = *(const struct wfs_index_entry *const *)left;
	const struct wfs_index_entry *b = *(const struct wfs_index_entry *const *)right;

	return compare_texts(a->tensor, a->tensor_len, b->tensor, b->tensor_len);
}

static int check_entries(const struct wfs_index_entry *const *sorted, size_t n, struct wfs_err *err)
{
	for (size_t i = 0; i < n; i++) {
		const struct wfs_index_entry *e = sorted[i];

		if (!is_file_name(e->shard, strlen(e->shard)))
			return wfs_err_set(err, -EINVAL, "index-shard-name", WFS_NO_OFFSET,
				"tensor '%.*s': its shard is not a file name",
				SHOW(e->tensor, e->tensor_len));
		if (i > 0 && compare_entries(&sorted[i - 1], &sorted[i]) == 0)
			return wfs_err_set(err, -EINVAL, "index-duplicate", WFS_NO_OFFSET,
				"tensor '%.*s' is there twice", SHOW(e->tensor, e->tensor_len));
	}
	return 0;
}

/* *ret (free it) points to the entries in the order of their names. */
static int sort_entries(const struct wfs_index_entry *entries, size_t n,
	const struct wfs_index_entry ***ret, struct wfs_err *err)
{
	const struct wfs_index_entry **sorted = reallocarray(NULL, n + !n, sizeof(*sorted));

	*ret = sorted;
	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		sorted[i] = &entries[i];
	qsort(sorted, n, sizeof(*sorted), compare_entries);
	return check_entries(sorted, n, err);
}

static void put_map(struct text *t, const struct wfs_index_entry *const *sorted, size_t n)
{
	put_line(t, 1);
	put(t, "\"weight_map\": {");
	for (size_t i = 0; i < n; i++) {
		put(t, i ? "," : "");
		put_line(t, 2);
		put_string(t, sorted[i]->tensor, sorted[i]->tensor_len);
		put(t, ": ");
		put_string(t, sorted[i]->shard, strlen(sorted[i]->shard));
	}
	if (n)
		put_line(t, 1);
	put(t, "}");
}

static int put_index(struct text *t, const struct wfs_index_entry *const *sorted, size_t n,
	const json_t *metadata, struct wfs_err *err)
{
	int e = 0;

	put(t, "{");
	if (metadata)
		e = put_metadata(t, metadata, err);
	put_map(t, sorted, n);
	put(t, "\n}\n");
	if (e || t->failure != -EINVAL)
		return e ? e : t->failure;
	return wfs_err_set(err, -EINVAL, "index-not-utf8", WFS_NO_OFFSET,
		"a name or a metadata text is not UTF-8");
}

int wfs_shard_index_build(const struct wfs_index_entry *entries, size_t n, const json_t *metadata,
	char **ret, size_t *ret_len, struct wfs_err *err)
{
	WFS_AUTO_FREE const struct wfs_index_entry **sorted = NULL;
	struct text t = {.at = NULL};
	int e;

	if (metadata && !json_is_object(metadata))
		return wfs_err_set(err, -EINVAL, "index-metadata", WFS_NO_OFFSET,
			"the metadata is not an object");
	e = sort_entries(entries, n, &sorted, err);
	if (!e)
		e = put_index(&t, sorted, n, metadata, err);
	if (e) {
		free(t.at);
		return e;
	}
	t.at[t.len] = '\0';
	*ret = t.at;
	*ret_len = t.len;
	return 0;
}
