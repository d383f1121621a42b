#include "lib/json_text.h"

#include <assert.h>
#include <string.h>

#define WORD_MAX 24
#define ONES UINT64_C(0x0101010101010101)
#define BYTES_PER_ESCAPE 6 /* \u0041 */

static bool fail(struct wfs_json *j, enum wfs_json_failure failure, size_t at, const char *why)
{
	j->failure = failure;
	j->at = at;
	j->why = why;
	return false;
}

static bool bad(struct wfs_json *j, size_t at, const char *why)
{
	return fail(j, WFS_JSON_BAD, at, why);
}

static bool cut(struct wfs_json *j)
{
	return fail(j, WFS_JSON_CUT, j->len, "the text ends too early");
}

void wfs_json_init(struct wfs_json *j, const char *text, size_t len)
{
	*j = (struct wfs_json){ .text = text, .len = len };
}

static void skip_space(struct wfs_json *j)
{
	while (j->at < j->len) {
		char c = j->text[j->at];

		if (c != ' ' && c != '\n' && c != '\t' && c != '\r')
			return;
		j->at++;
	}
}

/* ---- strings ---- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The four digits of \uXXXX, at j->at. */
static bool read_hex4(struct wfs_json *j, unsigned *ret)
{
	unsigned v = 0;

	for (int i = 0; i < 4; i++) {
		int digit;

		if (j->at == j->len)
			return cut(j);
		digit = hex_digit(j->text[j->at]);
		if (digit < 0)
			return bad(j, j->at, "an escape has a digit that is not hexadecimal");
		v = v << 4 | (unsigned)digit;
		j->at++;
	}
	*ret = v;
	return true;
}

static bool expect_in_escape(struct wfs_json *j, char c)
{
	if (j->at == j->len)
		return cut(j);
	if (j->text[j->at] != c)
		return bad(j, j->at, "a lone surrogate");
	j->at++;
	return true;
}

/* Behind "\u": one unit of UTF-16, or a pair of surrogates. */
static bool check_unicode_escape(struct wfs_json *j)
{
	size_t start = j->at;
	unsigned unit;

	if (!read_hex4(j, &unit))
		return false;
	if (unit >= 0xdc00 && unit <= 0xdfff)
		return bad(j, start, "a lone surrogate");
	if (unit < 0xd800 || unit > 0xdbff)
		return true;
	if (!expect_in_escape(j, '\\') || !expect_in_escape(j, 'u') || !read_hex4(j, &unit))
		return false;
	return (unit >= 0xdc00 && unit <= 0xdfff) || bad(j, start, "a lone surrogate");
}

/* At a backslash. */
static bool check_escape(struct wfs_json *j)
{
	j->at++;
	if (j->at == j->len)
		return cut(j);
	switch (j->text[j->at++]) {
	case '"':
	case '\\':
	case '/':
	case 'b':
	case 'f':
	case 'n':
	case 'r':
	case 't':
		return true;
	case 'u':
		return check_unicode_escape(j);
	default:
		return bad(j, j->at - 1, "an escape that JSON does not have");
	}
}

/* Some byte of the word is zero (the classic test, exact for "some"). */
static bool has_zero(uint64_t word)
{
	return (word - ONES) & ~word & ONES << 7;
}

/* Some byte of the word is a quote, a backslash or a control character. */
static bool has_special(uint64_t word)
{
	return has_zero(word ^ ONES * '"') || has_zero(word ^ ONES * '\\') ||
		((word - ONES * 0x20) & ~word & ONES << 7);
}

/* Where the run of characters that stand for themselves ends. */
static size_t plain_end(const struct wfs_json *j)
{
	size_t at = j->at;
	uint64_t word;

	for (; j->len - at >= sizeof(word); at += sizeof(word)) {
		memcpy(&word, j->text + at, sizeof(word));
		if (has_special(word))
			break;
	}
	while (at < j->len) {
		unsigned char c = (unsigned char)j->text[at];

		if (c < 0x20 || c == '"' || c == '\\')
			break;
		at++;
	}
	return at;
}

bool wfs_json_string(struct wfs_json *j, struct wfs_json_string *ret)
{
	size_t start = ++j->at;
	bool escaped = false;

	for (;;) {
		j->at = plain_end(j);
		if (j->at == j->len)
			return cut(j);
		if (j->text[j->at] == '"')
			break;
		if (j->text[j->at] != '\\')
			return bad(j, j->at, "a control character in a string");
		escaped = true;
		if (!check_escape(j))
			return false;
	}
	*ret = (struct wfs_json_string){ j->text + start, j->at - start, escaped };
	j->at++;
	return true;
}

