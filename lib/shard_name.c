#include "lib/shard_name.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TENSORS ".safetensors"
#define INDEX ".safetensors.index"
#define JSON ".json"
#define MIN_DIGITS 5

/* ---- building ---- */

static int check_parts(const char *base, const char *variant)
{
	if (!*base || strchr(base, '/') || (variant && strchr(variant, '/')))
		return -EINVAL;
	return 0;
}

/* `len` is what snprintf returned for buf[size]. */
static int check_length(char *buf, size_t size, int len)
{
	if (len >= 0 && (size_t)len < WFS_MIN(size, (size_t)WFS_SHARD_NAME_SIZE))
		return 0;
	if (size)
		*buf = '\0';
	return -ENAMETOOLONG;
}

int wfs_shard_name(char *buf, size_t size, const char *base, const char *variant, uint32_t number,
	uint32_t count)
{
	const char *dot = variant ? "." : "";
	int len;

	if (number > count || check_parts(base, variant))
		return -EINVAL;
	variant = variant ? variant : "";
	if (count)
		len = snprintf(buf, size, "%s%s%s-%05u-of-%05u" TENSORS, base, dot, variant, number,
			count);
	else
		len = snprintf(buf, size, "%s%s%s" TENSORS, base, dot, variant);
	return check_length(buf, size, len);
}

int wfs_shard_index_name(char *buf, size_t size, const char *base, const char *variant)
{
	int len;

	if (check_parts(base, variant))
		return -EINVAL;
	len = snprintf(buf, size, "%s" INDEX "%s%s" JSON, base, variant ? "." : "",
		variant ? variant : "");
	return check_length(buf, size, len);
}

/* ---- parsing ---- */

/* The readers below work backwards: *end is the end of the text, and what was read is cut off. */

static bool cut_word(const char *text, size_t *end, const char *word)
{
	size_t len = strlen(word);

	if (*end < len || memcmp(text + *end - len, word, len) != 0)
		return false;
	*end -= len;
	return true;
}

static bool cut_number(const char *text, size_t *end, uint32_t *ret)
{
	size_t at = *end;
	uint64_t v = 0;

	while (at > 0 && text[at - 1] >= '0' && text[at - 1] <= '9')
		at--;
	if (*end - at < MIN_DIGITS)
		return false;
	for (size_t i = at; i < *end; i++) {
		v = v * 10 + (uint64_t)(text[i] - '0');
		if (v > UINT32_MAX)
			return false;
	}
	*end = at;
	*ret = (uint32_t)v;
	return true;
}

/* "-00001-of-00003", or nothing. */
static void cut_numbers(const char *text, size_t *end, struct wfs_shard_name *n)
{
	uint32_t number, count;
	size_t at = *end;

	if (!cut_number(text, &at, &count) || !cut_word(text, &at, "-of-") ||
		!cut_number(text, &at, &number) || !cut_word(text, &at, "-"))
		return;
	if (count == 0 || number > count)
		return;
	n->number = number;
	n->count = count;
	*end = at;
}

static void take(char *to, const char *text, size_t len)
{
	memcpy(to, text, len);
	to[len] = '\0';
}

static void take_variant(struct wfs_shard_name *n, const char *text, size_t len)
{
	n->has_variant = true;
	take(n->variant, text, len);
}

static bool parse_tensors(const char *name, size_t len, struct wfs_shard_name *n)
{
	const char *dot;
	size_t base;

	if (!cut_word(name, &len, TENSORS))
		return false;
	cut_numbers(name, &len, n);
	dot = memchr(name, '.', len);
	base = dot ? (size_t)(dot - name) : len;
	if (dot)
		take_variant(n, dot + 1, len - base - 1);
	take(n->base, name, base);
	return base > 0;
}

static bool parse_index(const char *name, size_t len, struct wfs_shard_name *n)
{
	const char *word = strstr(name, INDEX);
	size_t base, at;

	if (!word || word == name || !cut_word(name, &len, JSON))
		return false;
	base = (size_t)(word - name);
	at = base + strlen(INDEX);
	if (at > len || (at < len && name[at] != '.'))
		return false;
	if (at < len)
		take_variant(n, name + at + 1, len - at - 1);
	take(n->base, name, base);
	n->is_index = true;
	return true;
}

bool wfs_shard_name_parse(const char *name, struct wfs_shard_name *ret)
{
	struct wfs_shard_name n = {.number = 0};
	size_t len = strnlen(name, WFS_SHARD_NAME_SIZE);

	if (len == WFS_SHARD_NAME_SIZE || memchr(name, '/', len))
		return false;
	if (!parse_tensors(name, len, &n) && !parse_index(name, len, &n))
		return false;
	*ret = n;
	return true;
}

static void stem(char ret[2 * WFS_SHARD_NAME_SIZE], const char *base, const char *variant)
{
	snprintf(ret, (size_t)2 * WFS_SHARD_NAME_SIZE, "%s%s%s", base, variant ? "." : "", variant ? variant : "");
}

bool wfs_shard_name_is_of(const struct wfs_shard_name *name, const char *base, const char *variant)
{
	const char *has = name->has_variant ? name->variant : NULL;
	char a[2 * WFS_SHARD_NAME_SIZE], b[2 * WFS_SHARD_NAME_SIZE];

	if (name->is_index)
		return strcmp(name->base, base) == 0 && wfs_is_same_text(has, variant);
	stem(a, name->base, has);
	stem(b, base, variant);
	return strcmp(a, b) == 0;
}
