#include "lib/utf8.h"

#include <string.h>

#define HIGH_BITS UINT64_C(0x8080808080808080)

static size_t skip_ascii(const unsigned char *p, size_t at, size_t len)
{
	uint64_t word;

	for (; len - at >= sizeof(word); at += sizeof(word)) {
		memcpy(&word, p + at, sizeof(word));
		if (word & HIGH_BITS)
			break;
	}
	while (at < len && p[at] < 0x80)
		at++;
	return at;
}

/* Bytes of the character that begins with c >= 0x80, and the range that its
 * second byte must lie in (the Unicode standard, table 3-7); 0 if none does. */
static size_t lead_byte(unsigned char c, unsigned char *ret_low, unsigned char *ret_high)
{
	*ret_low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
	*ret_high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
	if (c >= 0xc2 && c <= 0xdf)
		return 2;
	if (c >= 0xe0 && c <= 0xef)
		return 3;
	if (c >= 0xf0 && c <= 0xf4)
		return 4;
	return 0;
}

static enum wfs_utf8 check_one(const unsigned char *p, size_t len, size_t *ret_bytes)
{
	unsigned char low, high;
	size_t n = lead_byte(p[0], &low, &high);

	if (n == 0)
		return WFS_UTF8_INVALID;
	for (size_t i = 1; i < n; i++) {
		if (i == len)
			return WFS_UTF8_CUT;
		if (p[i] < (i == 1 ? low : 0x80) || p[i] > (i == 1 ? high : 0xbf))
			return WFS_UTF8_INVALID;
	}
	*ret_bytes = n;
	return WFS_UTF8_VALID;
}

enum wfs_utf8 wfs_utf8_check(const char *text, size_t len, size_t *ret_at)
{
	const unsigned char *p = (const unsigned char *)text;
	enum wfs_utf8 verdict = WFS_UTF8_VALID;
	size_t at = skip_ascii(p, 0, len);
	size_t n;

	while (at < len) {
		verdict = check_one(p + at, len - at, &n);
		if (verdict != WFS_UTF8_VALID)
			break;
		at = skip_ascii(p, at + n, len);
	}
	if (ret_at)
		*ret_at = at;
	return verdict;
}

size_t wfs_utf8_prefix(const char *text, size_t len, size_t max)
{
	if (len <= max)
		return len;
	while (max > 0 && ((unsigned char)text[max] & 0xc0) == 0x80)
		max--;
	return max;
}