static size_t put_utf8(char *out, unsigned c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

static unsigned hex4(const char *p)
{
	unsigned v = 0;

	for (int i = 0; i < 4; i++)
		v = v << 4 | (unsigned)hex_digit(p[i]);
	return v;
}

/* Write what the escape at p stands for; returns the bytes that it takes up. */
static size_t unescape_one(const char *p, char *out, size_t *out_len)
{
	static const char from[] = "bfnrt";
	static const char to[] = "\b\f\n\r\t";
	const char *found;
	unsigned c;

	if (p[1] != 'u') {
		found = strchr(from, p[1]);
		out[(*out_len)++] = found ? to[found - from] : p[1];
		return 2;
	}
	c = hex4(p + 2);
	if (c < 0xd800 || c > 0xdbff) {
		*out_len += put_utf8(out + *out_len, c);
		return BYTES_PER_ESCAPE;
	}
	c = 0x10000 + ((c - 0xd800) << 10) + (hex4(p + 2 + BYTES_PER_ESCAPE) - 0xdc00);
	*out_len += put_utf8(out + *out_len, c);
	return (size_t)2 * BYTES_PER_ESCAPE;
}

size_t wfs_json_unescape(const struct wfs_json_string *s, char *out)
{
	size_t n = 0;

	for (size_t i = 0; i < s->len;) {
		if (s->raw[i] == '\\')
			i += unescape_one(s->raw + i, out, &n);
		else
			out[n++] = s->raw[i++];
	}
	return n;
}

bool wfs_json_string_is(const struct wfs_json_string *s, const char *word)
{
	char plain[WORD_MAX * BYTES_PER_ESCAPE];
	size_t len = strlen(word);

	assert(len <= WORD_MAX);
	if (!s->escaped)
		return s->len == len && memcmp(s->raw, word, len) == 0;
	if (s->len > len * BYTES_PER_ESCAPE)
		return false;
	return wfs_json_unescape(s, plain) == len && memcmp(plain, word, len) == 0;
}

/* ---- values ---- */

bool wfs_json_peek(struct wfs_json *j, enum wfs_json_kind *ret)
{
	skip_space(j);
	if (j->at == j->len)
		return cut(j);
	switch (j->text[j->at]) {
	case 'n':
		*ret = WFS_JSON_NULL;
		return true;
	case 't':
	case 'f':
		*ret = WFS_JSON_BOOL;
		return true;
	case '"':
		*ret = WFS_JSON_STRING;
		return true;
	case '[':
		*ret = WFS_JSON_ARRAY;
		return true;
	case '{':
		*ret = WFS_JSON_OBJECT;
		return true;
	case '-':
	case '0' ... '9':
		*ret = WFS_JSON_NUMBER;
		return true;
	default:
		return bad(j, j->at, "not the beginning of a value");
	}
}

bool wfs_json_number(struct wfs_json *j, struct wfs_json_number *ret)
{
	j->failure = wfs_json_number_scan(j->text, j->len, &j->at, ret, &j->why);
	return j->failure == WFS_JSON_FINE;
}

static bool skip_word(struct wfs_json *j)
{
	char first = j->text[j->at];
	const char *word = first == 'n' ? "null" : first == 't' ? "true" : "false";

	for (const char *p = word; *p; p++) {
		if (j->at == j->len)
			return cut(j);
		if (j->text[j->at] != *p)
			return bad(j, j->at, "a word that JSON does not have");
		j->at++;
	}
	return true;
}

static bool in_object(const struct wfs_json *j)
{
	unsigned i = j->depth - 1;

	return j->objects[i / 64] >> i % 64 & 1;
}

bool wfs_json_enter(struct wfs_json *j)
{
	uint64_t bit = UINT64_C(1) << j->depth % 64;
	uint64_t *word = &j->objects[j->depth / 64];

	if (j->depth == WFS_JSON_MAX_DEPTH)
		return bad(j, j->at, "more than 127 levels deep");
	*word = j->text[j->at] == '{' ? *word | bit : *word & ~bit;
	j->at++;
	j->depth++;
	j->fresh = true;
	return true;
}

bool wfs_json_more(struct wfs_json *j, bool *ret)
{
	bool first = j->fresh;
	char close = in_object(j) ? '}' : ']';

	skip_space(j);
	if (j->at == j->len)
		return cut(j);
	j->fresh = false;
	*ret = j->text[j->at] != close;
	if (!*ret) {
		j->at++;
		j->depth--;
		return true;
	}
	if (first)
		return true;
	if (j->text[j->at] != ',')
		return bad(j, j->at, "neither a comma nor the end of its container");
	j->at++;
	return true;
}

bool wfs_json_key(struct wfs_json *j, struct wfs_json_string *ret)
{
	skip_space(j);
	if (j->at == j->len)
		return cut(j);
	if (j->text[j->at] != '"')
		return bad(j, j->at, "not a key");
	if (!wfs_json_string(j, ret))
		return false;
	skip_space(j);
	if (j->at == j->len)
		return cut(j);
	if (j->text[j->at] != ':')
		return bad(j, j->at, "no colon behind a key");
	j->at++;
	return true;
}

/* A scalar is passed, a container only entered. */
static bool skip_one(struct wfs_json *j)
{
	struct wfs_json_string s;
	struct wfs_json_number n;
	enum wfs_json_kind kind;

	if (!wfs_json_peek(j, &kind))
		return false;
	switch (kind) {
	case WFS_JSON_STRING:
		return wfs_json_string(j, &s);
	case WFS_JSON_NUMBER:
		return wfs_json_number(j, &n);
	case WFS_JSON_ARRAY:
	case WFS_JSON_OBJECT:
		return wfs_json_enter(j);
	default:
		return skip_word(j);
	}
}

bool wfs_json_skip(struct wfs_json *j)
{
	unsigned depth = j->depth;
	struct wfs_json_string key;
	bool more;

	if (!skip_one(j))
		return false;
	while (j->depth > depth) {
		if (!wfs_json_more(j, &more))
			return false;
		if (!more)
			continue;
		if (in_object(j) && !wfs_json_key(j, &key))
			return false;
		if (!skip_one(j))
			return false;
	}
	return true;
}

bool wfs_json_end(struct wfs_json *j)
{
	skip_space(j);
	return j->at == j->len || bad(j, j->at, "something follows the end");
}
